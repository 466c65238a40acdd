//! The loop that `sft` and `pretrain` share: measure, train with logs and checkpoints, measure again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use mloc_burn::{
    batch::Batch,
    export::{self, Storage},
    formats::{
        chat_template::{Conversation, RenderOptions},
        dataset::{self, LoadOptions, PromptTemplate, Row, TokenizeOptions, TokenizedExample},
        tokenizer::TextTokenizer,
    },
    generate::{self, Limits, Sampling},
    loss_scale::LossScale,
    model::{Compute, Decoder},
    optim::AdamWSettings,
    schedule::{Schedule, ScheduleKind},
    train::{self, TrainError, TrainSettings, Trainer},
    weights::WeightsError,
};
use mloc_core::{
    task::{
        settings::{self, Save, Training},
        spec::{Dataset, Location},
        split,
    },
    wire::{Phase, Progress},
};
use mloc_exec::{ModuleError, ModuleOutput, Output, RunContext, checkpoint::Checkpoint, failpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    fatal,
    origin::Origin,
    plan::Plan,
    training_log::{self, TrainingLog},
    unless_stopping,
};

/// What was there before the first step, in each checkpoint: a resumed run must not measure it on trained weights, and
/// must not go on with other data.
const BEFORE: &str = "before.json";
/// What templates print as today, so that a resumed run sees the same text: 2024-07-26, the reference's default date.
const TEMPLATE_NOW_UNIX: i64 = 1_721_952_000;

/// The folder of the merged model among the artifacts.
const MERGED: &str = "merged_model";
/// The file of what was measured.
const EVAL_FILE: &str = "eval_results.json";

/// When something is measured, for people.
const BEFORE_TRAINING: &str = "before training";
const AFTER_TRAINING: &str = "after training";

/// Data in tokens.
pub struct Data {
    /// What is trained on.
    pub train: Vec<TokenizedExample>,
    /// What is measured on; empty without held-out data.
    pub eval: Vec<TokenizedExample>,
    /// What padding is filled with.
    pub pad_id: i64,
}

/// How the rows of the task's data are read.
///
/// # Errors
/// A prompt template that is none.
pub fn load_options(dataset: Option<&Dataset>) -> Result<LoadOptions, ModuleError> {
    let template = dataset.and_then(|d| d.prompt_template.as_deref());
    let prompt_template = template.map(PromptTemplate::parse).transpose().map_err(fatal)?.flatten();
    let split = dataset.and_then(|d| d.source.split()).map(parts_of).transpose()?;
    Ok(LoadOptions { split, prompt_template })
}

/// A split as a task names it.
fn parts_of(text: &str) -> Result<Vec<dataset::Part>, ModuleError> {
    let parts = split::parse(text).map_err(fatal)?;
    let slice = |s: split::Slice| dataset::Slice { from: s.from, to: s.to, percent: s.percent };
    Ok(parts.into_iter().map(|part| dataset::Part { name: part.name, slice: part.slice.map(slice) }).collect())
}

/// The rows of what was pulled to train on, as they are.
///
/// # Errors
/// The data's own errors, with file and line, and that it was asked to stop.
pub fn training_rows(ctx: &mut RunContext) -> Result<Vec<Row>, ModuleError> {
    let missing = || ModuleError::Fatal("dataset.source was not pulled".to_owned());
    let path = ctx.run().inputs.dataset.clone().ok_or_else(missing)?;
    let options = load_options(ctx.run().spec.dataset.as_ref())?;
    load_rows(ctx, &path, "training", &options)
}

fn load_rows(ctx: &mut RunContext, path: &Path, what: &str, options: &LoadOptions) -> Result<Vec<Row>, ModuleError> {
    let loaded = dataset::load(path, options, &|| ctx.stopping());
    let rows = loaded.map_err(|e| unless_stopping(ctx, e))?;
    let format = match options.prompt_template {
        Some(_) => "the text that prompt_template makes of its columns".to_owned(),
        None => {
            let forms: BTreeSet<&str> = rows.iter().map(|row| row.example.form()).collect();
            format!("its own format ({})", forms.into_iter().collect::<Vec<_>>().join("; "))
        }
    };
    ctx.log(format!("{what} data: {} rows, read as {format}", rows.len()));
    Ok(rows)
}

