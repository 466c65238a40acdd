//! What a worker does next: a state machine over its journal, its child processes and what it hears.
//!
//! The shell owns the journal, the children, the links and CLOCK_BOOTTIME, feeds every [`Event`] to [`Worker::on`]
//! one after another, and does every [`Action`] that comes back:
//! ```text
//! start     rows = read the journal → Worker::restore(rows, settings, now) → (worker, actions)
//! Journal   write it durably, in the order of ids, then Event::Journalled(id). Group commit is welcome: whatever
//!           depends on the row comes out only then. A crash before it is as if the event had never come.
//! Answer    to the request of Event::Message. A request that gets no answer is sent again by the leader.
//! StartChild / StopChild / KillChild   report back with Event::Child and the same run; the last event of a run is
//!           always Exited, also when the child could not be started at all.
//! StartPublish / StopPublish   publish what the child made; end with Event::Published or Event::PublishFailed.
//!           After StopPublish not one more byte may be sent until StartPublish comes again; then go on.
//! SendReport / SendHeartbeat   to the leader, wherever it is; then ReportAnswered or HeartbeatAnswered. Whether a
//!           send fails need not be told: it is repeated.
//! ```
//! [`Event::Tick`] is wanted at [`Worker::wake_at`]; more often does no harm.
//!
//! Promises:
//! - an assignment is acknowledged after it is journalled; a term lower than the highest seen is refused;
//! - a child starts only once `Started` is committed, so that an assignment that arrives late starts nothing;
//! - a report stays in the journal until the leader has committed it or called the attempt stale;
//! - an attempt's lease counts from the send time of the last acknowledged heartbeat that named it. Beyond it nothing is
//!   published; beyond `placement.offlineFor` the child is stopped with a checkpoint;
//! - bytes are published only under a right that was granted in this lease;
//! - the checkpoint of an attempt that left no result is kept for a while, for a successor on the same node;
//! - an attempt reports its end when its child is gone, not before: the report frees its slots.

mod attempt;
mod journal;
mod machine;

pub use journal::{AttemptRow, Ending, JournalRows, LocalCheckpoint, Stage, Write};

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    id::{AttemptId, NodeId},
    ledger::entry::{CheckpointRef, Failure, TaskResult},
    task::spec::{Input, Pin},
    wire::{Assign, FromLeader, FromWorker, Heartbeat, Phase, Progress, Report, ToWorker},
};

/// Times of a worker, in milliseconds, each above 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// Between heartbeats: many of them in a lease, so that a slow link is no dead worker.
    pub heartbeat_ms: u64,
    /// Before an unanswered report is sent again.
    pub report_retry_ms: u64,
    /// Time a child has to stop when its task says nothing.
    pub stop_grace_ms: u64,
}

impl Settings {
    /// The usual ones.
    pub fn new(node: NodeId) -> Self {
        Self { node, heartbeat_ms: 2_000, report_retry_ms: 1_000, stop_grace_ms: 10_000 }
    }
}

/// Something the worker hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The leader says something. `request` names it for [`Action::Answer`].
    Message {
        /// The shell's number for it.
        request: u64,
        /// What.
        message: ToWorker,
    },
    /// The journal has this write on disk, and every one before it.
    Journalled(u64),
    /// A child says something, or is gone.
    Child {
        /// Its attempt.
        attempt: AttemptId,
        /// Which start of it: events of an earlier run are ignored.
        run: u64,
        /// What.
        event: ChildEvent,
    },
    /// How far a publication is: bytes, and what it waits for.
    Uploading {
        /// The attempt.
        attempt: AttemptId,
        /// Figures; those of its steps stay as they are.
        progress: Progress,
    },
    /// Everything lies at the destination, manifest included.
    Published {
        /// The attempt.
        attempt: AttemptId,
        /// What was made.
        result: TaskResult,
    },
    /// It could not be published.
    PublishFailed {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        failure: Failure,
    },
    /// The leader answered a report.
    ReportAnswered {
        /// The attempt.
        attempt: AttemptId,
        /// The number of [`Action::SendReport`].
        seq: u64,
        /// What.
        answer: FromLeader,
    },
    /// The leader answered a heartbeat.
    HeartbeatAnswered(FromLeader),
    /// A heartbeat got no answer: leases run on.
    HeartbeatFailed,
    /// Time passes.
    Tick,
}

/// What a child process says.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildEvent {
    /// How far it is.
    Progress {
        /// What it does.
        phase: Phase,
        /// Figures.
        progress: Progress,
    },
    /// A checkpoint is whole on this node's disk, file and folder synced.
    Checkpoint(LocalCheckpoint),
    /// Its inputs are there, and this is what they were.
    Pinned(BTreeMap<Input, Pin>),
    /// A checkpoint is whole at the shared place.
    Pushed(CheckpointRef),
    /// It is a service's and answered its first health check of this run.
    Ready,
    /// Everything is computed and on this node's disk, ready to publish. The child may go.
    Computed,
    /// It ends with an error of its own.
    Failed(Failure),
    /// It is gone. The last event of a run.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It never ran.
    NotStarted {
        /// Why.
        why: String,
    },
}

/// Something the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make this durable, then say [`Event::Journalled`].
    Journal {
        /// Its number; they rise by one.
        id: u64,
        /// What.
        write: Write,
    },
    /// Answer the leader's request.
    Answer {
        /// The request.
        request: u64,
        /// What.
        answer: FromWorker,
    },
    /// Start the child.
    StartChild {
        /// The attempt.
        attempt: AttemptId,
        /// This start's number.
        run: u64,
        /// What it runs; `checkpoint` in it is the shared one.
        assign: Box<Assign>,
        /// The newest checkpoint on this node's disk that was heard of. A shell with a disk looks into the replica's
        /// folder itself, which holds this one or a newer one whose event was lost; one without a disk goes by this.
        resume: Option<LocalCheckpoint>,
    },
    /// Ask the child to stop. The machine asks for the kill itself when `grace_ms` is over.
    StopChild {
        /// The attempt.
        attempt: AttemptId,
        /// The start's number.
        run: u64,
        /// Whether a checkpoint is to be written, and pushed: of a cancelled task it would be of no use.
        checkpoint: bool,
        /// Time it has.
        grace_ms: u64,
    },
    /// Kill the child and every process it started.
    KillChild {
        /// The attempt.
        attempt: AttemptId,
        /// The start's number.
        run: u64,
    },
    /// Publish, or go on publishing.
    StartPublish {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Stop publishing at once.
    StopPublish {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Send this to the leader.
    SendReport {
        /// The attempt.
        attempt: AttemptId,
        /// Its number, for [`Event::ReportAnswered`].
        seq: u64,
        /// What.
        report: Report,
    },
    /// Send this to the leader.
    SendHeartbeat(Heartbeat),
    /// The attempt is over and forgotten: its folder may go, with its checkpoints. Until then it stays: a successor on
    /// this node may be started from it.
    Forgotten {
        /// The attempt.
        attempt: AttemptId,
    },
}

/// The worker.
#[derive(Clone, Debug)]
pub struct Worker {
    settings: Settings,
    /// Highest term of a leader seen.
    highest_term: u64,
    attempts: BTreeMap<AttemptId, attempt::Running>,
    /// Number of the last journal write, and of the last that is on disk.
    written: u64,
    durable: u64,
    /// What waits for a journal write, in the order of writes.
    gated: VecDeque<(u64, Action)>,
    last_run: u64,
    last_seq: u64,
    heartbeat_due: u64,
}

#[cfg(test)]
mod tests;
