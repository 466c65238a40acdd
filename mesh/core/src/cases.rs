//! What unit tests are made of: small tasks, nodes and ledgers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    capability::{Capability, Gpu, GpuRequest, Grant, Request},
    id::{AttemptId, NodeId, RequestId, TaskId},
    ledger::{Entry, Ledger, Outcome, entry::Member},
    task::{TaskSpec, TaskType, kind::Kind, spec},
    time::Millis,
};

pub const GIB: u64 = 1 << 30;

/// An echo task of `alice`: one core, 1 GiB, two more tries.
pub fn spec(name: &str) -> TaskSpec {
    TaskSpec {
        kind: Kind::TrainingTask,
        metadata: spec::Metadata {
            name: name.to_owned(),
            owner: "alice".to_owned(),
            project: "p".to_owned(),
            ..spec::Metadata::default()
        },
        task_type: TaskType::Echo,
        replicas: 1,
        request: Request { cpu_millis: 1_000, memory_bytes: GIB, ..Request::default() },
        model: None,
        dataset: None,
        command: None,
        reward: None,
        retrieval: None,
        agent: None,
        service: None,
        hyperparameters: BTreeMap::new(),
        output: spec::Output::default(),
        priority: 0,
        depends_on: Vec::new(),
        retry: spec::Retry { limit: 2, backoff_ms: 1_000, backoff_max_ms: 3_000 },
        timeouts: spec::Timeouts::default(),
        placement: spec::Placement::default(),
        checkpoint: spec::Checkpointing::default(),
        env: BTreeMap::new(),
        secrets_from: Vec::new(),
    }
}

/// A service of `alice` with so many replicas, called as the task is.
pub fn service(name: &str, replicas: u32) -> TaskSpec {
    let service = spec::Service {
        served_name: name.to_owned(),
        health: spec::Health::default(),
        scale: spec::Scale::fixed(replicas),
        update: spec::Update::default(),
    };
    TaskSpec { kind: Kind::ServiceTask, replicas, service: Some(service), ..spec(name) }
}

/// The same with GPUs.
pub fn with_gpus(mut spec: TaskSpec, kind: &str, count: u32, gib: u64) -> TaskSpec {
    spec.request.gpu = Some(GpuRequest { kind: kind.to_owned(), count, memory_bytes: gib * GIB });
    spec
}

/// The same, publishing to this folder of a bucket.
pub fn publishing_to(mut spec: TaskSpec, path: &str) -> TaskSpec {
    let (bucket, path) = ("b".to_owned(), path.to_owned());
    spec.output.destination = Some(spec::Location::S3 { bucket, path, endpoint: None, region: None });
    spec
}

/// A node of four cores and 24 GiB with these GPUs.
pub fn node(name: &str, gpus: &[(&str, u64)]) -> Capability {
    let gpu = |(index, (kind, gib)): (u32, &(&str, u64))| Gpu {
        index,
        kind: (*kind).to_owned(),
        memory_bytes: gib * GIB,
        driver: String::new(),
        utilisation_percent: 0,
        unusable: None,
        unusable_for_good: false,
    };
    Capability {
        node: NodeId::new(name),
        name: name.to_owned(),
        version: "0".to_owned(),
        cpu_model: "test".to_owned(),
        cpu_features: String::new(),
        cpu_millis: 4_000,
        memory_bytes: 24 * GIB,
        disk_bytes: 100 * GIB,
        gpus: (0..).zip(gpus).map(gpu).collect(),
        matmul_gflops: None,
        features: BTreeSet::from(["echo".to_owned()]),
        labels: BTreeMap::new(),
        work: true,
        vote: true,
        reachable: true,
    }
}

pub fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        addresses: Vec::new(),
        joined_at: Millis(0),
        draining_since: None,
        revoked_at: None,
    }
}

/// A ledger with these members.
pub fn ledger(nodes: &[&str]) -> Ledger {
    let mut ledger = Ledger::default();
    for name in nodes {
        ledger.apply(&Entry::MemberJoined { node: NodeId::new(*name), member: member(name) });
    }
    ledger
}

/// `t.0.1` for `("t", 1)`.
pub fn attempt(task: &str, number: u32) -> AttemptId {
    AttemptId { task: TaskId::new(task), replica: 0, attempt: number }
}

pub fn submit(id: &str, spec: TaskSpec, at: u64) -> Entry {
    Entry::Submit {
        task: TaskId::new(id),
        spec: Box::new(spec),
        request: RequestId::new(format!("request-{id}")),
        body_digest: "d".to_owned(),
        at: Millis(at),
    }
}

/// One core and these GPUs, of a node that has four cores and four GPUs.
pub fn assigned(id: &AttemptId, node: &str, gpus: &[u32], at: u64) -> Entry {
    let gpu_kind = if gpus.is_empty() { "" } else { "nvidia-l40" };
    let grant = Grant {
        cpu_millis: 1_000,
        memory_bytes: GIB,
        disk_bytes: 0,
        gpus: gpus.to_vec(),
        gpu_kind: gpu_kind.to_owned(),
    };
    let capacity = Grant {
        cpu_millis: 4_000,
        memory_bytes: 24 * GIB,
        disk_bytes: 0,
        gpus: vec![0, 1, 2, 3],
        gpu_kind: String::new(),
    };
    Entry::Assigned { attempt: id.clone(), node: NodeId::new(node), grant, capacity, at: Millis(at) }
}

/// Applies what must be taken.
pub fn take(ledger: &mut Ledger, entry: Entry) {
    let outcome = ledger.apply(&entry);
    assert_eq!(outcome, Outcome::Applied, "{entry:?}");
}