/// Tokenizes the rows to train on; reads and tokenizes held-out data.
///
/// # Errors
/// The data's own errors, with file and line, and that it was asked to stop.
pub fn data(
    ctx: &mut RunContext,
    rows: &[Row],
    tokenizer: &TextTokenizer,
    settings: &Training,
) -> Result<Data, ModuleError> {
    let train = tokenize(ctx, rows, "training", tokenizer, settings)?;
    let eval = match ctx.run().inputs.eval.clone() {
        Some(path) => {
            let dataset = ctx.run().spec.dataset.as_ref();
            let split = dataset.and_then(|d| d.eval.as_ref()).and_then(Location::split).map(parts_of).transpose()?;
            let options = LoadOptions { split, ..load_options(dataset)? };
            let rows = load_rows(ctx, &path, "held-out", &options)?;
            tokenize(ctx, &rows, "held-out", tokenizer, settings)?
        }
        None => Vec::new(),
    };
    Ok(Data { train, eval, pad_id: tokenizer.pad_id().map_or(0, i64::from) })
}

fn tokenize(
    ctx: &mut RunContext,
    rows: &[Row],
    what: &str,
    tokenizer: &TextTokenizer,
    settings: &Training,
) -> Result<Vec<TokenizedExample>, ModuleError> {
    let options = TokenizeOptions {
        max_length: settings.max_length,
        completion_only: settings.completion_only_loss,
        now_unix: TEMPLATE_NOW_UNIX,
    };
    let tokenized = dataset::tokenize_all(rows, tokenizer, options, &|| ctx.stopping());
    let mut tokens = tokenized.map_err(|e| unless_stopping(ctx, e))?;
    let all = tokens.examples.len();
    // A step of nothing but them would have no loss: 0 in the log, as if all had been learnt.
    tokens.examples.retain(|example| example.num_targets() > 0);
    let why = "all their tokens are given and none is to be learnt, as where a prompt alone fills max_length, or there are \
               fewer than two";
    if tokens.examples.is_empty() {
        let path = rows.first().map(|row| row.path.display().to_string()).unwrap_or_default();
        return Err(ModuleError::Fatal(format!(
            "{path}: none of {all} samples has a target: {why}{}",
            length_hint(settings)
        )));
    }
    let count: usize = tokens.examples.iter().map(TokenizedExample::len).sum();
    ctx.log(format!("{what} data: {} samples, {count} tokens", tokens.examples.len()));
    if tokens.truncated > 0 {
        let longest = settings.max_length.unwrap_or_default();
        ctx.warn(format!("{what} data: {} samples were cut to max_length {longest}", tokens.truncated));
    }
    if tokens.without_target > 0 {
        ctx.warn(format!(
            "{what} data: {} of {all} samples have no target and are left out: {why}{}",
            tokens.without_target,
            length_hint(settings)
        ));
    }
    Ok(tokens.examples)
}

fn length_hint(settings: &Training) -> String {
    let hint = |longest| format!("\nhint: max_length is {longest}: a larger one leaves room for what is to be learnt");
    settings.max_length.map(hint).unwrap_or_default()
}

/// What a checkpoint keeps of the time before the first step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Before {
    origin: Origin,
    measured: Measured,
}

/// What the model did before training, or after.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    eval_loss: Option<f64>,
    answers: Vec<String>,
}

fn train_settings(settings: &Training, plan: &Plan) -> TrainSettings {
    let kind = match settings.lr_scheduler {
        settings::Schedule::Linear => ScheduleKind::Linear,
        settings::Schedule::Cosine => ScheduleKind::Cosine,
        settings::Schedule::Constant => ScheduleKind::Constant,
        settings::Schedule::ConstantWithWarmup => ScheduleKind::ConstantWithWarmup,
    };
    TrainSettings {
        schedule: Schedule {
            kind,
            peak: settings.learning_rate,
            warmup_steps: settings.warmup.steps(plan.total_steps),
            total_steps: plan.total_steps,
        },
        adamw: AdamWSettings {
            adam_beta1: settings.adam_beta1,
            adam_beta2: settings.adam_beta2,
            adam_epsilon: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
        },
        max_grad_norm: settings.max_grad_norm,
        seed: settings.seed,
    }
}

fn training_error(error: TrainError) -> ModuleError {
    match error {
        TrainError::Interrupted | TrainError::Weights(WeightsError::Interrupted) => ModuleError::Cancelled,
        TrainError::Weights(WeightsError::Io { .. }) => ModuleError::Retryable(error.to_string()),
        // Another try would meet the same: a checkpoint is read only after its digests were found right.
        TrainError::Weights(_) | TrainError::State { .. } | TrainError::Diverged { .. } | TrainError::Batch { .. } => {
            ModuleError::Fatal(error.to_string())
        }
    }
}

