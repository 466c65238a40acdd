//! The loop that `sft` and `pretrain` share: measure, train with logs and checkpoints, measure again.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    batch::Batch,
    formats::{
        chat_template::{Conversation, RenderOptions},
        dataset::{self, LoadOptions, PromptTemplate, TokenizeOptions, TokenizedExample},
        tokenizer::TextTokenizer,
    },
    generate::{self, Limits, Sampling},
    model::Decoder,
    optim::AdamWSettings,
    schedule::{Schedule, ScheduleKind},
    train::{self, TrainError, TrainSettings, Trainer},
};
use mloc_core::{
    task::settings::{self, Precision, Save, Training},
    wire::{Phase, Progress},
};
use mloc_exec::{ModuleError, Output, RunContext};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{fatal, plan::Plan, training_log::TrainingLog};

/// What was measured before the first step, in each checkpoint: a resumed run must not measure it on trained weights.
const BEFORE: &str = "before.json";
/// What templates print as today, so that a resumed run sees the same text: 2024-07-26, the reference's default date.
const TEMPLATE_NOW_UNIX: i64 = 1_721_952_000;

/// Data in tokens.
pub struct Data {
    /// What is trained on.
    pub train: Vec<TokenizedExample>,
    /// What is measured on; empty without held-out data.
    pub eval: Vec<TokenizedExample>,
    /// What padding is filled with.
    pub pad_id: i64,
}

/// Reads and tokenizes what was pulled.
///
/// # Errors
/// The data's own errors, with file and line.
pub fn data(ctx: &mut RunContext, tokenizer: &TextTokenizer, settings: &Training) -> Result<Data, ModuleError> {
    let spec = ctx.run().spec.dataset.clone();
    let template = spec.as_ref().and_then(|d| d.prompt_template.as_deref());
    let prompt_template = template.map(PromptTemplate::parse).transpose().map_err(fatal)?.flatten();
    let load = LoadOptions { split: spec.and_then(|d| d.split), prompt_template };
    let options = TokenizeOptions {
        max_length: settings.max_length,
        completion_only: settings.completion_only_loss,
        now_unix: TEMPLATE_NOW_UNIX,
    };
    let missing = || ModuleError::Fatal("dataset.source was not pulled".to_owned());
    let path = ctx.run().inputs.dataset.clone().ok_or_else(missing)?;
    let train = read(ctx, &path, "training", tokenizer, &load, options)?;
    let eval = match ctx.run().inputs.eval.clone() {
        Some(path) => {
            let load = LoadOptions { split: None, ..load };
            read(ctx, &path, "held-out", tokenizer, &load, options)?
        }
        None => Vec::new(),
    };
    Ok(Data { train, eval, pad_id: tokenizer.pad_id().map_or(0, i64::from) })
}

fn read(
    ctx: &mut RunContext,
    path: &Path,
    what: &str,
    tokenizer: &TextTokenizer,
    load: &LoadOptions,
    options: TokenizeOptions,
) -> Result<Vec<TokenizedExample>, ModuleError> {
    let rows = dataset::load(path, load).map_err(fatal)?;
    let tokens = dataset::tokenize_all(&rows, tokenizer, options).map_err(fatal)?;
    let count: usize = tokens.examples.iter().map(TokenizedExample::len).sum();
    ctx.log(format!("{what} data: {} samples, {count} tokens", tokens.examples.len()));
    if tokens.truncated > 0 {
        let longest = options.max_length.unwrap_or_default();
        ctx.warn(format!("{what} data: {} samples were cut to max_length {longest}", tokens.truncated));
    }
    if tokens.without_target == tokens.examples.len() {
        return Err(ModuleError::Fatal(format!(
            "{}: no sample has a target: everything is masked or shorter than two tokens",
            path.display()
        )));
    }
    Ok(tokens.examples)
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
        TrainError::Weights(_) | TrainError::State { .. } => ModuleError::Retryable(error.to_string()),
        TrainError::Diverged { .. } | TrainError::Batch { .. } => ModuleError::Fatal(error.to_string()),
    }
}

