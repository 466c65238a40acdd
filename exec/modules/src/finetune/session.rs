//! Step after step: the log, figures for people, checkpoints, and going on from one.

use std::{collections::BTreeMap, time::Instant};

use mloc_burn::{
    loss_scale::LossScale,
    model::{Parameter, Parameters},
    train::{TrainError, Trainer, WEIGHTS},
    weights::WeightsError,
};
use mloc_core::{
    task::settings::{Interval, Precision, Save, Training},
    wire::{Phase, Progress},
};
use mloc_exec::{ModuleError, ModuleOutput, Output, RunContext, checkpoint::Checkpoint, failpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    artifacts,
    course::{BestWeights, Course},
    method::{Measured, Method, Steps, When},
    over_data::samples_of_step,
};
use crate::{
    fatal, memory, model_card,
    origin::Origin,
    steering::train_settings,
    tensorboard,
    training_log::{self, TrainingLog},
};

/// What was there before the first step, in each checkpoint: a resumed run must not measure it on trained weights, and
/// must not go on with other data.
const BEFORE: &str = "before.json";

/// What a checkpoint keeps of the time before the first step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Before {
    origin: Origin,
    measured: Measured,
    /// The method's own.
    #[serde(default)]
    settings: BTreeMap<String, Value>,
}

/// What a failed step means for the task.
pub fn training_error(error: TrainError) -> ModuleError {
    match error {
        TrainError::Interrupted | TrainError::Weights(WeightsError::Interrupted) => ModuleError::Cancelled,
        TrainError::Weights(WeightsError::Io { .. }) => ModuleError::Retryable(error.to_string()),
        // Another try would meet the same: a checkpoint is read only after its digests were found right.
        TrainError::Weights(_) | TrainError::State { .. } | TrainError::Diverged { .. } | TrainError::Batch { .. } => {
            ModuleError::Fatal(error.to_string())
        }
    }
}

/// Puts the state of a checkpoint into a fresh trainer and its method, unless it belongs to other data, another model or
/// other settings.
fn resume<M: Method>(
    trainer: &mut Trainer<M::Model>,
    method: &mut M,
    from: &Checkpoint,
    origin: &Origin,
) -> Result<Before, ModuleError> {
    let file = from.dir.join(BEFORE);
    let text = std::fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
    let refused = |said: String| {
        ModuleError::Fatal(format!(
            "the checkpoint of step {} cannot be gone on from: {said}\nhint: submit the task anew: a new task begins at \
             step 0",
            from.step
        ))
    };
    let before: Before = serde_json::from_slice(&text).map_err(|e| refused(format!("{}: {e}", file.display())))?;
    origin.check(&before.origin, from.step)?;
    let differences = differences(&before.settings, &method.settings());
    if !differences.is_empty() {
        return Err(refused(format!("made with other settings: {}", differences.join("; "))));
    }
    trainer.load_state(&from.dir).map_err(|e| match training_error(e) {
        ModuleError::Fatal(said) => refused(said),
        other => other,
    })?;
    method.load(&from.dir)?;
    Ok(before)
}

fn differences(saved: &BTreeMap<String, Value>, mine: &BTreeMap<String, Value>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = saved.keys().chain(mine.keys()).collect();
    let of = |settings: &BTreeMap<String, Value>, name: &String| settings.get(name).cloned().unwrap_or_default();
    let pairs = names.into_iter().map(|name| (name, of(saved, name), of(mine, name)));
    pairs.filter(|(_, was, is)| was != is).map(|(name, was, is)| format!("{name} was {was}, is now {is}")).collect()
}

