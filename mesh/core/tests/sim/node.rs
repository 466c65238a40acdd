//! The worker's shell: journal, children, publishing and links of one node, over the simulated ones.

use std::collections::BTreeMap;

use mloc_core::{
    capability::Capability,
    id::{AttemptId, NodeId},
    ledger::entry::{CheckpointRef, Failure, FailureClass, TaskResult},
    wire::{FromLeader, Phase, Progress, Report, ToWorker},
    worker::{Action, ChildEvent, Event, Exit, JournalRows, LocalCheckpoint, Settings, Stage, Worker, Write},
};
use rand::{Rng, rngs::SmallRng};

use crate::{
    tasks,
    world::{Happening, World},
};

/// Steps of every simulated training.
const STEPS: u64 = 6;
/// Files a result has besides its manifest.
const FILES: u32 = 3;

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub capability: Capability,
    pub up: bool,
    pub cut: bool,
    pub wall_ahead: u64,
    /// Rises with each start of the process: what was on its way to an earlier one is gone.
    life: u32,
    booted_at: u64,
    worker: Option<Worker>,
    disk: JournalRows,
    children: BTreeMap<AttemptId, Child>,
    publishing: BTreeMap<AttemptId, u64>,
    jobs: u64,
    requests: BTreeMap<u64, (usize, u64, AttemptId)>,
    next_request: u64,
    tick_due: u64,
}

#[derive(Debug)]
struct Child {
    run: u64,
    step: u64,
    shared: bool,
    gpus: Vec<u32>,
    stopping: bool,
}

impl Node {
    pub fn new(at: usize, rng: &mut SmallRng) -> Self {
        let id = NodeId::new(format!("node-{at}"));
        // The first has two, so that every task fits somewhere.
        let gpus = if at == 0 { 2 } else { rng.random_range(0..3) };
        Node {
            capability: tasks::capability(&id, gpus),
            id,
            up: false,
            cut: false,
            wall_ahead: rng.random_range(0..1_500),
            life: 0,
            booted_at: 0,
            worker: None,
            disk: JournalRows::default(),
            children: BTreeMap::new(),
            publishing: BTreeMap::new(),
            jobs: 0,
            requests: BTreeMap::new(),
            next_request: 0,
            tick_due: 0,
        }
    }

    pub fn at_rest(&self) -> bool {
        self.up
            && self.disk.attempts.iter().all(|row| row.stage == Stage::Kept)
            && self.children.is_empty()
            && self.publishing.is_empty()
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Term(term) => self.disk.highest_term = term,
            Write::Attempt(row) => {
                self.disk.attempts.retain(|r| r.assign.attempt != row.assign.attempt);
                self.disk.attempts.push(*row);
            }
            Write::Forget(attempt) => self.disk.attempts.retain(|r| r.assign.attempt != attempt),
        }
    }
}

impl World {
    pub fn boot(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        (n.up, n.life, n.tick_due) = (true, n.life + 1, 0);
        let mut settings = Settings::new(n.id.clone());
        (settings.heartbeat_ms, settings.report_retry_ms, settings.stop_grace_ms) = (1_500, 700, 1_000);
        let (worker, actions) = Worker::restore(n.disk.clone(), settings, now - n.booted_at);
        n.worker = Some(worker);
        self.note(|| format!("node {node} is up"));
        // A start may fail only by breaking a promise, and those are looked at again when a child steps.
        let _ = self.act(node, actions);
        self.plan_tick(node);
    }

    pub fn crash(&mut self, node: usize, reboot: bool) {
        let n = &mut self.nodes[node];
        n.up = false;
        n.worker = None;
        n.children.clear();
        n.publishing.clear();
        n.requests.clear();
        if reboot {
            n.booted_at = self.now;
        }
    }

    fn alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    fn feed(&mut self, node: usize, event: Event) -> Result<(), String> {
        let now = self.now;
        let n = &mut self.nodes[node];
        let boot = now - n.booted_at;
        let Some(worker) = &mut n.worker else { return Ok(()) };
        let actions = worker.on(event, boot);
        self.act(node, actions)?;
        self.plan_tick(node);
        Ok(())
    }

    fn plan_tick(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let Some(worker) = &n.worker else { return };
        let due = (worker.wake_at(now - n.booted_at) + n.booted_at).max(now + 20);
        if n.tick_due <= now || due < n.tick_due {
            n.tick_due = due;
            let life = n.life;
            self.at(due, Happening::WorkerTick { node, life, due });
        }
    }

    pub fn worker_tick(&mut self, node: usize, life: u32, due: u64) -> Result<(), String> {
        if !self.alive(node, life) || self.nodes[node].tick_due != due {
            return Ok(());
        }
        self.feed(node, Event::Tick)
    }

