//! Carries out what [`super::plan`] decides, and shows what a cache holds. Blocks.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mloc_core::task::spec::Pin;
use mloc_exec::{disk::free_bytes, failpoint};
use nix::sys::statvfs::statvfs;

use super::{
    Cache, Say,
    blobs::taken,
    lock::{Hold, Tried, try_lock},
    plan::{Item, Stock, plan},
    views::{IN_USE, Marker},
};
use crate::{disk, error::StoreError};

/// A source in a cache, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// Where it came from.
    pub place: String,
    /// In which version.
    pub pin: Pin,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether somebody uses it now.
    pub in_use: bool,
}

/// What reading all files of a cache came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files that were read.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Sentences about the damaged ones. They are fetched again when they are needed.
    pub damaged: Vec<String>,
}

/// What lies on the disk, with the paths behind [`Stock`]'s numbers.
struct Found {
    stock: Stock,
    /// In the order of [`Stock::items`]: the folder, and the file that says whether it is in use.
    folders: Vec<(PathBuf, PathBuf)>,
    blobs: Vec<PathBuf>,
}

impl Cache {
    /// Evicts until so many bytes are free, or nothing is left that may go.
    pub fn make_room(&self, bytes: u64) {
        self.evict(|taken| {
            let free = free_bytes(self.root()).unwrap_or(u64::MAX);
            taken.saturating_sub(bytes.saturating_sub(free))
        });
    }

    /// Whether so many bytes fit below a folder, which need not exist yet; what may go of this cache goes for them, where
    /// it lies on the same disk. Said before the first byte.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`]
    pub(crate) fn enough_room(&self, folder: &Path, needed: u64) -> Result<(), StoreError> {
        let free = || free_bytes(folder).map_err(|e| StoreError::disk("look at", folder, e));
        if needed <= free()? {
            return Ok(());
        }
        if disk_of(folder).is_some_and(|disk| disk_of(self.root()) == Some(disk)) {
            self.make_room(needed);
        }
        match free()? {
            free if needed > free => Err(StoreError::NoSpace { folder: folder.to_owned(), needed, free }),
            _ => Ok(()),
        }
    }

    /// Evicts until the cache is within its bound.
    pub fn keep_bound(&self) {
        let half = || statvfs(self.root()).map_or(u64::MAX, |s| s.blocks() * s.fragment_size() / 2);
        let bytes_max = self.config.bytes_max.unwrap_or_else(half);
        self.evict(|_| bytes_max);
    }

    /// Evicts all that is not in use.
    pub fn prune(&self) {
        self.evict(|_| 0);
    }

