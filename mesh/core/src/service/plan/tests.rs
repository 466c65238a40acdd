//! Exchanges as cases: each ends when the plan has nothing left to do, and the promises hold after every entry.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    cases::{ledger, node, service, submit},
    id::{AttemptId, NodeId},
    ledger::{
        Outcome, Reason, TaskState,
        entry::{Failure, FailureClass},
        invariants,
        state::{AttemptState, TaskEnd},
    },
    schedule::{NodeView, Problem, solve},
    task::{TaskSpec, TaskType, spec::Update},
};

/// A mesh in which whatever is planned happens.
struct Mesh {
    ledger: Ledger,
    nodes: BTreeMap<NodeId, NodeView>,
    now: u64,
    /// Entries that were applied.
    done: Vec<Entry>,
}

impl Mesh {
    fn of(names: &[&str]) -> Self {
        let view = |name: &&str| {
            let mut capability = node(name, &[]);
            capability.features.insert("rag_inference".to_owned());
            let view = NodeView { capability: Some(capability), alive: true };
            (NodeId::new(*name), view)
        };
        Self { ledger: ledger(names), nodes: names.iter().map(view).collect(), now: 10, done: Vec::new() }
    }

    fn apply(&mut self, entry: Entry) -> Outcome {
        let before = self.ledger.clone();
        let outcome = self.ledger.apply(&entry);
        invariants::all(&self.ledger).unwrap();
        invariants::exchange(&before, &self.ledger, &entry).unwrap();
        if outcome == Outcome::Applied {
            self.done.push(entry);
        }
        outcome
    }

    fn take(&mut self, entry: Entry) {
        let outcome = self.apply(entry.clone());
        assert_eq!(outcome, Outcome::Applied, "{entry:?}");
    }

    /// One turn of the leader; whether it did anything.
    fn turn(&mut self) -> bool {
        self.now += 1;
        let now = Millis(self.now);
        let before = self.done.len();
        let mut entries = plan(&self.ledger, now);
        let problem = Problem { ledger: &self.ledger, nodes: &self.nodes, leader: None, now };
        entries.extend(solve(&problem).into_iter().map(|assignment| assignment.entry(now)));
        for entry in entries {
            self.apply(entry);
        }
        self.done.len() > before
    }

    /// One turn of every worker: what is assigned starts, `becomes_ready` of what runs does, what stops has stopped.
    fn work(&mut self, becomes_ready: impl Fn(&AttemptId) -> bool) -> bool {
        let at = Millis(self.now);
        let live: Vec<Attempt> = self.ledger.live_attempts().cloned().collect();
        let before = self.done.len();
        for attempt in live {
            let id = attempt.id.clone();
            match attempt.state {
                AttemptState::Assigned => drop(self.apply(Entry::Started { attempt: id, at })),
                AttemptState::Running { .. } if attempt.ready_at.is_none() && becomes_ready(&id) => {
                    self.take(Entry::Ready { attempt: id, at });
                }
                AttemptState::Stopping { .. } => self.take(Entry::Stopped { attempt: id, at }),
                AttemptState::Running { .. } | AttemptState::Publishing { .. } | AttemptState::Ended { .. } => {}
            }
        }
        self.done.len() > before
    }