/// Puts the state of a checkpoint into a fresh trainer, unless it belongs to other data or another model.
fn resume(trainer: &mut Trainer, from: &Checkpoint, origin: &Origin) -> Result<Before, ModuleError> {
    let file = from.dir.join(BEFORE);
    let text = std::fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
    let before: Before =
        serde_json::from_slice(&text).map_err(|e| ModuleError::Fatal(format!("{}: {e}", file.display())))?;
    origin.check(&before.origin, from.step)?;
    trainer.load_state(&from.dir).map_err(|e| match training_error(e) {
        ModuleError::Fatal(said) => ModuleError::Fatal(format!(
            "the checkpoint of step {} cannot be gone on from: {said}\nhint: submit the task anew: a new task begins at \
             step 0",
            from.step
        )),
        other => other,
    })?;
    Ok(before)
}

/// Trains a model whose trainable parameters are marked, from the newest checkpoint on, and has `export` write what is
/// published. Returns that with the figures for the task's summary.
///
/// # Errors
/// The task's own, those of the disk, and that it was asked to stop (after a checkpoint).
pub fn run(
    ctx: &mut RunContext,
    model: Decoder,
    tokenizer: &TextTokenizer,
    data: &Data,
    settings: &Training,
    export: impl FnOnce(&mut RunContext, &Decoder) -> Result<Vec<Output>, ModuleError>,
) -> Result<ModuleOutput, ModuleError> {
    ctx.phase(Phase::Training);
    warn_of_length(ctx, data, &model);
    let origin = Origin::of(ctx, data, &model)?;
    let plan = Plan::new(data.train.len(), settings);
    let half = model.compute() == Compute::F16;
    let mut trainer = Trainer::new(model, train_settings(settings, &plan));
    if half {
        trainer.scale_loss(LossScale::default());
    }
    let resumed = ctx.resume().cloned();
    let before = match &resumed {
        Some(from) => resume(&mut trainer, from, &origin)?,
        None => {
            let measured = measure(ctx, trainer.model(), tokenizer, data, settings, BEFORE_TRAINING)?;
            Before { origin, measured }
        }
    };
    if let Some(keep) = settings.save_total_limit {
        ctx.keep_checkpoints(keep);
    }
    ctx.log(format!(
        "training: {} steps, {} in an epoch, {} trainable of {} parameters",
        plan.total_steps,
        plan.steps_per_epoch,
        trainer.model().trainable_count(),
        trainer.model().count()
    ));
    let log = TrainingLog::open(ctx.artifacts(), resumed.as_ref().map(|from| from.dir.as_path()))?;
    let mut session = Session { saved_at: trainer.steps_done(), trainer, plan, log, before, data, settings };
    let ended = session.train(ctx).and_then(|()| {
        let after = measure(ctx, session.trainer.model(), tokenizer, data, settings, AFTER_TRAINING)?;
        let mut outputs = vec![Output { path: training_log::FILE.into(), kind: "training_logs".into() }];
        outputs.extend(export(ctx, session.trainer.model())?);
        let summary = session.summary(&after);
        outputs.extend(save_eval(ctx, &summary)?);
        if ctx.wants("checkpoints") {
            // The last step has none of its own unless somebody wants it.
            session.save(ctx)?;
            outputs.extend(ctx.publish_checkpoints()?);
        }
        Ok(ModuleOutput { outputs, summary })
    });
    if matches!(ended, Err(ModuleError::Cancelled)) {
        session.keep(ctx)?;
    }
    ended
}

/// A run under way.
struct Session<'a> {
    trainer: Trainer,
    plan: Plan,
    log: TrainingLog,
    before: Before,
    /// The step of the newest checkpoint.
    saved_at: u64,
    data: &'a Data,
    settings: &'a Training,
}

