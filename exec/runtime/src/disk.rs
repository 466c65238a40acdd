//! The disk of the data directory: attempts stop before it is full, so that the journal and the ledger on it can still
//! be written.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mloc_core::ledger::entry::{Failure, FailureClass};
use mloc_exec::disk::free_bytes;

/// After one attempt was stopped the others go on for so long: what it held may be enough.
const ONE_AT_A_TIME: Duration = Duration::from_secs(10);

/// Frees what it can until so many bytes are free. Blocks.
type MakeRoom = Arc<dyn Fn(u64) + Send + Sync>;

/// Looks after it.
pub(crate) struct DiskWatch {
    dir: PathBuf,
    reserve_bytes: u64,
    room: MakeRoom,
    stopped_at: Mutex<Option<Instant>>,
}

impl DiskWatch {
    pub fn new(dir: PathBuf, reserve_bytes: u64, room: MakeRoom) -> Self {
        Self { dir, reserve_bytes, room, stopped_at: Mutex::default() }
    }

    /// Why the attempt that asks must stop, when it must: evicting sources was not enough. Blocks.
    pub fn short(&self) -> Option<Failure> {
        // A disk that does not answer is noticed by whoever writes.
        let free = || free_bytes(&self.dir).unwrap_or(u64::MAX);
        shortage(free(), self.reserve_bytes, &self.dir)?;
        (self.room)(self.reserve_bytes.saturating_mul(2));
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
        let (asked, heard) = std::sync::mpsc::channel();
        let room: MakeRoom = Arc::new(move |bytes| asked.send(bytes).unwrap());
        assert!(DiskWatch::new(top.path().to_owned(), 0, room.clone()).short().is_none());
        assert!(heard.try_recv().is_err(), "nothing is evicted without need");
        let watch = DiskWatch::new(top.path().to_owned(), u64::MAX, room);
        assert_eq!(watch.short().unwrap().class, FailureClass::Retryable);
        assert_eq!(heard.try_recv(), Ok(u64::MAX), "sources go first");
        assert!(watch.short().is_none(), "the next one waits");
        let said = shortage(1, 2, Path::new("/data")).unwrap().message;
        assert!(said.starts_with("the disk of /data is nearly full: 1 bytes are free, and 2 are kept"), "{said}");
        assert!(shortage(2, 2, Path::new("/data")).is_none());
    }
}