    /// Until nothing is left to do.
    fn settle(&mut self, becomes_ready: impl Fn(&AttemptId) -> bool + Copy) {
        for _ in 0..200 {
            let (planned, worked) = (self.turn(), self.work(becomes_ready));
            if !planned && !worked {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", &self.done[self.done.len() - 10..]);
    }

    /// Nodes of the ready replicas of a task.
    fn ready(&self, task: &str) -> Vec<String> {
        let replicas = self.ledger.tasks[&TaskId::new(task)].replicas.iter().filter(|replica| is_ready(replica));
        let mut nodes: Vec<String> = replicas.map(|replica| replica.live().unwrap().node.to_string()).collect();
        nodes.sort();
        nodes
    }

    fn ended(&self, task: &str) -> &Option<TaskEnd> {
        &self.ledger.tasks[&TaskId::new(task)].ended
    }
}

fn named(name: &str, replicas: u32, update: Update) -> TaskSpec {
    let mut spec = service("chat", replicas);
    spec.metadata.name = name.to_owned();
    spec.service.as_mut().unwrap().update = update;
    spec
}

fn always(_: &AttemptId) -> bool {
    true
}

#[test]
fn replicas_are_spread_over_nodes() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.take(submit("s", service("s", 3), 1));
    mesh.settle(always);
    assert_eq!(mesh.ready("s"), ["a", "b", "c"]);
}

#[test]
fn a_newer_version_takes_over_one_by_one() {
    for update in
        [Update::default(), Update { max_surge: 0, max_unavailable: 1 }, Update { max_surge: 3, max_unavailable: 2 }]
    {
        let mut mesh = Mesh::of(&["a", "b"]);
        mesh.take(submit("one", named("one", 3, update.clone()), 1));
        mesh.settle(always);
        mesh.take(submit("two", named("two", 3, update.clone()), 2));
        // A version that is not ready yet takes nothing away.
        for _ in 0..5 {
            mesh.turn();
            mesh.work(|_| false);
        }
        let kept = 3 - update.max_unavailable as usize;
        assert_eq!(mesh.ready("one").len(), kept, "{update:?}");
        mesh.settle(always);
        assert_eq!((mesh.ready("one").len(), mesh.ready("two").len()), (0, 3), "{update:?}");
        assert!(matches!(mesh.ended("one"), Some(TaskEnd::Cancelled { by, .. }) if by.contains("two")));
        assert!(mesh.ended("two").is_none());
    }
}

#[test]
fn a_newer_version_that_never_becomes_ready_fails_and_the_older_one_stays() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.take(submit("one", named("one", 2, Update::default()), 1));
    mesh.settle(always);
    mesh.take(submit("two", named("two", 2, Update { max_surge: 1, max_unavailable: 1 }), 2));
    for round in 0..20 {
        mesh.now += 10_000;
        mesh.turn();
        mesh.work(|id| id.task == TaskId::new("one"));
        assert!(!mesh.ready("one").is_empty(), "round {round}");
        let running: Vec<AttemptId> = mesh.ledger.live_attempts().map(|a| a.id.clone()).collect();
        for attempt in running.into_iter().filter(|id| id.task == TaskId::new("two")) {
            let failure = Failure { class: FailureClass::Retryable, message: "no such model".to_owned() };
            mesh.apply(Entry::Failed { attempt, failure, at: Millis(mesh.now) });
        }
    }
    assert!(
        matches!(mesh.ended("two"), Some(TaskEnd::Failed { failure, .. }) if failure.message.contains("never ready"))
    );
    mesh.settle(always);
    assert_eq!(mesh.ready("one").len(), 2, "what the update took away is back");
}

#[test]
fn a_node_that_drains_is_left_once_another_is_ready() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.take(submit("s", service("s", 2), 1));
    mesh.settle(always);
    let left = mesh.ready("s")[0].clone();
    mesh.take(Entry::MemberDrained { node: NodeId::new(left.as_str()), draining: true, at: Millis(50) });
    mesh.turn();
    mesh.work(|_| false);
    mesh.turn();
    assert!(mesh.ready("s").contains(&left), "its replacement is not ready yet");
    mesh.settle(always);
    assert_eq!(mesh.ready("s").len(), 2);
    assert!(!mesh.ready("s").contains(&left));
    assert_eq!(mesh.ledger.live_attempts().count(), 2);
}

/// Shards of the wanted replicas that are ready.
fn shards(mesh: &Mesh, task: &str) -> Vec<u32> {
    let task = &mesh.ledger.tasks[&TaskId::new(task)];
    let mut shards: Vec<u32> = wanted_of(task)
        .filter(|(_, replica)| is_ready(replica))
        .map(|(n, _)| shard_of(n, task.spec.replicas))
        .collect();
    shards.sort_unstable();
    shards
}

#[test]
fn whoever_takes_a_shards_place_is_the_same_shard() {
    let mut mesh = Mesh::of(&["a", "b", "c", "d"]);
    let mut spec = service("s", 3);
    spec.task_type = TaskType::RagInference;
    mesh.take(submit("s", spec, 1));
    mesh.settle(always);
    assert_eq!(shards(&mesh, "s"), [0, 1, 2]);
    // Each node in turn, twice over: numbers come round, and are used again.
    for name in ["a", "b", "c", "d"].repeat(2) {
        let drain = |draining, at| Entry::MemberDrained { node: NodeId::new(name), draining, at: Millis(at) };
        mesh.take(drain(true, mesh.now));
        mesh.settle(always);
        assert_eq!(shards(&mesh, "s"), [0, 1, 2], "{name} drained");
        assert!(!mesh.ready("s").contains(&name.to_owned()));
        mesh.take(drain(false, mesh.now));
        mesh.settle(always);
        assert_eq!(mesh.ledger.live_attempts().count(), 3);
    }
    let numbers = mesh.ledger.tasks[&TaskId::new("s")].replicas.len();
    assert!(numbers <= 6, "{numbers} numbers");
}