impl Session<'_> {
    /// Step after step to the last one.
    fn train(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        let total = self.plan.total_steps;
        while self.trainer.steps_done() < total {
            ctx.check()?;
            let rows = self.plan.step(self.trainer.steps_done());
            let batches: Vec<Batch> = rows.iter().map(|rows| batch(self.data, rows)).collect();
            let tokens = batches.iter().map(Batch::num_tokens).sum();
            let report = self.trainer.step_unless(&batches, &|| ctx.stopping()).map_err(training_error)?;
            self.trainer.data_position = report.step;
            let last = report.step == total;
            let due = report.step % self.settings.logging_steps.max(1) == 0 || last;
            self.log.step(&report, tokens, self.plan.epoch(report.step), due)?;
            failpoint::reached("finetune.step");
            ctx.progress(Progress {
                step: report.step,
                total_steps: Some(total),
                loss: self.log.loss().or(Some(report.loss)),
                tokens_per_second: self.log.tokens_per_second,
                ..Progress::default()
            });
            let save_due = match self.settings.save {
                Save::No => false,
                Save::Steps(every) => report.step % every.max(1) == 0,
                Save::Epoch => report.step % self.plan.steps_per_epoch == 0,
            };
            if save_due && !last {
                self.save(ctx)?;
            }
        }
        // A step's own figures are of the weights before it: the last one may still have thrown them out of range.
        match self.trainer.model().parameters().find(|p| p.trainable && !p.is_finite()) {
            Some(parameter) => Err(ModuleError::Fatal(format!(
                "step {total}: {} has values that are no numbers: training diverged (hint: lower the learning rate)",
                parameter.name
            ))),
            None => Ok(()),
        }
    }

    /// What was computed is not lost when it is asked to stop: the next attempt goes on from here.
    fn keep(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        if self.trainer.steps_done() > self.saved_at && self.settings.save != Save::No {
            self.save(ctx)?;
        }
        Ok(())
    }

    fn save(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        let step = self.trainer.steps_done();
        ctx.checkpoint(step, |folder| {
            self.trainer.save_state(folder).map_err(training_error)?;
            self.log.save(folder)?;
            let file = folder.join(BEFORE);
            let text = serde_json::to_vec(&self.before).map_err(fatal)?;
            std::fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))
        })?;
        self.saved_at = step;
        Ok(())
    }

    /// The figures of the run, for the task's result.
    fn summary(&self, after: &Measured) -> BTreeMap<String, Value> {
        let before = &self.before.measured;
        let mut summary = BTreeMap::from([("steps".to_owned(), json!(self.plan.total_steps))]);
        for (name, loss) in [
            ("train_loss", self.log.loss()),
            ("eval_loss_before", before.eval_loss),
            ("eval_loss_after", after.eval_loss),
        ] {
            if let Some(loss) = loss {
                summary.insert(name.to_owned(), json!((loss * 1e4).round() / 1e4));
            }
        }
        let answers = before.answers.iter().zip(&after.answers).zip(&self.settings.generation_prompts);
        let samples: Vec<Value> =
            answers.map(|((b, a), prompt)| json!({ "prompt": prompt, "before": b, "after": a })).collect();
        if !samples.is_empty() {
            summary.insert("samples".to_owned(), Value::Array(samples));
        }
        summary
    }
}

/// Past the positions that a model was made for its answers are noise, and so is what it learns there.
fn warn_of_length(ctx: &mut RunContext, data: &Data, model: &Decoder) {
    let made_for = model.config.max_position_embeddings;
    let too_long = data.train.iter().filter(|row| row.len() > made_for).count();
    if too_long > 0 {
        ctx.warn(format!(
            "{too_long} samples are longer than the {made_for} tokens that the model's positions are made for \
             (max_position_embeddings)\nhint: set max_length to {made_for} or less"
        ));
    }
}

fn batch(data: &Data, rows: &[usize]) -> Batch {
    Batch::collate(&rows.iter().map(|i| data.train[*i].row()).collect::<Vec<_>>(), data.pad_id)
}

/// The loss on held-out data, and answers to the prompts.
fn measure(
    ctx: &mut RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
    data: &Data,
    settings: &Training,
    when: &str,
) -> Result<Measured, ModuleError> {
    let mut measured = Measured::default();
    if !data.eval.is_empty() {
        let mut sums = mloc_burn::loss::LossSums::default();
        for rows in data.eval.chunks(settings.per_device_eval_batch_size.max(1)) {
            ctx.check()?;
            let rows: Vec<_> = rows.iter().map(TokenizedExample::row).collect();
            sums += train::evaluate(model, &[Batch::collate(&rows, data.pad_id)]).map_err(training_error)?;
        }
        let loss = sums.loss / (sums.targets.max(1)) as f64;
        if !loss.is_finite() {
            return Err(ModuleError::Fatal(format!(
                "the loss on held-out data {when} is {loss}: the model's weights are out of range (hint: {})",
                if when == AFTER_TRAINING {
                    "lower the learning rate"
                } else {
                    "look at model.source: it is broken as it stands"
                }
            )));
        }
        ctx.log(format!("loss on held-out data {when}: {loss:.4}"));
        measured.eval_loss = Some(loss);
    }
    for prompt in &settings.generation_prompts {
        let answer = answer(ctx, model, tokenizer, prompt, settings.generation_max_new_tokens)?;
        ctx.log(format!("{prompt} → {when}: {answer}"));
        measured.answers.push(answer);
    }
    Ok(measured)
}

