//! A worker with a leader that commits everything and folders for stores.
#![allow(dead_code, reason = "the tests and the example use different halves")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mloc_core::{
    capability::Grant,
    id::{AttemptId, NodeId, TaskId},
    ledger::entry::{Artifact, CheckpointRef, Failure, FailureClass, TaskResult},
    task::{
        TaskSpec,
        kind::{Kind, TaskType},
        spec::{Checkpointing, Location, Pin},
    },
    wire::{Assign, AttemptProgress, FromLeader, FromWorker, Heartbeat, Report, StopReason, ToLeader, ToWorker},
};
use mloc_exec::{Arrived, Lineage, ModuleOutput, Moved, OnMoved, OnSaid, Output, Transfers, checkpoint::Retention};
use mloc_runtime::serving::siblings::{Duplex, ReplicaLink};
use mloc_runtime::{LeaderLink, LinkDown, Worker, WorkerMessage, WorkerSettings};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

pub const TERM: u64 = 1;
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A spec of `echo`, which the example's own module runs.
pub fn spec(steps: u64, mode: &str) -> TaskSpec {
    let number = |name: &str, n: u64| (name.to_owned(), Value::from(n));
    TaskSpec {
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
        hyperparameters: BTreeMap::from([
            number("steps", steps),
            number("save_steps", 2),
            number("save_total_limit", 2),
        ]),
        output: Default::default(),
        priority: 0,
        depends_on: vec![],
        retry: Default::default(),
        timeouts: Default::default(),
        placement: Default::default(),
        checkpoint: Default::default(),
        env: BTreeMap::from([("MODE".to_owned(), mode.to_owned())]),
        secrets_from: vec![],
    }
}

pub fn attempt(number: u32) -> AttemptId {
    AttemptId { task: TaskId::new("task-01TEST"), replica: 0, attempt: number }
}

pub fn assign(number: u32, spec: TaskSpec) -> Assign {
    let grant = Grant { cpu_millis: 1000, ..Default::default() };
    Assign {
        term: TERM,
        attempt: attempt(number),
        spec,
        grant,
        checkpoint: None,
        pins: Default::default(),
        lease_ms: 60_000,
    }
}

/// Commits everything, while it can be reached.
pub struct Leader {
    pub down: AtomicBool,
    pub reports: watch::Sender<Vec<(AttemptId, Report)>>,
    pub heartbeat: watch::Sender<Option<Heartbeat>>,
}

impl Leader {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            down: AtomicBool::new(false),
            reports: watch::channel(vec![]).0,
            heartbeat: watch::channel(None).0,
        })
    }

    /// Waits for a report that will do.
    pub async fn report(&self, will_do: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.reports.subscribe();
        let found = reports.wait_for(|all| all.iter().any(|(_, r)| will_do(r)));
        let found = tokio::time::timeout(PATIENCE, found).await;
        let all = found.unwrap_or_else(|_| panic!("no such report; there are {:?}", *self.reports.borrow())).unwrap();
        all.iter().find(|(_, r)| will_do(r)).unwrap().1.clone()
    }

    /// How the attempt ends.
    pub async fn end_of(&self, attempt: &AttemptId) -> Report {
        let mut reports = self.reports.subscribe();
        let end = |all: &Vec<(AttemptId, Report)>| {
            let ended = |r: &Report| matches!(r, Report::Finished(_) | Report::Failed(_) | Report::Stopped);
            all.iter().find(|(id, r)| id == attempt && ended(r)).map(|(_, r)| r.clone())
        };
        let found = tokio::time::timeout(PATIENCE, reports.wait_for(|all| end(all).is_some())).await;
        end(&found.expect("an end in time").unwrap()).unwrap()
    }

    pub async fn end(&self) -> Report {
        self.report(|r| matches!(r, Report::Finished(_) | Report::Failed(_) | Report::Stopped)).await
    }

    /// Waits until a heartbeat names a step at least so high.
    pub async fn step(&self, at_least: u64) {
        self.says(|a| a.progress.step >= at_least).await;
    }

    /// Waits until a heartbeat says such a thing of an attempt.
    pub async fn says(&self, will_do: impl Fn(&AttemptProgress) -> bool) {
        let mut beats = self.heartbeat.subscribe();
        let there = |h: &Option<Heartbeat>| h.as_ref().is_some_and(|h| h.attempts.iter().any(&will_do));
        tokio::time::timeout(PATIENCE, beats.wait_for(there)).await.expect("no such progress").unwrap();
    }
}

