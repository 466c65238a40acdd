//! Where a result comes from: what its manifest says of the run that made it, for whoever finds it years later.

use std::collections::BTreeMap;

use mloc_core::{
    id::NodeId,
    task::spec::{Input, Location, Pin},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::run::Run;

/// A run, as the manifest of its result tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// `metadata.name` of the task.
    pub task_name: String,
    /// Its owner.
    pub owner: String,
    /// Its project.
    pub project: String,
    /// Its type: which module ran.
    pub task_type: String,
    /// What went in, and in which version.
    pub inputs: BTreeMap<Input, InputLineage>,
    /// Settings as the task gave them.
    pub hyperparameters: BTreeMap<String, Value>,
    /// Version of the binary.
    pub mloc: String,
    /// The node that ran the attempt.
    pub node: NodeId,
    /// What it computed on.
    pub hardware: Hardware,
    /// What the attempt used, up to its publication. The ledger's usage rows count every attempt of the task.
    pub usage: AttemptUsage,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputLineage {
    /// Where it came from.
    pub source: Location,
    /// Its version; absent for sources without versions.
    pub pin: Option<Pin>,
}

/// What an attempt held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// See [`crate::cpu_features`].
    pub cpu_features: String,
    /// Threads it computed with.
    pub threads: usize,
    /// Type of its GPUs; empty without.
    pub gpu_type: String,
    /// How many.
    pub gpu_count: usize,
}

/// What an attempt used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptUsage {
    /// Seconds from its start on this node.
    pub seconds: f64,
    /// Hours × GPUs.
    pub gpu_hours: f64,
}

impl Lineage {
    /// The lineage of a run that is being published at this moment, in milliseconds of the node's wall clock.
    pub fn of(run: &Run, node: &NodeId, now_unix_ms: u64) -> Self {
        let (spec, metadata) = (&run.spec, &run.spec.metadata);
        let input = |(input, source): (Input, &Location)| {
            (input, InputLineage { source: source.clone(), pin: run.pins.get(&input).cloned() })
        };
        let seconds = now_unix_ms.saturating_sub(run.started_unix_ms) as f64 / 1e3;
        let gpu_count = run.grant.gpus.len();
        Self {
            task_name: metadata.name.clone(),
            owner: metadata.owner.clone(),
            project: metadata.project.clone(),
            task_type: spec.task_type.name().to_owned(),
            inputs: spec.sources().map(input).collect(),
            hyperparameters: spec.hyperparameters.clone(),
            mloc: crate::VERSION.to_owned(),
            node: node.clone(),
            hardware: Hardware {
                cpu_features: crate::cpu_features(),
                threads: run.threads,
                gpu_type: run.grant.gpu_kind.clone(),
                gpu_count,
            },
            usage: AttemptUsage { seconds, gpu_hours: seconds / 3600.0 * gpu_count as f64 },
        }
    }
}
