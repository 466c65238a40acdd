//! `taskType: echo`: counts a few steps, with everything around it that a real module has. So the whole line from a
//! file to a usage row can be run and broken without a model.

use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use mloc_core::{
    task::hyperparameters::settings::{Echo as Settings, EchoFailure},
    wire::{Phase, Progress},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The log of its steps, as a training log looks.
const LOG: &str = "training_log.jsonl";
/// Its result: a digest chained over all steps, so that a step left out or done twice shows.
const RESULT: &str = "echo.txt";
/// A cancel is noticed within this, however long a step is.
const NAP: Duration = Duration::from_millis(20);
/// Its checkpoints are all alike: more than two are of no use.
const KEEP: usize = 2;

/// The module.
pub struct Echo;

/// All that a resumed run needs.
struct State {
    step: u64,
    /// SHA-256 over the one before, the step and the message; hex.
    chain: String,
    log: String,
}

impl Module for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let settings = Settings::of(&ctx.run().spec);
        let mut state = match ctx.resume() {
            Some(from) => State::load(&from.dir, from.step)?,
            None => State { step: 0, chain: String::new(), log: String::new() },
        };
        ctx.keep_checkpoints(KEEP);
        ctx.phase(Phase::Training);
        let mut saved = state.step;
        while state.step < settings.steps {
            nap(ctx, Duration::from_millis(settings.step_ms));
            if ctx.stopping() {
                // What was counted is not lost: a drained node hands it on.
                if state.step > saved {
                    ctx.checkpoint(state.step, |dir| state.save(dir))?;
                }
                return Err(ModuleError::Cancelled);
            }
            if let Some((at, how)) = settings.fail
                && at == state.step + 1
            {
                fail(ctx, at, how)?;
            }
            state.advance(&settings.message);
            // Nothing about the clock: an unbroken run and a resumed one write the same log.
            let loss = 1.0 / state.step as f64;
            state
                .log
                .push_str(&format!("{}\n", json!({"step": state.step, "loss": loss, "message": settings.message})));
            ctx.log(format_args!("step {}: {}", state.step, settings.message));
            ctx.progress(Progress {
                step: state.step,
                total_steps: Some(settings.steps),
                loss: Some(loss),
                ..Default::default()
            });
            if state.step.is_multiple_of(settings.save_steps.max(1)) && state.step < settings.steps {
                ctx.checkpoint(state.step, |dir| state.save(dir))?;
                saved = state.step;
            }
        }
        write(&ctx.artifacts().join(LOG), &state.log)?;
        write(&ctx.artifacts().join(RESULT), &format!("{}\n{}\n", settings.message, state.chain))?;
        let output = |path: &str, kind: &str| Output { path: path.into(), kind: kind.into() };
        Ok(ModuleOutput {
            outputs: vec![output(RESULT, "echo"), output(LOG, "training_logs")],
            summary: [("steps", json!(state.step)), ("echo", Value::String(settings.message))]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        })
    }
}

impl State {
    fn advance(&mut self, message: &str) {
        self.step += 1;
        self.chain = hex::encode(Sha256::digest(format!("{}\n{}\n{message}", self.chain, self.step)));
    }

    fn save(&self, dir: &Path) -> Result<(), ModuleError> {
        write(&dir.join("chain"), &self.chain)?;
        write(&dir.join(LOG), &self.log)
    }

    fn load(dir: &Path, step: u64) -> Result<Self, ModuleError> {
        Ok(Self { step, chain: read(&dir.join("chain"))?, log: read(&dir.join(LOG))? })
    }
}

/// Sleeps, unless it is to stop.
fn nap(ctx: &RunContext, long: Duration) {
    let until = Instant::now() + long;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        && !ctx.stopping()
    {
        std::thread::sleep(left.min(NAP));
    }
}