    /// Clears away what nobody comes back to: what dead processes were removing, and what earlier versions left.
    pub fn tidy(&self) {
        for aside in below(&self.root().join("trash")) {
            said(&aside, disk::remove_all(&aside));
        }
        // Up to version 0.1 a source had a folder right here, named by 32 digits of a digest.
        let old = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()) && path.is_dir()
        };
        for folder in below(self.root()).into_iter().filter(old) {
            tracing::info!(folder = %folder.display(), "a source in the layout of an earlier version: removed, it is pulled again when a task names it");
            said(&folder, self.throw_away(&folder));
        }
    }

    /// Plans, and removes; what turns out to be in use is planned around. Nothing is locked only to be looked at, so
    /// that no hit is ever held up by what stays.
    fn evict(&self, bytes_max: impl Fn(u64) -> u64) {
        let mut in_use = BTreeSet::new();
        loop {
            let found = self.look(&in_use);
            let chosen = plan(&found.stock, bytes_max(found.stock.bytes()));
            let refused_before = in_use.len();
            for (folder, lock) in chosen.items.iter().map(|i| &found.folders[*i]) {
                match self.remove_item(folder, lock) {
                    Ok(true) => tracing::info!(folder = %folder.display(), "evicted"),
                    Ok(false) => drop(in_use.insert(folder.clone())),
                    Err(error) => {
                        tracing::warn!(folder = %folder.display(), %error, "cannot be evicted");
                        in_use.insert(folder.clone());
                    }
                }
            }
            if chosen.unheld || !chosen.items.is_empty() {
                found.blobs.iter().for_each(|blob| remove_unheld(blob));
            }
            if in_use.len() == refused_before {
                return;
            }
        }
    }

    /// Removes a view or an abandoned pull, unless somebody uses it.
    fn remove_item(&self, folder: &Path, lock: &Path) -> Result<bool, StoreError> {
        let _held = match try_lock(lock, Hold::Alone, false)? {
            Tried::Held(held) => Some(held),
            Tried::Busy => return Ok(false),
            // Nobody can begin to use it without one.
            Tried::Gone => None,
        };
        self.throw_away(folder)?;
        failpoint::reached("store.cache.evicted");
        Ok(true)
    }

    fn look(&self, in_use: &BTreeSet<PathBuf>) -> Found {
        let mut found = Found { stock: Stock::default(), folders: Vec::new(), blobs: Vec::new() };
        for (folders, lock) in [(self.views(), IN_USE), (self.pulls(), "lock")] {
            for folder in below(&folders).into_iter().filter(|p| p.is_dir()) {
                let lock = folder.join(lock);
                let used = fs::metadata(&lock).or_else(|_| fs::metadata(&folder)).and_then(|m| m.modified());
                let item = Item {
                    used: used.map_or(0, since_epoch_ms),
                    in_use: in_use.contains(&folder),
                    holds: found.stock.count(&folder),
                };
                found.stock.items.push(item);
                found.folders.push((folder, lock));
            }
        }
        for folder in below(&self.blobs()) {
            found.stock.count(&folder);
            found.blobs.extend(below(&folder));
        }
        found
    }

    /// What is here, newest use first.
    pub fn holdings(&self) -> Vec<Holding> {
        let holding = |view: PathBuf| {
            let marker = Marker::read(&view)?;
            let used = fs::metadata(view.join(IN_USE)).and_then(|m| m.modified()).ok()?;
            let in_use = is_locked(&view.join(IN_USE));
            Some(Holding { place: marker.place, pin: marker.pin, used, in_use })
        };
        let mut all: Vec<_> = below(&self.views()).into_iter().filter_map(holding).collect();
        all.sort_by_key(|h| std::cmp::Reverse(h.used));
        all
    }

    /// Bytes it takes on its disk.
    pub fn bytes(&self) -> u64 {
        self.look(&BTreeSet::new()).stock.bytes()
    }

    /// Reads every file of every view. Damaged ones are said, and lose their place: who needs one fetches it.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let say: Say = {
            let said = said.clone();
            std::sync::Arc::new(move |text| lock(&said).push(text.to_owned()))
        };
        let mut verified = Verified::default();
        // A content that many views hold is read once.
        let mut seen = BTreeSet::new();
        for view in below(&self.views()) {
            let Tried::Held(_mark) = try_lock(&view.join(IN_USE), Hold::Shared, false)? else { continue };
            let Some(marker) = Marker::read(&view) else { continue };
            for file in &marker.files {
                let number = fs::metadata(view.join(super::views::FILES).join(&file.path)).map(|m| m.ino());
                if number.as_ref().is_ok_and(|n| !seen.insert(*n)) {
                    continue;
                }
                self.is_whole_file(&view, file, true, &say)?;
                verified.files += 1;
                verified.bytes += file.bytes;
            }
        }
        verified.damaged = std::mem::take(&mut *lock(&said));
        Ok(verified)
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Stock {
    /// Counts the files below a folder; which they are.
    fn count(&mut self, folder: &Path) -> Vec<u64> {
        let mut holds = Vec::new();
        let mut left = vec![folder.to_owned()];
        while let Some(here) = left.pop() {
            for entry in fs::read_dir(here).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => left.push(entry.path()),
                    Ok(meta) => {
                        self.contents.insert(meta.ino(), taken(&meta));
                        holds.push(meta.ino());
                    }
                    // It went meanwhile.
                    Err(_) => {}
                }
            }
        }
        holds
    }
}

/// A blob that is nobody's goes. Should somebody have begun to use it meanwhile, the file is theirs under another name.
fn remove_unheld(blob: &Path) {
    let left_aside = blob.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".mloc-"));
    if left_aside || fs::symlink_metadata(blob).is_ok_and(|m| m.nlink() == 1) {
        said(blob, disk::remove(blob));
    }
}

/// The number of the disk that a folder lies on, or will.
fn disk_of(folder: &Path) -> Option<u64> {
    folder.ancestors().find_map(|there| fs::metadata(there).ok()).map(|meta| meta.dev())
}

fn is_locked(path: &Path) -> bool {
    matches!(try_lock(path, Hold::Alone, false), Ok(Tried::Busy))
}

fn below(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn since_epoch_ms(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn said(path: &Path, done: Result<(), StoreError>) {
    if let Err(error) = done {
        tracing::warn!(path = %path.display(), %error, "cannot be cleared away");
    }
}
