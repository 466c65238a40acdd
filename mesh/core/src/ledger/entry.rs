//! What raft commits, and what applying it came to.
//!
//! Moments (`at`) are stamped by whoever proposes: the leader of the time for what it decides, the node that took the
//! request for what a user asks. Their clocks may differ by any amount, so a moment says when something was, and what
//! may happen next rests on none of another clock: leases run on the leader's own, a backoff that seems to begin in the
//! future counts as over. Usage is as true as the clocks of the leaders that stamped a row's start and its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    capability::Grant,
    id::{AttemptId, NodeId, RequestId, TaskId},
    task::{
        TaskSpec,
        spec::{Input, Pin},
    },
    time::Millis,
};

/// One committed fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// A user handed in a task.
    Submit {
        /// Its id, minted by the node that took it.
        task: TaskId,
        /// What it means.
        spec: Box<TaskSpec>,
        /// The client's name for this submission: the same one again makes no second task.
        request: RequestId,
        /// SHA-256 of the body, hex: the same name with another body is refused.
        body_digest: String,
        /// When.
        at: Millis,
    },
    /// The scheduler gave a replica to a node. Sent to the node only after this was accepted.
    Assigned {
        /// The new attempt; its number must be the replica's next one ([`Ledger::next_attempt`](super::Ledger::next_attempt)).
        attempt: AttemptId,
        /// The node.
        node: NodeId,
        /// What it holds there.
        grant: Grant,
        /// The node's capacity as the decision saw it, so that `apply` can recheck the slots.
        capacity: Grant,
        /// When.
        at: Millis,
    },
    /// The worker has journalled the assignment and starts: usage begins.
    Started {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: Millis,
    },
    /// The attempt of a service answered its first health check: it can be asked. What it can right now is gossiped.
    Ready {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: Millis,
    },
    /// The attempt has its inputs, and this is what they were: every later attempt gets the same.
    Pinned {
        /// The attempt.
        attempt: AttemptId,
        /// By input; what was pinned before stays.
        pins: BTreeMap<Input, Pin>,
        /// When.
        at: Millis,
    },
    /// A checkpoint is whole at a place other nodes can read.
    Checkpointed {
        /// The attempt that made it.
        attempt: AttemptId,
        /// The checkpoint.
        checkpoint: CheckpointRef,
        /// When.
        at: Millis,
    },
    /// The right to publish, exclusive per replica and per destination: committed before the first byte lands.
    Publishing {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: Millis,
    },
    /// The replica's work is done and its artifacts lie where they should.
    Finished {
        /// The attempt.
        attempt: AttemptId,
        /// What it made.
        result: TaskResult,
        /// When.
        at: Millis,
    },
    /// The attempt ended without a result.
    Failed {
        /// The attempt.
        attempt: AttemptId,
        /// Why, and whether another try may help.
        failure: Failure,
        /// When.
        at: Millis,
    },
    /// The worker stopped the attempt because it was asked to: its slots are free.
    Stopped {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: Millis,
    },
    /// Nothing was heard of the attempt's node for a lease, or for `placement.offlineFor` if that is longer: its slots
    /// are free, its fence is down.
    LeaseExpired {
        /// The attempt.
        attempt: AttemptId,
        /// Last heartbeat that this leader acknowledged, or when it took over if it has heard none: usage ends there.
        last_heard: Millis,
        /// When.
        at: Millis,
    },
    /// A user cancelled a task.
    Cancelled {
        /// The task.
        task: TaskId,
        /// Who.
        by: String,
        /// When.
        at: Millis,
    },
    /// So many replicas of a service are wanted; [`Entry::Replicas`] make it so.
    Scaled {
        /// The task.
        task: TaskId,
        /// How many: within `autoscale`, or none where `timeouts.idle` allows that.
        replicas: u32,
        /// Why.
        why: String,
        /// When.
        at: Millis,
    },
    /// Replicas of a service come and go: a step of [`crate::service::plan`].
    Replicas {
        /// The task.
        task: TaskId,
        /// Numbers of those that are wanted from now on: retired ones whose last attempt is over, or new ones.
        start: Vec<u32>,
        /// Numbers of those that are retired: their attempts stop.
        stop: Vec<u32>,
        /// Why.
        why: String,
        /// When.
        at: Millis,
    },
    /// A node joined, or changed its name or addresses.
    MemberJoined {
        /// The node.
        node: NodeId,
        /// What others need to know of it.
        member: Member,
    },
    /// A node must not be spoken to again.
    MemberRevoked {
        /// The node.
        node: NodeId,
        /// When.
        at: Millis,
    },
    /// A node takes no new work (or takes it again).
    MemberDrained {
        /// The node.
        node: NodeId,
        /// Whether it drains.
        draining: bool,
        /// When.
        at: Millis,
    },
    /// Idempotency keys older than a day are forgotten.
    KeysForgotten {
        /// Keys taken before this moment go.
        before: Millis,
    },
}

