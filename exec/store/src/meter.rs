//! Bytes moved, told to whoever shows them, and held to the node's rate.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mloc_exec::{Moved, OnMoved};

use crate::rate::Limit;
/// Bytes that went over a line or between disks since this process started, useless ones included.
static MOVED: AtomicU64 = AtomicU64::new(0);

/// Bytes that transfers of this process have moved, in whichever direction: a figure for whoever watches.
pub fn bytes_moved() -> u64 {
    MOVED.load(Ordering::Relaxed)
}

/// Counts the bytes of one transfer.
#[derive(Clone)]
pub(crate) struct Meter {
    done: Arc<AtomicU64>,
    fetched: Arc<AtomicU64>,
    /// Of `done`, what this file has.
    own: Arc<AtomicU64>,
    total: u64,
    tell: OnMoved,
    limit: Limit,
}

impl Meter {
    pub fn new(total: u64, tell: OnMoved) -> Self {
        tell(Moved { done: 0, total });
        Self {
            done: Arc::default(),
            fetched: Arc::default(),
            own: Arc::default(),
            total,
            tell,
            limit: Limit::default(),
        }
    }

    /// Held to a rate: for transfers that go over a line.
    pub fn at(self, limit: &Limit) -> Self {
        Self { limit: limit.clone(), ..self }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: u64) {
        self.limit.pass(bytes).await;
    }

    /// Bytes were moved just now.
    pub fn moved(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
        MOVED.fetch_add(bytes, Ordering::Relaxed);
        self.found(bytes);
    }

    /// Bytes were found where they belong.
    pub fn found(&self, bytes: u64) {
        self.own.fetch_add(bytes, Ordering::Relaxed);
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.tell)(Moved { done, total: self.total });
    }

    /// The same meter for one file of the transfer.
    pub fn of_one_file(&self) -> Self {
        Self { own: Arc::default(), ..self.clone() }
    }

    /// The file begins again: what it had is of no use.
    pub fn start_over(&self) {
        let lost = self.own.swap(0, Ordering::Relaxed);
        let done = self.done.fetch_sub(lost, Ordering::Relaxed).saturating_sub(lost);
        (self.tell)(Moved { done, total: self.total });
    }

    /// Bytes that went over the line, useless ones included.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }
}
