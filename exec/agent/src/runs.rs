//! All runs of an agent: a folder of logs, the runs that are live, and those that go on after a kill.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, error, info, info_span, warn};

use crate::{
    drive::{Command, Driver, now_ms},
    event::{CallId, Event, Record, Setup, VERSION},
    feed::{Feed, Follower},
    log::{self, Log, LogError},
    message::Message,
    model::Chat,
    run::Run,
    settings::{Budgets, Settings},
    tool::Toolbox,
};

mod error;
mod view;

pub use error::RunsError;
pub use view::{Asked, View};

/// What clients want, before a client waits.
const INBOX: usize = 16;

/// A model, its tools, and how they are used.
pub struct Agent {
    /// Its name.
    pub name: String,
    /// As it is written.
    pub settings: Settings,
    /// Its model.
    pub chat: Arc<dyn Chat>,
    /// Its tools.
    pub toolbox: Toolbox,
}

/// How many runs there are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At once.
    pub live: usize,
    /// Whose logs are kept once they are over.
    pub kept: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { live: 64, kept: 1000 }
    }
}

/// What a run is started with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The conversation, without the agent's instructions.
    pub messages: Vec<Message>,
    /// Less than the agent has.
    pub budgets: Option<Budgets>,
    /// Kept with it.
    pub metadata: BTreeMap<String, String>,
}

/// All runs of an agent.
pub struct Runs {
    agent: Arc<Agent>,
    folder: PathBuf,
    limits: Limits,
    live: Arc<Mutex<BTreeMap<String, Live>>>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Held until all runs have stopped: two processes would make the same calls.
    lock: Mutex<Option<Flock<File>>>,
}

#[derive(Clone)]
struct Live {
    feed: Arc<Feed>,
    commands: mpsc::Sender<Command>,
}