/// Trains a model whose trainable parameters are marked, from the newest checkpoint on; with `replicas` of it on further
/// devices, where each step is to be shared among them. Returns what the method publishes with the figures for the task's
/// summary.
///
/// # Errors
/// The task's own, those of the disk, and that it was asked to stop (after a checkpoint).
pub fn run<M: Method>(
    ctx: &mut RunContext,
    mut method: M,
    model: M::Model,
    replicas: Vec<M::Model>,
    settings: &Training,
) -> Result<ModuleOutput, ModuleError> {
    ctx.phase(Phase::Training);
    let origin = method.origin(ctx, &model)?;
    let steps = method.steps();
    let mut trainer = Trainer::new(model, train_settings(settings, steps.total));
    trainer.share_among(replicas);
    if settings.precision == Precision::F16 {
        trainer.scale_loss(LossScale::default());
    }
    let resumed = ctx.resume().cloned();
    let before = match &resumed {
        Some(from) => resume(&mut trainer, &mut method, from, &origin)?,
        None => {
            method.begin(ctx, trainer.model())?;
            let measured = method.measure(ctx, trainer.model(), When::Before)?;
            Before { origin, measured, settings: method.settings() }
        }
    };
    if let Some(keep) = settings.save_total_limit {
        ctx.keep_checkpoints(keep);
    }
    ctx.log(format!(
        "training: {} steps, {} in an epoch, {} trainable of {} parameters",
        steps.total,
        steps.in_epoch,
        trainer.model().parameters().filter(|p| p.trainable).map(Parameter::count).sum::<usize>(),
        trainer.model().count()
    ));
    if trainer.devices() > 1 {
        ctx.log(format!(
            "data parallel: {} devices, {} samples in a step (per_device_train_batch_size {} × \
             gradient_accumulation_steps {} × devices)",
            trainer.devices(),
            samples_of_step(settings, trainer.devices()),
            settings.per_device_train_batch_size,
            settings.gradient_accumulation_steps,
        ));
    }
    let log = TrainingLog::open(ctx.artifacts(), resumed.as_ref().map(|from| from.dir.as_path()))?;
    let best_weights = match settings.load_best_model_at_end {
        true => Some(BestWeights::below(&ctx.run().work)?),
        false => None,
    };
    let course = match &resumed {
        Some(from) => Course::load(&from.dir, from.step, best_weights.as_ref())?,
        None => Course::default(),
    };
    let done = ctx.resume_step();
    let mut session = Session {
        done,
        saved_at: done,
        trainer,
        method,
        steps,
        log,
        before,
        course,
        best_weights,
        note: None,
        settings,
    };
    let ended = memory::device::unless_full(ctx, |ctx| session.train(ctx).and_then(|()| session.finish(ctx)));
    if matches!(ended, Err(ModuleError::Cancelled)) {
        session.keep(ctx)?;
    }
    ended
}

/// A run under way.
struct Session<'a, M: Method> {
    trainer: Trainer<M::Model>,
    method: M,
    steps: Steps,
    log: TrainingLog,
    before: Before,
    course: Course,
    /// Where the best weights are, when they are what comes out.
    best_weights: Option<BestWeights>,
    /// What the last evaluation said, for people.
    note: Option<String>,
    /// Steps done, those of earlier attempts included.
    done: u64,
    /// The step of the newest checkpoint.
    saved_at: u64,
    settings: &'a Training,
}