#[async_trait]
impl LeaderLink for Leader {
    async fn send(&self, message: ToLeader) -> Result<FromLeader, LinkDown> {
        if self.down.load(Ordering::SeqCst) {
            return Err(LinkDown("the leader is away".into()));
        }
        Ok(match message {
            ToLeader::Heartbeat(heartbeat) => {
                let sent_at = heartbeat.sent_at;
                self.heartbeat.send_replace(Some(heartbeat));
                FromLeader::Alive { term: TERM, sent_at, stop: vec![] }
            }
            ToLeader::Report { attempt, report } => {
                self.reports.send_modify(|all| {
                    if !all.contains(&(attempt.clone(), report.clone())) {
                        all.push((attempt, report));
                    }
                });
                FromLeader::Committed { term: TERM }
            }
        })
    }
}

/// Folders for places: `local` paths as they are.
#[derive(Default)]
pub struct Folders {
    /// Publications find nobody while this is set.
    pub outage: AtomicBool,
    /// Publications stand still in the middle while this is set.
    pub held: AtomicBool,
    /// Pushes of checkpoints stand still before their first byte while this is set.
    pub slow_push: AtomicBool,
    /// The pins that pulls came with.
    pub asked: Mutex<Vec<Option<Pin>>>,
}

fn path_of(location: &Location) -> &Path {
    match location {
        Location::Local { path } => Path::new(path),
        other => panic!("no folder: {other:?}"),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let done = || -> std::io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    done().map_err(|e| Failure { class: FailureClass::Retryable, message: format!("{}: {e}", from.display()) })
}

#[async_trait]
impl Transfers for Folders {
    async fn pull(&self, source: &Location, pin: Option<&Pin>, _: OnMoved, _: OnSaid) -> Result<Arrived, Failure> {
        let path = path_of(source);
        // What is named by a file `version` beside it has versions.
        let version = fs::read_to_string(path.with_extension("version")).ok();
        self.asked.lock().unwrap().push(pin.cloned());
        match path.exists() {
            true => Ok(Arrived {
                path: path.to_owned(),
                pin: version.map(|version| Pin { version, files: 1, bytes: 2 }),
                held: None,
            }),
            false => Err(Failure { class: FailureClass::Fatal, message: format!("{}: not there", path.display()) }),
        }
    }

    fn make_room(&self, _: u64) {}

    fn tidy(&self) {}

    async fn fetch_checkpoint(
        &self,
        _: &AttemptId,
        destination: &Location,
        folder: &Path,
        _: OnMoved,
    ) -> Result<Option<CheckpointRef>, Failure> {
        let Ok(all) = fs::read_dir(path_of(destination)) else { return Ok(None) };
        let mut steps: Vec<u64> = all.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        steps.sort_unstable();
        let Some(step) = steps.pop() else { return Ok(None) };
        fs::remove_dir_all(folder).ok();
        copy(&path_of(destination).join(step.to_string()), folder)?;
        Ok(Some(CheckpointRef { step, manifest_sha256: String::new() }))
    }

    async fn push_checkpoint(
        &self,
        _: &AttemptId,
        destination: &Location,
        step: u64,
        folder: &Path,
        _: Retention,
        _: OnMoved,
    ) -> Result<CheckpointRef, Failure> {
        while self.slow_push.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let aside = path_of(destination).join(format!("{step}.part"));
        copy(folder, &aside)?;
        fs::rename(aside, path_of(destination).join(step.to_string())).ok();
        Ok(CheckpointRef { step, manifest_sha256: String::new() })
    }

    async fn sweep(&self, _: &AttemptId, _: &Location) -> Result<(), Failure> {
        Ok(())
    }

    async fn published(&self, _: &AttemptId, destination: &Location) -> Result<Option<TaskResult>, Failure> {
        let done = path_of(destination).join("done.json");
        Ok(fs::read(done).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap()))
    }

    async fn publish(
        &self,
        _: &AttemptId,
        destination: Option<&Location>,
        folder: &Path,
        made: &ModuleOutput,
        _: Option<Lineage>,
        tell: OnMoved,
    ) -> Result<TaskResult, Failure> {
        while self.held.load(Ordering::SeqCst) {
            tell(Moved { done: 5, total: 9 });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.outage.load(Ordering::SeqCst) {
            return Err(Failure { class: FailureClass::Retryable, message: "nobody answers\nhint: wait".into() });
        }
        let place = destination.map_or(folder, path_of);
        if destination.is_some() {
            copy(folder, place)?;
        }
        let artifact = |o: &Output| Artifact {
            path: o.path.clone(),
            kind: o.kind.clone(),
            bytes: fs::metadata(folder.join(&o.path)).map_or(0, |m| m.len()),
            sha256: String::new(),
        };
        let artifacts = made.outputs.iter().map(artifact).collect();
        let result = TaskResult { location: place.display().to_string(), artifacts, summary: made.summary.clone() };
        if destination.is_some() {
            fs::write(place.join("done.json"), serde_json::to_vec(&result).unwrap()).unwrap();
        }
        Ok(result)
    }
}

/// No other node has a replica.
struct Alone;

#[async_trait]
impl ReplicaLink for Alone {
    fn ready(&self, _: &str) -> Vec<(AttemptId, NodeId)> {
        Vec::new()
    }
    async fn open(&self, node: &NodeId) -> std::io::Result<Box<dyn Duplex>> {
        Err(std::io::Error::other(format!("there is no {node}")))
    }
    async fn unheard(&self, _: &NodeId) {
        std::future::pending().await
    }
}

/// A started worker.
pub struct Node {
    pub leader: Arc<Leader>,
    pub worker: Worker,
    pub places: Arc<Folders>,
    to_worker: mpsc::Sender<WorkerMessage>,
}

impl Node {
    pub async fn start(data_dir: &Path, program: &Path) -> Self {
        Self::start_with(data_dir, program, 1 << 20).await
    }

    /// With so many bytes of the disk kept for the journal.
    pub async fn start_with(data_dir: &Path, program: &Path, disk_reserve_bytes: u64) -> Self {
        let places = Arc::new(Folders::default());
        let change = |settings: &mut WorkerSettings| settings.disk_reserve_bytes = disk_reserve_bytes;
        Self::start_through(data_dir, program, places.clone(), places, change).await
    }

    /// With another way to sources and destinations.
    pub async fn start_through(
        data_dir: &Path,
        program: &Path,
        transfers: Arc<dyn Transfers>,
        places: Arc<Folders>,
        change: impl FnOnce(&mut WorkerSettings),
    ) -> Self {
        let (to_worker, inbox) = mpsc::channel(16);
        let leader = Leader::new();
        let mut settings = WorkerSettings {
            node: NodeId::new("node-a"),
            data_dir: data_dir.to_owned(),
            program: program.to_owned(),
            heartbeat: Duration::from_millis(50),
            lease: Duration::from_secs(60),
            secrets: BTreeMap::from([("TOKEN".into(), "hunter2".into())]),
            programs: None,
            disk_reserve_bytes: 1 << 20,
        };
        change(&mut settings);
        let worker =
            Worker::start(settings, transfers, leader.clone(), Arc::new(Alone), inbox).await.expect("worker starts");
        Self { leader, worker, places, to_worker }
    }

    pub async fn send(&self, message: ToWorker) -> FromWorker {
        let (answer, answered) = oneshot::channel();
        self.to_worker.send((message, answer)).await.expect("the worker lives");
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer in time").expect("an answer")
    }

    pub async fn assign(&self, assign: Assign) {
        assert_eq!(self.send(ToWorker::Assign(Box::new(assign))).await, FromWorker::Journalled);
    }

    pub async fn cancel(&self, attempt: AttemptId) {
        self.stop(attempt, StopReason::Cancelled).await;
    }

    pub async fn stop(&self, attempt: AttemptId, why: StopReason) {
        let stop = ToWorker::Stop { term: TERM, attempt, why };
        assert_eq!(self.send(stop).await, FromWorker::Journalled);
    }

    pub async fn log(&self, attempt: AttemptId) -> String {
        use futures::TryStreamExt;
        let pieces: Vec<_> = self.worker.logs().read(attempt, false).try_collect().await.expect("a log");
        String::from_utf8_lossy(&pieces.concat()).into_owned()
    }
}

pub fn shared(dir: &Path) -> Checkpointing {
    Checkpointing { destination: Some(Location::Local { path: dir.display().to_string() }) }
}
