mod storage;

use super::types::Entry;

/// A small entry that the ledger takes.
fn sample_entry(n: u64) -> Entry {
    entry_of_size(n, 1)
}

/// An entry that takes at least `bytes` bytes.
fn entry_of_size(n: u64, bytes: usize) -> Entry {
    Entry::Set { key: format!("key-{n}"), value: "x".repeat(bytes) }
}