impl<M: Method> Session<'_, M> {
    /// Step after step to the last one, or to an early end.
    fn train(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        let Steps { total, in_epoch } = self.steps;
        // What was asked to stop between a step and its evaluation has that still to come.
        self.evaluate_if_due(ctx)?;
        while self.done < total && !self.course.is_over(self.settings.early_stopping) {
            ctx.check()?;
            let tokens_before = self.trainer.num_tokens();
            let report = self.method.step(ctx, &mut self.trainer).map_err(|error| self.with_what_is_kept(error))?;
            self.done += 1;
            let last = self.done == total;
            let Training { logging, logging_first_step, save, .. } = self.settings;
            let due = logging.is_due(self.done, in_epoch, total)
                || *logging_first_step && self.done == 1
                || *logging != Interval::No && last;
            let tokens = report.num_tokens.saturating_sub(tokens_before);
            self.log.step(self.done, &report, tokens, self.steps.epoch(self.done), due)?;
            failpoint::reached("finetune.step");
            self.progress(ctx, Some(report.loss));
            let is_best = self.evaluate_if_due(ctx)?;
            let save_due = match save {
                Save::At(interval) => interval.is_due(self.done, in_epoch, total),
                Save::Best => is_best,
            };
            if save_due && !last {
                self.save(ctx)?;
            }
        }
        if self.done < total {
            let best = self.course.best.map(|best| best.step).unwrap_or_default();
            ctx.log(format!(
                "training ends early, after step {} of {total}: no evaluation since that of step {best} was better",
                self.done
            ));
        }
        // A step's own figures are of the weights before it: the last one may still have thrown them out of range.
        match self.trainer.model().parameters().find(|p| p.trainable && !p.is_finite()) {
            Some(parameter) => Err(ModuleError::Fatal(format!(
                "step {}: {} has values that are no numbers: training diverged (hint: lower the learning rate)",
                self.done, parameter.name
            ))),
            None => Ok(()),
        }
    }

    fn progress(&self, ctx: &mut RunContext, loss: Option<f64>) {
        ctx.progress(Progress {
            step: self.done,
            total_steps: Some(self.steps.total),
            loss: self.log.loss().or(loss),
            tokens_per_second: self.log.tokens_per_second,
            note: self.note.clone(),
            ..Progress::default()
        });
    }

    /// Whether held-out data is to be looked at, so many steps into the run.
    fn evaluation_is_due(&self) -> bool {
        let Steps { total, in_epoch } = self.steps;
        let evaluation = &self.settings.evaluation;
        if self.done == 0 {
            return evaluation.on_start;
        }
        let last = self.done == total && evaluation.interval != Interval::No;
        let waited = match evaluation.interval {
            Interval::Epoch => self.steps.epoch(self.done),
            Interval::No | Interval::Steps(_) => self.done as f64,
        };
        (last || evaluation.interval.is_due(self.done, in_epoch, total)) && waited >= evaluation.delay
    }

    /// Looks at held-out data where it is time to, once after each step. Returns whether it was better than ever.
    fn evaluate_if_due(&mut self, ctx: &mut RunContext) -> Result<bool, ModuleError> {
        if !self.evaluation_is_due() || self.course.evaluated_at == Some(self.done) {
            return Ok(false);
        }
        let began = Instant::now();
        let figures = self.method.evaluate(ctx, self.trainer.model(), When::Step(self.done))?;
        self.log.leave_out(began.elapsed());
        let figures = figures.ok_or_else(|| {
            let task_type = ctx.run().spec.task_type;
            ModuleError::Fatal(format!("eval_strategy: {task_type} measures nothing on held-out data: say `no`"))
        })?;
        let mut is_best = false;
        if let Some(best) = &self.settings.best {
            let metric = *figures.get(&best.metric).ok_or_else(|| {
                let names: Vec<String> = figures.keys().map(|name| format!("eval_{name}")).collect();
                let named = &best.metric;
                ModuleError::Fatal(format!(
                    "metric_for_best_model: eval_{named} is not measured; what is: {}",
                    names.join(", ")
                ))
            })?;
            self.trainer.observe(metric);
            is_best = self.course.judge(self.done, metric, best, self.settings.early_stopping);
        }
        if let (true, Some(weights)) = (is_best, &self.best_weights) {
            weights.replace(|path| self.trainer.save_weights(path).map_err(training_error))?;
        }
        self.log.evaluation(self.done, self.steps.epoch(self.done), &figures)?;
        self.course.evaluated_at = Some(self.done);
        failpoint::reached("finetune.evaluated");
        let shown: Vec<String> = figures.iter().map(|(name, value)| format!("eval_{name} {value:.4}")).collect();
        self.note = Some(format!("{} after step {}", shown.join(", "), self.done));
        self.progress(ctx, None);
        Ok(is_best)
    }

    /// A failed step with the checkpoint that outlives it.
    fn with_what_is_kept(&self, error: ModuleError) -> ModuleError {
        match error {
            ModuleError::Fatal(said) if self.saved_at > 0 => {
                ModuleError::Fatal(format!("{said}\nthe checkpoint of step {} is kept", self.saved_at))
            }
            other => other,
        }
    }

    /// Puts the best weights in place of the last ones, if they are what is asked for.
    fn take_the_best(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        let (Some(best), Some(weights)) = (self.course.best, &self.best_weights) else { return Ok(()) };
        if best.step == self.done {
            return Ok(());
        }
        // From here on the weights are no longer those of the last step: what is to go on from them is kept first.
        let path = weights.path.clone();
        self.keep(ctx)?;
        self.trainer.load_weights(&path).map_err(training_error)?;
        let metric = self.settings.best.as_ref().map(|best| best.metric.as_str()).unwrap_or_default();
        ctx.log(format!("the best weights are those after step {}: eval_{metric} {:.4}", best.step, best.metric));
        Ok(())
    }

    /// Measures what came out and writes what is published.
    fn finish(&mut self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let mut checkpoints = Vec::new();
        if ctx.wants("checkpoints") {
            // The last step has none of its own unless somebody wants it.
            self.save(ctx)?;
            checkpoints = ctx.publish_checkpoints()?;
            if self.settings.save_only_model {
                checkpoints
                    .retain(|output| output.path.ends_with(WEIGHTS) || output.path.ends_with(training_log::FILE));
            }
        }
        self.take_the_best(ctx)?;
        let after = self.method.measure(ctx, self.trainer.model(), When::After)?;
        let mut outputs: Vec<Output> = [training_log::FILE, tensorboard::FILE]
            .map(|path| Output { path: path.into(), kind: "training_logs".into() })
            .into();
        outputs.extend(self.method.export(ctx, self.trainer.model())?);
        let summary = self.summary(&after);
        outputs.extend(artifacts::save_eval(ctx, &summary)?);
        outputs.push(model_card::save(ctx, &summary)?);
        outputs.extend(checkpoints);
        Ok(ModuleOutput { outputs, summary })
    }

    /// What was computed is not lost when it is asked to stop: the next attempt goes on from here.
    fn keep(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        if self.done > self.saved_at && self.settings.save != Save::At(Interval::No) {
            self.save(ctx)?;
        }
        Ok(())
    }

    fn save(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        ctx.best_checkpoint(self.course.best.map(|best| best.step));
        ctx.checkpoint(self.done, |folder| {
            self.trainer.save_state(folder).map_err(training_error)?;
            self.method.save(folder)?;
            self.log.save(folder)?;
            self.course.save(folder, self.done, self.best_weights.as_ref())?;
            let file = folder.join(BEFORE);
            let text = serde_json::to_vec(&self.before).map_err(fatal)?;
            std::fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))
        })?;
        self.saved_at = self.done;
        Ok(())
    }

    /// The figures of the run, for the task's result.
    fn summary(&self, after: &Measured) -> BTreeMap<String, Value> {
        let before = &self.before.measured;
        let rounded = |value: f64| json!((value * 1e4).round() / 1e4);
        let mut summary = BTreeMap::from([("steps".to_owned(), json!(self.done))]);
        let devices = self.trainer.devices();
        if devices > 1 {
            // The names of the reference's model cards.
            summary.insert("num_devices".to_owned(), json!(devices));
            summary.insert("total_train_batch_size".to_owned(), json!(samples_of_step(self.settings, devices)));
        }
        for (name, loss) in [
            ("train_loss", self.log.loss()),
            ("eval_loss_before", before.eval_loss),
            ("eval_loss_after", after.eval_loss),
        ] {
            if let Some(loss) = loss {
                summary.insert(name.to_owned(), rounded(loss));
            }
        }
        if let (Some(best), Some(so_far)) = (&self.settings.best, self.course.best) {
            summary.insert("best_step".to_owned(), json!(so_far.step));
            summary.insert(format!("best_eval_{}", best.metric), rounded(so_far.metric));
        }
        for (when, figures) in [("before", &before.figures), ("after", &after.figures)] {
            summary.extend(figures.iter().map(|(name, value)| (format!("eval_{name}_{when}"), rounded(*value))));
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
