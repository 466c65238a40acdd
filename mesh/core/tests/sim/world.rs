//! The simulated world: its clock, its happenings, the ledger as raft would have it, the destination.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mloc_core::{
    capability::Grant,
    fit,
    id::{AttemptId, NodeId, RequestId, TaskId},
    ledger::{
        Entry, Ledger, Outcome, Reason, TaskState,
        apply::Guards,
        entry::Member,
        invariants,
        state::{AttemptEnd, AttemptState, Task, TaskEnd},
        usage,
    },
    time::Millis,
    wire::{FromLeader, FromWorker, Heartbeat, Report, ToWorker},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    faults::Fault,
    leadership::{Deposed, Leadership},
    node::Node,
    tally::Tally,
    tasks,
};

/// Faults happen before this moment, in milliseconds.
pub const FAULTS_UNTIL: u64 = 40_000;
/// By then everything must have come to an end.
const PATIENCE_UNTIL: u64 = 400_000;
/// Wall time at the start of every run.
pub const EPOCH: u64 = 1_757_000_000_000;

/// Bugs that can be put in, each of which an invariant must notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    pub no_fence: bool,
    pub no_slot_recheck: bool,
    pub publish_without_ledger: bool,
    pub no_freeze: bool,
    pub no_publish_hold: bool,
    pub no_exchange_bounds: bool,
}

/// Something that will happen at its time.
#[derive(Clone, Debug)]
pub enum Happening {
    ToWorker { node: usize, from_term: u64, message: ToWorker },
    WorkerAnswered { term: u64, attempt: AttemptId, answer: FromWorker },
    Heartbeat { from: usize, life: u32, term: u64, heartbeat: Heartbeat },
    Report { from: usize, life: u32, term: u64, attempt: AttemptId, seq: u64, report: Report },
    HeartbeatAnswered { node: usize, life: u32, answer: FromLeader },
    ReportAnswered { node: usize, life: u32, attempt: AttemptId, seq: u64, answer: FromLeader },
    Journalled { node: usize, life: u32, id: u64 },
    ChildStep { node: usize, life: u32, attempt: AttemptId, run: u64 },
    ChildStops { node: usize, life: u32, attempt: AttemptId, run: u64 },
    PublishStep { node: usize, life: u32, attempt: AttemptId, job: u64 },
    WorkerTick { node: usize, life: u32, due: u64 },
    LeaderTick { term: u64 },
    Commit { term: u64, entry: Entry, then: Then },
    Client { request: u64 },
    Fault(Fault),
}

/// Who waits for a commit.
#[derive(Clone, Debug)]
pub enum Then {
    Nobody,
    Reporter { node: usize, life: u32, attempt: AttemptId, seq: u64 },
    Client { request: u64 },
}

/// What lies at a destination, which several tasks may share.
#[derive(Debug, Default)]
pub struct Place {
    /// Who wrote each file last.
    pub files: BTreeMap<u32, AttemptId>,
    pub manifest: Option<AttemptId>,
}

/// A user's submission, repeated until it is answered.
pub struct Request {
    pub spec: mloc_core::task::TaskSpec,
    pub answered: Option<TaskId>,
    pub tries: u64,
}

/// Where a replica publishes: its task's destination, or the worker's folder.
pub fn place_of(task: &Task, attempt: &AttemptId) -> String {
    match &task.spec.output.destination {
        Some(place) => format!("{place:?}"),
        None => format!("folder of {}.{}", attempt.task, attempt.replica),
    }
}

pub struct World {
    pub rng: SmallRng,
    pub now: u64,
    pub planted: Planted,
    pub ledger: Ledger,
    pub leader: Option<Leadership>,
    pub deposed: Vec<Deposed>,
    pub term: u64,
    pub nodes: Vec<Node>,
    pub places: BTreeMap<String, Place>,
    pub requests: Vec<Request>,
    pub tally: Tally,
    /// Clock of the last leader.
    pub last_clock: u64,
    capacity: BTreeMap<NodeId, Grant>,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    trace: Option<VecDeque<String>>,
    /// When services are looked at next.
    next_close: u64,
}

