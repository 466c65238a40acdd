//! The worker's shell: journal, children, publishing and links of one node, over the simulated ones.

use std::collections::{BTreeMap, VecDeque};

use mloc_core::{
    capability::Capability,
    id::{AttemptId, NodeId},
    ledger::entry::{CheckpointRef, Failure, FailureClass, TaskResult},
    wire::{FromLeader, Phase, Progress, Report, Serving, ToWorker},
    worker::{Action, ChildEvent, Event, Exit, JournalRows, LocalCheckpoint, Settings, Stage, Worker, Write},
};
use rand::{Rng, rngs::SmallRng};

use crate::{
    faults::Fault,
    tasks,
    world::{EPOCH, Happening, World, place_of},
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
    /// What its clock shows when the true time is [`EPOCH`].
    pub wall_at_epoch: u64,
    /// Rises with each start of the process: what was on its way to an earlier one is gone.
    life: u32,
    booted_at: u64,
    worker: Option<Worker>,
    disk: JournalRows,
    children: BTreeMap<AttemptId, Child>,
    publishing: BTreeMap<AttemptId, Job>,
    jobs: u64,
    /// Journal writes that are on their way to the disk, in order.
    writing: VecDeque<(u64, Write)>,
    requests: BTreeMap<u64, (usize, u64, AttemptId)>,
    next_request: u64,
    tick_due: u64,
}

#[derive(Debug)]
struct Child {
    run: u64,
    step: u64,
    shared: bool,
    /// It goes on until it is asked to stop.
    serves: bool,
    gpus: Vec<u32>,
    stopping: bool,
}

/// One go at publishing: every file anew, then the manifest.
#[derive(Debug)]
struct Job {
    number: u64,
    next_file: u32,
}

