//! The worker's shell: feeds `mloc_core::worker::Worker` one event after another and does what comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use mloc_core::{
    id::{AttemptId, NodeId, TaskId},
    wire::{FromLeader, FromWorker, Report, ToLeader, ToWorker},
    worker::{self, Action, AttemptRow, ChildEvent, Event, Stage, Write},
};
use mloc_exec::{Programs, Transfers};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::{
    attempt::{self, Bench, Outlet, Start, Wish},
    clock::boot_ms,
    disk::DiskWatch,
    folders::Folders,
    journal::{Durable, Journal, JournalError},
    launch,
    logs::AttemptLogs,
    publish::Publication,
    serving::{Replicas, siblings::ReplicaLink},
    tidy,
    tools::Tools,
};

/// Between two looks at what is kept for a time.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Events that wait for the worker; a child that says more waits with its next checkpoint.
const EVENTS: usize = 256;
/// Heartbeats under way: one that hangs on a dead connection must not hold up the next.
const HEARTBEATS_AT_ONCE: u32 = 4;
/// At a shutdown, beyond the grace children have: to kill them and to close the journal.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(5);
/// At a start, for what is to be cleared away at one destination.
const SWEEP_MAX: Duration = Duration::from_secs(5);
/// Before an unanswered report is sent again; never more often than heartbeats.
const REPORT_RETRY: Duration = Duration::from_secs(1);

/// A message from the leader, and where its answer goes. Dropped unanswered, the leader sends it again.
pub type WorkerMessage = (ToWorker, oneshot::Sender<FromWorker>);

/// The way to the leader, wherever it is.
#[async_trait]
pub trait LeaderLink: Send + Sync + 'static {
    /// Sends and waits for the answer.
    async fn send(&self, message: ToLeader) -> Result<FromLeader, LinkDown>;
}

/// The leader cannot be reached just now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LinkDown(pub String);

/// What a worker needs to know.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// This node.
    pub node: NodeId,
    /// Journal, attempts.
    pub data_dir: PathBuf,
    /// The program that is started with `__attempt run.json`.
    pub program: PathBuf,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// The usual lease: bounds how long an answer is waited for.
    pub lease: Duration,
    /// Secrets that tasks may name in `secretsFrom`.
    pub secrets: BTreeMap<String, String>,
    /// How programs of users are run; absent when they are not. The data directory is hidden from them anyway.
    pub programs: Option<Programs>,
    /// Bytes of the data directory's disk that are kept for the journal and the ledger: below it attempts stop.
    pub disk_reserve_bytes: u64,
}

