//! Pulled sources on this disk, `cache/SOURCE/`: kept for the next task that names them, and evicted when room is short
//! or their bound is reached, least recently used first and never one in use.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

/// Its time is that of the last use.
const USED: &str = ".mloc-used";

/// The cache of one data directory.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    bytes_max: Mutex<Option<u64>>,
    in_use: Mutex<BTreeMap<PathBuf, usize>>,
}

/// Keeps a source where it is.
#[derive(Debug)]
pub(crate) struct InUse {
    cache: Arc<Cache>,
    folder: PathBuf,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut in_use = self.cache.in_use();
        if let Some(users) = in_use.get_mut(&self.folder) {
            *users -= 1;
            if *users == 0 {
                in_use.remove(&self.folder);
            }
        }
    }
}

impl Cache {
    /// A cache in a folder; without a bound it may take half of the disk it lies on.
    pub fn new(root: PathBuf, bytes_max: Option<u64>) -> Self {
        Self { root, bytes_max: Mutex::new(bytes_max), in_use: Mutex::default() }
    }

    /// Another bound from now on.
    pub fn bound_to(&self, bytes_max: Option<u64>) {
        *self.bytes_max.lock().unwrap_or_else(PoisonError::into_inner) = bytes_max;
    }

    /// Holds a source's folder, which need not exist yet.
    pub fn hold(self: &Arc<Self>, folder: &Path) -> InUse {
        *self.in_use().entry(folder.to_owned()).or_default() += 1;
        InUse { cache: self.clone(), folder: folder.to_owned() }
    }

    /// Notes that a source is used now. Blocks.
    pub fn used(&self, folder: &Path) {
        // A source that is used where it lies has no folder here.
        if folder.is_dir()
            && let Err(error) = fs::write(folder.join(USED), b"")
        {
            warn!(folder = %folder.display(), %error, "cannot note the use of a source");
        }
    }

    /// Evicts until so many bytes are free, or nothing is left that may go. Blocks.
    pub fn make_room(&self, bytes: u64) {
        self.evict_while(|_| free_bytes(&self.root).is_ok_and(|free| free < bytes));
    }

    /// Evicts until the sources are within their bound. Blocks.
    pub fn keep_bound(&self) {
        let half = || statvfs(&self.root).map_or(u64::MAX, |s| s.blocks() * s.fragment_size() / 2);
        let bytes_max = *self.bytes_max.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_max = bytes_max.unwrap_or_else(half);
        self.evict_while(|bytes| bytes > bytes_max);
    }

    /// Least recently used first.
    fn evict_while(&self, mut too_many: impl FnMut(u64) -> bool) {
        let mut sources = self.sources();
        sources.sort();
        let mut bytes: u64 = sources.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, folder, its) in sources {
            if !too_many(bytes) {
                return;
            }
            // Held all the while, so that nobody begins to use it meanwhile.
            let in_use = self.in_use();
            if in_use.contains_key(&folder) {
                continue;
            }
            match fs::remove_dir_all(&folder) {
                Ok(()) => {
                    info!(folder = %folder.display(), bytes = its, "source evicted");
                    bytes = bytes.saturating_sub(its);
                }
                Err(error) => warn!(folder = %folder.display(), %error, "source cannot be evicted"),
            }
        }
    }

    fn sources(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let source = |folder: PathBuf| {
            let noted = fs::metadata(folder.join(USED)).or_else(|_| fs::metadata(&folder)).ok()?;
            let bytes = taken(&folder);
            Some((noted.modified().ok()?, folder, bytes))
        };
        entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).filter_map(source).collect()
    }

    fn in_use(&self) -> MutexGuard<'_, BTreeMap<PathBuf, usize>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes this process may still write below a folder, which need not exist yet.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stats = statvfs(there)?;
    Ok(stats.blocks_available() * stats.fragment_size())
}

/// Bytes a folder takes: a part under way has its full length from the start, as holes.
fn taken(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in fs::read_dir(here).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(entry.path()),
                Ok(meta) => bytes += std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Sources a, b and c of 1 MiB each; a was used last, then c, then b.
    fn cache(top: &Path, bytes_max: Option<u64>) -> Arc<Cache> {
        let cache = Arc::new(Cache::new(top.to_owned(), bytes_max));
        for (name, age_s) in [("a", 0), ("b", 200), ("c", 100)] {
            fs::create_dir(top.join(name)).unwrap();
            fs::write(top.join(name).join("w.bin"), vec![7; MIB as usize]).unwrap();
            cache.used(&top.join(name));
            let used = fs::File::options().write(true).open(top.join(name).join(USED)).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        }
        cache
    }

    fn left(top: &Path) -> Vec<String> {
        let mut left: Vec<_> =
            fs::read_dir(top).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        left.sort();
        left
    }

    #[test]
    fn the_least_recently_used_go_and_none_in_use() {
        let top = tempfile::tempdir().unwrap();
        let cache = cache(top.path(), Some(2 * MIB + MIB / 2));
        cache.keep_bound();
        assert_eq!(left(top.path()), ["a", "c"]);
        let (one, two) = (cache.hold(&top.path().join("c")), cache.hold(&top.path().join("c")));
        drop(one);
        cache.make_room(u64::MAX);
        assert_eq!(left(top.path()), ["c"], "what is in use stays, whatever is asked");
        drop(two);
        cache.make_room(1);
        assert_eq!(left(top.path()), ["c"], "there is room enough");
        cache.make_room(u64::MAX);
        assert!(left(top.path()).is_empty());
    }

    #[test]
    fn without_a_bound_it_may_take_half_of_its_disk() {
        let top = tempfile::tempdir().unwrap();
        let cache = cache(top.path(), None);
        cache.keep_bound();
        assert_eq!(left(top.path()).len(), 3);
    }
}
