//! Tasks and nodes of a simulated mesh.

use std::collections::{BTreeMap, BTreeSet};

use mloc_core::{
    capability::{Capability, Gpu, GpuRequest, Request},
    id::NodeId,
    task::{TaskSpec, TaskType, kind::Kind, spec},
};
use rand::{Rng, rngs::SmallRng};

pub const GIB: u64 = 1 << 30;

/// A node with four cores, 16 GiB and up to two simulated GPUs.
pub fn capability(node: &NodeId, gpus: u32) -> Capability {
    let gpu = |index| Gpu {
        index,
        kind: "simulated:a".to_owned(),
        memory_bytes: 24 * GIB,
        driver: String::new(),
        utilisation_percent: 0,
        unusable: None,
        unusable_for_good: false,
    };
    Capability {
        node: node.clone(),
        name: node.to_string(),
        version: "0".to_owned(),
        cpu_model: "simulated".to_owned(),
        cpu_features: String::new(),
        cpu_millis: 4_000,
        memory_bytes: 16 * GIB,
        disk_bytes: 100 * GIB,
        gpus: (0..gpus).map(gpu).collect(),
        matmul_gflops: None,
        features: BTreeSet::from(["echo".to_owned(), "destination:s3".to_owned()]),
        labels: BTreeMap::new(),
        work: true,
        vote: true,
        reachable: true,
    }
}

/// A service of some owner, called as every other one of that owner is: a later one is its newer version.
fn service(rng: &mut SmallRng, name: String) -> TaskSpec {
    let owner = format!("user-{}", rng.random_range(0..2));
    let min = rng.random_range(1..4);
    let max_surge = rng.random_range(0..3);
    let service = spec::Service {
        served_name: format!("service of {owner}"),
        health: spec::Health::default(),
        scale: spec::Scale {
            min,
            max: min + rng.random_range(0..2),
            queue_depth: 2,
            up_after_ms: 1_000,
            down_after_ms: 3_000,
        },
        update: spec::Update { max_surge, max_unavailable: rng.random_range(0..2).max(u32::from(max_surge == 0)) },
    };
    TaskSpec {
        kind: Kind::ServiceTask,
        replicas: min,
        // So small that all of them fit beside what trains now and then.
        request: Request { cpu_millis: 50, memory_bytes: GIB / 16, disk_bytes: 0, gpu: None },
        output: spec::Output::default(),
        depends_on: Vec::new(),
        timeouts: spec::Timeouts::default(),
        checkpoint: spec::Checkpointing::default(),
        service: Some(service),
        metadata: spec::Metadata { name: name.clone(), owner, ..spec::Metadata::default() },
        ..training(rng, name, &[])
    }
}

/// A task of either kind.
pub fn task(rng: &mut SmallRng, name: String, before: &[TaskSpec]) -> TaskSpec {
    if rng.random_bool(0.3) { service(rng, name) } else { training(rng, name, before) }
}

/// A task; it may depend on one of its owner's among those `before` it.
fn training(rng: &mut SmallRng, name: String, before: &[TaskSpec]) -> TaskSpec {
    let gpus = rng.random_range(0..3u32);
    let shared = rng.random_bool(0.6);
    let place = |path: &str| spec::Location::S3 {
        bucket: "b".to_owned(),
        path: format!("{name}/{path}"),
        endpoint: None,
        region: None,
    };
    let replicas = if rng.random_bool(0.1) { 2 } else { 1 };
    // Some share a destination; replicas would publish over one another, so theirs stay in the workers' folders.
    let shared_output =
        spec::Location::S3 { bucket: "b".to_owned(), path: "everybody".to_owned(), endpoint: None, region: None };
    let output = if rng.random_bool(0.3) { shared_output } else { place("out") };
    let owner = format!("user-{}", rng.random_range(0..2));
    let depends_on = match before.iter().rfind(|other| other.metadata.owner == owner && other.service.is_none()) {
        Some(last) if rng.random_bool(0.2) => vec![last.metadata.name.clone()],
        _ => Vec::new(),
    };
    TaskSpec {
        kind: Kind::TrainingTask,
        task_type: TaskType::Echo,
        replicas,
        request: Request {
            cpu_millis: rng.random_range(1..4) * 1_000,
            memory_bytes: rng.random_range(1..9) * GIB,
            disk_bytes: GIB,
            gpu: (gpus > 0).then(|| GpuRequest { kind: "simulated:any".to_owned(), count: gpus, memory_bytes: 0 }),
        },
        model: None,
        dataset: None,
        command: None,
        reward: None,
        retrieval: None,
        agent: None,
        service: None,
        hyperparameters: BTreeMap::new(),
        output: spec::Output { destination: (replicas == 1).then_some(output), artifacts: Vec::new(), keep_ms: None },
        priority: rng.random_range(0..3),
        depends_on,
        retry: spec::Retry { limit: rng.random_range(1..7), backoff_ms: 200, backoff_max_ms: 2_000 },
        timeouts: spec::Timeouts { run_ms: rng.random_bool(0.05).then_some(3_000), ..spec::Timeouts::default() },
        placement: spec::Placement {
            offline_for_ms: rng.random_bool(0.3).then_some(30_000),
            ..spec::Placement::default()
        },
        checkpoint: spec::Checkpointing { destination: shared.then(|| place("ckpt")) },
        env: BTreeMap::new(),
        secrets_from: Vec::new(),
        metadata: spec::Metadata { name, owner, ..spec::Metadata::default() },
    }
}
