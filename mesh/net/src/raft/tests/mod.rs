mod backup;
mod cluster;
mod entries;
mod killed;
mod storage;
mod storm;
mod voters;
mod wire;

use mloc_core::{id::NodeId, ledger::entry::Member, time::Millis};

use super::types::{Entry, Ledger};

/// A small entry that the ledger takes.
fn sample_entry(n: u64) -> Entry {
    entry_of_size(n, 1)
}

/// An entry that takes at least `bytes` bytes.
fn entry_of_size(n: u64, bytes: usize) -> Entry {
    let member = Member {
        name: "x".repeat(bytes),
        addresses: Vec::new(),
        joined_at: Millis(n),
        draining_since: None,
        revoked_at: None,
    };
    Entry::MemberJoined { node: sample(n), member }
}

/// Whether the ledger has taken `sample_entry(n)`.
fn has(ledger: &Ledger, n: u64) -> bool {
    ledger.members.contains_key(&sample(n))
}

fn sample(n: u64) -> NodeId {
    NodeId::new(format!("12D3KooWsample{n}"))
}
