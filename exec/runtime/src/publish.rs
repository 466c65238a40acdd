//! One publication: what an attempt computed goes to its destination, for as long as the right is held.
//!
//! An outage is waited out here: the result is whole on this disk, and to compute it again would cost hours.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mloc_core::{
    id::AttemptId,
    ledger::entry::{Failure, FailureClass, TaskResult},
    task::spec::Location,
    wire::Progress,
    worker::Event,
};
use mloc_exec::{Lineage, ModuleOutput, Moved, OnMoved, Run, child::read_result, failpoint};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    attempt::Bench,
    bounds, clock,
    folders::Folders,
    logs::{LOG_BYTES_MAX, LogFile},
};

/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Figures are for people.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// One publication, and who hears of it.
pub(crate) struct Publication {
    pub bench: Arc<Bench>,
    pub attempt: AttemptId,
    pub destination: Option<Location>,
    pub events: mpsc::Sender<Event>,
    /// Cancelled when the right is lost.
    pub stopped: CancellationToken,
    /// Wait before the second try; doubles each time.
    pub first_wait: Duration,
}

/// What a try came to.
enum Try {
    Published(TaskResult),
    /// Nothing that another try would change.
    Over(Failure),
    /// The world was in the way.
    Again(Failure),
}

impl Publication {
    /// Tries until it is published, cannot be, or is stopped. When this returns nothing of it writes any more.
    pub async fn run(self) {
        let mut tries = 0;
        while let Some(tried) = self.one_try(tries).await {
            let event = match tried {
                Try::Published(result) => {
                    failpoint::reached("attempt.published");
                    drop_checkpoints(&self.bench.folders, &self.attempt).await;
                    Event::Published { attempt: self.attempt.clone(), result: bounds::result(result) }
                }
                Try::Over(failure) => {
                    Event::PublishFailed { attempt: self.attempt.clone(), failure: bounds::failure(failure) }
                }
                Try::Again(failure) => {
                    tries += 1;
                    if self.wait(tries, &failure).await { continue } else { return }
                }
            };
            // The worker outlives its publications, save at a shutdown, where nothing needs to be said.
            self.events.send(event).await.ok();
            return;
        }
    }

    /// `None` when it was stopped.
    async fn one_try(&self, tries: u32) -> Option<Try> {
        let quiet = CancellationToken::new();
        let tell = self.tell(tries, quiet.clone());
        let tried = tokio::select! { biased;
            () = self.stopped.cancelled() => None,
            tried = self.publish(tell) => Some(tried),
        };
        // A thread of a dropped transfer may be in the middle of a block: it holds `tell` until it is not.
        quiet.cancelled().await;
        tried
    }

    async fn publish(&self, tell: OnMoved) -> Try {
        let (bench, id) = (&self.bench, &self.attempt);
        let made = read_result(&bench.folders.result(id));
        failpoint::reached("attempt.publish");
        let published = match &made {
            // Computed without a result of its own: an earlier attempt published.
            None => match &self.destination {
                Some(destination) => bench.tools.transfers().published(id, destination).await,
                None => Ok(None),
            },
            Some(made) => {
                let artifacts = bench.folders.artifacts(id);
                // A run file that cannot be read costs the lineage, not the result.
                let run = Run::read(&bench.folders.run_file(id)).ok();
                let lineage = run.map(|run| Lineage::of(&run, &bench.node, clock::unix_ms()));
                let destination = self.destination.as_ref();
                let transfers = bench.tools.transfers();
                transfers.publish(id, destination, &artifacts, made, lineage, tell).await.map(Some)
            }
        };
        match published {
            Ok(Some(result)) => Try::Published(result),
            Ok(None) => Try::Over(self.gone()),
            Err(_) if made.as_ref().is_some_and(|made| !self.all_there(made)) => Try::Over(self.gone()),
            Err(failure) if failure.class == FailureClass::Retryable => Try::Again(failure),
            Err(failure) => Try::Over(failure),
        }
    }

    fn all_there(&self, made: &ModuleOutput) -> bool {
        let artifacts = self.bench.folders.artifacts(&self.attempt);
        made.outputs.iter().all(|output| artifacts.join(&output.path).is_file())
    }

    fn gone(&self) -> Failure {
        let artifacts = self.bench.folders.artifacts(&self.attempt);
        let message = format!("{} is not whole any more: it has to be computed again", artifacts.display());
        Failure { class: FailureClass::Retryable, message }
    }

    /// Says why, and waits for the next try; `false` when it was stopped meanwhile.
    async fn wait(&self, tries: u32, failure: &Failure) -> bool {
        let wait =
            self.first_wait.saturating_mul(2u32.saturating_pow(tries.saturating_sub(1).min(16))).min(LONGEST_WAIT);
        let seconds = wait.as_secs_f32();
        warn!(attempt = %self.attempt, tries, wait_s = seconds, error = failure.message, "not published yet");
        if let Ok(log) = LogFile::open(&self.bench.folders.log(&self.attempt), LOG_BYTES_MAX) {
            log.line(&format!(
                "mloc: not published yet (try {tries}, the next one in {seconds:.1} s): {}",
                failure.message
            ));
        }
        let first_line = failure.message.lines().next().unwrap_or_default();
        let note = format!("waiting to publish, {tries} tries so far: {first_line}");
        self.figures(Progress { note: Some(note), ..Progress::default() });
        tokio::select! { biased;
            () = self.stopped.cancelled() => false,
            () = sleep(wait) => true,
        }
    }