    fn act(&mut self, node: usize, actions: Vec<Action>) -> Result<(), String> {
        let life = self.nodes[node].life;
        for action in actions {
            self.note(|| format!("    node {node}: {action:?}"));
            match action {
                Action::Journal { id, write } => {
                    // In order of ids: later writes never overtake earlier ones.
                    self.after(3, Happening::Journalled { node, life, id, write });
                }
                Action::Answer { request, answer } => {
                    if let Some((to, term, attempt)) = self.nodes[node].requests.remove(&request) {
                        self.send(node, to, Happening::WorkerAnswered { term, attempt, answer });
                    }
                }
                Action::StartChild { attempt, run, assign, resume } => {
                    self.start_child(node, attempt, run, &assign, resume)?;
                }
                Action::StopChild { attempt, run, grace_ms, checkpoint: _ } => {
                    // Some do not listen.
                    if self.rng.random_bool(0.8) {
                        let ms = self.rng.random_range(1..grace_ms);
                        self.after(ms, Happening::ChildStops { node, life, attempt, run });
                    }
                }
                Action::KillChild { attempt, run } => {
                    self.after(5, Happening::ChildStops { node, life, attempt, run });
                }
                Action::StartPublish { attempt } => {
                    self.nodes[node].jobs += 1;
                    let job = self.nodes[node].jobs;
                    self.nodes[node].publishing.insert(attempt.clone(), job);
                    self.after(50, Happening::PublishStep { node, life, attempt, job });
                }
                Action::StopPublish { attempt } => {
                    if !self.planted.no_freeze {
                        self.nodes[node].publishing.remove(&attempt);
                    }
                }
                Action::SendReport { attempt, seq, report } => self.send_report(node, attempt, seq, report)?,
                Action::SendHeartbeat(heartbeat) => {
                    if let Some((to, term)) = self.believed_leader() {
                        self.send(node, to, Happening::Heartbeat { from: node, life, term, heartbeat });
                    }
                }
                Action::Forgotten { attempt: _ } => {}
            }
        }
        Ok(())
    }

    fn send_report(&mut self, node: usize, attempt: AttemptId, seq: u64, report: Report) -> Result<(), String> {
        let life = self.nodes[node].life;
        if self.planted.publish_without_ledger && report == Report::Publish {
            let term = self.nodes[node].worker.as_ref().map_or(0, Worker::highest_term);
            let answer = FromLeader::Committed { term };
            self.after(1, Happening::ReportAnswered { node, life, attempt, seq, answer });
            return Ok(());
        }
        if let Some((to, term)) = self.believed_leader() {
            self.send(node, to, Happening::Report { from: node, life, term, attempt, seq, report });
        }
        Ok(())
    }

    pub fn worker_hears(&mut self, node: usize, from_term: u64, message: ToWorker) -> Result<(), String> {
        if !self.nodes[node].up {
            return Ok(());
        }
        let attempt = match &message {
            ToWorker::Assign(assign) => assign.attempt.clone(),
            ToWorker::Stop { attempt, .. } => attempt.clone(),
        };
        let leader = self.leader.as_ref().filter(|l| l.term == from_term).map_or(node, |l| l.node);
        let n = &mut self.nodes[node];
        n.next_request += 1;
        let request = n.next_request;
        n.requests.insert(request, (leader, from_term, attempt));
        self.feed(node, Event::Message { request, message })
    }

    pub fn heartbeat_answered(&mut self, node: usize, life: u32, answer: FromLeader) -> Result<(), String> {
        if self.alive(node, life) { self.feed(node, Event::HeartbeatAnswered(answer)) } else { Ok(()) }
    }

    pub fn report_answered(
        &mut self,
        node: usize,
        life: u32,
        attempt: AttemptId,
        seq: u64,
        answer: FromLeader,
    ) -> Result<(), String> {
        if !self.alive(node, life) {
            return Ok(());
        }
        self.feed(node, Event::ReportAnswered { attempt, seq, answer })
    }

    pub fn journalled(&mut self, node: usize, life: u32, id: u64, write: Write) -> Result<(), String> {
        if !self.alive(node, life) {
            return Ok(());
        }
        self.nodes[node].write(write);
        self.feed(node, Event::Journalled(id))
    }

