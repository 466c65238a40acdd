mod cluster;
mod storage;
mod voters;
mod wire;

use super::types::{Entry, Ledger};

/// A small entry that the ledger takes.
fn sample_entry(n: u64) -> Entry {
    entry_of_size(n, 1)
}

/// An entry that takes at least `bytes` bytes.
fn entry_of_size(n: u64, bytes: usize) -> Entry {
    Entry::Set { key: format!("key-{n}"), value: "x".repeat(bytes) }
}

/// Whether the ledger has taken `sample_entry(n)`.
fn has(ledger: &Ledger, n: u64) -> bool {
    ledger.keys.contains_key(&format!("key-{n}"))
}
