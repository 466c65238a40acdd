//! Step after step: the log, figures for people, checkpoints, and going on from one.

use std::collections::BTreeMap;

use mloc_burn::{
    model::{Parameter, Parameters},
    optim::AdamWSettings,
    schedule::{Schedule, ScheduleKind},
    train::{TrainError, TrainSettings, Trainer},
    weights::WeightsError,
};
use mloc_core::{
    task::settings::{self, Precision, Save, Training},
    wire::{Phase, Progress},
};
use mloc_exec::{ModuleError, ModuleOutput, Output, RunContext, checkpoint::Checkpoint, failpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    artifacts,
    method::{Measured, Method, Steps, When},
};
use crate::{
    fatal,
    origin::Origin,
    training_log::{self, TrainingLog},
};

/// What was there before the first step, in each checkpoint: a resumed run must not measure it on trained weights, and
/// must not go on with other data.
const BEFORE: &str = "before.json";

/// Settings of the task that this build has no way to follow: said before anything large is read.
///
/// # Errors
/// [`ModuleError::Fatal`]
pub fn check_settings(settings: &Training) -> Result<(), ModuleError> {
    match settings.precision {
        Precision::F32 => Ok(()),
        Precision::F16 | Precision::Bf16 => Err(ModuleError::Fatal(
            "fp16, bf16: this build trains in f32 only: leave them out, or say `false`".to_owned(),
        )),
    }
}

/// What a checkpoint keeps of the time before the first step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Before {
    origin: Origin,
    measured: Measured,
    /// The method's own.
    #[serde(default)]
    settings: BTreeMap<String, Value>,
}

fn train_settings(settings: &Training, total_steps: u64) -> TrainSettings {
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
            warmup_steps: settings.warmup.steps(total_steps),
            total_steps,
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

/// Trains a model whose trainable parameters are marked, from the newest checkpoint on. Returns what the method publishes
/// with the figures for the task's summary.
///
/// # Errors
/// The task's own, those of the disk, and that it was asked to stop (after a checkpoint).
pub fn run<M: Method>(
    ctx: &mut RunContext,
    mut method: M,
    model: M::Model,
    settings: &Training,
) -> Result<ModuleOutput, ModuleError> {
    ctx.phase(Phase::Training);
    let origin = method.origin(ctx, &model)?;
    let steps = method.steps();
    let mut trainer = Trainer::new(model, train_settings(settings, steps.total));
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
        trainer.model().parameters().filter(|p| p.trainable).map(count).sum::<usize>(),
        trainer.model().parameters().map(count).sum::<usize>()
    ));
    let log = TrainingLog::open(ctx.artifacts(), resumed.as_ref().map(|from| from.dir.as_path()))?;
    let done = ctx.resume_step();
    let mut session = Session { done, saved_at: done, trainer, method, steps, log, before, settings };
    let ended = session.train(ctx).and_then(|()| session.finish(ctx));
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
    /// Steps done, those of earlier attempts included.
    done: u64,
    /// The step of the newest checkpoint.
    saved_at: u64,
    settings: &'a Training,
}

impl<M: Method> Session<'_, M> {
    /// Step after step to the last one.
    fn train(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        let Steps { total, in_epoch } = self.steps;
        while self.done < total {
            ctx.check()?;
            let tokens_before = self.trainer.num_tokens();
            let report = self.method.step(ctx, &mut self.trainer)?;
            self.done += 1;
            let last = self.done == total;
            let due = self.done % self.settings.logging_steps.max(1) == 0 || last;
            let tokens = report.num_tokens.saturating_sub(tokens_before);
            self.log.step(self.done, &report, tokens, self.steps.epoch(self.done), due)?;
            failpoint::reached("finetune.step");
            ctx.progress(Progress {
                step: self.done,
                total_steps: Some(total),
                loss: self.log.loss().or(Some(report.loss)),
                tokens_per_second: self.log.tokens_per_second,
                ..Progress::default()
            });
            let save_due = match self.settings.save {
                Save::No => false,
                Save::Steps(every) => self.done % every.max(1) == 0,
                Save::Epoch => self.done % in_epoch == 0,
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

    /// Measures what came out and writes what is published.
    fn finish(&mut self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let after = self.method.measure(ctx, self.trainer.model(), When::After)?;
        let mut outputs = vec![Output { path: training_log::FILE.into(), kind: "training_logs".into() }];
        outputs.extend(self.method.export(ctx, self.trainer.model())?);
        let summary = self.summary(&after);
        outputs.extend(artifacts::save_eval(ctx, &summary)?);
        if ctx.wants("checkpoints") {
            // The last step has none of its own unless somebody wants it.
            self.save(ctx)?;
            outputs.extend(ctx.publish_checkpoints()?);
        }
        Ok(ModuleOutput { outputs, summary })
    }

    /// What was computed is not lost when it is asked to stop: the next attempt goes on from here.
    fn keep(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        if self.done > self.saved_at && self.settings.save != Save::No {
            self.save(ctx)?;
        }
        Ok(())
    }

    fn save(&mut self, ctx: &mut RunContext) -> Result<(), ModuleError> {
        ctx.checkpoint(self.done, |folder| {
            self.trainer.save_state(folder).map_err(training_error)?;
            self.method.save(folder)?;
            self.log.save(folder)?;
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
        let mut summary = BTreeMap::from([("steps".to_owned(), json!(self.steps.total))]);
        for (name, loss) in [
            ("train_loss", self.log.loss()),
            ("eval_loss_before", before.eval_loss),
            ("eval_loss_after", after.eval_loss),
        ] {
            if let Some(loss) = loss {
                summary.insert(name.to_owned(), rounded(loss));
            }
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

fn count(parameter: &Parameter) -> usize {
    parameter.shape.iter().product()
}