impl WorkerSettings {
    /// The usual [`Self::disk_reserve_bytes`]: journals grow by megabytes, and what is written between two looks at the
    /// disk must fit too.
    pub const DISK_RESERVE_BYTES: u64 = 128 << 20;
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerStartError {
    /// Its journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its folders cannot be made.
    #[error("cannot make {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

/// A running worker. Dropped without [`Worker::stop`] it stops at once; its children notice and stop too.
pub struct Worker {
    logs: Arc<AttemptLogs>,
    tools: Arc<Tools>,
    replicas: Arc<Replicas>,
    failed: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
    tracker: TaskTracker,
    stop_grace: Duration,
    _drop: tokio_util::sync::DropGuard,
}

impl Worker {
    /// Opens the journal, kills what an earlier daemon left running, and goes on where it was.
    ///
    /// # Errors
    /// [`WorkerStartError`]
    pub async fn start(
        settings: WorkerSettings,
        transfers: Arc<dyn Transfers>,
        link: Arc<dyn LeaderLink>,
        others: Arc<dyn ReplicaLink>,
        inbox: mpsc::Receiver<WorkerMessage>,
    ) -> Result<Self, WorkerStartError> {
        let folders = Folders::new(&settings.data_dir);
        let attempts = folders.attempts();
        std::fs::create_dir_all(&attempts)
            .map_err(|source| WorkerStartError::Folder { path: attempts.clone(), source })?;
        let (journal, rows) = Journal::open(&settings.data_dir)?;
        let known: BTreeSet<AttemptId> = rows.attempts.iter().map(|row| row.assign.attempt.clone()).collect();
        // A journal that was just made knows of nothing: what lies here may be of use to attempts that come again.
        let fresh = rows.highest_term == 0 && known.is_empty();
        let programs = settings.programs.map(|mut programs| {
            programs.hidden.push(settings.data_dir.clone());
            programs
        });
        let tools = Arc::new(Tools::new(settings.secrets, transfers, programs));
        let (evicting, sources) = (tools.clone(), tools.transfers());
        let room = Arc::new(move |bytes| evicting.transfers().make_room(bytes));
        let (all, those) = (folders.clone(), known.clone());
        let clear = move || {
            // After the lock: another daemon's children are its own.
            launch::kill_leftovers(&attempts);
            if !fresh {
                tidy::at_start(&all, those.iter());
            }
            sources.tidy();
        };
        tokio::task::spawn_blocking(clear).await.ok();
        sweep(&*tools.transfers(), &rows.attempts).await;
        let mut machine = worker::Settings::new(settings.node.clone());
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        machine.heartbeat_ms = millis(settings.heartbeat);
        machine.report_retry_ms = millis(settings.heartbeat.min(REPORT_RETRY));
        let stop_grace = Duration::from_millis(machine.stop_grace_ms);
        let (worker, actions) = worker::Worker::restore(rows, machine, boot_ms());
        let logs = Arc::new(AttemptLogs::new(&settings.data_dir));
        let (events, heard) = mpsc::channel(EVENTS);
        let (sayings, said) = mpsc::channel(EVENTS);
        let (tell_failed, failed) = watch::channel(None);
        let replicas = Arc::new(Replicas::default());
        let cancel = CancellationToken::new();
        let tracker = TaskTracker::new();
        let service = Service {
            worker,
            bench: Arc::new(Bench {
                node: settings.node.clone(),
                folders,
                program: settings.program,
                disk: Arc::new(DiskWatch::new(settings.data_dir, settings.disk_reserve_bytes, room)),
                tools: tools.clone(),
                replicas: replicas.clone(),
                link: others,
            }),
            link,
            journal: Some(journal),
            logs: logs.clone(),
            patience: (settings.lease / 4).max(settings.heartbeat).max(Duration::from_secs(1)),
            stop_grace,
            publish_again: settings.heartbeat,
            known,
            forgotten: BTreeMap::new(),
            events,
            sayings,
            tracker: tracker.clone(),
            requests: BTreeMap::new(),
            last_request: 0,
            runs: BTreeMap::new(),
            publishing: BTreeMap::new(),
            reporting: Arc::default(),
            beating: Arc::default(),
            tell_failed,
        };
        tracker.spawn(tidy_now_and_then(service.bench.folders.clone(), cancel.clone()));
        let span = info_span!("worker");
        tracker.spawn(service.run(actions, inbox, heard, said, cancel.clone()).instrument(span));
        let drop_guard = cancel.clone().drop_guard();
        Ok(Self { logs, tools, replicas, failed, cancel, tracker, stop_grace, _drop: drop_guard })
    }

    /// Logs of the attempts that ran here.
    pub fn logs(&self) -> Arc<AttemptLogs> {
        self.logs.clone()
    }

    /// What attempts are given, to be changed while they run.
    pub fn tools(&self) -> Arc<Tools> {
        self.tools.clone()
    }

    /// Replicas of services that run here.
    pub fn replicas(&self) -> Arc<Replicas> {
        self.replicas.clone()
    }

    /// Returns when the worker cannot go on, with the reason: its journal is lost to it.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        let why = match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone(),
            Err(_) => None,
        };
        match why {
            Some(why) => why,
            // It was stopped, not broken.
            None => std::future::pending().await,
        }
    }

    /// Asks children to write a checkpoint and stop, kills those that do not in time, closes the journal. Their
    /// attempts stay in it and go on with the next start.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        let deadline = self.stop_grace + SHUTDOWN_MARGIN;
        if timeout(deadline, self.tracker.wait()).await.is_err() {
            warn!(
                seconds = deadline.as_secs(),
                left = self.tracker.len(),
                "the worker's tasks did not all stop in time"
            );
        }
    }
}

/// A child that was started.
struct Started {
    run: u64,
    wish: watch::Sender<Wish>,
    done: CancellationToken,
}

