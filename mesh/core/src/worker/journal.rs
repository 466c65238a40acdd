//! What a worker's journal holds: the highest term, and a row for each attempt until its end is committed.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    id::AttemptId,
    ledger::entry::Failure,
    wire::{Assign, Report},
};

/// Everything in the journal, as it is read at a start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalRows {
    /// Highest term seen.
    pub highest_term: u64,
    /// Attempts whose end is not committed yet.
    pub attempts: Vec<AttemptRow>,
}

/// One change of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// The highest term seen.
    Term(u64),
    /// A new attempt, or its row anew.
    Attempt(Box<AttemptRow>),
    /// The attempt's row goes.
    Forget(AttemptId),
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRow {
    /// What was assigned.
    pub assign: Assign,
    /// How far it is.
    pub stage: Stage,
    /// Newest whole checkpoint on this node's disk.
    pub checkpoint: Option<LocalCheckpoint>,
    /// Whether what its replica holds is in its folder here, for a successor to go on with.
    #[serde(default)]
    pub state: bool,
    /// Reports that are not committed, oldest first.
    pub outbox: VecDeque<Report>,
    /// Milliseconds its children ran before the present one.
    pub ran_ms: u64,
}

/// How far an attempt is on its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    /// `Started` is not committed yet: no child.
    Accepted,
    /// A child runs, or is to.
    Running,
    /// Everything is computed; it asks for the right to publish, or publishes.
    Computed,
    /// It is to end so, once its child is gone.
    Ending(Ending),
    /// Its last report is in the outbox.
    Over,
    /// Over and reported, without a result: its checkpoint or state is kept for a successor on this node. It holds nothing
    /// and is not spoken of.
    Kept,
}

/// How an attempt is to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ending {
    /// It was told to stop, or stops for want of contact.
    Stopped,
    /// It failed.
    Failed(Failure),
    /// It is published.
    Finished(crate::ledger::entry::TaskResult),
}

impl Ending {
    /// The report that says so.
    pub fn report(self) -> Report {
        match self {
            Ending::Stopped => Report::Stopped,
            Ending::Failed(failure) => Report::Failed(failure),
            Ending::Finished(result) => Report::Finished(result),
        }
    }
}

/// A checkpoint on this node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalCheckpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// Its folder, as the shell names it.
    pub path: String,
    /// SHA-256 of its manifest, hex.
    pub manifest_sha256: String,
}
