//! A folder that is followed: what is new, changed and gone since it was last looked at. Its caller decides when.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file, as it was when it was last read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When it was changed, in nanoseconds since 1970.
    pub modified: u64,
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub hash: String,
}

/// Files by their paths below the folder, with `/` between.
pub type Known = BTreeMap<String, Seen>;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Files in all.
    pub files: usize,
    /// Folders in each other.
    pub depth: usize,
    /// Bytes of a file.
    pub file_bytes: u64,
    /// A file that was changed less long ago may still be written to: next time.
    pub settled: Duration,
}

impl Default for Bounds {
    /// 100,000 files, 32 folders deep, 64 MiB, two seconds.
    fn default() -> Self {
        Self { files: 100_000, depth: 32, file_bytes: 64 << 20, settled: Duration::from_secs(2) }
    }
}

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// New, or with another content.
    pub changed: Vec<String>,
    /// No longer there.
    pub removed: Vec<String>,
    /// What to give to the next look.
    pub known: Known,
    /// Not looked at, and why; what was known of them stays.
    pub skipped: Vec<(String, String)>,
}

/// Looks at a folder. A file is read when its time or size is another than was known. Links are not followed: they may
/// lead anywhere. Names that are no UTF-8 and those that begin with a dot are not looked at.
///
/// # Errors
/// When the folder itself can't be read: a folder that is away is not a folder without files.
pub fn scan(folder: &Path, known: &Known, bounds: &Bounds, now: SystemTime) -> io::Result<Changes> {
    let mut look = Look { folder, known, bounds, now, changes: Changes::default(), files: 0 };
    look.folder("", 0)?;
    let Look { mut changes, .. } = look;
    for (path, seen) in known {
        let below =
            |folder: &str| path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        if changes.known.contains_key(path) {
            continue;
        }
        if changes.skipped.iter().any(|(skipped, _)| below(skipped)) {
            changes.known.insert(path.clone(), seen.clone());
        } else {
            changes.removed.push(path.clone());
        }
    }
    Ok(changes)
}

struct Look<'a> {
    folder: &'a Path,
    known: &'a Known,
    bounds: &'a Bounds,
    now: SystemTime,
    changes: Changes,
    files: usize,
}

impl Look<'_> {
    fn folder(&mut self, below: &str, depth: usize) -> io::Result<()> {
        let mut entries = fs::read_dir(self.folder.join(below))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            let looked = entry.file_type().and_then(|kind| {
                if kind.is_dir() && depth >= self.bounds.depth {
                    Err(io::Error::other(format!("more than {} folders in each other", self.bounds.depth)))
                } else if kind.is_dir() {
                    self.folder(&path, depth + 1)
                } else if kind.is_file() {
                    self.file(&path)
                } else {
                    Ok(())
                }
            });
            if let Err(error) = looked {
                self.changes.skipped.push((path, error.to_string()));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str) -> io::Result<()> {
        let Bounds { files, file_bytes, settled, .. } = *self.bounds;
        self.files += 1;
        if self.files > files {
            return Err(io::Error::other(format!("more than {files} files in the folder")));
        }
        let at = self.folder.join(path);
        let meta = fs::symlink_metadata(&at)?;
        let modified = meta.modified()?;
        let nanoseconds = modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let (modified_at, size) = (u64::try_from(nanoseconds).unwrap_or(u64::MAX), meta.len());
        let known = self.known.get(path);
        if let Some(seen) = known.filter(|seen| seen.modified == modified_at && seen.size == size) {
            self.changes.known.insert(path.to_owned(), seen.clone());
            return Ok(());
        }
        if size > file_bytes {
            return Err(io::Error::other(format!("{size} bytes, at most {file_bytes} are read")));
        }
        if self.now.duration_since(modified).is_ok_and(|age| age < settled) {
            if let Some(seen) = known {
                self.changes.known.insert(path.to_owned(), seen.clone());
            }
            return Ok(());
        }
        let mut bytes = Vec::new();
        // It may have grown since.
        fs::File::open(&at)?.take(file_bytes + 1).read_to_end(&mut bytes)?;
        let hash = hex::encode(Sha256::digest(&bytes));
        if known.is_none_or(|seen| seen.hash != hash) {
            self.changes.changed.push(path.to_owned());
        }
        self.changes.known.insert(path.to_owned(), Seen { modified: modified_at, size, hash });
        Ok(())
    }
}
