//! A ledger that founds a mesh anew, from a backup's.
//!
//! Between the backup and the loss the old mesh went on: it assigned attempts, admitted members and took tasks that the
//! backup does not know, and some of its nodes may be running still. So nothing of it is trusted to be the same again:
//! - whatever ran is over, with nobody at fault, and waits for its turn;
//! - new attempts have numbers that the old mesh cannot have given ([`Ledger::attempts_after`]);
//! - every member of the old mesh is revoked: a node comes back with an empty data directory, under a new key, or not at
//!   all. Its old journal would call a new attempt an old one, its old log would outvote the restored one.
//!
//! What the old mesh published after the backup is found by the next attempt of the same task, and adopted.

use super::{
    entry::Member,
    state::{AttemptEnd, AttemptState, Ledger},
};
use crate::{
    id::{AttemptId, NodeId},
    time::Millis,
};

/// Numbers are passed over up to the next multiple of this: more than the old mesh can have given to one replica between
/// the backup and its end, and few enough to look at one by one.
pub const ATTEMPTS_PASSED_OVER: u32 = 1_000;

/// A restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The moment the backup shows: usage of what ran ends there.
    pub as_of: Millis,
    /// When it is restored.
    pub at: Millis,
    /// The node that founds the mesh anew.
    pub founder: NodeId,
    /// Its name for people.
    pub name: String,
}

impl Ledger {
    /// The ledger that a mesh founded anew from this one begins with.
    #[must_use]
    pub fn restored(mut self, restore: &Restore) -> Self {
        let live: Vec<AttemptId> = self.live_attempts().map(|attempt| attempt.id.clone()).collect();
        let reason = format!("it ran at {} when the backup was taken that this mesh was restored from", restore.as_of);
        for id in live {
            self.end_attempt(&id, AttemptEnd::Stopped, restore.as_of, restore.as_of);
            self.wait_again(&id, reason.clone(), restore.at, Millis(0));
        }
        let numbers = self.tasks.values().flat_map(|task| &task.replicas).flat_map(|replica| replica.attempts.last());
        let highest = numbers.map(|attempt| attempt.id.attempt).max().unwrap_or(0).max(self.attempts_after);
        let thousands = (highest / ATTEMPTS_PASSED_OVER).saturating_add(1);
        self.attempts_after = thousands.saturating_mul(ATTEMPTS_PASSED_OVER);

        for member in self.members.values_mut() {
            member.revoked_at.get_or_insert(restore.at);
        }
        // Its addresses are told by gossip.
        let founder = Member {
            name: restore.name.clone(),
            addresses: Vec::new(),
            joined_at: restore.at,
            draining_since: None,
            revoked_at: None,
        };
        self.members.insert(restore.founder.clone(), founder);
        self.members_version = self.members_version.saturating_add(1);
        self
    }

    /// The latest moment that stands in it: of a ledger whose node stopped, the best word on when that was.
    pub fn latest_moment(&self) -> Millis {
        let attempts = self.tasks.values().flat_map(|task| &task.replicas).flat_map(|replica| &replica.attempts);
        let of_attempts = attempts.map(|attempt| match &attempt.state {
            AttemptState::Assigned => attempt.assigned_at,
            AttemptState::Running { since } | AttemptState::Publishing { since, .. } => *since,
            AttemptState::Stopping { since, .. } => *since,
            AttemptState::Ended { at, .. } => *at,
        });
        let of_tasks = self.tasks.values().map(|task| match &task.ended {
            Some(end) => end.at(),
            None => task.submitted_at,
        });
        let of_members = self.members.values().map(|m| m.joined_at.max(m.revoked_at.unwrap_or_default()));
        of_attempts.chain(of_tasks).chain(of_members).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::{assigned, attempt, ledger, publishing_to, spec, submit, take},
        ledger::{Entry, Outcome, TaskState, entry::TaskResult, invariants, usage},
    };

    fn restore() -> Restore {
        Restore { as_of: Millis(1_000), at: Millis(9_000), founder: NodeId::new("new"), name: "n".to_owned() }
    }

