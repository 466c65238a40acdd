//! One attempt on its worker: its journal row, and what is known of it only while the worker runs.

use super::{AttemptRow, Exit, Stage};
use crate::{
    id::AttemptId,
    ledger::entry::{Failure, FailureClass},
    wire::{AttemptProgress, Phase, Progress, Report},
};

/// Row and soft state.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub row: AttemptRow,
    /// Numbers of its first and its last journal write.
    pub first_write: u64,
    pub last_write: u64,
    pub child: Option<Child>,
    pub phase: Phase,
    pub progress: Progress,
    /// Send time of the first heartbeat that named it: an answer to an earlier one says nothing about it.
    pub named_from: Option<u64>,
    /// Send time of the last acknowledged heartbeat that named it.
    pub lease_from: Option<u64>,
    /// Since when it is here; being out of contact counts from then until a heartbeat is acknowledged.
    pub here_from: u64,
    /// Whether bytes may flow.
    pub publishing: bool,
    pub sent: Option<Sent>,
}

/// A child process.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub run: u64,
    pub started_at: u64,
    pub kill_at: Option<u64>,
}

/// The report that is under way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub seq: u64,
    pub report: Report,
    pub at: u64,
}

impl Running {
    pub fn new(row: AttemptRow, write: u64, now: u64) -> Self {
        let phase = if row.stage == Stage::Computed { Phase::Uploading } else { Phase::default() };
        Self {
            row,
            first_write: write,
            last_write: write,
            child: None,
            phase,
            progress: Progress::default(),
            named_from: None,
            lease_from: None,
            here_from: now,
            publishing: false,
            sent: None,
        }
    }

    pub fn id(&self) -> &AttemptId {
        &self.row.assign.attempt
    }

    /// Whether another attempt's successor cannot exist yet.
    pub fn in_lease(&self, now: u64) -> bool {
        self.lease_ends().is_some_and(|end| now < end)
    }

    pub fn lease_ends(&self) -> Option<u64> {
        self.lease_from.map(|from| from.saturating_add(self.row.assign.lease_ms))
    }

    /// Until when it computes without contact.
    pub fn offline_ends(&self) -> u64 {
        let heard = self.lease_from.unwrap_or(self.here_from);
        heard.saturating_add(self.row.assign.spec.placement.offline_for_ms.unwrap_or(self.row.assign.lease_ms))
    }

    /// Whether it computes, or will: what `placement.offlineFor` bounds.
    pub fn computes(&self) -> bool {
        matches!(self.row.stage, Stage::Accepted | Stage::Running)
    }

    /// Milliseconds its children ran, the present one included.
    pub fn ran_ms(&self, now: u64) -> u64 {
        self.row.ran_ms + self.child.as_ref().map_or(0, |child| now.saturating_sub(child.started_at))
    }

    /// When `timeouts.run` is over; 0 when it was over before the present child. It bounds the computing: not the child
    /// that lingers when that is done, and not the grace of one that was asked to stop.
    pub fn run_ends(&self) -> Option<u64> {
        let run_ms = self.row.assign.spec.timeouts.run_ms.filter(|_| self.row.stage == Stage::Running)?;
        match (run_ms.saturating_sub(self.row.ran_ms), &self.child) {
            (0, _) => Some(0),
            (left, Some(child)) => Some(child.started_at.saturating_add(left)),
            (_, None) => None,
        }
    }

    /// What there is to say: reports in order, then the wish to publish, which is made in a lease only.
    pub fn to_say(&self, now: u64) -> Option<Report> {
        let wish =
            || (self.row.stage == Stage::Computed && !self.publishing && self.in_lease(now)).then_some(Report::Publish);
        self.row.outbox.front().cloned().or_else(wish)
    }

    /// Whether both cannot compute at the same time on one node.
    pub fn excludes(&self, other: &Running) -> bool {
        let (a, b) = (self.id(), other.id());
        (&a.task, a.replica) == (&b.task, b.replica)
            || self.row.assign.grant.gpus.iter().any(|gpu| other.row.assign.grant.gpus.contains(gpu))
    }

    pub fn report(&self) -> AttemptProgress {
        AttemptProgress { attempt: self.id().clone(), phase: self.phase, progress: self.progress.clone() }
    }
}

/// What the exit of a child comes to that had not said how it ends.
pub(super) fn unexplained(exit: &Exit) -> Failure {
    let message = match exit {
        Exit::Signal(9) => "the child was killed by signal 9 (out of memory?)".to_owned(),
        Exit::Signal(11) => "the child was killed by signal 11 (segmentation fault)".to_owned(),
        Exit::Signal(signal) => format!("the child was killed by signal {signal}"),
        Exit::Code(0) => "the child ended without saying that it was done".to_owned(),
        Exit::Code(101) => "the child panicked (exit code 101); its log says where".to_owned(),
        Exit::Code(code) => format!("the child ended with code {code} without saying why; its log may"),
        Exit::NotStarted { why } => format!("the child could not be started: {why}"),
    };
    // Nothing says that it would happen again, and `retry.limit` bounds the attempt to find out.
    Failure { class: FailureClass::Retryable, message }
}
