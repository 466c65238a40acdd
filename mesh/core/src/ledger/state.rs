//! What the ledger knows: tasks with their replicas and attempts, members, idempotency keys, usage rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::entry::{CheckpointRef, Failure, Member, TaskResult};
use crate::{
    capability::Grant,
    id::{AttemptId, NodeId, RequestId, TaskId},
    task::{
        TaskSpec,
        spec::{Input, Pin},
    },
    time::Millis,
};

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Every task ever accepted.
    pub tasks: BTreeMap<TaskId, Task>,
    /// Number the next accepted task gets: the queue's order.
    pub next_seq: u64,
    /// Idempotency keys of the last day, per owner.
    pub keys: BTreeMap<String, BTreeMap<RequestId, Key>>,
    /// Members, revoked ones included.
    pub members: BTreeMap<NodeId, Member>,
    /// Rises with each change of `members`: gossip carries it, nodes fetch the table when it is behind.
    pub members_version: u64,
    /// One row an attempt that started.
    pub usage: BTreeMap<AttemptId, UsageRow>,
    /// Numbers up to this one are given to no new attempt: before this ledger was restored from a backup, attempts that
    /// it does not know may have had them. 0 in a mesh that was never restored.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts_after: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The task it made.
    pub task: TaskId,
    /// SHA-256 of the body, hex.
    pub body_digest: String,
    /// When.
    pub at: Millis,
}

/// An accepted task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its place in the queue.
    pub seq: u64,
    /// What it means.
    pub spec: TaskSpec,
    /// When it was accepted.
    pub submitted_at: Millis,
    /// Each replica, by number.
    pub replicas: Vec<Replica>,
    /// The terminal entry, once there is one: the first wins.
    pub ended: Option<TaskEnd>,
    /// What its sources were as they were first met.
    #[serde(default)]
    pub pins: BTreeMap<Input, Pin>,
    /// How many replicas are wanted of a service by now; as many as it began with when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled_to: Option<u32>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TaskEnd {
    /// Every replica finished.
    Completed {
        /// When.
        at: Millis,
        /// What the last replica left.
        result: TaskResult,
    },
    /// It cannot succeed.
    Failed {
        /// When.
        at: Millis,
        /// Why.
        failure: Failure,
    },
    /// A user did not want it any more.
    Cancelled {
        /// When.
        at: Millis,
        /// Who.
        by: String,
    },
}

impl TaskEnd {
    /// When.
    pub fn at(&self) -> Millis {
        match self {
            TaskEnd::Completed { at, .. } | TaskEnd::Failed { at, .. } | TaskEnd::Cancelled { at, .. } => *at,
        }
    }
}

/// One replica of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// Its attempts, oldest first; at most the last one is live.
    pub attempts: Vec<Attempt>,
    /// Not to be tried again before this moment (backoff); 0 when it may go at once. See [`Replica::may_go`].
    pub not_before: Millis,
    /// Since when it waits; `reason` says why it went back to the queue, empty the first time.
    pub pending_since: Millis,
    /// Why the last attempt did not do.
    pub pending_reason: String,
    /// The newest checkpoint at a shared place, of whichever attempt.
    pub checkpoint: Option<CheckpointRef>,
    /// Whether it is wanted no more: a service's alone, and only while it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// Its node.
    pub node: NodeId,
    /// What it holds there until it has ended.
    pub grant: Grant,
    /// When it was assigned.
    pub assigned_at: Millis,
    /// When it could first be asked; a service's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Millis>,
    /// Where it stands.
    pub state: AttemptState,
}

/// Where an attempt stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AttemptState {
    /// Committed; the worker may not have heard of it.
    Assigned,
    /// The worker has it.
    Running {
        /// Since when.
        since: Millis,
    },
    /// It holds the right to publish.
    Publishing {
        /// When it started to run.
        started_at: Millis,
        /// Since when.
        since: Millis,
    },
    /// The task ended without it (cancelled), or its replica is retired: it holds its slots until the worker has stopped or
    /// its lease is over.
    Stopping {
        /// When it started to run, if it did.
        started_at: Option<Millis>,
        /// Since when.
        since: Millis,
    },
    /// Over; its slots are free.
    Ended {
        /// When it started to run, if it did.
        started_at: Option<Millis>,
        /// When it ended.
        at: Millis,
        /// How.
        how: AttemptEnd,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptEnd {
    /// With a result.
    Finished,
    /// With an error.
    Failed(Failure),
    /// It was asked to stop, and did.
    Stopped,
    /// Its node went silent for longer than it may.
    Lost,
}

/// What an attempt used. GPU time is slots held from `Started`, pulling included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Who pays.
    pub owner: String,
    /// For what.
    pub project: String,
    /// First moment.
    pub start: Millis,
    /// Last moment; `None` while it runs.
    pub end: Option<Millis>,
    /// Type of its GPUs; empty without.
    pub gpu_kind: String,
    /// How many.
    pub gpu_count: u32,
    /// Thousandths of a core held.
    pub cpu_millis: u64,
}

