//! What always holds, by name: one predicate each, used by proptest, the simulation and `debug_assert!`.

use std::collections::BTreeMap;

use super::{
    entry::Entry,
    state::{AttemptEnd, AttemptState, Ledger, Task, TaskEnd},
};
use crate::{
    capability::Grant,
    id::{AttemptId, NodeId, TaskId},
    task::spec::Location,
};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {detail}")]
pub struct Broken {
    /// The invariant's name.
    pub name: &'static str,
    /// What was found.
    pub detail: String,
}

type Holds = Result<(), Broken>;

fn broken(name: &'static str, detail: String) -> Holds {
    Err(Broken { name, detail })
}

/// All of them.
///
/// # Errors
/// The first that does not hold.
pub fn all(ledger: &Ledger) -> Holds {
    ledger.tasks.iter().try_for_each(|(id, task)| of_task(ledger, id, task))?;
    slots_never_oversubscribed(ledger)?;
    one_publisher_at_a_place(ledger)?;
    usage_is_the_sum_of_attempts(ledger)
}

/// Those an entry can have broken: cheap enough for every entry of a debug build.
///
/// # Errors
/// The first that does not hold.
pub fn of_entry(ledger: &Ledger, entry: &Entry) -> Holds {
    let id = match entry {
        Entry::Submit { task, .. } | Entry::Cancelled { task, .. } => task,
        Entry::Assigned { attempt, .. } => {
            slots_never_oversubscribed(ledger)?;
            &attempt.task
        }
        Entry::Publishing { attempt, .. } => {
            one_publisher_at_a_place(ledger)?;
            &attempt.task
        }
        Entry::Started { attempt, .. }
        | Entry::Pinned { attempt, .. }
        | Entry::Checkpointed { attempt, .. }
        | Entry::Finished { attempt, .. }
        | Entry::Failed { attempt, .. }
        | Entry::Stopped { attempt, .. }
        | Entry::LeaseExpired { attempt, .. } => &attempt.task,
        Entry::MemberJoined { .. }
        | Entry::MemberRevoked { .. }
        | Entry::MemberDrained { .. }
        | Entry::KeysForgotten { .. } => return Ok(()),
    };
    ledger.tasks.get(id).map_or(Ok(()), |task| of_task(ledger, id, task))
}

fn of_task(ledger: &Ledger, id: &TaskId, task: &Task) -> Holds {
    one_live_attempt(ledger, id, task)?;
    no_task_lost(id, task)?;
    ended_tasks_publish_nothing(id, task)?;
    task.replicas.iter().flat_map(|r| &r.attempts).try_for_each(|attempt| row_of(ledger, attempt))
}

/// L1: at most one attempt of a replica is live, it is the last, and numbers rise by one, or past those that a restore
/// passed over; so at most one may publish.
fn one_live_attempt(ledger: &Ledger, id: &TaskId, task: &Task) -> Holds {
    const NAME: &str = "L1 one live attempt, one right to publish";
    for (number, replica) in task.replicas.iter().enumerate() {
        let mut last = 0u32;
        for (at, attempt) in replica.attempts.iter().enumerate() {
            let this = attempt.id.attempt;
            let next = last.checked_add(1) == Some(this);
            // An earlier restore passed over fewer.
            let restored =
                last < this && last <= ledger.attempts_after && this <= ledger.attempts_after.saturating_add(1);
            if attempt.id.task != *id || attempt.id.replica as usize != number || !(next || restored) {
                return broken(NAME, format!("{} stands at {id}.{number} after attempt {last}", attempt.id));
            }
            if attempt.is_live() && at + 1 != replica.attempts.len() {
                return broken(NAME, format!("{} is live and has a successor", attempt.id));
            }
            last = this;
        }
    }
    Ok(())
}

/// L6: of attempts with one destination at most one holds the right to publish.
fn one_publisher_at_a_place(ledger: &Ledger) -> Holds {
    let publishing = ledger.live_attempts().filter(|a| matches!(a.state, AttemptState::Publishing { .. }));
    let mut held: Vec<(&Location, &AttemptId)> = Vec::new();
    for attempt in publishing {
        let task = ledger.tasks.get(&attempt.id.task);
        let Some(place) = task.and_then(|task| task.spec.output.destination.as_ref()) else { continue };
        if let Some((_, other)) = held.iter().find(|(taken, _)| *taken == place) {
            let detail = format!("{other} and {} both publish to {place:?}", attempt.id);
            return broken("L6 one publisher at a destination", detail);
        }
        held.push((place, &attempt.id));
    }
    Ok(())
}

/// L2, as far as the ledger alone can tell: no GPU of a node is held twice.
///
/// # Errors
/// When one is.
pub fn slots_never_oversubscribed(ledger: &Ledger) -> Holds {
    let mut held = BTreeMap::new();
    for attempt in ledger.live_attempts() {
        for gpu in &attempt.grant.gpus {
            if let Some(other) = held.insert((&attempt.node, *gpu), &attempt.id) {
                let detail = format!("GPU {gpu} of {} is held by {other} and {}", attempt.node, attempt.id);
                return broken("L2 slots never oversubscribed", detail);
            }
        }
    }
    Ok(())
}

