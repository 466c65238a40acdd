//! The leader's clock: wall time that never goes back and steps forward only when told to.
//!
//! Leases are differences of this clock, so a step of the wall clock must not reach them; entries carry its readings, so
//! it must not stay behind the wall for ever either (a board that starts in 1970, a machine that slept). Hence: it runs
//! on CLOCK_BOOTTIME, which counts sleep and takes no steps, and whoever owns leases asks it from time to time to
//! [`SteadyClock::follow`] the wall. That steps forward, by the whole difference, once the wall is ahead by more than a
//! bound; the owner then grants every lease anew, which errs on the side of waiting longer. It never steps back: a wall
//! clock set back is waited for.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mloc_core::time::Millis;
use nix::time::{ClockId, clock_gettime};

/// Entries may be this far behind the wall. Less would make every correction of a time server a step.
const BEHIND_MAX: Duration = Duration::from_secs(2);

/// A clock of this process.
#[derive(Debug)]
pub(crate) struct SteadyClock {
    course: Mutex<Course>,
    /// Boot time at the start.
    started: Duration,
}

impl SteadyClock {
    /// Reads the wall clock and goes on from there.
    pub fn start() -> Self {
        let started = boot_time();
        Self { course: Mutex::new(Course { at: wall(), boot: started }), started }
    }

    /// Now.
    pub fn now(&self) -> Millis {
        self.course.lock().unwrap_or_else(PoisonError::into_inner).at_boot(boot_time())
    }

    /// Time since the start, sleep included. No step ever reaches it.
    pub fn elapsed(&self) -> Duration {
        boot_time().saturating_sub(self.started)
    }

    /// Steps forward to the wall if that is ahead by more than the bound; says by how much.
    pub fn follow(&self) -> Option<Duration> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner).follow(boot_time(), wall())
    }
}

/// A moment and the boot time at which it was: the others follow.
#[derive(Clone, Copy, Debug)]
struct Course {
    at: Millis,
    boot: Duration,
}

impl Course {
    fn at_boot(&self, boot: Duration) -> Millis {
        self.at + boot.saturating_sub(self.boot)
    }

    fn follow(&mut self, boot: Duration, wall: Millis) -> Option<Duration> {
        let now = self.at_boot(boot);
        let behind = Duration::from_millis(wall.since(now));
        if behind <= BEHIND_MAX {
            return None;
        }
        *self = Self { at: wall, boot };
        Some(behind)
    }
}

fn boot_time() -> Duration {
    // Every Linux since 2.6.39 has both; time that stands still ends no lease.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    now.map(Duration::from).unwrap_or_default()
}

fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_runs_with_the_boot_clock_and_steps_only_forward_and_only_when_far_behind() {
        let mut course = Course { at: Millis(1_000_000), boot: s(10) };
        assert_eq!(course.at_boot(s(70)), Millis(1_060_000), "a minute, asleep or awake");
        assert_eq!(course.follow(s(70), Millis(1_062_000)), None, "two seconds are let be");
        assert_eq!(course.follow(s(70), Millis(500_000)), None, "a wall set back is waited for");
        assert_eq!(course.at_boot(s(70)), Millis(1_060_000));
        assert_eq!(course.follow(s(70), Millis(9_060_000)), Some(s(8_000)), "a board learns what day it is");
        assert_eq!(course.at_boot(s(71)), Millis(9_061_000));
        assert_eq!(course.at_boot(s(0)), Millis(9_060_000), "a reading from before a step does not go back");
    }

    /// Whatever the wall does, readings never fall, and after a look at it they are at most the bound behind it.
    #[test]
    fn under_any_wall_it_is_monotone_and_close_behind() {
        let mut random = 7u64;
        let mut course = Course { at: Millis(0), boot: s(0) };
        let (mut boot, mut last) = (s(0), Millis(0));
        for _ in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            boot += Duration::from_millis((random >> 33) % 5_000);
            let wall = Millis((random >> 20) % 10_000_000);
            course.follow(boot, wall);
            let now = course.at_boot(boot);
            assert!(now >= last, "{now} after {last}");
            assert!(wall.since(now) <= 2_000, "{now} while the wall says {wall}");
            last = now;
        }
    }
}
