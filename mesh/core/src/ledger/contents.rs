//! What a ledger holds, in figures: for whoever wants to know what a backup is worth.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{invariants, state::Ledger, task_state::TaskState, usage};
use crate::time::Millis;

/// What a ledger holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Contents {
    /// Tasks by state.
    pub tasks: BTreeMap<&'static str, u64>,
    /// Attempts that hold slots.
    pub live_attempts: u64,
    /// What each owner of a task has.
    pub users: BTreeMap<String, UserContents>,
    /// Names of members that were not revoked.
    pub members: Vec<String>,
    /// Members that were.
    pub revoked: u64,
    /// The first promise that does not hold: a defect, for a ledger comes to no such state.
    pub broken: Option<String>,
}

/// What one user has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UserContents {
    /// Tasks.
    pub tasks: u64,
    /// GPU-hours of all attempts.
    pub gpu_hours: f64,
    /// Core-hours of attempts without a GPU.
    pub cpu_core_hours: f64,
}

impl Contents {
    /// Those of a ledger; what runs counts up to `as_of`.
    pub fn of(ledger: &Ledger, as_of: Millis) -> Self {
        let mut contents = Self { live_attempts: ledger.live_attempts().count() as u64, ..Self::default() };
        for task in ledger.tasks.values() {
            *contents.tasks.entry(TaskState::of(task).name()).or_default() += 1;
            contents.users.entry(task.spec.metadata.owner.clone()).or_default().tasks += 1;
        }
        for (name, user) in &mut contents.users {
            let query = usage::Query { user: Some(name.clone()), ..usage::Query::default() };
            let stats = usage::stats(ledger, &query, as_of);
            (user.gpu_hours, user.cpu_core_hours) = (stats.total_gpu_hours, stats.total_cpu_core_hours);
        }
        for member in ledger.members.values() {
            match member.revoked_at {
                None => contents.members.push(member.name.clone()),
                Some(_) => contents.revoked += 1,
            }
        }
        contents.broken = invariants::all(ledger).err().map(|broken| broken.to_string());
        contents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::{assigned, attempt, ledger, spec, submit, take},
        id::NodeId,
        ledger::Entry,
    };

    #[test]
    fn everything_is_counted_and_a_broken_promise_is_said() {
        let mut ledger = ledger(&["a", "b"]);
        let mut other = spec("other");
        other.metadata.owner = "bob".to_owned();
        take(&mut ledger, submit("t", spec("t"), 1));
        take(&mut ledger, submit("other", other, 1));
        take(&mut ledger, assigned(&attempt("t", 1), "a", &[0, 1], 5));
        take(&mut ledger, Entry::Started { attempt: attempt("t", 1), at: Millis(0) });
        take(&mut ledger, Entry::MemberRevoked { node: NodeId::new("b"), at: Millis(9) });
        let contents = Contents::of(&ledger, Millis(3_600_005));
        assert_eq!(contents.tasks, BTreeMap::from([("PENDING", 1), ("RUNNING", 1)]));
        assert_eq!((contents.live_attempts, contents.revoked, &contents.members[..]), (1, 1, &["a".to_owned()][..]));
        assert_eq!(contents.users["alice"], UserContents { tasks: 1, gpu_hours: 2.0, cpu_core_hours: 0.0 });
        assert_eq!(contents.users["bob"], UserContents { tasks: 1, ..UserContents::default() });
        assert_eq!(contents.broken, None);
        ledger.usage.clear();
        assert!(Contents::of(&ledger, Millis(0)).broken.unwrap().starts_with("L3"));
    }
}
