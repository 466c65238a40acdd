//! What a module is given, and all it can do to the outside.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mloc_core::{
    task::artifacts,
    wire::{Phase, Progress},
};

use crate::{
    checkpoint::{self, Checkpoint, Retention},
    event::{Event, Level},
    failpoint,
    module::{ModuleError, Output},
    run::{DeviceChoice, Run},
};

/// Where events go. Called from the module's thread.
pub type Tell = Arc<dyn Fn(&Event) + Send + Sync>;

/// What a run is asked by its daemon, or for want of one.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// To stop.
    pub stop: Arc<AtomicBool>,
    /// And not to write a checkpoint: nobody will go on from it.
    pub no_checkpoint: Arc<AtomicBool>,
}

/// Figures are shown to people: more often is noise on the pipe.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// One run, as its module sees it.
pub struct RunContext {
    run: Run,
    resume: Option<Checkpoint>,
    asked: Asked,
    tell: Tell,
    phase: Phase,
    told_at: Option<Instant>,
    untold: Option<Progress>,
    retention: Retention,
    /// What it said that it needs of memory.
    needed: Option<(u64, String)>,
}

impl RunContext {
    /// Looks for the checkpoint to go on from, and says what is wrong with damaged ones and where its bits may differ.
    ///
    /// # Errors
    /// [`ModuleError::Retryable`] when the folder of checkpoints cannot be read.
    pub fn new(run: Run, asked: Asked, tell: Tell) -> Result<Self, ModuleError> {
        let (resume, damages) = checkpoint::find_newest_valid(&run.checkpoints)
            .map_err(|e| ModuleError::disk("read checkpoints below", &run.checkpoints, &e))?;
        let retention = Retention::newest(run.keep_checkpoints);
        let mut ctx = Self {
            run,
            resume,
            asked,
            tell,
            phase: Phase::default(),
            told_at: None,
            untold: None,
            retention,
            needed: None,
        };
        for damage in damages {
            ctx.warn(damage.to_string());
        }
        if let Some(from) = &ctx.resume {
            let (here, threads) = (crate::cpu_features(), ctx.run.threads);
            let mut said = format!("going on from the checkpoint of step {}", from.step);
            let made = &from.manifest;
            let differs = (&made.cpu_features, made.threads) != (&here, threads);
            if differs {
                said.push_str(&format!(
                    "; it was made with {} threads on {}, this run has {threads} on {here}: results agree within a tolerance, not to the bit",
                    made.threads, made.cpu_features
                ));
            }
            (ctx.tell)(&Event::Log { level: if differs { Level::Warn } else { Level::Info }, text: said });
        }
        Ok(ctx)
    }

    /// The attempt, its task, its grant, its inputs and folders.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// An empty folder for what it makes; files named in the output are published.
    pub fn artifacts(&self) -> &Path {
        &self.run.artifacts
    }

    /// The whole checkpoint to go on from.
    pub fn resume(&self) -> Option<&Checkpoint> {
        self.resume.as_ref()
    }

    /// Steps that are done already; 0 without a checkpoint.
    pub fn resume_step(&self) -> u64 {
        self.resume.as_ref().map_or(0, |c| c.step)
    }

    /// Threads to compute with.
    pub fn threads(&self) -> usize {
        self.run.threads
    }

    /// What it was granted to compute on.
    pub fn device(&self) -> DeviceChoice {
        self.run.device()
    }

    /// Whether it is to stop: for loops that must not end by an error. The word is [`Self::check`]'s.
    pub fn stopping(&self) -> bool {
        self.asked.stop.load(Ordering::Relaxed)
    }

    /// What it is asked, for a thread beside the module's own.
    pub fn asked(&self) -> Asked {
        self.asked.clone()
    }

    /// The only cancel point: call it at least once a second.
    ///
    /// # Errors
    /// [`ModuleError::Cancelled`] once it was asked to stop.
    pub fn check(&self) -> Result<(), ModuleError> {
        if self.stopping() { Err(ModuleError::Cancelled) } else { Ok(()) }
    }

    /// Figures. May be called every step: the pipe sees at most ten a second, and always the last.
    pub fn progress(&mut self, progress: Progress) {
        let due = self.told_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        self.untold = Some(progress);
        if due {
            self.flush();
        }
    }

