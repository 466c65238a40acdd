//! What leader and worker say to each other. Every message is idempotent and carries the attempt (the fence) and,
//! from the leader, its term: a worker journals the highest term it has seen and refuses lower ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    capability::Grant,
    id::{AttemptId, NodeId},
    ledger::entry::{CheckpointRef, Failure, TaskResult},
    task::{
        TaskSpec,
        spec::{Input, Pin},
    },
};

/// Version of these types: a node of another version is told so instead of being misread.
pub const WIRE_VERSION: u32 = 3;

/// From the leader to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Run this. Redelivered until it is journalled.
    Assign(Box<Assign>),
    /// Stop this. Redelivered until it has stopped.
    Stop {
        /// The sender's term.
        term: u64,
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        why: StopReason,
    },
}

/// An assignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assign {
    /// The sender's term.
    pub term: u64,
    /// The attempt: the fence.
    pub attempt: AttemptId,
    /// The task, its sources resolved.
    pub spec: TaskSpec,
    /// What it holds.
    pub grant: Grant,
    /// Where to go on from.
    pub checkpoint: Option<CheckpointRef>,
    /// What its sources must be still.
    pub pins: BTreeMap<Input, Pin>,
    /// The lease in milliseconds: without contact for so long the worker loses the attempt.
    pub lease_ms: u64,
}

/// Why an attempt is to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The task has ended without it: a user cancelled it, or it failed elsewhere.
    Cancelled,
    /// The ledger has given it up: another attempt may run.
    Superseded,
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// It is in the journal.
    Journalled,
    /// The sender's term is over.
    StaleTerm {
        /// Highest term seen.
        highest: u64,
    },
    /// It cannot be taken.
    Refused {
        /// Why.
        reason: String,
    },
}

/// From a worker to the leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToLeader {
    /// I am here, and this is what I do.
    Heartbeat(Heartbeat),
    /// Something happened to an attempt. Repeated until committed.
    Report {
        /// The attempt.
        attempt: AttemptId,
        /// What.
        report: Report,
    },
}

/// A worker's sign of life. Its lease counts from the send time of the last one that was acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The worker.
    pub node: NodeId,
    /// The worker's own monotonic clock (boot time) when it sent this, in milliseconds; echoed.
    pub sent_at: u64,
    /// What runs.
    pub attempts: Vec<AttemptProgress>,
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptProgress {
    /// The attempt.
    pub attempt: AttemptId,
    /// What it does.
    pub phase: Phase,
    /// How far.
    pub progress: Progress,
}

/// What a running attempt does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Getting model and data.
    #[default]
    Pulling,
    /// Computing.
    Training,
    /// Answering requests.
    Serving,
    /// Writing a checkpoint.
    Checkpointing,
    /// Publishing artifacts.
    Uploading,
}

impl Phase {
    /// Its name in REST and tables.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Pulling => "PULLING",
            Phase::Training => "TRAINING",
            Phase::Serving => "SERVING",
            Phase::Checkpointing => "CHECKPOINTING",
            Phase::Uploading => "UPLOADING",
        }
    }
}

/// Figures of a running attempt. `None` where a phase has no such figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all, once known.
    pub total_steps: Option<u64>,
    /// Mean loss since the last log.
    pub loss: Option<f64>,
    /// Real tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Bytes moved, while pulling or uploading.
    pub bytes_done: Option<u64>,
    /// Bytes to move, once known.
    pub bytes_total: Option<u64>,
    /// A word for people: what is being waited for.
    pub note: Option<String>,
    /// Requests to a replica of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
}

/// Requests to one replica of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Whether it is asked now: its health is good and it does not stop.
    pub ready: bool,
    /// Under way.
    pub running: u32,
    /// Answered since it started, with whatever status.
    pub done: u64,
    /// Broken off since it started, before the end of the answer.
    pub broken: u64,
    /// Since the last of them ended, or since it became ready, in milliseconds; 0 while some are under way.
    pub idle_ms: u64,
}

/// What happened to an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// It is journalled and starts.
    Started,
    /// It is a service's and can be asked.
    Ready,
    /// Its inputs are there, and this is what they were.
    Pinned(BTreeMap<Input, Pin>),
    /// A checkpoint is whole at the shared place.
    Checkpointed(CheckpointRef),
    /// It is done computing and asks for the right to publish.
    Publish,
    /// Published.
    Finished(TaskResult),
    /// It ended with an error.
    Failed(Failure),
    /// It was asked to stop, and did.
    Stopped,
}

/// The leader's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromLeader {
    /// Answer to a heartbeat.
    Alive {
        /// The leader's term.
        term: u64,
        /// `sent_at` of the heartbeat.
        sent_at: u64,
        /// Attempts among those reported that must stop, and why.
        stop: Vec<(AttemptId, StopReason)>,
    },
    /// The report is committed: it can be forgotten. For [`Report::Publish`]: the right is granted.
    Committed {
        /// The leader's term.
        term: u64,
    },
    /// The attempt is superseded or over: stop it and forget it.
    Stale {
        /// The leader's term.
        term: u64,
        /// Why.
        why: String,
    },
    /// Ask this one instead.
    NotLeader {
        /// The leader, where known.
        leader: Option<NodeId>,
    },
    /// Not now: the ledger cannot commit, or another attempt publishes to the same place. Try again.
    Unavailable {
        /// Why.
        why: String,
    },
}