    /// Bytes as figures, every now and then and the last; `quiet` is said when nobody holds this any more.
    fn tell(&self, tries: u32, quiet: CancellationToken) -> OnMoved {
        let (events, attempt, guard) = (self.events.clone(), self.attempt.clone(), quiet.drop_guard());
        let note = if tries == 0 { "publishing".to_owned() } else { format!("publishing, try {}", tries + 1) };
        let told = Mutex::new(None::<Instant>);
        Arc::new(move |moved: Moved| {
            let _ = &guard;
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if moved.done < moved.total && told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
                return;
            }
            *told = Some(Instant::now());
            let (bytes_done, bytes_total) = (Some(moved.done), Some(moved.total));
            let progress = Progress { bytes_done, bytes_total, note: Some(note.clone()), ..Progress::default() };
            // Figures never wait: only the newest matter.
            events.try_send(Event::Uploading { attempt: attempt.clone(), progress }).ok();
        })
    }

    fn figures(&self, progress: Progress) {
        self.events.try_send(Event::Uploading { attempt: self.attempt.clone(), progress }).ok();
    }
}

/// What is published needs no checkpoint any more.
async fn drop_checkpoints(folders: &Folders, attempt: &AttemptId) {
    match tokio::fs::remove_dir_all(folders.checkpoints(attempt)).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(%attempt, %error, "its checkpoints stay"),
        _ => info!(%attempt, "published"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        path::{Path, PathBuf},
    };

    use async_trait::async_trait;
    use mloc_core::{
        id::{NodeId, TaskId},
        ledger::entry::CheckpointRef,
        task::spec::Pin,
    };
    use mloc_exec::{Arrived, OnSaid, Transfers, checkpoint::Retention};

    use super::*;
    use crate::{disk::DiskWatch, tools::Tools};

    /// Its publications leave a thread behind that writes on until it is let go.
    struct Stubborn {
        began: mpsc::Sender<()>,
        let_go: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    }

    #[async_trait]
    impl Transfers for Stubborn {
        async fn pull(&self, _: &Location, _: Option<&Pin>, _: OnMoved, _: OnSaid) -> Result<Arrived, Failure> {
            std::future::pending().await
        }

        fn make_room(&self, _: u64) {}

        fn tidy(&self) {}

        async fn fetch_checkpoint(
            &self,
            _: &AttemptId,
            _: &Location,
            _: &Path,
            _: OnMoved,
        ) -> Result<Option<CheckpointRef>, Failure> {
            std::future::pending().await
        }

        async fn push_checkpoint(
            &self,
            _: &AttemptId,
            _: &Location,
            _: u64,
            _: &Path,
            _: Retention,
            _: OnMoved,
        ) -> Result<CheckpointRef, Failure> {
            std::future::pending().await
        }

        async fn sweep(&self, _: &AttemptId, _: &Location) -> Result<(), Failure> {
            std::future::pending().await
        }

        async fn published(&self, _: &AttemptId, _: &Location) -> Result<Option<TaskResult>, Failure> {
            std::future::pending().await
        }

        async fn publish(
            &self,
            _: &AttemptId,
            _: Option<&Location>,
            _: &Path,
            _: &ModuleOutput,
            _: Option<Lineage>,
            tell: OnMoved,
        ) -> Result<TaskResult, Failure> {
            let let_go = self.let_go.lock().unwrap().take().unwrap();
            std::thread::spawn(move || {
                let _held = tell;
                let_go.recv().ok();
            });
            self.began.send(()).await.unwrap();
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_stopped_publication_is_over_when_nothing_of_it_writes_any_more() {
        let top = tempfile::tempdir().unwrap();
        let folders = Folders::new(top.path());
        let attempt = AttemptId { task: TaskId::new("t"), replica: 0, attempt: 1 };
        std::fs::create_dir_all(folders.attempt(&attempt)).unwrap();
        std::fs::write(folders.result(&attempt), r#"{"outputs":[],"summary":{}}"#).unwrap();
        let (began, mut beginning) = mpsc::channel(1);
        let (release, let_go) = std::sync::mpsc::channel();
        let bench = Arc::new(Bench {
            disk: Arc::new(DiskWatch::new(top.path().to_owned(), 0, Arc::new(|_| {}))),
            tools: Arc::new(Tools::new(
                BTreeMap::new(),
                Arc::new(Stubborn { began, let_go: Mutex::new(Some(let_go)) }),
                None,
            )),
            folders,
            node: NodeId::new("n"),
            program: PathBuf::new(),
            replicas: Arc::default(),
            link: Arc::new(crate::serving::siblings::NoOthers),
        });
        let (events, mut said) = mpsc::channel(1);
        let stopped = CancellationToken::new();
        let publication = Publication {
            bench,
            attempt,
            destination: None,
            events,
            stopped: stopped.clone(),
            first_wait: Duration::from_millis(1),
        };
        let mut run = Box::pin(publication.run());
        tokio::select! {
            () = &mut run => panic!("it ended"),
            _ = beginning.recv() => {}
        }
        stopped.cancel();
        assert!(futures::poll!(&mut run).is_pending(), "its thread is still writing");
        drop(release);
        run.await;
        assert!(said.recv().await.is_none(), "a stopped publication has nothing to say");
    }
}
