//! Applying an entry: the one place where the ledger changes.
//!
//! ```text
//! Assigned ─Started→ Running ─Publishing→ Publishing ─Finished→ Ended
//!     └────────────────┴── Failed, Stopped, LeaseExpired ──────→ Ended   (and the replica waits, or the task failed)
//!     └────────────────┴── Cancelled, or the task failed → Stopping ─Failed, Stopped, LeaseExpired→ Ended
//!     └────────────────┴── Replicas (of a service: retired) → Stopping → Ended
//! ```
//!
//! An attempt is live until it has ended; its slots count as held so long. What each entry does stands in
//! `submit`, `attempts`, `services` and `members`.

use super::{
    entry::{Entry, Outcome},
    invariants,
    state::Ledger,
};

/// Guards of [`Ledger::apply_with`]. Everything but the simulation runs with all of them: it takes one out at a time
/// to prove that its invariants would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Entries of attempts that are over are stale.
    pub fence: bool,
    /// An assignment is measured against what its node has left.
    pub slot_recheck: bool,
    /// Of attempts with one destination, one at a time may publish.
    pub publish_hold: bool,
    /// Replicas of a service are exchanged within its bounds.
    pub exchange_bounds: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self { fence: true, slot_recheck: true, publish_hold: true, exchange_bounds: true }
    }
}

impl Ledger {
    /// Applies one committed entry. Always returns; a refused entry changes nothing.
    pub fn apply(&mut self, entry: &Entry) -> Outcome {
        let outcome = self.apply_with(entry, Guards::default());
        // The whole ledger is walked: too dear for a build that serves.
        debug_assert_eq!(invariants::of_entry(self, entry), Ok(()), "after {entry:?}");
        outcome
    }

    /// [`Ledger::apply`] with a guard taken out.
    #[doc(hidden)]
    pub fn apply_with(&mut self, entry: &Entry, guards: Guards) -> Outcome {
        match entry {
            Entry::Submit { task, spec, request, body_digest, at } => {
                self.submit(task, spec, request, body_digest, *at)
            }
            Entry::Assigned { attempt, node, grant, capacity, at } => {
                self.assigned(attempt, node, grant, capacity, *at, guards)
            }
            Entry::Started { attempt, at } => self.started(attempt, *at, guards),
            Entry::Ready { attempt, at } => self.became_ready(attempt, *at, guards),
            Entry::Pinned { attempt, pins, at: _ } => self.pinned(attempt, pins, guards),
            Entry::Checkpointed { attempt, checkpoint, at: _ } => self.checkpointed(attempt, checkpoint, guards),
            Entry::Publishing { attempt, at } => self.publishing(attempt, *at, guards),
            Entry::Finished { attempt, result, at } => self.finished(attempt, result, *at, guards),
            Entry::Failed { attempt, failure, at } => self.failed(attempt, failure, *at),
            Entry::Stopped { attempt, at } => self.stopped(attempt, *at),
            Entry::LeaseExpired { attempt, last_heard, at } => self.lease_expired(attempt, *last_heard, *at),
            Entry::Cancelled { task, by, at } => self.cancelled(task, by, *at),
            Entry::Scaled { task, replicas, why: _, at: _ } => self.scaled(task, *replicas),
            Entry::Replicas { task, start, stop, why, at } => self.replicas(task, start, stop, why, *at, guards),
            Entry::MemberJoined { node, member } => self.member_joined(node, member),
            Entry::MemberRevoked { node, at } => self.member_revoked(node, *at),
            Entry::MemberDrained { node, draining, at } => self.member_drained(node, *draining, *at),
            Entry::KeysForgotten { before } => self.keys_forgotten(*before),
        }
    }
}