/// A publication under way.
struct Publishing {
    stop: CancellationToken,
    done: CancellationToken,
}

struct Service {
    worker: worker::Worker,
    bench: Arc<Bench>,
    link: Arc<dyn LeaderLink>,
    journal: Option<Journal>,
    logs: Arc<AttemptLogs>,
    /// How long an answer from the leader is waited for.
    patience: Duration,
    stop_grace: Duration,
    /// Wait before a publication's second try.
    publish_again: Duration,
    /// Attempts with a row in the journal.
    known: BTreeSet<AttemptId>,
    /// Newest attempt that was forgotten, of replicas that still have a row.
    forgotten: BTreeMap<(TaskId, u32), u32>,
    events: mpsc::Sender<(AttemptId, u64, ChildEvent)>,
    sayings: mpsc::Sender<Event>,
    tracker: TaskTracker,
    requests: BTreeMap<u64, oneshot::Sender<FromWorker>>,
    last_request: u64,
    runs: BTreeMap<AttemptId, Started>,
    publishing: BTreeMap<AttemptId, Publishing>,
    /// Attempts with a report under way: one that hangs is not sent again beside itself.
    reporting: Arc<Mutex<BTreeSet<AttemptId>>>,
    beating: Arc<Mutex<u32>>,
    tell_failed: watch::Sender<Option<String>>,
}

/// Clears away what attempts were writing to destinations on this node's disks when the daemon died. Those that will be
/// published do it themselves in the end; of one that is cancelled now nobody else would.
async fn sweep(transfers: &dyn Transfers, rows: &[AttemptRow]) {
    for row in rows.iter().filter(|row| row.stage == Stage::Computed) {
        let (attempt, Some(destination)) = (&row.assign.attempt, &row.assign.spec.output.destination) else { continue };
        // A disk that does not answer must not keep the node from its work.
        match timeout(SWEEP_MAX, transfers.sweep(attempt, destination)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => warn!(%attempt, error = failure.message, "temporary files of it stay"),
            Err(_) => warn!(%attempt, "temporary files of it stay: its destination does not answer"),
        }
    }
}

/// The time of a kept result ends whether or not anything else happens on this node.
async fn tidy_now_and_then(folders: Folders, cancel: CancellationToken) {
    while timeout(TIDY_EVERY, cancel.cancelled()).await.is_err() {
        let folders = folders.clone();
        tokio::task::spawn_blocking(move || tidy::now_and_then(&folders)).await.ok();
    }
}

impl Service {
    async fn run(
        mut self,
        actions: Vec<Action>,
        mut inbox: mpsc::Receiver<WorkerMessage>,
        mut heard: mpsc::Receiver<(AttemptId, u64, ChildEvent)>,
        mut said: mpsc::Receiver<Event>,
        cancel: CancellationToken,
    ) {
        self.act(actions).await;
        loop {
            let now = boot_ms();
            let wait = Duration::from_millis(self.worker.wake_at(now).saturating_sub(now));
            let Some(journal) = &mut self.journal else { break };
            let event = tokio::select! { biased;
                () = cancel.cancelled() => break,
                durable = journal.progressed() => match self.journalled(durable) {
                    Some(event) => event,
                    None => break,
                },
                Some(event) = said.recv() => event,
                Some((attempt, run, event)) = heard.recv() => self.heard(attempt, run, event),
                Some((message, answer)) = inbox.recv() => self.asked(message, answer),
                () = sleep_until(Instant::now() + wait) => Event::Tick,
            };
            let actions = self.worker.on(event, boot_ms());
            self.act(actions).await;
        }
        // Nobody takes what they say any more; their channels must not hold them up.
        drop((heard, said, inbox));
        self.shut_down().await;
    }

    fn journalled(&self, durable: Durable) -> Option<Event> {
        if let Some(why) = durable.broken {
            let why = format!("journal.redb cannot be written: {why}");
            error!(%why, "the worker stops");
            self.tell_failed.send_replace(Some(why));
            return None;
        }
        Some(Event::Journalled(durable.upto))
    }