/// The likeliest answer.
fn answer(
    ctx: &RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
    prompt: &str,
    max_new_tokens: usize,
) -> Result<String, ModuleError> {
    let ids = if tokenizer.chat_template().is_some() {
        let talk = Conversation::from_turns([("user", prompt)]);
        tokenizer.encode_chat(&talk, RenderOptions { add_generation_prompt: true, now_unix: TEMPLATE_NOW_UNIX })
    } else {
        tokenizer.encode(prompt, true)
    };
    let ids: Vec<i64> = ids.map_err(fatal)?.into_iter().map(i64::from).collect();
    let mut stop_ids = model.config.eos_token_ids.clone();
    stop_ids.extend(tokenizer.eos_id().map(i64::from));
    stop_ids.extend(tokenizer.token_id("<|im_end|>").map(i64::from));
    let limits = Limits { max_new_tokens, stop_ids: stop_ids.clone() };
    let new = generate::generate(model, &ids, Sampling::Greedy, &limits, |_| !ctx.stopping());
    ctx.check()?;
    let text: Vec<u32> =
        new.iter().filter(|id| !stop_ids.contains(id)).filter_map(|id| u32::try_from(*id).ok()).collect();
    tokenizer.decode(&text, true).map_err(fatal)
}

/// What was measured on held-out data, as a file; nothing where nothing was.
fn save_eval(ctx: &RunContext, summary: &BTreeMap<String, Value>) -> Result<Option<Output>, ModuleError> {
    let measured: BTreeMap<&str, &Value> =
        [("eval_loss", "eval_loss_after"), ("eval_loss_before_training", "eval_loss_before"), ("samples", "samples")]
            .into_iter()
            .filter_map(|(name, of)| Some((name, summary.get(of)?)))
            .collect();
    if measured.is_empty() {
        return Ok(None);
    }
    let path = ctx.artifacts().join(EVAL_FILE);
    let text = serde_json::to_vec_pretty(&measured).map_err(fatal)?;
    std::fs::write(&path, text).map_err(|e| ModuleError::disk("write", &path, &e))?;
    Ok(Some(Output { path: EVAL_FILE.into(), kind: "eval_results".into() }))
}

/// The whole model among the artifacts.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_model(ctx: &RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
    export::write_model(model, ctx.artifacts(), Storage::F32, &|| ctx.stopping())
        .map_err(|e| ctx.check().err().unwrap_or_else(|| ModuleError::Retryable(e.to_string())))?;
    let output = |path: &str| Output { path: path.into(), kind: "full_model".into() };
    Ok(vec![output("model.safetensors"), output("config.json")])
}

/// The base with the adapter in it, loadable by itself, in a folder of its own among the artifacts.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_merged(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let folder = ctx.artifacts().join(MERGED);
    std::fs::create_dir_all(&folder).map_err(|e| ModuleError::disk("make", &folder, &e))?;
    export::write_model(model, &folder, Storage::F32, &|| ctx.stopping())
        .map_err(|e| ctx.check().err().unwrap_or_else(|| ModuleError::Retryable(e.to_string())))?;
    let files = tokenizer.save(&folder).map_err(|e| ModuleError::Retryable(e.to_string()))?;
    let names = files.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let names = ["model.safetensors".to_owned(), "config.json".to_owned()].into_iter().chain(names);
    Ok(names.map(|name| Output { path: format!("{MERGED}/{name}"), kind: "merged_model".into() }).collect())
}

/// Copies of the tokenizer's files among the artifacts.
///
/// # Errors
/// Those of the disk.
pub fn save_tokenizer(ctx: &RunContext, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let files = tokenizer.save(ctx.artifacts()).map_err(|e| ModuleError::Retryable(e.to_string()))?;
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(files.iter().filter_map(|p| name(p)).map(|path| Output { path, kind: "tokenizer".into() }).collect())
}
