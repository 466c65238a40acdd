//! What holds for every sequence of entries and for every problem, by proptest.

use std::collections::{BTreeMap, BTreeSet};

use mloc_core::{
    capability::{Capability, Gpu, GpuRequest, Grant, Request},
    fit,
    id::{AttemptId, NodeId, RequestId, TaskId},
    ledger::{
        Entry, Ledger, Outcome,
        entry::{CheckpointRef, Failure, FailureClass, Member, TaskResult},
        invariants,
        restore::Restore,
        usage,
    },
    schedule::{NodeView, Problem, explain, solve},
    task::{TaskSpec, TaskType, kind::Kind, spec},
    time::Millis,
};
use proptest::prelude::*;

const TASKS: u32 = 4;
const NODES: u32 = 3;

fn task_id() -> impl Strategy<Value = TaskId> {
    (0..TASKS).prop_map(|n| TaskId::new(format!("task-{n}")))
}

fn node_id() -> impl Strategy<Value = NodeId> {
    (0..NODES).prop_map(|n| NodeId::new(format!("node-{n}")))
}

fn attempt() -> impl Strategy<Value = AttemptId> {
    // Mostly the ones that exist, sometimes anything.
    let number = prop_oneof![8 => 1..4u32, 1 => any::<u32>()];
    let replica = prop_oneof![8 => Just(0u32), 2 => Just(1), 1 => any::<u32>()];
    (task_id(), replica, number).prop_map(|(task, replica, attempt)| AttemptId { task, replica, attempt })
}

fn at() -> impl Strategy<Value = Millis> {
    prop_oneof![9 => (0..100_000u64).prop_map(Millis), 1 => any::<u64>().prop_map(Millis)]
}

fn gpu_request() -> impl Strategy<Value = Option<GpuRequest>> {
    let kind = prop_oneof![Just("any"), Just("nvidia-l40"), Just("simulated:any")];
    proptest::option::of((kind, 0..3u32, 0..3u64).prop_map(|(kind, count, memory_bytes)| GpuRequest {
        kind: kind.to_owned(),
        count,
        memory_bytes,
    }))
}

fn task_spec() -> impl Strategy<Value = TaskSpec> {
    let retry = (0..4u32, any::<u64>()).prop_map(|(limit, backoff_max_ms)| spec::Retry {
        limit,
        backoff_ms: 10,
        backoff_max_ms,
    });
    let replicas = prop_oneof![8 => Just(1u32), 2 => Just(2), 1 => Just(0)];
    let depends_on = proptest::collection::vec((0..TASKS).prop_map(|n| format!("task-{n}")), 0..2);
    let place =
        |n: u32| spec::Location::S3 { bucket: n.to_string(), path: String::new(), endpoint: None, region: None };
    let destination = proptest::option::of((0..2u32).prop_map(place));
    (replicas, 0..3_000u64, gpu_request(), retry, depends_on, -1..2i32, destination, service()).prop_map(
        |(replicas, cpu_millis, gpu, retry, depends_on, priority, destination, service)| TaskSpec {
            kind: Kind::TrainingTask,
            metadata: spec::Metadata { owner: "o".to_owned(), ..spec::Metadata::default() },
            task_type: TaskType::Echo,
            replicas: service.as_ref().map_or(replicas, |service| service.scale.min),
            request: Request { cpu_millis, memory_bytes: 1, disk_bytes: 0, gpu },
            model: None,
            dataset: None,
            command: None,
            reward: None,
            retrieval: None,
            agent: None,
            service,
            hyperparameters: BTreeMap::new(),
            output: spec::Output { destination, artifacts: Vec::new(), keep_ms: None },
            priority,
            depends_on,
            retry,
            timeouts: spec::Timeouts::default(),
            placement: spec::Placement::default(),
            checkpoint: spec::Checkpointing::default(),
            env: BTreeMap::new(),
            secrets_from: Vec::new(),
        },
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    let cpu = prop_oneof![9 => 0..3_000u64, 1 => any::<u64>()];
    (cpu, proptest::collection::vec(0..3u32, 0..3)).prop_map(|(cpu_millis, gpus)| Grant {
        cpu_millis,
        memory_bytes: 1,
        disk_bytes: 0,
        gpu_kind: if gpus.is_empty() { String::new() } else { "nvidia-l40".to_owned() },
        gpus,
    })
}

/// What every node has in these tests.
fn capacity() -> Grant {
    Grant { cpu_millis: 4_000, memory_bytes: 8, disk_bytes: 0, gpus: vec![0, 1], gpu_kind: String::new() }
}

fn failure() -> impl Strategy<Value = Failure> {
    let class = prop_oneof![
        4 => Just(FailureClass::Retryable),
        1 => Just(FailureClass::Fatal),
        1 => Just(FailureClass::TimedOut)
    ];
    class.prop_map(|class| Failure { class, message: "m".to_owned() })
}

/// Of replicas.
fn numbers() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![9 => 0..4u32, 1 => any::<u32>()], 0..3)
}

