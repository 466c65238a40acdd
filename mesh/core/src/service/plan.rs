//! Which replicas of services start and which stop: one step towards what is wanted, from the ledger alone.
//!
//! Of the tasks that have one served name the newest is current; the older ones leave. Of the current one those replicas
//! leave that sit on a member that drains. `N` is what is wanted of the current one:
//! - it starts replicas until `N` of it stay, never with more than `N + maxSurge` in all;
//! - of those that leave at least `N - maxUnavailable - (ready ones that stay)` are kept, ready ones first.
//!
//! Of a service of shards ([`super::shard`]) one of each stays, whoever is started is a shard that nobody else is, and all of
//! the older version are kept until all of the current one are ready, where the surges of both leave room.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::TaskId,
    ledger::{
        Entry, Ledger,
        state::{Attempt, Replica, Task},
    },
    service::shard::{self, shard_of},
    time::Millis,
};

/// Everything that can be done now. Each step may be refused, and is planned anew when others were applied.
pub fn plan(ledger: &Ledger, now: Millis) -> Vec<Entry> {
    let mut names: BTreeMap<&str, Vec<(&TaskId, &Task)>> = BTreeMap::new();
    for (id, task) in ledger.tasks.iter().filter(|(_, task)| task.ended.is_none()) {
        if let Some(service) = &task.spec.service {
            names.entry(&service.served_name).or_default().push((id, task));
        }
    }
    let mut steps = Vec::new();
    for mut versions in names.into_values() {
        versions.sort_by_key(|(_, task)| task.seq);
        steps.extend(step(ledger, &versions, now));
    }
    steps
}

/// A wanted replica, as the plan sees it.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    task: &'a TaskId,
    number: u32,
    ready: bool,
}

fn step(ledger: &Ledger, versions: &[(&TaskId, &Task)], now: Millis) -> Vec<Entry> {
    let Some((&(current, task), older)) = versions.split_last() else { return Vec::new() };
    let Some(service) = &task.spec.service else { return Vec::new() };
    let wanted = task.desired() as usize;
    let shards = task.spec.shards();
    // An older version of shards may have more of them: it stays beside the newer one by its own surge, too.
    let beside = if shards.is_some() { versions } else { &versions[versions.len() - 1..] };
    let surges = beside.iter().filter_map(|(_, task)| Some(task.spec.service.as_ref()?.update.max_surge));
    let (surge, unavailable) = (surges.max().unwrap_or(0) as usize, service.update.max_unavailable as usize);

    let (mut stay, mut leave) = (Vec::new(), Vec::new());
    for (number, replica) in wanted_of(task) {
        let drains = replica.live().is_some_and(|attempt| on_draining(ledger, attempt));
        let one = Wanted { task: current, number, ready: is_ready(replica) };
        if drains { leave.push(one) } else { stay.push(one) }
    }
    for (id, task) in older {
        leave.extend(wanted_of(task).map(|(number, replica)| Wanted { task: id, number, ready: is_ready(replica) }));
    }

    let mut entries = Vec::new();
    // Those that answer are stopped last, and of the others the last that came.
    stay.sort_by_key(|one| (!one.ready, one.number));
    let mut held = BTreeSet::new();
    // Of two of one shard the other leaves: one that drained, and drains no more.
    let (mut stay, twins): (Vec<_>, Vec<_>) =
        stay.into_iter().partition(|one| shards.is_none_or(|shards| held.insert(shard_of(one.number, shards))));
    leave.extend(twins);
    let mut stop: Vec<Wanted<'_>> = stay.split_off(stay.len().min(wanted));
    let ready = stay.iter().filter(|one| one.ready).count();
    let kept = match shards {
        // They take over from all of the older ones, where there is room for both.
        Some(_) if !older.is_empty() && ready < wanted && surge >= leave.len() => leave.len(),
        _ => wanted.saturating_sub(unavailable).saturating_sub(ready),
    };
    // The newest of the older ones are nearest to what is wanted.
    leave.sort_by_key(|one| (!one.ready, std::cmp::Reverse(one.task), one.number));
    stop.extend(leave.split_off(leave.len().min(kept)));
    let mut by_task: BTreeMap<&TaskId, Vec<u32>> = BTreeMap::new();
    for one in &stop {
        by_task.entry(one.task).or_default().push(one.number);
    }
    for (id, stop) in by_task {
        let why = if id == current { "fewer are wanted, or its node drains" } else { "a newer version is ready" };
        entries.push(Entry::Replicas { task: id.clone(), start: Vec::new(), stop, why: why.to_owned(), at: now });
    }

    let missing = wanted.saturating_sub(stay.len());
    let room = (wanted + surge).saturating_sub(stay.len() + leave.len());
    let start = match shards {
        Some(shards) => shard::free_numbers(task, shards, &held, missing.min(room)),
        None => free_numbers(task, missing.min(room)),
    };
    if !start.is_empty() {
        let (task, why) = (current.clone(), format!("{wanted} are wanted"));
        entries.push(Entry::Replicas { task, start, stop: Vec::new(), why, at: now });
    }

    for (id, task) in older {
        let over = wanted_of(task).next().is_none() && task.replicas.iter().all(|replica| replica.live().is_none());
        if over {
            entries.push(Entry::Cancelled { task: (*id).clone(), by: format!("its newer version {current}"), at: now });
        }
    }
    entries
}

/// Numbers of replicas that can be started: retired ones whose last attempt is over, then new ones.
fn free_numbers(task: &Task, count: usize) -> Vec<u32> {
    let free = (0..).zip(&task.replicas).filter(|(_, replica)| replica.retired && replica.live().is_none());
    let new = u32::try_from(task.replicas.len()).unwrap_or(u32::MAX)..;
    free.map(|(number, _)| number).chain(new).take(count).collect()
}

/// Replicas that are wanted, by number.
pub(crate) fn wanted_of(task: &Task) -> impl Iterator<Item = (u32, &Replica)> {
    (0..).zip(&task.replicas).filter(|(_, replica)| !replica.retired)
}

/// Whether it has an attempt that became ready and is not stopping.
pub(crate) fn is_ready(replica: &Replica) -> bool {
    replica.live().is_some_and(Attempt::is_ready)
}

fn on_draining(ledger: &Ledger, attempt: &Attempt) -> bool {
    let member = ledger.members.get(&attempt.node);
    member.is_some_and(|member| member.draining_since.is_some() && member.revoked_at.is_none())
}

#[cfg(test)]
mod tests;
