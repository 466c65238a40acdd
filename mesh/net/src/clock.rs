//! Wall time, read once and carried on by the monotonic clock: a step of the wall clock must not expire leases.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mloc_core::time::Millis;

/// A clock of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SteadyClock {
    wall: Millis,
    since: Instant,
}

impl SteadyClock {
    /// Reads the wall clock, for the last time.
    pub fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall: Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)), since: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Millis {
        self.wall + Duration::from_millis(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