#[test]
fn an_older_version_of_shards_stays_until_all_of_the_newer_one_are_ready() {
    for (before, after) in [(3, 3), (3, 2), (1, 3), (3, 1)] {
        let mut mesh = Mesh::of(&["a", "b", "c"]);
        let version = |name: &str, count| {
            let update = Update { max_surge: count, max_unavailable: 0 };
            TaskSpec { task_type: TaskType::RagInference, ..named(name, count, update) }
        };
        mesh.take(submit("one", version("one", before), 1));
        mesh.settle(always);
        mesh.take(submit("two", version("two", after), 2));
        for _ in 0..10 {
            mesh.turn();
            mesh.work(|id| id.replica + 1 < after);
        }
        let ready = (mesh.ready("one").len() as u32, mesh.ready("two").len() as u32);
        assert_eq!(ready, (before, after - 1), "{before} shards, then {after}");
        mesh.settle(always);
        assert_eq!((mesh.ready("one").len() as u32, mesh.ready("two").len() as u32), (0, after));
    }
}

#[test]
fn of_two_of_one_shard_one_leaves() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    let mut spec = service("s", 2);
    spec.task_type = TaskType::RagInference;
    mesh.take(submit("s", spec, 1));
    mesh.settle(always);
    let node = mesh.ledger.tasks[&TaskId::new("s")].replicas[1].live().unwrap().node.clone();
    mesh.take(Entry::MemberDrained { node: node.clone(), draining: true, at: Millis(mesh.now) });
    mesh.turn();
    mesh.take(Entry::MemberDrained { node, draining: false, at: Millis(mesh.now) });
    mesh.settle(always);
    assert_eq!(shards(&mesh, "s"), [0, 1]);
    assert_eq!(mesh.ledger.live_attempts().count(), 2);
}

#[test]
fn a_name_is_its_owners() {
    let mut mesh = Mesh::of(&["a"]);
    mesh.take(submit("one", named("one", 1, Update::default()), 1));
    let mut other = named("two", 1, Update::default());
    other.metadata.owner = "bob".to_owned();
    let taken = Reason::NameTaken { name: "chat".to_owned(), owner: "alice".to_owned() };
    assert_eq!(mesh.apply(submit("two", other.clone(), 2)), Outcome::Rejected(taken));
    mesh.take(Entry::Cancelled { task: TaskId::new("one"), by: "alice".to_owned(), at: Millis(3) });
    mesh.take(submit("two", other, 4));
}

#[test]
fn a_replica_that_was_ready_is_restarted_for_ever_with_backoff() {
    let mut mesh = Mesh::of(&["a"]);
    mesh.take(submit("s", service("s", 1), 1));
    mesh.settle(always);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let attempt = mesh.ledger.live_attempts().next().unwrap().id.clone();
        let failure = Failure { class: FailureClass::Fatal, message: "exited with 1".to_owned() };
        mesh.take(Entry::Failed { attempt, failure, at: Millis(mesh.now) });
        let TaskState::Pending { since, not_before, .. } = TaskState::of(&mesh.ledger.tasks[&TaskId::new("s")]) else {
            panic!("it waits");
        };
        waits.push(not_before.since(since));
        mesh.now = not_before.0;
        mesh.turn();
        mesh.work(|_| false);
    }
    assert_eq!(waits, [1_000, 2_000, 3_000, 3_000, 3_000, 3_000], "doubles up to backoffMax");
    mesh.settle(always);
    let attempt = mesh.ledger.live_attempts().next().unwrap().id.clone();
    let failure = Failure { class: FailureClass::Retryable, message: "gone".to_owned() };
    mesh.take(Entry::Failed { attempt, failure, at: Millis(mesh.now) });
    let TaskState::Pending { since, not_before, .. } = TaskState::of(&mesh.ledger.tasks[&TaskId::new("s")]) else {
        panic!("it waits");
    };
    assert_eq!(not_before.since(since), 1_000, "once ready, it begins anew");
}

#[test]
fn a_sleeping_service_has_no_replicas_and_is_woken() {
    let mut mesh = Mesh::of(&["a"]);
    let mut spec = service("s", 2);
    let scaled = |replicas| Entry::Scaled { task: TaskId::new("s"), replicas, why: "test".into(), at: Millis(9) };
    mesh.take(submit("s", spec.clone(), 1));
    assert!(matches!(mesh.apply(scaled(0)), Outcome::Rejected(Reason::OutOfScale { min: 2, max: 2, idle: false, .. })));
    spec.timeouts.idle_ms = Some(1_000);
    let mut mesh = Mesh::of(&["a"]);
    mesh.take(submit("s", spec, 1));
    mesh.settle(always);
    mesh.take(scaled(0));
    mesh.settle(always);
    assert_eq!(mesh.ledger.live_attempts().count(), 0);
    assert!(mesh.ended("s").is_none());
    mesh.take(scaled(2));
    assert_eq!(mesh.apply(scaled(2)), Outcome::Stale);
    mesh.settle(always);
    assert_eq!(mesh.ready("s").len(), 2);
    assert_eq!(mesh.ledger.tasks[&TaskId::new("s")].replicas.len(), 2, "numbers are used again");
}