    /// `t` runs on `a` since 10, `queued` waits, `done` has completed.
    fn busy() -> Ledger {
        let mut before = ledger(&["a", "b"]);
        for id in ["t", "queued", "done"] {
            let mut spec = publishing_to(spec(id), id);
            spec.retry.limit = 0;
            take(&mut before, submit(id, spec, 1));
        }
        for id in ["t", "done"] {
            take(&mut before, assigned(&attempt(id, 1), "a", if id == "t" { &[0] } else { &[1] }, 5));
            take(&mut before, Entry::Started { attempt: attempt(id, 1), at: Millis(10) });
        }
        take(&mut before, Entry::Publishing { attempt: attempt("done", 1), at: Millis(20) });
        let result = TaskResult::default();
        take(&mut before, Entry::Finished { attempt: attempt("done", 1), result, at: Millis(500) });
        before
    }

    #[test]
    fn what_ran_waits_again_without_a_fault_and_uses_nothing_after_the_backup() {
        let before = busy();
        let after = before.clone().restored(&restore());
        invariants::all(&after).unwrap();
        assert!(after.live_attempts().next().is_none());
        let state = TaskState::of(&after.tasks[&attempt("t", 1).task]);
        assert!(matches!(&state, TaskState::Pending { since: Millis(9_000), reason, .. } if reason.contains("backup")));
        assert_eq!(after.replica(&attempt("t", 1)).unwrap().failures(), 0, "no try is used up: its limit is 0");
        let sums = |ledger: &Ledger, now| usage::sums(ledger, &usage::Query::default(), Millis(now));
        assert_eq!(sums(&after, 77_000), sums(&before, 1_000));
        assert_eq!(after.tasks[&attempt("done", 1).task], before.tasks[&attempt("done", 1).task]);
    }

    #[test]
    fn an_attempt_of_the_old_mesh_has_no_right_and_its_number_is_not_given_again() {
        let mut after = busy().restored(&restore());
        for entry in [
            Entry::Started { attempt: attempt("t", 1), at: Millis(9_100) },
            Entry::Publishing { attempt: attempt("t", 1), at: Millis(9_100) },
        ] {
            assert_eq!(after.apply(&entry), Outcome::Stale, "{entry:?}");
        }
        // Assigned by the old mesh after the backup: unknown here, and not to be mixed up.
        let unknown = Entry::Started { attempt: attempt("t", 2), at: Millis(9_100) };
        assert!(matches!(after.apply(&unknown), Outcome::Rejected(_)));
        for (task, number) in [("t", 2), ("queued", 1)] {
            let reused = assigned(&attempt(task, number), "new", &[], 9_200);
            assert!(matches!(after.apply(&reused), Outcome::Rejected(_)), "{task} {number}");
            take(&mut after, assigned(&attempt(task, 1_001), "new", &[], 9_200));
        }
        invariants::all(&after).unwrap();
    }

    #[test]
    fn who_was_a_member_is_revoked_and_the_founder_is_the_only_one() {
        let after = busy().restored(&restore());
        let member = |name: &str| &after.members[&NodeId::new(name)];
        assert_eq!([member("a").revoked_at, member("b").revoked_at], [Some(Millis(9_000)); 2]);
        assert_eq!((member("new").revoked_at, member("new").name.as_str()), (None, "n"));
    }

    #[test]
    fn a_ledger_may_be_restored_again_and_again() {
        let mut ledger = busy();
        for round in 1..4u32 {
            ledger = ledger.restored(&Restore { founder: NodeId::new(format!("new-{round}")), ..restore() });
            invariants::all(&ledger).unwrap();
            assert_eq!(ledger.attempts_after, round * 1_000);
            let next = attempt("t", round * 1_000 + 1);
            take(&mut ledger, assigned(&next, &format!("new-{round}"), &[0], 9_500));
            invariants::all(&ledger).unwrap();
        }
        assert_eq!(ledger.latest_moment(), Millis(9_500));
        let mut ledger = ledger.restored(&restore());
        take(&mut ledger, assigned(&attempt("queued", 4_001), "new", &[], 9_600));
    }
}