/// A member of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name for people.
    pub name: String,
    /// Link addresses (multiaddr text) as it said when it joined; gossip has newer ones.
    pub addresses: Vec<String>,
    /// When it joined.
    pub joined_at: Millis,
    /// Since when it takes no new work.
    pub draining_since: Option<Millis>,
    /// Since when it may not be spoken to.
    pub revoked_at: Option<Millis>,
}

/// A checkpoint at a shared place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Optimizer steps done.
    pub step: u64,
    /// SHA-256 of its manifest, hex.
    pub manifest_sha256: String,
}

/// What a replica left behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Where the artifacts lie: the destination as a URL, or the worker's folder.
    pub location: String,
    /// The files.
    pub artifacts: Vec<Artifact>,
    /// Figures of the run for people and programs: losses before and after, answers, tokens. Text or JSON values.
    pub summary: BTreeMap<String, serde_json::Value>,
}

/// One published file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Path below the location, with `/`.
    pub path: String,
    /// Its kind: `adapter_weights`, `training_logs`, …
    pub kind: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Why an attempt ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What another try would come to.
    pub class: FailureClass,
    /// What happened, where, and what would work: for the user.
    pub message: String,
}

/// What another try would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// The world was in the way (node, network, disk): try again.
    Retryable,
    /// The task's own error: it would happen again.
    Fatal,
    /// `timeouts.run` is over.
    TimedOut,
}

/// What applying an entry came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It changed the ledger.
    Applied,
    /// The same submission or report had been taken already, and this is its task: nothing changed.
    Duplicate(TaskId),
    /// The attempt has been superseded or is over, or the members are so already; nothing changed.
    Stale,
    /// It did not fit the state it met; nothing changed.
    Rejected(Reason),
}

/// Why an entry was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// No such task.
    #[error("no task {0}")]
    UnknownTask(TaskId),
    /// No such attempt.
    #[error("no attempt {0}")]
    UnknownAttempt(AttemptId),
    /// No such member.
    #[error("no member {0}")]
    UnknownMember(NodeId),
    /// The member was revoked.
    #[error("member {0} is revoked")]
    RevokedMember(NodeId),
    /// The task has ended: first terminal entry wins.
    #[error("task {0} has already ended")]
    TaskEnded(TaskId),
    /// The replica already has a live attempt.
    #[error("attempt {0} is still live")]
    AttemptLive(AttemptId),
    /// The attempt's number is not the next one, or a like mismatch of sequence.
    #[error("attempt {0} is out of sequence")]
    OutOfSequence(AttemptId),
    /// The node has not enough left.
    #[error("node {0} has no room for it any more")]
    NoRoom(NodeId),
    /// The member drains.
    #[error("member {0} is draining")]
    Draining(NodeId),
    /// Its backoff or dependencies are not over.
    #[error("task {0} is not ready to run")]
    NotReady(TaskId),
    /// Another attempt may be writing to the same destination: asking again helps once that one is over.
    #[error("attempt {0} may be writing to the same destination")]
    PublishHeld(AttemptId),
    /// The request id was used for another body.
    #[error("this Idempotency-Key was used for another body (task {0})")]
    KeyReused(TaskId),
    /// It depends on a task that was never submitted: it would wait for ever.
    #[error("dependsOn: no earlier task of yours is named `{0}`, and none has that id (hint: submit that one first)")]
    UnknownDependency(String),
    /// A task of this id exists.
    #[error("task {0} exists")]
    TaskExists(TaskId),
    /// Another owner's service has this name.
    #[error("servedName: `{name}` is served by {owner} (hint: choose another `servedName`)")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// The task is no service.
    #[error("task {0} is no service")]
    NotAService(TaskId),
    /// The service does not allow so many, or so few.
    #[error("task {task} has {min} to {max} replicas{}", if *.idle { ", or none while nobody asks" } else { "" })]
    OutOfScale {
        /// The task.
        task: TaskId,
        /// At least.
        min: u32,
        /// At most.
        max: u32,
        /// Whether it may have none.
        idle: bool,
    },
    /// There would be more replicas of this name than its most and its surge.
    #[error("`{0}` would have more replicas than its most and `update.maxSurge`")]
    TooManyReplicas(String),
    /// Fewer replicas of this name would be ready than are wanted.
    #[error("`{0}` would have fewer ready replicas than are wanted, less `update.maxUnavailable`")]
    TooFewReady(String),
}