    /// It does something else now.
    pub fn phase(&mut self, phase: Phase) {
        self.flush();
        if self.phase != phase {
            self.phase = phase;
            (self.tell)(&Event::Phase { phase });
        }
    }

    /// A line for the attempt's log.
    pub fn log(&mut self, text: impl fmt::Display) {
        self.flush();
        (self.tell)(&Event::Log { level: Level::Info, text: text.to_string() });
    }

    /// A line for the attempt's log: something is not as it should be, and it goes on.
    pub fn warn(&mut self, text: impl fmt::Display) {
        self.flush();
        (self.tell)(&Event::Log { level: Level::Warn, text: text.to_string() });
    }

    /// It will need so many bytes of memory where it computes; `advice` says what would need less.
    pub fn needs(&mut self, bytes: u64, advice: impl Into<String>) {
        self.flush();
        let advice = advice.into();
        (self.tell)(&Event::Needs { bytes, advice: advice.clone() });
        self.needed = Some((bytes, advice));
    }

    /// What [`Self::needs`] was told.
    pub fn needed(&self) -> Option<(u64, &str)> {
        self.needed.as_ref().map(|(bytes, advice)| (*bytes, advice.as_str()))
    }

    /// It listens there for HTTP/1.1, as a service does; its daemon asks for its health from now on.
    pub fn serving(&mut self, port: Option<u16>, socket: Option<&Path>) {
        self.flush();
        (self.tell)(&Event::Serving { port, socket: socket.map(Path::to_owned) });
    }

    /// How many checkpoints to keep from now on; 0 keeps all. The task's `save_total_limit` unless called.
    pub fn keep_checkpoints(&mut self, keep: usize) {
        self.retention.keep = keep;
    }

    /// Of which step the best checkpoint is, as far as is known: it stays, however few are kept.
    pub fn best_checkpoint(&mut self, step: Option<u64>) {
        self.retention.best = step;
    }

    /// Writes the checkpoint of `step`: `write` fills an empty folder with whatever a resumed run needs. Then old
    /// ones go.
    ///
    /// # Errors
    /// What `write` says, [`ModuleError::Retryable`] for the disk, or [`ModuleError::Cancelled`] when it was asked to
    /// stop and nobody wants a checkpoint.
    pub fn checkpoint(
        &mut self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), ModuleError>,
    ) -> Result<(), ModuleError> {
        if self.asked.no_checkpoint.load(Ordering::Relaxed) {
            return Err(ModuleError::Cancelled);
        }
        let before = self.phase;
        self.phase(Phase::Checkpointing);
        let Retention { keep, best } = self.retention;
        let saved = checkpoint::save(&self.run.checkpoints, step, self.run.threads, write)?;
        (self.tell)(&Event::Checkpoint { step, dir: saved.dir, keep, best });
        failpoint::reached("checkpoint.event");
        if let Err(error) = checkpoint::prune(&self.run.checkpoints, step, self.retention) {
            self.warn(format!("old checkpoints stay: {error}"));
        }
        self.phase(before);
        Ok(())
    }

    /// Whether the task asks for artifacts of a kind: those that cost are not made for nothing.
    pub fn wants(&self, kind: &str) -> bool {
        artifacts::kind_wanted(&self.run.spec.output.artifacts, kind)
    }

    /// The checkpoints on this disk as artifacts.
    ///
    /// # Errors
    /// [`ModuleError::Retryable`] for the disk.
    pub fn publish_checkpoints(&self) -> Result<Vec<Output>, ModuleError> {
        let paths = checkpoint::link_into(&self.run.checkpoints, &self.run.artifacts)
            .map_err(|e| ModuleError::disk("put checkpoints among", &self.run.artifacts, &e))?;
        Ok(paths.into_iter().map(|path| Output { path, kind: "checkpoints".into() }).collect())
    }

    /// Tells the last figures that were held back.
    pub(crate) fn flush(&mut self) {
        if let Some(progress) = self.untold.take() {
            self.told_at = Some(Instant::now());
            (self.tell)(&Event::Progress(progress));
        }
    }
}