    /// W1: no two children of a node compute on the same GPU.
    fn start_child(
        &mut self,
        node: usize,
        attempt: AttemptId,
        run: u64,
        assign: &mloc_core::wire::Assign,
        resume: Option<LocalCheckpoint>,
    ) -> Result<(), String> {
        let life = self.nodes[node].life;
        let gpus = assign.grant.gpus.clone();
        let clash =
            |(other, child): (&AttemptId, &Child)| *other == attempt || child.gpus.iter().any(|gpu| gpus.contains(gpu));
        if let Some((other, _)) = self.nodes[node].children.iter().find(|c| clash(*c)) {
            return Err(format!("W1 one child on a GPU: {attempt} starts while {other} runs on node {node}"));
        }
        let local = resume.map_or(0, |c| c.step);
        let step = assign.checkpoint.as_ref().map_or(0, |c| c.step).max(local);
        let shared = assign.spec.checkpoint.destination.is_some();
        self.nodes[node].children.insert(attempt.clone(), Child { run, step, shared, gpus, stopping: false });
        self.after(100, Happening::ChildStep { node, life, attempt, run });
        Ok(())
    }

    pub fn child_step(&mut self, node: usize, life: u32, attempt: AttemptId, run: u64) -> Result<(), String> {
        if !self.alive(node, life) {
            return Ok(());
        }
        let Some(child) = self.nodes[node].children.get_mut(&attempt).filter(|c| c.run == run) else { return Ok(()) };
        if child.stopping {
            return Ok(());
        }
        child.step += 1;
        let (step, shared) = (child.step, child.shared);
        let say = |event| Event::Child { attempt: attempt.clone(), run, event };
        if step > STEPS {
            child.stopping = true;
            self.feed(node, say(ChildEvent::Computed))?;
            self.after(200, Happening::ChildStops { node, life, attempt, run });
            return Ok(());
        }
        let progress = Progress { step, total_steps: Some(STEPS), ..Progress::default() };
        self.feed(node, say(ChildEvent::Progress { phase: Phase::Training, progress }))?;
        if self.faulty() && self.rng.random_bool(0.03) {
            return self.child_dies(node, attempt, run);
        }
        if step.is_multiple_of(2) {
            let digest = format!("{attempt}@{step}");
            let local = LocalCheckpoint { step, path: digest.clone(), manifest_sha256: digest.clone() };
            self.feed(node, say(ChildEvent::Checkpoint(local)))?;
            if shared {
                self.feed(node, say(ChildEvent::Pushed(CheckpointRef { step, manifest_sha256: digest })))?;
            }
        }
        let ms = self.rng.random_range(200..900);
        self.after(ms, Happening::ChildStep { node, life, attempt, run });
        Ok(())
    }

    fn child_dies(&mut self, node: usize, attempt: AttemptId, run: u64) -> Result<(), String> {
        let class = match self.rng.random_range(0..10) {
            0 => Some(FailureClass::Fatal),
            1..5 => Some(FailureClass::Retryable),
            _ => None,
        };
        if let Some(class) = class {
            let event = ChildEvent::Failed(Failure { class, message: "simulated".to_owned() });
            self.feed(node, Event::Child { attempt: attempt.clone(), run, event })?;
        }
        self.exit(node, attempt, run, Exit::Signal(9))
    }

    pub fn child_stops(&mut self, node: usize, life: u32, attempt: AttemptId, run: u64) -> Result<(), String> {
        if self.alive(node, life) { self.exit(node, attempt, run, Exit::Code(0)) } else { Ok(()) }
    }

    fn exit(&mut self, node: usize, attempt: AttemptId, run: u64, exit: Exit) -> Result<(), String> {
        if self.nodes[node].children.get(&attempt).is_none_or(|child| child.run != run) {
            return Ok(());
        }
        self.nodes[node].children.remove(&attempt);
        self.feed(node, Event::Child { attempt, run, event: ChildEvent::Exited(exit) })
    }

    /// One file, or the manifest after the last.
    pub fn publish_step(&mut self, node: usize, life: u32, attempt: AttemptId, job: u64) -> Result<(), String> {
        if !self.alive(node, life) || self.nodes[node].publishing.get(&attempt) != Some(&job) {
            return Ok(());
        }
        let key = (attempt.task.clone(), attempt.replica);
        if self.places.get(&key).is_some_and(|place| place.manifest.is_some()) {
            // The predecessor was lost between its last byte and its report.
            self.tally.adopted += 1;
            return self.published(node, attempt);
        }
        self.may_write(&attempt)?;
        let place = self.places.entry(key).or_default();
        if place.files < FILES {
            place.files += 1;
            let ms = self.rng.random_range(50..700);
            self.after(ms, Happening::PublishStep { node, life, attempt, job });
            return Ok(());
        }
        place.manifest = Some(attempt.clone());
        place.manifests += 1;
        self.published(node, attempt)
    }

    fn published(&mut self, node: usize, attempt: AttemptId) -> Result<(), String> {
        self.nodes[node].publishing.remove(&attempt);
        let result = TaskResult { location: "s3://b".to_owned(), ..TaskResult::default() };
        self.feed(node, Event::Published { attempt, result })
    }
}