fn service() -> impl Strategy<Value = Option<spec::Service>> {
    let one =
        (0..2u32, 1..3u32, 0..2u32, 0..2u32, 0..2u32).prop_map(|(name, min, more, max_surge, max_unavailable)| {
            spec::Service {
                served_name: name.to_string(),
                health: spec::Health::default(),
                scale: spec::Scale { min, max: min + more, ..spec::Scale::default() },
                update: spec::Update { max_surge, max_unavailable },
            }
        });
    prop_oneof![2 => Just(None), 1 => one.prop_map(Some)]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        4 => (task_id(), task_spec(), 0..6u32, 0..2u32, at()).prop_map(|(task, spec, request, digest, at)| {
            let (request, body_digest) = (RequestId::new(request.to_string()), digest.to_string());
            Entry::Submit { task, spec: Box::new(spec), request, body_digest, at }
        }),
        8 => (attempt(), node_id(), grant(), at()).prop_map(|(attempt, node, grant, at)| Entry::Assigned {
            attempt,
            node,
            grant,
            capacity: capacity(),
            at,
        }),
        6 => (attempt(), at()).prop_map(|(attempt, at)| Entry::Started { attempt, at }),
        3 => (attempt(), at()).prop_map(|(attempt, at)| Entry::Ready { attempt, at }),
        1 => (task_id(), 0..4u32, at()).prop_map(|(task, replicas, at)| Entry::Scaled {
            task,
            replicas,
            why: String::new(),
            at,
        }),
        3 => (task_id(), numbers(), numbers(), at()).prop_map(|(task, start, stop, at)| Entry::Replicas {
            task,
            start,
            stop,
            why: String::new(),
            at,
        }),
        2 => (attempt(), 0..9u64, at()).prop_map(|(attempt, step, at)| Entry::Checkpointed {
            attempt,
            checkpoint: CheckpointRef { step, manifest_sha256: String::new() },
            at,
        }),
        5 => (attempt(), at()).prop_map(|(attempt, at)| Entry::Publishing { attempt, at }),
        4 => (attempt(), at()).prop_map(|(attempt, at)| Entry::Finished {
            attempt,
            result: TaskResult::default(),
            at,
        }),
        2 => (attempt(), failure(), at()).prop_map(|(attempt, failure, at)| Entry::Failed { attempt, failure, at }),
        2 => (attempt(), at()).prop_map(|(attempt, at)| Entry::Stopped { attempt, at }),
        2 => (attempt(), at(), at()).prop_map(|(attempt, last_heard, at)| Entry::LeaseExpired {
            attempt,
            last_heard,
            at,
        }),
        1 => (task_id(), at()).prop_map(|(task, at)| Entry::Cancelled { task, by: "u".to_owned(), at }),
        4 => (node_id(), 0..2u32, at()).prop_map(|(node, name, joined_at)| Entry::MemberJoined {
            node,
            member: Member {
                name: name.to_string(),
                addresses: Vec::new(),
                joined_at,
                draining_since: None,
                revoked_at: None,
            },
        }),
        1 => (node_id(), at()).prop_map(|(node, at)| Entry::MemberRevoked { node, at }),
        1 => (node_id(), any::<bool>(), at()).prop_map(|(node, draining, at)| Entry::MemberDrained {
            node,
            draining,
            at,
        }),
        1 => at().prop_map(|before| Entry::KeysForgotten { before }),
    ]
}

