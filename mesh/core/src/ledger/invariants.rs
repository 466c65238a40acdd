//! What always holds, by name: one predicate each, used by proptest, the simulation and `debug_assert!`.

use std::collections::BTreeMap;

use super::{
    entry::Entry,
    services::{least_ready, most, ready_of},
    state::{AttemptEnd, AttemptState, Ledger, Task, TaskEnd},
};
use crate::{
    capability::Grant,
    id::{AttemptId, NodeId, TaskId},
    service::plan::wanted_of,
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
    services(ledger)?;
    usage_is_the_sum_of_attempts(ledger)
}

/// Those an entry can have broken: cheap enough for every entry of a debug build.
///
/// # Errors
/// The first that does not hold.
pub fn of_entry(ledger: &Ledger, entry: &Entry) -> Holds {
    let id = match entry {
        Entry::Submit { task, .. } | Entry::Replicas { task, .. } => {
            services(ledger)?;
            task
        }
        Entry::Cancelled { task, .. } | Entry::Scaled { task, .. } => task,
        Entry::Assigned { attempt, .. } => {
            slots_never_oversubscribed(ledger)?;
            &attempt.task
        }
        Entry::Publishing { attempt, .. } => {
            one_publisher_at_a_place(ledger)?;
            &attempt.task
        }
        Entry::Started { attempt, .. }
        | Entry::Ready { attempt, .. }
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

/// L5: attempts of an ended task, and of a retired replica, are stopping or over, and only those stop.
fn ended_tasks_publish_nothing(id: &TaskId, task: &Task) -> Holds {
    for replica in &task.replicas {
        let Some(attempt) = replica.live() else { continue };
        let stopping = matches!(attempt.state, AttemptState::Stopping { .. });
        if stopping != (task.ended.is_some() || replica.retired) {
            let detail = format!(
                "{} is {:?}, {id} has ended: {}, its replica is retired: {}",
                attempt.id,
                attempt.state,
                task.ended.is_some(),
                replica.retired
            );
            return broken("L5 ended tasks hold no right to publish", detail);
        }
    }
    Ok(())
}

/// SV1 and SV2, and that only services have what services have.
///
/// # Errors
/// The first that does not hold.
pub fn services(ledger: &Ledger) -> Holds {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (id, task) in ledger.tasks.iter().filter(|(_, task)| task.ended.is_none()) {
        let Some(service) = &task.spec.service else {
            let odd = |r: &super::state::Replica| r.retired || r.attempts.iter().any(|a| a.ready_at.is_some());
            if task.scaled_to.is_some() || task.replicas.iter().any(odd) {
                return broken("SV0 only services scale", format!("{id} is none"));
            }
            continue;
        };
        let (wanted, most) = (wanted_of(task).count(), service.scale.max as usize + service.update.max_surge as usize);
        if wanted > most.max(task.spec.replicas as usize) {
            let detail = format!("{id} has {wanted} replicas, {most} are its most with the surge");
            return broken("SV2 replicas never exceed max and surge", detail);
        }
        let owner = owners.entry(&service.served_name).or_insert(&task.spec.metadata.owner);
        if *owner != task.spec.metadata.owner {
            let detail = format!("`{}` is {owner}'s and {}'s", service.served_name, task.spec.metadata.owner);
            return broken("SV1 a served name has one owner", detail);
        }
    }
    Ok(())
}

/// What a step may do to all versions of a name together. SV2: with it there are not more replicas than the most of any
/// version and the surge. SV3: fewer are ready after it than before only while as many are as are wanted, less
/// `maxUnavailable`.
///
/// # Errors
/// The first that does not hold.
pub fn exchange(before: &Ledger, after: &Ledger, entry: &Entry) -> Holds {
    let Entry::Replicas { task, .. } = entry else { return Ok(()) };
    let Some(service) = after.tasks.get(task).and_then(|task| task.spec.service.as_ref()) else { return Ok(()) };
    let (name, wanted) = (&service.served_name, |task: &Task| wanted_of(task).count());
    let (was, is) = (before.versions_of(name), after.versions_of(name));
    let count = |versions: &[(&TaskId, &Task)]| versions.iter().map(|(_, task)| wanted(task)).sum::<usize>();
    if count(&is) > count(&was) && count(&is) > most(&is) {
        let detail =
            format!("`{name}` has {} replicas, {} are its most with the surge: {entry:?}", count(&is), most(&is));
        return broken("SV2 replicas never exceed max and surge", detail);
    }
    let (had, has, least) = (ready_of(&was), ready_of(&is), least_ready(&is));
    if has < had && has < least {
        let detail = format!("`{name}` had {had} ready and has {has} of {least}: {entry:?}");
        return broken("SV3 no ready replica is stopped before its replacement is ready", detail);
    }
    Ok(())
}
