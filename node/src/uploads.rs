//! Files that came along with tasks, `uploads/` below the data directory, by their digests.
//!
//! ```text
//! part/SHA256           bytes that have come so far
//! sha256/AB/SHA256      whole, and its digest right
//! trees/SHA256          a task named this list of files; its time is when that was last known
//! ```
//!
//! What a kept list names is kept; everything else goes after [`Limits::keep_for`] ([`Uploads::collect`]). Whether a
//! task still names a list is the ledger's to say, so it comes in as an argument.

mod collect;
mod receive;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mloc_api::{ControlError, files::Uploaded, view::Missing};
use mloc_core::{
    files::{BroughtTree, TREE_BYTES_MAX, Tree},
    quantity::show_bytes,
};
use nix::sys::statvfs::statvfs;

pub use self::collect::Collected;

/// How much may be here, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in all; half of their disk when absent.
    pub bytes_max: Option<u64>,
    /// Bytes of their disk that stay free: the ledger lies there too.
    pub reserve: u64,
    /// How long what no live task names is kept.
    pub keep_for: Duration,
    /// How long silence on an upload is borne.
    pub silence: Duration,
}

/// Below this a submission on its way through an election would lose its files.
const KEEP_FOR_LEAST: Duration = Duration::from_secs(120);

/// The uploads of one data directory.
#[derive(Debug)]
pub struct Uploads {
    root: PathBuf,
    limits: Limits,
    /// Bytes that are here; counted anew at each collection.
    used: AtomicU64,
    /// Held while it is decided what is kept, and while it is removed.
    gate: Mutex<()>,
    /// One writer for each part.
    writers: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

fn broken(action: &str, path: &Path, error: &io::Error) -> ControlError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return ControlError::NoRoom(format!("this node's disk is full ({})", path.display()));
    }
    ControlError::Internal(format!("cannot {action} {}: {error}", path.display()))
}

impl Uploads {
    /// The uploads below a data directory.
    ///
    /// # Errors
    /// When their folders can't be made.
    pub fn open(data_dir: &Path, limits: Limits) -> io::Result<Self> {
        let root = data_dir.join("uploads");
        for folder in ["part", "sha256", "trees"] {
            fs::create_dir_all(root.join(folder))?;
        }
        let limits = Limits { keep_for: limits.keep_for.max(KEEP_FOR_LEAST), ..limits };
        let used = AtomicU64::new(0);
        let uploads = Self { root, limits, used, gate: Mutex::default(), writers: Mutex::default() };
        uploads.count();
        Ok(uploads)
    }

    /// How long what no live task names is kept.
    pub fn keep_for(&self) -> Duration {
        self.limits.keep_for
    }

    fn part(&self, sha256: &str) -> PathBuf {
        self.root.join("part").join(sha256)
    }

    fn whole(&self, sha256: &str) -> PathBuf {
        self.root.join("sha256").join(sha256.get(..2).unwrap_or("odd")).join(sha256)
    }

    fn mark(&self, tree: &str) -> PathBuf {
        self.root.join("trees").join(tree)
    }

    fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self, sha256: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|_, writer| writer.strong_count() > 0);
        if let Some(writer) = writers.get(sha256).and_then(Weak::upgrade) {
            return writer;
        }
        let writer = Arc::default();
        writers.insert(sha256.to_owned(), Arc::downgrade(&writer));
        writer
    }

    /// How much of a file is here. `sha256` has been checked.
    pub fn have(&self, sha256: &str) -> Result<Uploaded, ControlError> {
        for (path, whole) in [(self.whole(sha256), true), (self.part(sha256), false)] {
            match fs::metadata(&path) {
                Ok(meta) => return Ok(Uploaded { bytes: meta.len(), whole }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(broken("look at", &path, &e)),
            }
        }
        Ok(Uploaded { bytes: 0, whole: false })
    }

    /// Opens a whole file; `None` when it is not here.
    pub fn read(&self, sha256: &str) -> io::Result<Option<(fs::File, u64)>> {
        match fs::File::open(self.whole(sha256)) {
            Ok(file) => {
                let bytes = file.metadata()?.len();
                Ok(Some((file, bytes)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A list of files that was uploaded. Blocks.
    fn tree(&self, sha256: &str) -> Result<Tree, ControlError> {
        let path = self.whole(sha256);
        let meta = fs::metadata(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ControlError::NotFound(format!("uploaded list of files {sha256} at this node")),
            _ => broken("look at", &path, &e),
        })?;
        let bad = |why: String| ControlError::Invalid { detail: format!("{sha256}: {why}"), problems: Vec::new() };
        if meta.len() > TREE_BYTES_MAX {
            return Err(bad(format!("{} is no list of files: it is larger than one", show_bytes(meta.len()))));
        }
        let bytes = fs::read(&path).map_err(|e| broken("read", &path, &e))?;
        Tree::read(&bytes).map_err(|e| bad(e.to_string()))
    }

    /// Of the files a list names, those that are not here; the others are kept from now on for as long as anything.
    /// Blocks.
    pub fn missing(&self, tree: &str, now: SystemTime) -> Result<Vec<Missing>, ControlError> {
        let _gate = self.gate();
        let mut missing = BTreeMap::new();
        for file in self.tree(tree)?.files {
            let have = self.have(&file.sha256)?;
            if have.whole {
                self.touch(&self.whole(&file.sha256), now)?;
            } else {
                let one = Missing { sha256: file.sha256.clone(), bytes: file.bytes, there: have.bytes };
                missing.entry(file.sha256).or_insert(one);
            }
        }
        Ok(missing.into_values().collect())
    }

    /// Makes sure that all of what a task brings is here, and marks it as named from now on. Blocks.
    pub fn keep(&self, brought: &BTreeMap<String, BroughtTree>, now: SystemTime) -> Result<(), ControlError> {
        let _gate = self.gate();
        for (path, BroughtTree { tree: digest, bytes }) in brought {
            let upload = "upload it to the node that is to take the task (`mloc submit` does)";
            let tree = self.tree(digest).map_err(|error| match error {
                ControlError::NotFound(what) => {
                    ControlError::Conflict(format!("`{path}` did not come along: there is no {what}: {upload}"))
                }
                other => other,
            })?;
            if tree.bytes() != *bytes {
                let detail = format!("query: files: `{path}`: its list has {} bytes, not {bytes}", tree.bytes());
                return Err(ControlError::Invalid { detail, problems: Vec::new() });
            }
            for file in &tree.files {
                let have = self.have(&file.sha256)?;
                if !have.whole {
                    let text = format!("of `{path}` the file `{}` is not here ({}): {upload}", file.path, file.sha256);
                    return Err(ControlError::Conflict(text));
                }
                if have.bytes != file.bytes {
                    let detail = format!(
                        "`{path}`: the list says {} bytes of `{}`, and it has {}",
                        file.bytes, file.path, have.bytes
                    );
                    return Err(ControlError::Invalid { detail, problems: Vec::new() });
                }
            }
        }
        for BroughtTree { tree, .. } in brought.values() {
            let mark = self.mark(tree);
            fs::write(&mark, b"").map_err(|e| broken("write", &mark, &e))?;
            self.touch(&mark, now)?;
        }
        Ok(())
    }

    fn touch(&self, path: &Path, now: SystemTime) -> Result<(), ControlError> {
        // Not at every look: a list may name a hundred thousand files.
        let recent =
            |modified: SystemTime| now.duration_since(modified).is_ok_and(|age| age < self.limits.keep_for / 4);
        if fs::metadata(path).and_then(|meta| meta.modified()).is_ok_and(recent) {
            return Ok(());
        }
        let touched = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(now));
        touched.map_err(|e| broken("touch", path, &e))
    }

    /// Why so many more bytes have no place here, when they have none. Blocks.
    fn room_for(&self, more: u64) -> Result<(), ControlError> {
        let stats = statvfs(&self.root).map_err(|e| broken("look at", &self.root, &e.into()))?;
        let (disk, free) = (stats.blocks() * stats.fragment_size(), stats.blocks_available() * stats.fragment_size());
        let max = self.limits.bytes_max.unwrap_or(disk / 2);
        if more > max {
            return Err(ControlError::TooLarge(format!(
                "{} more do not fit: this node takes uploads up to {} in all (uploads.maxBytes in its node.yaml); put \
                 them into a bucket or a volume, and name that in the task",
                show_bytes(more),
                show_bytes(max)
            )));
        }
        let used = self.used.load(Ordering::Relaxed);
        if used.saturating_add(more) > max {
            return Err(ControlError::NoRoom(format!(
                "uploads on this node take {} of {} (uploads.maxBytes in its node.yaml), and {} more do not fit: they go \
                 when their tasks have ended and uploads.keepFor is over; try then, or at another node",
                show_bytes(used),
                show_bytes(max),
                show_bytes(more)
            )));
        }
        if more.saturating_add(self.limits.reserve) > free {
            return Err(ControlError::NoRoom(format!(
                "this node's disk has {} free, of which {} are kept for its ledger, and {} more do not fit: try another \
                 node",
                show_bytes(free),
                show_bytes(self.limits.reserve),
                show_bytes(more)
            )));
        }
        Ok(())
    }

    /// Counts the bytes that are here. Blocks.
    fn count(&self) {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        let shelves = folders_in(&self.root.join("sha256")).flat_map(|shelf| files_in(&shelf));
        let bytes = shelves.chain(files_in(&self.root.join("part"))).map(size).sum();
        self.used.store(bytes, Ordering::Relaxed);
    }

    /// Bytes came, or went.
    fn changed(&self, came: u64, went: u64) {
        let after = |used: u64| Some(used.saturating_add(came).saturating_sub(went));
        // It never refuses.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
    }
}

fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())).map(|entry| entry.path())
}

fn folders_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests;
