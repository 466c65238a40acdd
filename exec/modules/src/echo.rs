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
        while state.step < settings.steps {
            ctx.check()?;
            nap(ctx, Duration::from_millis(settings.step_ms))?;
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

fn nap(ctx: &RunContext, long: Duration) -> Result<(), ModuleError> {
    let until = Instant::now() + long;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(NAP));
        ctx.check()?;
    }
    Ok(())
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