    fn asked(&mut self, message: ToWorker, answer: oneshot::Sender<FromWorker>) -> Event {
        self.last_request += 1;
        // Askers that went away leave their senders behind until then.
        self.requests.retain(|_, waiting| !waiting.is_closed());
        self.requests.insert(self.last_request, answer);
        Event::Message { request: self.last_request, message }
    }

    fn heard(&mut self, attempt: AttemptId, run: u64, event: ChildEvent) -> Event {
        if let ChildEvent::Exited(_) = &event
            && self.runs.get(&attempt).is_some_and(|started| started.run == run)
        {
            self.runs.remove(&attempt);
            self.logs.set_live(&attempt, false);
        }
        Event::Child { attempt, run, event }
    }

    async fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Journal { id, write } => {
                    match &write {
                        Write::Attempt(row) => drop(self.known.insert(row.assign.attempt.clone())),
                        Write::Forget(attempt) => drop(self.known.remove(attempt)),
                        Write::Term(_) => {}
                    }
                    if let Some(journal) = &self.journal {
                        journal.write(id, write).await;
                    }
                }
                Action::Answer { request, answer } => {
                    // Who asked may be gone; then it asks again.
                    self.requests.remove(&request).map(|asked| asked.send(answer));
                }
                // The replica's folder says itself from where to go on; it may hold a newer checkpoint than was heard of.
                Action::StartChild { attempt, run, assign, resume: _ } => self.start_child(attempt, run, assign),
                Action::StopChild { attempt, run, grace_ms, checkpoint } => {
                    info!(%attempt, grace_ms, checkpoint, "asking the child to stop");
                    self.wish(&attempt, run, if checkpoint { Wish::Stop } else { Wish::Drop });
                }
                Action::KillChild { attempt, run } => {
                    warn!(%attempt, "the child did not stop in time: killing it");
                    self.wish(&attempt, run, Wish::Kill);
                }
                Action::StartPublish { attempt } => self.start_publish(attempt),
                Action::StopPublish { attempt } => {
                    if let Some(publishing) = self.publishing.get(&attempt) {
                        publishing.stop.cancel();
                    }
                }
                Action::SendReport { attempt, seq, report } => self.send_report(attempt, seq, report),
                Action::SendHeartbeat(heartbeat) => self.send_heartbeat(heartbeat),
                Action::Forgotten { attempt } => self.forget(attempt),
            }
        }
    }

    fn own(&self, attempt: &AttemptId, task: impl Future<Output = ()> + Send + 'static) -> CancellationToken {
        let done = CancellationToken::new();
        let guard = done.clone().drop_guard();
        let span = info_span!("attempt", %attempt);
        self.tracker.spawn(
            async move {
                let _guard = guard;
                task.await;
            }
            .instrument(span),
        );
        done
    }

    fn start_child(&mut self, attempt: AttemptId, run: u64, assign: Box<mloc_core::wire::Assign>) {
        let (wish, wished) = watch::channel(Wish::Go);
        self.logs.set_live(&attempt, true);
        let replicas = self.bench.replicas.clone();
        let outlet = Outlet { attempt: attempt.clone(), run, events: self.events.clone(), replicas };
        let start = Start { bench: self.bench.clone(), assign, wish: wished, outlet, held: Vec::new(), siblings: None };
        let done = self.own(&attempt, attempt::run(start));
        self.runs.insert(attempt, Started { run, wish, done });
    }

    fn wish(&self, attempt: &AttemptId, run: u64, wanted: Wish) {
        if let Some(started) = self.runs.get(attempt).filter(|started| started.run == run) {
            started.wish.send_if_modified(|wish| std::mem::replace(wish, (*wish).max(wanted)) < wanted);
        }
    }

    fn start_publish(&mut self, attempt: AttemptId) {
        let row = self.worker.attempts().find(|row| row.assign.attempt == attempt);
        let Some(destination) = row.map(|row| row.assign.spec.output.destination.clone()) else { return };
        let stopped = CancellationToken::new();
        let publication = Publication {
            bench: self.bench.clone(),
            attempt: attempt.clone(),
            destination,
            events: self.sayings.clone(),
            stopped: stopped.clone(),
            first_wait: self.publish_again,
        };
        // One that was stopped may still be between two bytes.
        let before = self.publishing.get(&attempt).map(|publishing| publishing.done.clone());
        let publish = async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
            publication.run().await;
        };
        let done = self.own(&attempt, publish);
        self.publishing.insert(attempt, Publishing { stop: stopped, done });
    }

    /// Clears away what the attempts of a replica leave once the last of them is forgotten: until then a successor may
    /// be going on from their checkpoints, or publish what one of them made.
    fn forget(&mut self, attempt: AttemptId) {
        debug!(%attempt, "forgotten");
        let publishing = self.publishing.remove(&attempt).map(|publishing| publishing.done);
        let replica = (attempt.task.clone(), attempt.replica);
        let newest = self.forgotten.remove(&replica).unwrap_or(0).max(attempt.attempt);
        if self.known.iter().any(|id| (&id.task, id.replica) == (&replica.0, replica.1)) {
            self.forgotten.insert(replica, newest);
            return;
        }
        let (folders, last) = (self.bench.folders.clone(), AttemptId { attempt: newest, ..attempt.clone() });
        self.own(&attempt, async move {
            if let Some(done) = publishing {
                done.cancelled().await;
            }
            // A panic there is told by its hook; the next start clears away what is left.
            tokio::task::spawn_blocking(move || tidy::forgotten(&folders, &last)).await.ok();
        });
    }

    fn send_report(&self, attempt: AttemptId, seq: u64, report: Report) {
        let reporting = self.reporting.clone();
        let lock = |all: &Mutex<BTreeSet<AttemptId>>, id: &AttemptId, add: bool| {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            if add { all.insert(id.clone()) } else { all.remove(id) }
        };
        if !lock(&reporting, &attempt, true) {
            return;
        }
        let (link, patience, sayings) = (self.link.clone(), self.patience, self.sayings.clone());
        let id = attempt.clone();
        self.own(&attempt, async move {
            let sent = timeout(patience, link.send(ToLeader::Report { attempt: id.clone(), report })).await;
            lock(&reporting, &id, false);
            match sent {
                Ok(Ok(answer)) => {
                    sayings.send(Event::ReportAnswered { attempt: id, seq, answer }).await.ok();
                }
                Ok(Err(error)) => debug!(%error, "a report waits"),
                Err(_) => debug!("a report got no answer"),
            }
        });
    }

    fn send_heartbeat(&self, heartbeat: mloc_core::wire::Heartbeat) {
        let beating = self.beating.clone();
        {
            let mut under_way = beating.lock().unwrap_or_else(PoisonError::into_inner);
            if *under_way >= HEARTBEATS_AT_ONCE {
                return;
            }
            *under_way += 1;
        }
        let (link, patience, sayings) = (self.link.clone(), self.patience, self.sayings.clone());
        self.tracker.spawn(
            async move {
                let sent = timeout(patience, link.send(ToLeader::Heartbeat(heartbeat))).await;
                *beating.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                let event = match sent {
                    Ok(Ok(answer)) => Event::HeartbeatAnswered(answer),
                    Ok(Err(error)) => {
                        debug!(%error, "a heartbeat was not heard");
                        Event::HeartbeatFailed
                    }
                    Err(_) => Event::HeartbeatFailed,
                };
                sayings.send(event).await.ok();
            }
            .instrument(info_span!("heartbeat")),
        );
    }

    /// What happens from here on is not reported: the attempts go on from their rows with the next start.
    async fn shut_down(mut self) {
        for publishing in self.publishing.values() {
            publishing.stop.cancel();
        }
        for started in self.runs.values() {
            started.wish.send_if_modified(|wish| std::mem::replace(wish, (*wish).max(Wish::Stop)) < Wish::Stop);
        }
        let deadline = Instant::now() + self.stop_grace;
        for (attempt, started) in &self.runs {
            if tokio::time::timeout_at(deadline, started.done.cancelled()).await.is_err() {
                warn!(%attempt, seconds = self.stop_grace.as_secs(), "its child did not stop in time: killing it");
                started.wish.send_replace(Wish::Kill);
            }
            self.logs.set_live(attempt, false);
        }
        for started in self.runs.values() {
            timeout(SHUTDOWN_MARGIN, started.done.cancelled()).await.ok();
        }
        if let Some(journal) = self.journal.take() {
            journal.close().await;
        }
    }
}