impl World {
    pub fn new(seed: u64, planted: Planted, tracing: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(1..5usize);
        let nodes: Vec<Node> = (0..count).map(|at| Node::new(at, &mut rng)).collect();
        let capacity = nodes.iter().map(|n| (n.id.clone(), fit::capacity(&n.capability))).collect();
        let mut world = World {
            rng,
            now: 1_000,
            planted,
            ledger: Ledger::default(),
            leader: None,
            deposed: Vec::new(),
            term: 0,
            nodes,
            places: BTreeMap::new(),
            requests: Vec::new(),
            tally: Tally::default(),
            last_clock: 0,
            capacity,
            queue: BTreeMap::new(),
            order: 0,
            trace: tracing.then(VecDeque::new),
            next_close: 0,
        };
        for at in 0..count {
            let member = Member {
                name: format!("n{at}"),
                addresses: Vec::new(),
                joined_at: Millis(EPOCH),
                draining_since: None,
                revoked_at: None,
            };
            world.ledger.apply(&Entry::MemberJoined { node: world.nodes[at].id.clone(), member });
        }
        world.plan();
        world
    }

    fn plan(&mut self) {
        let tasks = self.rng.random_range(2..8u64);
        let mut specs = Vec::new();
        for request in 0..tasks {
            let spec = tasks::task(&mut self.rng, format!("t{request}"), &specs);
            specs.push(spec.clone());
            self.requests.push(Request { spec, answered: None, tries: 0 });
            let at = self.rng.random_range(0..15_000);
            self.at(at, Happening::Client { request });
        }
        for _ in 0..self.rng.random_range(0..20) {
            let at = self.rng.random_range(2_000..FAULTS_UNTIL);
            let fault = Fault::any(&mut self.rng, self.nodes.len());
            self.at(at, Happening::Fault(fault));
        }
        self.at(FAULTS_UNTIL, Happening::Fault(Fault::Peace));
    }

