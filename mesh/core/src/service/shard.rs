//! Services whose replicas part among them what they hold ([`crate::task::TaskSpec::shards`]). A replica is the shard of its
//! number, modulo their count: whoever takes the place of one of them has another number, and is the same shard.

use std::collections::BTreeSet;

use crate::ledger::state::Task;

/// Which of so many shards the replica of this number is.
pub fn shard_of(number: u32, shards: u32) -> u32 {
    number % shards.max(1)
}

/// Numbers to start: one for each shard that none of those who stay is, at most so many.
pub(super) fn free_numbers(task: &Task, shards: u32, stay: &BTreeSet<u32>, count: usize) -> Vec<u32> {
    let free = |number: &u32| {
        let replica = task.replicas.get(*number as usize);
        replica.is_none_or(|replica| replica.retired && replica.live().is_none())
    };
    let first = |shard: u32| (shard..).step_by(shards.max(1) as usize).find(free);
    (0..shards).filter(|shard| !stay.contains(shard)).filter_map(first).take(count).collect()
}