impl Ledger {
    /// Every attempt that still holds its slots on this node: all but the ended ones.
    pub fn live_attempts_on<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a Attempt> + 'a {
        self.live_attempts().filter(move |attempt| attempt.node == *node)
    }

    /// Every attempt that still holds its slots, in the order of tasks.
    pub fn live_attempts(&self) -> impl Iterator<Item = &Attempt> {
        // Only the last attempt of a replica can be live.
        self.tasks.values().flat_map(|task| &task.replicas).filter_map(Replica::live)
    }

    /// An attempt by its id, ended or not.
    pub fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.replica(id)?.attempts.iter().rev().find(|attempt| attempt.id == *id)
    }

    /// The number of a replica's next attempt: above its last one, and above those that a restore passed over.
    pub fn next_attempt(&self, replica: &Replica) -> Option<u32> {
        let last = replica.attempts.last().map_or(0, |attempt| attempt.id.attempt);
        last.max(self.attempts_after).checked_add(1)
    }

    /// The replica an attempt belongs to.
    pub fn replica(&self, id: &AttemptId) -> Option<&Replica> {
        self.tasks.get(&id.task)?.replicas.get(id.replica as usize)
    }
}

impl Replica {
    /// Its live attempt, if it has one.
    pub fn live(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.is_live())
    }

    /// Whether its backoff is over. A wait that begins in the future was begun by another leader's clock, and how much
    /// is left of it nobody can say: it counts as over, so that clocks that differ cost a backoff and never hold a task.
    pub fn may_go(&self, now: Millis) -> bool {
        self.not_before <= now || now < self.pending_since
    }

    /// Whether its work is done.
    pub fn finished(&self) -> bool {
        matches!(self.attempts.last().map(|a| &a.state), Some(AttemptState::Ended { how: AttemptEnd::Finished, .. }))
    }

    /// Attempts that ended by an error or with their node: what `retry.limit` counts.
    pub fn failures(&self) -> u32 {
        let counts =
            |a: &&Attempt| matches!(a.state, AttemptState::Ended { how: AttemptEnd::Failed(_) | AttemptEnd::Lost, .. });
        u32::try_from(self.attempts.iter().filter(counts).count()).unwrap_or(u32::MAX)
    }

    /// Those in a row since one was ready, that one included: what the backoff of a service grows by.
    pub fn failures_in_a_row(&self) -> u32 {
        let mut failures = 0;
        for attempt in self.attempts.iter().rev() {
            failures += u32::from(matches!(attempt.how(), Some(AttemptEnd::Failed(_) | AttemptEnd::Lost)));
            if attempt.ready_at.is_some() {
                break;
            }
        }
        failures
    }
}

impl Task {
    /// How many replicas are wanted.
    pub fn desired(&self) -> u32 {
        self.scaled_to.unwrap_or(self.spec.replicas)
    }
}

impl Attempt {
    /// Whether it became ready and is to go on.
    pub fn is_ready(&self) -> bool {
        self.ready_at.is_some() && matches!(self.state, AttemptState::Running { .. })
    }

    /// Whether it still holds its slots.
    pub fn is_live(&self) -> bool {
        self.how().is_none()
    }

    /// How it ended, if it has.
    pub fn how(&self) -> Option<&AttemptEnd> {
        match &self.state {
            AttemptState::Ended { how, .. } => Some(how),
            AttemptState::Assigned
            | AttemptState::Running { .. }
            | AttemptState::Publishing { .. }
            | AttemptState::Stopping { .. } => None,
        }
    }
}

impl AttemptState {
    /// When it started to run, if it did.
    pub fn started_at(&self) -> Option<Millis> {
        match self {
            AttemptState::Assigned => None,
            AttemptState::Running { since } => Some(*since),
            AttemptState::Publishing { started_at, .. } => Some(*started_at),
            AttemptState::Stopping { started_at, .. } | AttemptState::Ended { started_at, .. } => *started_at,
        }
    }
}