/// L2 against what nodes have, where that is known and does not change. Disk is no slot: what is free changes by itself.
///
/// # Errors
/// When attempts hold more than their node has.
pub fn slots_within(ledger: &Ledger, capacity: &BTreeMap<NodeId, Grant>) -> Holds {
    const NAME: &str = "L2 slots never oversubscribed";
    slots_never_oversubscribed(ledger)?;
    let mut held: BTreeMap<&NodeId, (u64, u64)> = BTreeMap::new();
    for attempt in ledger.live_attempts() {
        let Some(has) = capacity.get(&attempt.node) else {
            return broken(NAME, format!("{} is on {}, which has nothing", attempt.id, attempt.node));
        };
        let sum = held.entry(&attempt.node).or_default();
        sum.0 += attempt.grant.cpu_millis;
        sum.1 += attempt.grant.memory_bytes;
        if sum.0 > has.cpu_millis || sum.1 > has.memory_bytes {
            return broken(NAME, format!("{} holds {sum:?} of {has:?}", attempt.node));
        }
        if let Some(gpu) = attempt.grant.gpus.iter().find(|gpu| !has.gpus.contains(gpu)) {
            return broken(NAME, format!("{} holds GPU {gpu}, which {} has not", attempt.id, attempt.node));
        }
    }
    Ok(())
}

/// L3: each started attempt has one row, from its start to its end (or to its last sign of life), and there is no other.
///
/// # Errors
/// When a row is missing, differs, or belongs to nothing.
pub fn usage_is_the_sum_of_attempts(ledger: &Ledger) -> Holds {
    for task in ledger.tasks.values() {
        task.replicas.iter().flat_map(|r| &r.attempts).try_for_each(|attempt| row_of(ledger, attempt))?;
    }
    match ledger.usage.keys().find(|id| ledger.attempt(id).is_none()) {
        Some(id) => broken(L3, format!("the row of {id} has no attempt")),
        None => Ok(()),
    }
}

const L3: &str = "L3 usage is the sum of attempts";

fn row_of(ledger: &Ledger, attempt: &super::state::Attempt) -> Holds {
    let row = ledger.usage.get(&attempt.id);
    let (Some(row), Some(started_at)) = (row, attempt.state.started_at()) else {
        return if row.is_none() && attempt.state.started_at().is_none() {
            Ok(())
        } else {
            broken(L3, format!("{} started at {:?}, its row is {row:?}", attempt.id, attempt.state.started_at()))
        };
    };
    let ends_right = match &attempt.state {
        AttemptState::Ended { at, how: AttemptEnd::Lost, .. } => {
            row.end.is_some_and(|end| end >= row.start && end <= *at)
        }
        AttemptState::Ended { at, .. } => row.end == Some(*at),
        AttemptState::Assigned
        | AttemptState::Running { .. }
        | AttemptState::Publishing { .. }
        | AttemptState::Stopping { .. } => row.end.is_none(),
    };
    let same_slots = row.gpu_count as usize == attempt.grant.gpus.len() && row.cpu_millis == attempt.grant.cpu_millis;
    if row.start != started_at || !ends_right || !same_slots {
        return broken(L3, format!("{attempt:?} has the row {row:?}"));
    }
    Ok(())
}

/// L4: a task that has not ended has, for each replica, a live attempt, a result, or a place in the queue; and one whose
/// replicas have all finished has ended.
fn no_task_lost(id: &TaskId, task: &Task) -> Holds {
    const NAME: &str = "L4 no accepted task lost";
    if task.replicas.is_empty() {
        return broken(NAME, format!("{id} has no replica"));
    }
    let done = task.replicas.iter().all(super::state::Replica::finished);
    match (&task.ended, done) {
        (None, true) => broken(NAME, format!("every replica of {id} has finished, and it has not ended")),
        (Some(TaskEnd::Completed { .. }), false) => broken(NAME, format!("{id} completed without all its replicas")),
        (None | Some(TaskEnd::Failed { .. } | TaskEnd::Cancelled { .. }), false)
        | (Some(TaskEnd::Completed { .. } | TaskEnd::Failed { .. } | TaskEnd::Cancelled { .. }), true) => Ok(()),
    }
}

/// L5: attempts of an ended task are stopping or over, and only those stop.
fn ended_tasks_publish_nothing(id: &TaskId, task: &Task) -> Holds {
    for attempt in task.replicas.iter().flat_map(|r| &r.attempts).filter(|a| a.is_live()) {
        let stopping = matches!(attempt.state, AttemptState::Stopping { .. });
        if stopping != task.ended.is_some() {
            let detail = format!("{} is {:?} and {id} has ended: {}", attempt.id, attempt.state, task.ended.is_some());
            return broken("L5 ended tasks hold no right to publish", detail);
        }
    }
    Ok(())
}
