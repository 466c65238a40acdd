//! What a child says, line by line, as its worker and its log understand it.

use std::{path::PathBuf, sync::Arc};

use mloc_core::{
    ledger::entry::{Failure, FailureClass},
    wire::{Phase, Progress},
    worker::{ChildEvent, LocalCheckpoint},
};
use mloc_exec::{
    Event,
    checkpoint::{self, Retention},
    event::{EventError, LINE_BYTES_MAX, Level},
};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    sync::watch,
};
use tracing::info;

use crate::{attempt::Outlet, held::Held, logs::LogFile, serving::Listens};

/// A checkpoint on this disk, to be pushed.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub step: u64,
    pub held: Arc<Held>,
    /// What the shared place keeps.
    pub retention: Retention,
}

/// The child's last word.
pub(crate) enum Said {
    Result,
    Stopped,
    Error(Failure),
}

/// What a child said that it needs of memory, and what would need less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub bytes: u64,
    pub advice: String,
}

/// Turns lines into what the worker understands.
pub(crate) struct Relay<'a> {
    outlet: Outlet,
    log: &'a LogFile,
    /// The newest checkpoint, for whoever pushes them; closed with this value.
    pub push: watch::Sender<Option<Local>>,
    /// Where checkpoints are held while they are pushed.
    pushing: PathBuf,
    /// What it said that it needs of memory.
    pub needs: Option<Needs>,
    /// Where it says it listens, for whoever looks after its health; closed with this value.
    listens: watch::Sender<Option<Listens>>,
    /// The last word so far.
    pub said: Option<Said>,
    phase: Phase,
    progress: Progress,
}

impl<'a> Relay<'a> {
    pub fn new(
        outlet: Outlet,
        log: &'a LogFile,
        push: watch::Sender<Option<Local>>,
        pushing: PathBuf,
        listens: watch::Sender<Option<Listens>>,
    ) -> Self {
        Self {
            outlet,
            log,
            push,
            pushing,
            needs: None,
            listens,
            said: None,
            phase: Phase::Training,
            progress: Progress::default(),
        }
    }

    /// Reads events to their end, or to the first that cannot be understood.
    pub async fn events(&mut self, stdout: Option<impl AsyncRead + Unpin>) {
        let Some(stdout) = stdout else { return };
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut lines).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if line.last() != Some(&b'\n') && line.len() >= LINE_BYTES_MAX {
                return self.give_up(format!("an event is longer than {LINE_BYTES_MAX} bytes"));
            }
            let text = String::from_utf8_lossy(&line);
            match Event::of_line(text.trim_end()) {
                Ok(Some(event)) => self.event(event).await,
                Ok(None) => {}
                Err(error @ EventError::OtherVersion { .. }) => return self.give_up(error.to_string()),
                Err(error) => self.log.line(&format!("mloc: {error}")),
            }
        }
    }

    fn give_up(&mut self, why: String) {
        self.log.line(&format!("mloc: {why}"));
        self.said = Some(Said::Error(Failure { class: FailureClass::Retryable, message: why }));
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Hello { pid, version, .. } => self.log.line(&format!("mloc: child {pid}, version {version}")),
            Event::Phase { phase } => {
                self.phase = phase;
                self.outlet.figures(phase, self.progress.clone());
            }
            Event::Progress(progress) => {
                self.progress = progress.clone();
                self.outlet.figures(self.phase, progress);
            }
            Event::Log { level: Level::Info, text } => self.log.line(&text),
            Event::Log { level: Level::Warn, text } => self.log.line(&format!("warning: {text}")),
            Event::Needs { bytes, advice } => self.needs = Some(Needs { bytes, advice }),
            Event::Checkpoint { step, dir, keep, best } => {
                info!(attempt = %self.outlet.attempt, step, "checkpoint saved");
                // At once: the child may prune it as soon as it has saved the next one.
                let (from, at) = (dir.clone(), self.pushing.join(format!("step-{step:010}")));
                let held = tokio::task::spawn_blocking(move || Held::take(&from, at)).await.ok().flatten();
                let manifest = tokio::fs::read(dir.join(checkpoint::MANIFEST)).await.unwrap_or_default();
                self.outlet
                    .say(ChildEvent::Checkpoint(LocalCheckpoint {
                        step,
                        path: dir.display().to_string(),
                        manifest_sha256: hex::encode(Sha256::digest(manifest)),
                    }))
                    .await;
                if let Some(held) = held {
                    let retention = Retention { keep, best };
                    self.push.send_replace(Some(Local { step, held: Arc::new(held), retention }));
                }
            }
            Event::Serving { socket: Some(path), .. } => drop(self.listens.send_replace(Some(Listens::Socket(path)))),
            Event::Serving { port: Some(port), .. } => drop(self.listens.send_replace(Some(Listens::Port(port)))),
            Event::Serving { port: None, socket: None } => self.log.line("mloc: it serves, and does not say where"),
            Event::Result(_) => self.said = Some(Said::Result),
            Event::Error { class: None, .. } => self.said = Some(Said::Stopped),
            Event::Error { class: Some(class), message } => self.said = Some(Said::Error(Failure { class, message })),
        }
    }
}

/// Prints go to the log; a pipe that is not read would stop the child.
pub(crate) async fn copy(pipe: Option<impl AsyncRead + Unpin>, log: &LogFile) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        log.write(&buffer[..n]);
    }
}