/// What may happen to a service, in any order.
#[derive(Clone, Debug)]
enum Happens {
    Turn,
    Work(u8),
    Fail(prop::sample::Index, bool),
    Lose(prop::sample::Index),
    Drain(u8, bool),
    Submit(u32, u32, u32),
    /// The same of shards, as many as are wanted.
    Shards(u32, u32),
    Cancel(prop::sample::Index),
    Scale(u32),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => Just(Happens::Turn),
        6 => any::<u8>().prop_map(Happens::Work),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, fatal)| Happens::Fail(which, fatal)),
        1 => any::<prop::sample::Index>().prop_map(Happens::Lose),
        1 => (0..3u8, any::<bool>()).prop_map(|(node, drains)| Happens::Drain(node, drains)),
        2 => (1..4u32, 0..3u32, 0..3u32).prop_map(|(n, surge, out)| Happens::Submit(n, surge, out)),
        1 => (1..4u32, 0..3u32).prop_map(|(n, surge)| Happens::Shards(n, surge)),
        1 => any::<prop::sample::Index>().prop_map(Happens::Cancel),
        1 => (0..5u32).prop_map(Happens::Scale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// SV1 to SV3 hold after every entry (`Mesh::apply` looks), and what is left alone comes to what is wanted.
    #[test]
    fn whatever_happens_to_a_service_it_comes_to_what_is_wanted(all in proptest::collection::vec(happens(), 0..80)) {
        let names = ["a", "b", "c"];
        let mut mesh = Mesh::of(&names);
        for happens in all {
            let live: Vec<AttemptId> = mesh.ledger.live_attempts().map(|a| a.id.clone()).collect();
            let current = mesh.ledger.current_of("chat").map(|(id, _)| id.clone());
            let at = Millis(mesh.now);
            match happens {
                Happens::Turn => drop(mesh.turn()),
                Happens::Work(ready) => drop(mesh.work(|id| ready & (1 << (id.attempt % 8)) != 0)),
                Happens::Fail(which, fatal) if !live.is_empty() => {
                    let class = if fatal { FailureClass::Fatal } else { FailureClass::Retryable };
                    let failure = Failure { class, message: "m".to_owned() };
                    mesh.apply(Entry::Failed { attempt: which.get(&live).clone(), failure, at });
                }
                Happens::Lose(which) if !live.is_empty() => {
                    mesh.apply(Entry::LeaseExpired { attempt: which.get(&live).clone(), last_heard: at, at });
                }
                Happens::Drain(node, draining) => {
                    let node = NodeId::new(names[node as usize]);
                    mesh.apply(Entry::MemberDrained { node, draining, at });
                }
                Happens::Submit(replicas, max_surge, out) => {
                    let max_unavailable = if max_surge == 0 { out.max(1) } else { out };
                    let id = format!("task-{}", mesh.ledger.next_seq);
                    let mut spec = named(&id, replicas, Update { max_surge, max_unavailable });
                    spec.service.as_mut().unwrap().scale.max = replicas + 1;
                    mesh.apply(submit(&id, spec, mesh.now));
                }
                Happens::Shards(replicas, max_surge) => {
                    let update = Update { max_surge, max_unavailable: u32::from(max_surge == 0) };
                    let id = format!("task-{}", mesh.ledger.next_seq);
                    let spec = TaskSpec { task_type: TaskType::RagInference, ..named(&id, replicas, update) };
                    mesh.apply(submit(&id, spec, mesh.now));
                }
                Happens::Cancel(which) => {
                    let versions: Vec<TaskId> =
                        mesh.ledger.versions_of("chat").iter().map(|(id, _)| (*id).clone()).collect();
                    if !versions.is_empty() {
                        mesh.apply(Entry::Cancelled { task: which.get(&versions).clone(), by: "u".to_owned(), at });
                    }
                }
                Happens::Scale(replicas) => {
                    if let Some(task) = current {
                        mesh.apply(Entry::Scaled { task, replicas, why: String::new(), at });
                    }
                }
                Happens::Fail(..) | Happens::Lose(_) => {}
            }
        }
        for name in names {
            mesh.apply(Entry::MemberDrained { node: NodeId::new(name), draining: false, at: Millis(mesh.now) });
        }
        mesh.now += 10_000;
        mesh.settle(always);
        if let Some((id, task)) = mesh.ledger.current_of("chat") {
            let wanted = task.desired() as usize;
            prop_assert_eq!(mesh.ready(id.as_str()).len(), wanted);
            prop_assert_eq!(mesh.ledger.live_attempts().count(), wanted);
            prop_assert_eq!(mesh.ledger.versions_of("chat").len(), 1);
            if let Some(count) = task.spec.shards() {
                prop_assert_eq!(shards(&mesh, id.as_str()), (0..count).collect::<Vec<_>>());
            }
        }
    }
}
