//! How fast a node's transfers may be, all of them together.
//!
//! Each block of bytes is booked when it has come (or is about to go), and whoever booked it waits until its time. The
//! books are kept in plain code that is told the time; [`Limit`] asks the clock and sleeps.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// After a pause so much may go at once: the blocks of a second's eighth, so that lanes side by side don't starve.
const BURST: Duration = Duration::from_millis(125);

/// The books of one line.
#[derive(Debug)]
pub(crate) struct Books {
    bytes_per_s: NonZeroU64,
    /// Until when all that is booked has had its time, since the books were opened.
    busy_until: Duration,
}

impl Books {
    pub fn new(bytes_per_s: NonZeroU64) -> Self {
        Self { bytes_per_s, busy_until: Duration::ZERO }
    }

    /// Books bytes now, and says how long to wait before more are touched.
    pub fn book(&mut self, bytes: u64, now: Duration) -> Duration {
        // What was not used stays unused, but for a burst.
        let from = self.busy_until.max(now.saturating_sub(BURST));
        self.busy_until = from.saturating_add(self.time_of(bytes));
        self.busy_until.saturating_sub(now)
    }

    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A node's limit, shared by all its transfers; the default is none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limit(Option<Arc<Line>>);

#[derive(Debug)]
struct Line {
    books: Mutex<Books>,
    opened: Instant,
}

impl Limit {
    /// So many bytes a second; `None` for as many as come.
    pub fn new(bytes_per_s: Option<NonZeroU64>) -> Self {
        let line = |rate| Arc::new(Line { books: Mutex::new(Books::new(rate)), opened: Instant::now() });
        Self(bytes_per_s.map(line))
    }

    /// Waits until it is the time of so many bytes. Dropped, their time passes unused.
    pub async fn pass(&self, bytes: u64) {
        let wait = self.book(bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Books bytes now, and says how long to wait: for those who wait in a thread of their own.
    pub fn book(&self, bytes: u64) -> Duration {
        let Some(line) = &self.0 else { return Duration::ZERO };
        line.books.lock().unwrap_or_else(PoisonError::into_inner).book(bytes, line.opened.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes when: in no stretch of time is there more than the rate allows, a burst and one block; and
        /// nobody waits longer than what is booked takes.
        #[test]
        fn the_rate_is_kept(
            rate in 1_000u64..100_000_000,
            blocks in proptest::collection::vec((0u64..2_000_000, 0u64..400), 1..60),
        ) {
            let mut books = Books::new(NonZeroU64::new(rate).unwrap());
            let mut now = Duration::ZERO;
            let (mut passed, mut longest) = (Vec::new(), 0);
            let mut booked = 0.0;
            for (bytes, idle_ms) in blocks {
                now += Duration::from_millis(idle_ms);
                let wait = books.book(bytes, now);
                booked += bytes as f64 / rate as f64;
                prop_assert!(wait.as_secs_f64() <= booked + 1e-6, "waits {wait:?} for {booked} s of bytes");
                now += wait;
                longest = longest.max(bytes);
                passed.push((now, bytes));
            }
            for (i, (from, first)) in passed.iter().enumerate() {
                let mut sum = *first;
                for (until, bytes) in &passed[i + 1..] {
                    sum += bytes;
                    let allowed = rate as f64 * ((*until - *from) + BURST).as_secs_f64() + longest as f64;
                    prop_assert!(sum as f64 <= allowed + 2.0, "{sum} bytes from {from:?} to {until:?}, {allowed} allowed");
                }
            }
        }

        /// Who always has more to send loses nothing of the rate, however many lanes there are.
        #[test]
        fn the_rate_is_used(rate in 1_000_000u64..1_000_000_000, block in 1_000u64..1_000_000, lanes in 1usize..8) {
            let mut books = Books::new(NonZeroU64::new(rate).unwrap());
            let mut ready = vec![Duration::ZERO; lanes];
            let mut sent = 0;
            for _ in 0..400 {
                let lane = (0..lanes).min_by_key(|lane| ready[*lane]).unwrap();
                let now = ready[lane];
                ready[lane] = now + books.book(block, now);
                sent += block;
            }
            let end = ready.iter().max().unwrap().as_secs_f64();
            let owed = sent as f64 / rate as f64;
            prop_assert!(end <= owed + 1e-3, "{end} s for {owed} s of bytes");
        }
    }

    #[tokio::test]
    async fn no_limit_never_waits_and_a_limit_is_shared() {
        Limit::default().pass(u64::MAX).await;
        let before = Instant::now();
        let limit = Limit::new(NonZeroU64::new(1_000_000));
        futures::future::join_all((0..4).map(|_| limit.pass(50_000))).await;
        assert!(before.elapsed() >= Duration::from_millis(199), "{:?} for 0.2 s of bytes", before.elapsed());
    }
}