fn view(at: u32, gpus: &[(bool, u64)]) -> NodeView {
    let gpu = |(index, (simulated, memory_bytes)): (u32, &(bool, u64))| Gpu {
        index,
        kind: if *simulated { "simulated:nvidia-l40" } else { "nvidia-l40" }.to_owned(),
        memory_bytes: *memory_bytes,
        driver: String::new(),
        utilisation_percent: 0,
        unusable: None,
        unusable_for_good: false,
    };
    let capability = Capability {
        node: NodeId::new(format!("node-{at}")),
        name: format!("n{at}"),
        version: String::new(),
        cpu_model: String::new(),
        cpu_features: String::new(),
        cpu_millis: 4_000,
        memory_bytes: 8,
        disk_bytes: 0,
        gpus: (0..).zip(gpus).map(gpu).collect(),
        matmul_gflops: None,
        features: BTreeSet::from(["echo".to_owned(), "destination:s3".to_owned()]),
        labels: BTreeMap::new(),
        work: true,
        vote: true,
        reachable: true,
    };
    NodeView { capability: Some(capability), alive: true }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn apply_is_total_and_keeps_every_promise(entries in proptest::collection::vec(entry(), 0..120)) {
        let mut ledger = Ledger::default();
        let nodes = (0..NODES).map(|n| (NodeId::new(format!("node-{n}")), capacity())).collect();
        for entry in &entries {
            let before = ledger.clone();
            let outcome = ledger.apply(entry);
            prop_assert_eq!(invariants::exchange(&before, &ledger, entry), Ok(()));
            match outcome {
                Outcome::Applied => prop_assert_ne!(&before, &ledger, "{:?} was applied to no effect", entry),
                Outcome::Duplicate(_) | Outcome::Stale | Outcome::Rejected(_) => {
                    prop_assert_eq!(&before, &ledger, "{:?} came to {:?}", entry, outcome);
                }
            }
            prop_assert_eq!(invariants::all(&ledger), Ok(()), "after {:?}", entry);
            prop_assert_eq!(invariants::slots_within(&ledger, &nodes), Ok(()));
            prop_assert!(before.tasks.keys().all(|id| ledger.tasks.contains_key(id)), "L4 a task is gone");
        }
        // A replica that was restored from a snapshot has the same state.
        let snapshot = serde_json::to_string(&ledger).unwrap();
        prop_assert_eq!(serde_json::from_str::<Ledger>(&snapshot).unwrap(), ledger);
    }

    #[test]
    fn a_restored_ledger_keeps_every_promise_and_loses_no_usage(
        before in proptest::collection::vec(entry(), 0..80),
        after in proptest::collection::vec(entry(), 0..60),
        as_of in at(),
        restored_at in at(),
    ) {
        let mut ledger = Ledger::default();
        before.iter().for_each(|entry| drop(ledger.apply(entry)));
        let founder = NodeId::new("founder");
        let restore = Restore { as_of, at: restored_at, founder: founder.clone(), name: "f".to_owned() };
        let mut restored = ledger.clone().restored(&restore);
        prop_assert_eq!(invariants::all(&restored), Ok(()));
        prop_assert_eq!(restored.live_attempts().count(), 0);
        // What had ended is untouched; of what ran as much is counted as at the moment of the backup.
        let sums = |ledger: &Ledger, now| usage::sums(ledger, &usage::Query::default(), now);
        prop_assert_eq!(sums(&restored, Millis(u64::MAX)), sums(&ledger, as_of));
        for (id, task) in &ledger.tasks {
            prop_assert_eq!(&restored.tasks[id].ended, &task.ended, "a restore ends no task and revives none");
        }
        let allowed = restored.members.iter().filter(|(_, member)| member.revoked_at.is_none());
        prop_assert_eq!(allowed.map(|(id, _)| id).collect::<Vec<_>>(), [&founder]);
        // No number of the old mesh is given again, whatever is asked for.
        let numbers = |ledger: &Ledger| -> Vec<AttemptId> {
            let attempts = ledger.tasks.values().flat_map(|t| &t.replicas).flat_map(|r| &r.attempts);
            attempts.map(|a| a.id.clone()).collect()
        };
        let had = numbers(&restored);
        for entry in &after {
            let entry = match entry.clone() {
                Entry::Assigned { attempt, node: _, grant, capacity, at } => {
                    let attempt = AttemptId { attempt: attempt.attempt % 4 + restored.attempts_after, ..attempt };
                    Entry::Assigned { attempt, node: founder.clone(), grant, capacity, at }
                }
                other => other,
            };
            restored.apply(&entry);
            prop_assert_eq!(invariants::all(&restored), Ok(()), "after {:?}", entry);
        }
        let new = numbers(&restored).into_iter().filter(|id| !had.contains(id));
        prop_assert!(new.into_iter().all(|id| id.attempt > ledger.attempts_after + 1_000 - 1));
    }

    #[test]
    fn usage_of_two_ranges_is_usage_of_both(
        entries in proptest::collection::vec(entry(), 0..80),
        middle in 0..100_000u64,
        now in 0..200_000u64,
    ) {
        let mut ledger = Ledger::default();
        entries.iter().for_each(|entry| drop(ledger.apply(entry)));
        let (now, middle) = (Millis(now), Some(Millis(middle)));
        let gpu_ms = |query: usage::Query| usage::sums(&ledger, &query, now).gpu_ms.values().sum::<u128>();
        let all = gpu_ms(usage::Query::default());
        let early = gpu_ms(usage::Query { until: middle, ..usage::Query::default() });
        let late = gpu_ms(usage::Query { from: middle, ..usage::Query::default() });
        prop_assert_eq!(all, early + late);
    }

    #[test]
    fn what_is_solved_is_accepted_and_solved_once(
        specs in proptest::collection::vec(task_spec(), 1..8),
        gpus in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0..3u64), 0..4), 1..4),
        leader in proptest::option::of(0..4u32),
    ) {
        let mut ledger = Ledger::default();
        let nodes: BTreeMap<NodeId, NodeView> =
            (0..).zip(&gpus).map(|(at, gpus)| (NodeId::new(format!("node-{at}")), view(at, gpus))).collect();
        for node in nodes.keys() {
            let member = Member {
                name: node.to_string(),
                addresses: Vec::new(),
                joined_at: Millis(0),
                draining_since: None,
                revoked_at: None,
            };
            ledger.apply(&Entry::MemberJoined { node: node.clone(), member });
        }
        for (at, spec) in (0..).zip(&specs) {
            let entry = Entry::Submit {
                task: TaskId::new(format!("task-{at}")),
                spec: Box::new(TaskSpec { depends_on: Vec::new(), ..spec.clone() }),
                request: RequestId::new(format!("{at}")),
                body_digest: String::new(),
                at: Millis(0),
            };
            prop_assert_eq!(ledger.apply(&entry), Outcome::Applied);
        }
        let leader = leader.map(|at| NodeId::new(format!("node-{at}")));
        let ask = |ledger: &Ledger| solve(&Problem { ledger, nodes: &nodes, leader: leader.as_ref(), now: Millis(1) });
        let found = ask(&ledger);
        prop_assert_eq!(&found, &ask(&ledger), "the same question has the same answer");
        for assignment in found {
            let entry = assignment.entry(Millis(1));
            prop_assert_eq!(ledger.apply(&entry), Outcome::Applied, "{:?}", entry);
        }
        let has = nodes.iter().map(|(id, view)| (id.clone(), fit::capacity(view.capability.as_ref().unwrap()))).collect();
        prop_assert_eq!(invariants::slots_within(&ledger, &has), Ok(()));
        prop_assert_eq!(ask(&ledger), [], "S1 solving twice changes nothing");
        // What was left behind is explained: no node has room for it.
        // A later version of a service waits for its turn.
        for (id, _) in ledger.tasks.iter().filter(|(_, task)| !task.replicas.iter().all(|replica| replica.retired)) {
            let problem = Problem { ledger: &ledger, nodes: &nodes, leader: None, now: Millis(1) };
            let explanation = explain(&problem, id).unwrap();
            prop_assert!(explanation.nodes.iter().all(|n| !n.fits && !n.reasons.is_empty()), "{}", explanation);
        }
    }
}
