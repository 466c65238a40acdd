//! The disk of the data directory: attempts stop before it is full, so that the journal and the ledger on it can still
//! be written.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mloc_core::ledger::entry::{Failure, FailureClass};

use crate::cache::{self, Cache};

/// After one attempt was stopped the others go on for so long: what it held may be enough.
const ONE_AT_A_TIME: Duration = Duration::from_secs(10);

/// Looks after it.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    dir: PathBuf,
    reserve_bytes: u64,
    cache: Arc<Cache>,
    stopped_at: Mutex<Option<Instant>>,
}

impl DiskWatch {
    pub fn new(dir: PathBuf, reserve_bytes: u64, cache: Arc<Cache>) -> Self {
        Self { dir, reserve_bytes, cache, stopped_at: Mutex::default() }
    }

    /// Why the attempt that asks must stop, when it must: evicting sources was not enough. Blocks.
    pub fn short(&self) -> Option<Failure> {
        // A disk that does not answer is noticed by whoever writes.
        let free = || cache::free_bytes(&self.dir).unwrap_or(u64::MAX);
        shortage(free(), self.reserve_bytes, &self.dir)?;
        self.cache.make_room(self.reserve_bytes.saturating_mul(2));
        let failure = shortage(free(), self.reserve_bytes, &self.dir)?;
        let mut stopped_at = self.stopped_at.lock().unwrap_or_else(PoisonError::into_inner);
        if stopped_at.is_some_and(|at| at.elapsed() < ONE_AT_A_TIME) {
            return None;
        }
        *stopped_at = Some(Instant::now());
        Some(failure)
    }
}

fn shortage(free: u64, reserve: u64, dir: &Path) -> Option<Failure> {
    (free < reserve).then(|| Failure {
        class: FailureClass::Retryable,
        message: format!(
            "the disk of {} is nearly full: {free} bytes are free, and {reserve} are kept for the node's own journal\nhint: free some space on this node, bound its cache (cache.maxBytes in node.yaml), or ask for more `disk` in resources.hardware",
            dir.display()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_is_stopped_at_a_time_and_only_for_want_of_room() {
        let top = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::new(top.path().join("cache"), None));
        assert!(DiskWatch::new(top.path().to_owned(), 0, cache.clone()).short().is_none());
        let watch = DiskWatch::new(top.path().to_owned(), u64::MAX, cache);
        assert_eq!(watch.short().unwrap().class, FailureClass::Retryable);
        assert!(watch.short().is_none(), "the next one waits");
        let said = shortage(1, 2, Path::new("/data")).unwrap().message;
        assert!(said.starts_with("the disk of /data is nearly full: 1 bytes are free, and 2 are kept"), "{said}");
        assert!(shortage(2, 2, Path::new("/data")).is_none());
    }
}