    /// Runs to the end of everything.
    pub fn run(&mut self) -> Result<Tally, String> {
        for node in 0..self.nodes.len() {
            self.boot(node)?;
        }
        self.elect();
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at.max(self.now);
            if self.now > PATIENCE_UNTIL {
                return Err(format!("liveness: not at rest after {PATIENCE_UNTIL} ms: {}", self.unfinished()));
            }
            self.note(|| format!("{happening:?}"));
            self.happen(happening)?;
            if self.now > FAULTS_UNTIL && self.at_rest() {
                break;
            }
            self.close_services();
        }
        self.judge()?;
        Ok(self.tally.clone())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::ToWorker { node, from_term, message } => self.worker_hears(node, from_term, message),
            Happening::WorkerAnswered { term, attempt, answer } => {
                self.leader_hears_answer(term, &attempt, &answer);
                Ok(())
            }
            Happening::Heartbeat { from, life, term, heartbeat } => {
                self.leader_hears_heartbeat(from, life, term, heartbeat);
                Ok(())
            }
            Happening::Report { from, life, term, attempt, seq, report } => {
                self.leader_hears_report(from, life, term, attempt, seq, report);
                Ok(())
            }
            Happening::HeartbeatAnswered { node, life, answer } => self.heartbeat_answered(node, life, answer),
            Happening::ReportAnswered { node, life, attempt, seq, answer } => {
                self.report_answered(node, life, attempt, seq, answer)
            }
            Happening::Journalled { node, life, id } => self.journalled(node, life, id),
            Happening::ChildStep { node, life, attempt, run } => self.child_step(node, life, attempt, run),
            Happening::ChildStops { node, life, attempt, run } => self.child_stops(node, life, attempt, run),
            Happening::PublishStep { node, life, attempt, job } => self.publish_step(node, life, attempt, job),
            Happening::WorkerTick { node, life, due } => self.worker_tick(node, life, due),
            Happening::LeaderTick { term } => {
                self.leader_tick(term);
                Ok(())
            }
            Happening::Commit { term, entry, then } if term == self.term => self.commit(&entry, then),
            // The leader that proposed it is gone, and its successor decided what became of it.
            Happening::Commit { .. } => Ok(()),
            Happening::Client { request } => {
                self.client(request);
                Ok(())
            }
            Happening::Fault(fault) => self.strike(fault),
        }
    }

    pub fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), happening);
    }

    pub fn after(&mut self, ms: u64, happening: Happening) {
        self.at(self.now + ms, happening);
    }

    pub fn faulty(&self) -> bool {
        self.now < FAULTS_UNTIL
    }

    /// Nobody speaks to it any more.
    pub fn is_revoked(&self, node: usize) -> bool {
        self.ledger.members.get(&self.nodes[node].id).is_some_and(|member| member.revoked_at.is_some())
    }

    /// The clock of whoever took a user's request: some node's, and now and then one that is years ahead.
    pub fn requests_clock(&mut self) -> Millis {
        if self.rng.random_bool(0.1) {
            return Millis(EPOCH << 4);
        }
        let node = self.rng.random_range(0..self.nodes.len());
        self.wall(node)
    }

    /// Hands a message to the network between two nodes: lost, late, twice.
    pub fn send(&mut self, from: usize, to: usize, happening: Happening) {
        let away = |node: usize| self.nodes[node].cut || self.is_revoked(node);
        if from != to && (away(from) || away(to)) {
            return;
        }
        if self.faulty() && from != to {
            if self.rng.random_bool(0.1) {
                return;
            }
            if self.rng.random_bool(0.1) {
                let late = self.rng.random_range(100..8_000);
                self.after(late, happening.clone());
            }
        }
        let slow = self.faulty() && self.rng.random_bool(0.05);
        let delay = if slow { self.rng.random_range(200..6_000) } else { self.rng.random_range(1..80) };
        self.after(delay, happening);
    }

    /// Commits of a leader that goes: each is in the log of its successor, or is not.
    pub fn settle_commits(&mut self) -> Result<(), String> {
        let pending: Vec<(u64, u64)> =
            self.queue.iter().filter(|(_, h)| matches!(h, Happening::Commit { .. })).map(|(at, _)| *at).collect();
        for at in pending {
            if let Some(Happening::Commit { entry, .. }) = self.queue.remove(&at)
                && self.rng.random_bool(0.5)
            {
                self.commit(&entry, Then::Nobody)?;
            }
        }
        Ok(())
    }

    /// Applies an entry and looks at every promise.
    fn commit(&mut self, entry: &Entry, then: Then) -> Result<(), String> {
        let guards = Guards {
            fence: !self.planted.no_fence,
            slot_recheck: !self.planted.no_slot_recheck,
            publish_hold: !self.planted.no_publish_hold,
            exchange_bounds: !self.planted.no_exchange_bounds,
        };
        let exchange = matches!(entry, Entry::Replicas { .. });
        let before = (exchange || self.trace.is_some()).then(|| self.ledger.clone());
        let outcome = self.ledger.apply_with(entry, guards);
        self.note(|| format!("    applied: {outcome:?}"));
        self.tally.entries += 1;
        match &outcome {
            Outcome::Applied => {}
            Outcome::Duplicate(_) => self.tally.duplicates += 1,
            Outcome::Stale => self.tally.stale += 1,
            Outcome::Rejected(_) => self.tally.refused += 1,
        }
        match (entry, &outcome) {
            (Entry::MemberRevoked { .. }, Outcome::Applied) => self.tally.revoked += 1,
            (Entry::Ready { .. }, Outcome::Applied) => self.tally.served += 1,
            (Entry::Scaled { .. }, Outcome::Applied) => self.tally.scaled += 1,
            (Entry::Replicas { .. }, Outcome::Applied) => self.tally.exchanged += 1,
            (Entry::Replicas { .. }, Outcome::Rejected(_)) => self.tally.exchange_refused += 1,
            (Entry::Cancelled { by, .. }, Outcome::Applied) if by.contains("newer") => self.tally.replaced += 1,
            (_, Outcome::Rejected(Reason::PublishHeld(_))) => self.tally.held += 1,
            _ => {}
        }
        if let Some(before) = before {
            if outcome != Outcome::Applied && before != self.ledger {
                return Err(format!("{outcome:?} changed the ledger: {entry:?}"));
            }
            invariants::exchange(&before, &self.ledger, entry).map_err(|broken| broken.to_string())?;
        }
        match invariants::all(&self.ledger) {
            // What comes of it is to show at the destination.
            Err(broken) if self.planted.no_publish_hold && broken.name.starts_with("L6") => {}
            held => held.map_err(|broken| broken.to_string())?,
        }
        invariants::slots_within(&self.ledger, &self.capacity).map_err(|broken| broken.to_string())?;
        self.committed(outcome, then);
        Ok(())
    }

    /// P1: bytes land at a destination only under the right to publish, or in the moments after a cancellation that its
    /// holder has not heard of yet.
    pub fn may_write(&self, attempt: &AttemptId) -> Result<(), String> {
        match self.ledger.attempt(attempt).map(|a| &a.state) {
            Some(AttemptState::Publishing { .. } | AttemptState::Stopping { .. }) => Ok(()),
            other => Err(format!("P1 bytes flow under the right to publish only: {attempt} writes and is {other:?}")),
        }
    }

    fn client(&mut self, request: u64) {
        let at = self.requests_clock();
        let Some(asked) = self.requests.get_mut(request as usize).filter(|r| r.answered.is_none()) else { return };
        asked.tries += 1;
        let entry = Entry::Submit {
            task: TaskId::new(format!("task-{request}-{}", asked.tries)),
            spec: Box::new(asked.spec.clone()),
            request: RequestId::new(format!("r{request}")),
            body_digest: "digest".to_owned(),
            at,
        };
        self.propose(entry, Then::Client { request });
        self.after(2_500, Happening::Client { request });
    }

    fn at_rest(&self) -> bool {
        self.requests.iter().all(|r| r.answered.is_some())
            && self.ledger.tasks.values().all(|task| task.ended.is_some())
            && self.ledger.live_attempts().next().is_none()
            && (0..self.nodes.len()).all(|node| self.is_revoked(node) || self.nodes[node].at_rest())
    }

    /// A service has no end of its own. Once everything else has ended, every one has as many ready replicas as it is to
    /// have, of its newest version alone; then its user cancels it.
    fn close_services(&mut self) {
        let over = |task: &Task| task.ended.is_some() || task.spec.service.is_some();
        let early = self.now <= FAULTS_UNTIL + 6_000 || self.now < self.next_close;
        if early || !self.requests.iter().all(|r| r.answered.is_some()) || !self.ledger.tasks.values().all(over) {
            return;
        }
        self.next_close = self.now + 2_000;
        let services = self.ledger.tasks.values().filter(|task| task.ended.is_none());
        let names: BTreeSet<String> =
            services.filter_map(|task| Some(task.spec.service.as_ref()?.served_name.clone())).collect();
        for name in names {
            let versions = self.ledger.versions_of(&name);
            let [(id, task)] = versions[..] else { continue };
            let ready = task.replicas.iter().filter_map(|replica| replica.live()).filter(|a| a.is_ready()).count();
            let id = id.clone();
            if ready == task.desired() as usize {
                let at = self.requests_clock();
                self.propose(Entry::Cancelled { task: id, by: "user".to_owned(), at }, Then::Nobody);
            }
        }
    }

    fn unfinished(&self) -> String {
        let tasks = self.ledger.tasks.iter().filter(|(_, t)| t.ended.is_none());
        let tasks: Vec<String> = tasks.map(|(id, t)| format!("{id} {:?}", TaskState::of(t))).collect();
        let live: Vec<String> = self.ledger.live_attempts().map(|a| format!("{} {:?}", a.id, a.state)).collect();
        let nodes: Vec<String> = self.nodes.iter().filter(|n| !n.at_rest()).map(|n| format!("{n:?}")).collect();
        format!("tasks {tasks:?}\nlive {live:?}\nnodes {nodes:?}")
    }

    /// What must be true at the end.
    fn judge(&mut self) -> Result<(), String> {
        if self.ledger.tasks.len() != self.requests.len() {
            let (had, made) = (self.requests.len(), self.ledger.tasks.len());
            return Err(format!("L4 each submission makes one task: {had} made {made}"));
        }
        // L4, as the client sees it.
        for asked in &self.requests {
            let kept = asked.answered.as_ref().and_then(|id| self.ledger.tasks.get(id));
            if kept.is_none_or(|task| task.spec.metadata.name != asked.spec.metadata.name) {
                let name = &asked.spec.metadata.name;
                return Err(format!("L4 no accepted task lost: {name} was answered with {:?}", asked.answered));
            }
        }
        for (id, task) in &self.ledger.tasks {
            match &task.ended {
                Some(TaskEnd::Completed { .. }) => self.tally.completed += 1,
                Some(TaskEnd::Failed { .. }) => self.tally.failed += 1,
                Some(TaskEnd::Cancelled { .. }) => self.tally.cancelled += 1,
                None => return Err(format!("liveness: {id} has not ended")),
            }
            for (number, replica) in (0..).zip(&task.replicas) {
                let place =
                    self.places.get(&place_of(task, &AttemptId { task: id.clone(), replica: number, attempt: 0 }));
                let of = place.and_then(|place| place.manifest.as_ref());
                if replica.finished() && of.is_none_or(|of| (&of.task, of.replica) != (id, number)) {
                    return Err(format!("P2 published once and whole: {id}.{number} finished, and there lies {of:?}"));
                }
                let ended = |a: &&mloc_core::ledger::state::Attempt| {
                    matches!(a.state, AttemptState::Ended { how: AttemptEnd::Lost, .. })
                };
                self.tally.lost += replica.attempts.iter().filter(ended).count() as u64;
            }
        }
        self.judge_usage()
    }

    /// L3 by another way: hours summed over attempts, and over two halves of time, are those of the query.
    fn judge_usage(&self) -> Result<(), String> {
        let now = Millis(EPOCH + self.now + 10_000);
        let all = usage::sums(&self.ledger, &usage::Query::default(), now);
        let by_hand: u128 = self
            .ledger
            .usage
            .values()
            .map(|row| u128::from(row.end.map_or(0, |end| end.since(row.start))) * u128::from(row.gpu_count))
            .sum();
        let middle = Some(Millis(EPOCH + 20_000));
        let early = usage::sums(&self.ledger, &usage::Query { until: middle, ..usage::Query::default() }, now);
        let late = usage::sums(&self.ledger, &usage::Query { from: middle, ..usage::Query::default() }, now);
        let gpu = |sums: &usage::Sums| sums.gpu_ms.values().sum::<u128>();
        if gpu(&all) != by_hand || gpu(&all) != gpu(&early) + gpu(&late) {
            return Err(format!("L3 usage: {all:?} is not {by_hand}, nor {early:?} and {late:?}"));
        }
        Ok(())
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == 3_000 {
                trace.pop_front();
            }
            trace.push_back(format!("{:>7} {}", self.now, line()));
        }
    }

    pub fn trace(&self) -> String {
        self.trace.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
