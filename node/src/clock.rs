//! The one place of the binary that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use mloc_core::time::Millis;

/// Now. Before 1970 (a board without a clock) it is 0; the ledger compares, it does not trust.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