impl Runs {
    /// Opens a folder. What is not over there goes on.
    ///
    /// # Errors
    /// When it cannot be used. A log that is damaged is left alone, and said.
    pub fn open(folder: &Path, agent: Agent, limits: Limits) -> Result<Arc<Self>, RunsError> {
        let io = |source| RunsError::Io { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let file = File::options().create(true).append(true).open(folder.join("lock")).map_err(io)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, _)| RunsError::InUse(folder.to_owned()))?;
        let runs = Arc::new(Self {
            agent: Arc::new(agent),
            folder: folder.to_owned(),
            limits,
            live: Arc::default(),
            places: Arc::new(Semaphore::new(limits.live)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            lock: Mutex::new(Some(lock)),
        });
        for run in log::list(folder).map_err(io)? {
            match log::read(&log::path(folder, &run)) {
                Ok(contents) if contents.records.last().is_some_and(|last| last.event.is_last()) => {}
                // Killed before its first record was whole: whoever asked for it was not told that it is there.
                Ok(contents) if contents.records.is_empty() => log::remove(folder, &run).map_err(io)?,
                Ok(contents) => runs.go_on(run, contents.records),
                Err(found) => error!(%found, "a run is left alone"),
            }
        }
        sweep(folder, limits.kept);
        Ok(runs)
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Starts a run, which is durable when this returns.
    ///
    /// # Errors
    /// [`RunsError`]
    pub async fn start(&self, start: Start) -> Result<String, RunsError> {
        if self.stop.is_cancelled() {
            return Err(RunsError::ShuttingDown);
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| RunsError::Full(self.limits.live))?;
        let now = now_ms();
        // By age where they are listed.
        let id = format!("run-{}", ulid::Ulid::from_parts(now, rand::random()));
        let event = Event::RunStarted { run: id.clone(), setup: self.setup(&start), metadata: start.metadata };
        let first = Record { v: VERSION, n: 0, at: now, event };
        let path = log::path(&self.folder, &id);
        let io = |source| RunsError::Io { path: path.clone(), source };
        let mut log = Log::create(&self.folder, &id).await.map_err(io)?;
        log.append(&first).await.map_err(io)?;
        let run = Run::start(&first).map_err(|found| RunsError::Damaged { path, found })?;
        let (live, inbox) = self.enlist(&id, vec![first]);
        let driver = Driver { run, log, feed: live.feed, agent: self.agent.clone(), inbox };
        self.spawn(id.clone(), async move { Some((driver, place)) });
        Ok(id)
    }

    fn setup(&self, start: &Start) -> Setup {
        let settings = &self.agent.settings;
        let system = settings.system.iter().map(|content| Message::System { content: content.clone() });
        let budgets =
            start.budgets.as_ref().map_or_else(|| settings.budgets.clone(), |wanted| settings.budgets.at_most(wanted));
        Setup {
            agent: self.agent.name.clone(),
            messages: system.chain(start.messages.iter().cloned()).collect(),
            tools: self.agent.toolbox.specs(),
            approval: settings.approval.clone(),
            tool_choice: settings.tool_choice,
            budgets,
            patience: settings.patience.clone(),
        }
    }

    /// A run of an earlier process. It is live at once, and works when there is a place for it.
    fn go_on(&self, id: String, records: Vec<Record>) {
        let (live, inbox) = self.enlist(&id, records);
        let (folder, agent, places) = (self.folder.clone(), self.agent.clone(), self.places.clone());
        let run = id.clone();
        self.spawn(id, async move {
            let place = places.acquire_owned().await.ok()?;
            match resumed(&folder, &run, &live.feed).await {
                Ok((run, log)) => Some((Driver { run, log, feed: live.feed, agent, inbox }, place)),
                Err(found) => {
                    error!(%found, "a run is left alone");
                    live.feed.end();
                    None
                }
            }
        });
    }

    fn enlist(&self, id: &str, records: Vec<Record>) -> (Live, mpsc::Receiver<Command>) {
        let (commands, inbox) = mpsc::channel(INBOX);
        let live = Live { feed: Feed::new(records), commands };
        self.live().insert(id.to_owned(), live.clone());
        (live, inbox)
    }

    fn spawn(&self, id: String, ready: impl Future<Output = Option<(Driver, OwnedSemaphorePermit)>> + Send + 'static) {
        let (live, stop, folder, kept) = (self.live.clone(), self.stop.clone(), self.folder.clone(), self.limits.kept);
        let span = info_span!("run", run = %id);
        let work = async move {
            if let Some(Some((driver, place))) = stop.run_until_cancelled(ready).await {
                let feed = driver.feed.clone();
                if let Err(found) = driver.drive(&stop).await {
                    error!(%found, "its log cannot be written: it goes on when its agent starts again");
                }
                feed.end();
                drop(place);
            }
            lock(&live).remove(&id);
            sweep(&folder, kept);
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// A run, as it stands.
    ///
    /// # Errors
    /// When there is none, or its log is damaged.
    pub async fn view(&self, id: &str) -> Result<View, RunsError> {
        let (records, live) = self.records(id).await?;
        let damaged = |found| RunsError::Damaged { path: log::path(&self.folder, id), found };
        View::of(id, &records, live).map_err(damaged)
    }

    /// Names of runs, the youngest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<String>, RunsError> {
        let listed = log::list(&self.folder).map_err(|source| RunsError::Io { path: self.folder.clone(), source })?;
        Ok(listed.into_iter().rev().collect())
    }

    /// Listens to a run from a record on: what has happened, then what happens.
    ///
    /// # Errors
    /// When there is none.
    pub async fn follow(&self, id: &str, from: u64) -> Result<Follower, RunsError> {
        let live = self.live().get(id).cloned();
        match live {
            Some(live) => Ok(live.feed.follow(from)),
            None => Ok(Feed::ended(self.records(id).await?.0).follow(from)),
        }
    }

    async fn records(&self, id: &str) -> Result<(Vec<Record>, bool), RunsError> {
        if let Some(live) = self.live().get(id) {
            return Ok((live.feed.records(), true));
        }
        // A name is a file's, and comes from a client.
        let is_name = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let path = log::path(&self.folder, id);
        if !is_name || !path.exists() {
            return Err(RunsError::Unknown(id.to_owned()));
        }
        let read = tokio::task::spawn_blocking(move || log::read(&path)).await;
        let path = log::path(&self.folder, id);
        let contents = read.unwrap_or_else(|e| Err(LogError::Io { path, source: io::Error::other(e) }))?;
        Ok((contents.records, false))
    }

    /// Says whether a call may be made.
    ///
    /// # Errors
    /// When nobody is asked about it.
    pub async fn approve(&self, id: &str, call: CallId, approve: bool, note: Option<String>) -> Result<(), RunsError> {
        let (heard, answer) = oneshot::channel();
        self.command(id, Command::Approve { call, approve, note, heard }).await?;
        match answer.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(RunsError::NotAsked(call)),
            Err(_) => Err(RunsError::NotLive(id.to_owned())),
        }
    }

    /// Ends a run.
    ///
    /// # Errors
    /// When it is not on its way.
    pub async fn cancel(&self, id: &str) -> Result<(), RunsError> {
        let (heard, answer) = oneshot::channel();
        self.command(id, Command::Cancel { heard }).await?;
        answer.await.map_err(|_| RunsError::NotLive(id.to_owned()))
    }

    async fn command(&self, id: &str, command: Command) -> Result<(), RunsError> {
        let live = self.live().get(id).cloned();
        let Some(live) = live else {
            // Whether there is one at all.
            self.records(id).await?;
            return Err(RunsError::NotLive(id.to_owned()));
        };
        live.commands.send(command).await.map_err(|_| RunsError::NotLive(id.to_owned()))
    }

    /// Stops all runs where they are: they go on in another process. Then servers of tools are asked to end; those that have
    /// not when `patience` is over are killed. Says how many runs did not stop in time.
    pub async fn shut_down(&self, patience: Duration) -> usize {
        let until = tokio::time::Instant::now() + patience;
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout_at(until, self.tasks.wait()).await.is_err() {
            warn!(runs = self.tasks.len(), "did not stop in time");
        }
        if tokio::time::timeout_at(until, self.agent.toolbox.close()).await.is_err() {
            warn!("servers of tools did not end in time, and are killed");
        }
        if self.tasks.is_empty() {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        self.tasks.len()
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        lock(&self.live)
    }
}

fn lock(live: &Mutex<BTreeMap<String, Live>>) -> MutexGuard<'_, BTreeMap<String, Live>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run from its log, in this process.
async fn resumed(folder: &Path, id: &str, feed: &Feed) -> Result<(Run, Log), RunsError> {
    let path = log::path(folder, id);
    let (mut log, contents) = Log::resume(folder, id).await?;
    let damaged = |found| RunsError::Damaged { path: path.clone(), found };
    let mut run = Run::restore(&contents.records).map_err(damaged)?;
    let torn = format!("{} bytes of a record that was not finished are dropped", contents.torn_bytes);
    let events = [Some(Event::Resumed), (contents.torn_bytes > 0).then_some(Event::Warned { message: torn })];
    for event in events.into_iter().flatten() {
        let record = Record { v: VERSION, n: run.next_n(), at: now_ms().max(run.last_at()), event };
        run.apply(&record).map_err(damaged)?;
        log.append(&record).await.map_err(|source| RunsError::Io { path: path.clone(), source })?;
        feed.push(record);
    }
    info!(run = id, records = contents.records.len(), "goes on");
    Ok((run, log))
}

/// Forgets the oldest that are over, beyond those that are kept.
fn sweep(folder: &Path, kept: usize) {
    let Ok(runs) = log::list(folder) else { return };
    let excess = runs.len().saturating_sub(kept);
    for run in &runs[..excess] {
        let contents = log::read(&log::path(folder, run));
        let is_over = contents.is_ok_and(|it| it.records.last().is_some_and(|last| last.event.is_last()));
        if is_over && let Err(found) = log::remove(folder, run) {
            warn!(%found, run, "its log cannot be removed");
        }
    }
}
