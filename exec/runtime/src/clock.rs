//! The worker's clock: CLOCK_BOOTTIME, which neither jumps nor stands still while the machine sleeps.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine was started.
pub(crate) fn boot_ms() -> u64 {
    // Every Linux since 2.6.39 has it; without it the monotonic clock serves, which misses sleep.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    now.map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Milliseconds since 1970 of the wall clock: for people, and for times that outlast a boot (`output.keep`), which a clock
/// set forward ends early.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
}