/// How far apart two clocks may be, in milliseconds: more than a run has patience for.
const SKEW_MS: u64 = 600_000;

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
            wall_at_epoch: 0,
            life: 0,
            booted_at: 0,
            worker: None,
            disk: JournalRows::default(),
            children: BTreeMap::new(),
            publishing: BTreeMap::new(),
            jobs: 0,
            writing: VecDeque::new(),
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
    pub fn boot(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        // The wall clock is read once, at the start of the process. Most agree well.
        let skew = if self.rng.random_bool(0.7) { 1_500 } else { SKEW_MS };
        let n = &mut self.nodes[node];
        n.wall_at_epoch = EPOCH + self.rng.random_range(0..2 * skew) - skew;
        (n.up, n.life, n.tick_due) = (true, n.life + 1, 0);
        let mut settings = Settings::new(n.id.clone());
        (settings.heartbeat_ms, settings.report_retry_ms, settings.stop_grace_ms) = (1_500, 700, 1_000);
        let (worker, actions) = Worker::restore(n.disk.clone(), settings, now - n.booted_at);
        n.worker = Some(worker);
        self.note(|| format!("node {node} is up"));
        self.act(node, actions)?;
        self.plan_tick(node)
    }

    /// In good order: whatever was handed to the journal gets there, and nothing that is heard meanwhile.
    pub fn shut_down(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        while let Some((_, write)) = n.writing.pop_front() {
            n.write(write);
        }
        self.crash(node, false);
    }

    pub fn crash(&mut self, node: usize, reboot: bool) {
        let n = &mut self.nodes[node];
        n.writing.clear();
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
        self.plan_tick(node)
    }

    /// W2: a worker that has just had its turn has nothing left to do now. Its shell sleeps until then, and would spin.
    fn plan_tick(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        let n = &mut self.nodes[node];
        let Some(worker) = &n.worker else { return Ok(()) };
        let due = worker.wake_at(now - n.booted_at) + n.booted_at;
        if due <= now {
            return Err(format!("W2 no wake in the past: node {node} wants to be woken at {due}: {worker:?}"));
        }
        if n.tick_due <= now || due < n.tick_due {
            n.tick_due = due;
            let life = n.life;
            self.at(due, Happening::WorkerTick { node, life, due });
        }
        Ok(())
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
                    self.nodes[node].writing.push_back((id, write));
                    self.after(3, Happening::Journalled { node, life, id });
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
                    self.nodes[node].publishing.insert(attempt.clone(), Job { number: job, next_file: 0 });
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

    pub fn journalled(&mut self, node: usize, life: u32, id: u64) -> Result<(), String> {
        if !self.alive(node, life) {
            return Ok(());
        }
        let n = &mut self.nodes[node];
        while let Some((_, write)) = n.writing.pop_front_if(|(written, _)| *written <= id) {
            n.write(write);
        }
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
        let serves = assign.spec.service.is_some();
        self.nodes[node].children.insert(attempt.clone(), Child { run, step, shared, serves, gpus, stopping: false });
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
        let (step, shared, serves) = (child.step, child.shared, child.serves);
        if serves {
            return self.service_step(node, attempt, run, step);
        }
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

    /// Ready after a while, then asked now and then.
    fn service_step(&mut self, node: usize, attempt: AttemptId, run: u64, step: u64) -> Result<(), String> {
        let life = self.nodes[node].life;
        if self.faulty() && self.rng.random_bool(0.03) {
            return self.child_dies(node, attempt, run);
        }
        let say = |event| Event::Child { attempt: attempt.clone(), run, event };
        if step == 3 {
            self.feed(node, say(ChildEvent::Ready))?;
        }
        let running = if self.faulty() { self.rng.random_range(0..8) } else { 0 };
        let serving = Some(Serving { ready: step >= 3, running, ..Serving::default() });
        let progress = Progress { serving, ..Progress::default() };
        self.feed(node, say(ChildEvent::Progress { phase: Phase::Serving, progress }))?;
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

    /// One file, or the manifest after the last. Whether a result lies there already is looked at before the first and
    /// with the manifest, as the store does.
    pub fn publish_step(&mut self, node: usize, life: u32, attempt: AttemptId, job: u64) -> Result<(), String> {
        if !self.alive(node, life) {
            return Ok(());
        }
        let faulty = self.faulty();
        let Some(job) = self.nodes[node].publishing.get_mut(&attempt).filter(|j| j.number == job) else {
            return Ok(());
        };
        let (number, file) = (job.number, job.next_file);
        job.next_file += 1;
        if faulty && self.rng.random_bool(0.05) {
            self.tally.publish_failures += 1;
            return self.publish_fails(node, attempt, FailureClass::Retryable, "the bucket does not answer".to_owned());
        }
        let Some(task) = self.ledger.tasks.get(&attempt.task) else { return Err(format!("{attempt} has no task")) };
        let key = place_of(task, &attempt);
        let there = self.places.get(&key).and_then(|place| place.manifest.clone());
        if let Some(of) = there.filter(|_| file == 0 || file == FILES) {
            if (&of.task, of.replica) == (&attempt.task, attempt.replica) {
                // The predecessor was lost between its last byte and its report.
                self.tally.adopted += 1;
                return self.published(node, attempt);
            }
            self.tally.taken += 1;
            let why = format!("destination holds the result of task {}", of.task);
            return self.publish_fails(node, attempt, FailureClass::Fatal, why);
        }
        self.may_write(&attempt)?;
        let place = self.places.entry(key).or_default();
        if let Some(of) = &place.manifest {
            return Err(format!("P2 published once and whole: {attempt} writes over the result of {of}"));
        }
        if file < FILES {
            place.files.insert(file, attempt.clone());
            let ms = self.rng.random_range(50..700);
            self.after(ms, Happening::PublishStep { node, life, attempt, job: number });
            return Ok(());
        }
        if let Some((file, other)) = place.files.iter().find(|(_, writer)| **writer != attempt) {
            return Err(format!("P2 published once and whole: file {file} under {attempt}'s manifest is {other}'s"));
        }
        place.manifest = Some(attempt.clone());
        if faulty && self.rng.random_bool(0.04) {
            // The answer of the store is never heard.
            let (reboot, down_ms) = (false, self.rng.random_range(50..30_000));
            return self.strike(Fault::Crash { node, reboot, down_ms });
        }
        self.published(node, attempt)
    }

    fn published(&mut self, node: usize, attempt: AttemptId) -> Result<(), String> {
        self.nodes[node].publishing.remove(&attempt);
        let result = TaskResult { location: "s3://b".to_owned(), ..TaskResult::default() };
        self.feed(node, Event::Published { attempt, result })
    }

    fn publish_fails(
        &mut self,
        node: usize,
        attempt: AttemptId,
        class: FailureClass,
        message: String,
    ) -> Result<(), String> {
        self.nodes[node].publishing.remove(&attempt);
        self.feed(node, Event::PublishFailed { attempt, failure: Failure { class, message } })
    }
}