/// Breaks as it was told to. The ways that come back from elsewhere do not return.
fn fail(ctx: &mut RunContext, step: u64, how: EchoFailure) -> Result<(), ModuleError> {
    let said = format!("told to fail at step {step}");
    ctx.log(&said);
    match how {
        EchoFailure::Fatal => Err(ModuleError::Fatal(said)),
        EchoFailure::Retryable => Err(ModuleError::Retryable(said)),
        EchoFailure::Panic => panic!("{said}"),
        EchoFailure::Abort => std::process::abort(),
        EchoFailure::Hang => loop {
            std::thread::park();
        },
    }
}

fn write(path: &Path, text: &str) -> Result<(), ModuleError> {
    let written = fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| ModuleError::disk("write", path, &e))
}

fn read(path: &Path) -> Result<String, ModuleError> {
    fs::read_to_string(path).map_err(|e| ModuleError::disk("read", path, &e))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        path::PathBuf,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use mloc_core::{
        id::{AttemptId, TaskId},
        task::{
            TaskSpec,
            kind::{Kind, TaskType},
        },
    };
    use mloc_exec::{Event, Run, child::run_module, run::RUN_VERSION};

    use super::*;

    fn run(dir: &Path, settings: &[(&str, u64)]) -> Run {
        let hyperparameters = settings.iter().map(|(name, n)| ((*name).to_owned(), Value::from(*n)));
        let spec = TaskSpec {
            kind: Kind::TrainingTask,
            metadata: Default::default(),
            task_type: TaskType::Echo,
            replicas: 1,
            request: Default::default(),
            model: None,
            dataset: None,
            command: None,
            reward: None,
            retrieval: None,
            agent: None,
            service: None,
            hyperparameters: hyperparameters.collect(),
            output: Default::default(),
            priority: 0,
            depends_on: vec![],
            retry: Default::default(),
            timeouts: Default::default(),
            placement: Default::default(),
            checkpoint: Default::default(),
            env: BTreeMap::new(),
            secrets_from: vec![],
        };
        Run {
            v: RUN_VERSION,
            attempt: AttemptId { task: TaskId::new("task-01T"), replica: 0, attempt: 1 },
            spec,
            grant: Default::default(),
            inputs: Default::default(),
            pins: BTreeMap::new(),
            started_unix_ms: 0,
            artifacts: dir.join("artifacts"),
            checkpoints: dir.join("checkpoints"),
            result: dir.join("result.json"),
            threads: 1,
            cpu_devices: 1,
            siblings: None,
            keep_checkpoints: 0,
            work: dir.join("work"),
            programs: None,
            memory: Default::default(),
        }
    }

    fn files(dir: &Path) -> [Vec<u8>; 2] {
        [LOG, RESULT].map(|name| fs::read(PathBuf::from(dir).join("artifacts").join(name)).unwrap())
    }

    #[test]
    fn a_resumed_run_equals_the_unbroken_one() {
        let (unbroken, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let quiet = || -> mloc_exec::context::Tell { Arc::new(|_: &Event| {}) };
        run_module(run(unbroken.path(), &[("steps", 9)]), Arc::default(), quiet(), crate::registry()).unwrap();
        // Asked to stop after the fifth step, then told to fail at the seventh, with a checkpoint every two.
        let stop = Arc::new(AtomicBool::new(false));
        let at = stop.clone();
        let tell: mloc_exec::context::Tell = Arc::new(move |event: &Event| {
            if let Event::Log { text, .. } = event
                && text.starts_with("step 5")
            {
                at.store(true, Ordering::Relaxed);
            }
        });
        let every_two = [("steps", 9), ("save_steps", 2)];
        let stopped = run_module(run(broken.path(), &every_two), stop, tell, crate::registry());
        assert!(matches!(stopped, Err(ModuleError::Cancelled)));
        let mut failing = every_two.to_vec();
        failing.push(("fail_at_step", 7));
        let failed = run_module(run(broken.path(), &failing), Arc::default(), quiet(), crate::registry());
        assert!(matches!(failed, Err(ModuleError::Fatal(_))));
        run_module(run(broken.path(), &every_two), Arc::default(), quiet(), crate::registry()).unwrap();
        assert_eq!(files(unbroken.path()), files(broken.path()));
    }
}