/// Trains a model whose trainable parameters are marked, from the newest checkpoint on. Returns it with the figures
/// for the task's summary.
///
/// # Errors
/// The task's own, those of the disk, and that it was asked to stop (after a checkpoint).
pub fn run(
    ctx: &mut RunContext,
    model: Decoder,
    tokenizer: &TextTokenizer,
    data: &Data,
    settings: &Training,
) -> Result<(Decoder, BTreeMap<String, Value>), ModuleError> {
    if settings.precision != Precision::F32 {
        return Err(ModuleError::Fatal(
            "fp16, bf16: this build trains in f32 only: leave them out, or say `false`".to_owned(),
        ));
    }
    ctx.phase(Phase::Training);
    let plan = Plan::new(data.train.len(), settings);
    let mut trainer = Trainer::new(model, train_settings(settings, &plan));
    let resumed = ctx.resume().map(|c| c.dir.clone());
    if let Some(dir) = &resumed {
        trainer.load_state(dir).map_err(training_error)?;
    }
    let before = match &resumed {
        Some(dir) => {
            let file = dir.join(BEFORE);
            let text = std::fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
            serde_json::from_slice(&text).map_err(|e| ModuleError::Fatal(format!("{}: {e}", file.display())))?
        }
        None => measure(ctx, trainer.model(), tokenizer, data, settings, "before training")?,
    };
    if let Some(keep) = settings.save_total_limit {
        ctx.keep_checkpoints(keep);
    }
    ctx.log(format!(
        "training: {} steps, {} in an epoch, {} trainable of {} parameters",
        plan.total_steps,
        plan.steps_per_epoch,
        trainer.model().parameters().filter(|p| p.trainable).map(count).sum::<usize>(),
        trainer.model().parameters().map(count).sum::<usize>()
    ));
    let mut log = TrainingLog::open(ctx.artifacts(), resumed.as_deref())?;
    let mut saved_at = trainer.steps_done();
    while trainer.steps_done() < plan.total_steps {
        if ctx.stopping() {
            // What was computed is kept: the next attempt goes on from here.
            if trainer.steps_done() > saved_at && settings.save != Save::No {
                save(ctx, &trainer, &log, &before)?;
            }
            ctx.check()?;
        }
        let batches: Vec<Batch> = plan.step(trainer.steps_done()).iter().map(|rows| batch(data, rows)).collect();
        let tokens = batches.iter().map(Batch::num_tokens).sum();
        let report = trainer.step(&batches).map_err(training_error)?;
        trainer.data_position = report.step;
        let last = report.step == plan.total_steps;
        let due = report.step % settings.logging_steps.max(1) == 0 || last;
        log.step(&report, tokens, plan.epoch(report.step), due)?;
        ctx.progress(Progress {
            step: report.step,
            total_steps: Some(plan.total_steps),
            loss: log.loss().or(Some(report.loss)),
            tokens_per_second: log.tokens_per_second,
            ..Progress::default()
        });
        let save_due = match settings.save {
            Save::No => false,
            Save::Steps(every) => report.step % every.max(1) == 0,
            Save::Epoch => report.step % plan.steps_per_epoch == 0,
        };
        if save_due && !last {
            save(ctx, &trainer, &log, &before)?;
            saved_at = report.step;
        }
    }
    let after = match measure(ctx, trainer.model(), tokenizer, data, settings, "after training") {
        // The last steps are kept too.
        Err(ModuleError::Cancelled) if trainer.steps_done() > saved_at && settings.save != Save::No => {
            save(ctx, &trainer, &log, &before)?;
            return Err(ModuleError::Cancelled);
        }
        measured => measured?,
    };
    Ok((trainer.into_model(), summary(plan.total_steps, log.loss(), &before, &after, settings)))
}

/// The figures of a run, for the task's result.
fn summary(
    steps: u64,
    loss: Option<f64>,
    before: &Measured,
    after: &Measured,
    settings: &Training,
) -> BTreeMap<String, Value> {
    let mut summary = BTreeMap::from([("steps".to_owned(), json!(steps))]);
    for (name, loss) in
        [("train_loss", loss), ("eval_loss_before", before.eval_loss), ("eval_loss_after", after.eval_loss)]
    {
        if let Some(loss) = loss {
            summary.insert(name.to_owned(), json!((loss * 1e4).round() / 1e4));
        }
    }
    let answers = before.answers.iter().zip(&after.answers).zip(&settings.generation_prompts);
    let samples: Vec<Value> =
        answers.map(|((b, a), prompt)| json!({ "prompt": prompt, "before": b, "after": a })).collect();
    if !samples.is_empty() {
        summary.insert("samples".to_owned(), Value::Array(samples));
    }
    summary
}

fn count(parameter: &mloc_burn::model::Parameter) -> usize {
    parameter.shape.iter().product()
}

fn batch(data: &Data, rows: &[usize]) -> Batch {
    Batch::collate(&rows.iter().map(|i| data.train[*i].row()).collect::<Vec<_>>(), data.pad_id)
}

fn save(ctx: &mut RunContext, trainer: &Trainer, log: &TrainingLog, before: &Measured) -> Result<(), ModuleError> {
    ctx.checkpoint(trainer.steps_done(), |folder| {
        trainer.save_state(folder).map_err(training_error)?;
        log.save(folder)?;
        let file = folder.join(BEFORE);
        let text = serde_json::to_vec(before).map_err(fatal)?;
        std::fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))
    })
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

/// Copies of the tokenizer's files among the artifacts.
///
/// # Errors
/// Those of the disk.
pub fn save_tokenizer(ctx: &RunContext, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let files = tokenizer.save(ctx.artifacts()).map_err(|e| ModuleError::Retryable(e.to_string()))?;
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(files.iter().filter_map(|p| name(p)).map(|path| Output { path, kind: "tokenizer".into() }).collect())
}
