//! Pulled sources on this disk: each content once, each source a folder of plain files under plain names.
//!
//! ```text
//! blobs/sha256/ab/abcd…   one read-only file per content
//! views/SOURCE-PIN/       a source in one version: files/ (second names of blobs), view.json (what they must be; with
//!                         it the view is whole), in-use (locked, shared, by whoever uses it)
//! pulls/SOURCE/           a source on its way: lock (held by the one that pulls), files/ (filled by transfers), view/
//! trash/                  what was given up and is being removed
//! ```
//!
//! **A hit waits for nobody**: it takes the shared mark `in-use`, which only an eviction of this very view ever refuses,
//! and looks at size and time of each file. Pulls of other sources, and other hits, do not meet it; with a pin it makes
//! no request either. **Any number of processes** may use one cache: a source is pulled by whoever holds its lock, and the
//! lock goes with its process; what a dead one left is taken up by the next.
//!
//! **Integrity.** The digest is made when a blob is. From then on its time of writing is [`SEALED_AT_S`], on every file and
//! for ever: a file of another time or size was touched, is read again before it is believed, and fetched again when it
//! is damaged. What a disk changes without a trace only [`Verify::Always`] finds.
//!
//! **Links and modes.** Symbolic links of a source are links of its view, which names them in view.json. A mode is a
//! file's and not a name's: blobs are read-only, and a file that can be executed is the view's own and no blob.
//!
//! **Bound.** Least recently used views go, then blobs that no view names; never one in use ([`evict`]).

mod blobs;
mod evict;
mod lock;
mod plan;
mod shelf;
mod views;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mloc_core::task::spec::{Location, Pin};
use mloc_exec::OnSaid as Say;

pub use self::evict::{Holding, Verified};
pub(crate) use self::shelf::{Filled, FilledFile, Shelf, Turn};
use crate::{disk, error::StoreError};

/// When every file of the cache was written, if you ask it: so many seconds after the epoch. No writer sets this by
/// accident, so that a touched file shows itself without a record to compare it with.
const SEALED_AT_S: u64 = 1;

/// How closely cached files are looked at before an attempt gets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Those whose size or time changed are read.
    #[default]
    Changed,
    /// All are read: finds what a disk changed by itself, and costs as long as reading them takes.
    Always,
}

/// Where pulled sources lie, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Its folder; several processes may share one.
    pub dir: PathBuf,
    /// Bytes it may take while none of it is in use; half of its disk when absent.
    pub bytes_max: Option<u64>,
    /// How closely files are looked at.
    pub verify: Verify,
}

impl Default for CacheConfig {
    /// `cache` below the working folder.
    fn default() -> Self {
        Self { dir: "cache".into(), bytes_max: None, verify: Verify::default() }
    }
}

/// A cache on this disk. It makes its folders with the first pull, and any process may look after it. Its functions
/// block.
#[derive(Clone, Debug)]
pub struct Cache {
    config: Arc<CacheConfig>,
}

impl Cache {
    /// Opens one; touches nothing.
    pub fn new(config: CacheConfig) -> Self {
        Self { config: Arc::new(config) }
    }

    fn root(&self) -> &Path {
        &self.config.dir
    }

    fn blob(&self, sha256: &str) -> PathBuf {
        self.blobs().join(sha256.get(..2).unwrap_or("--")).join(sha256)
    }

    fn blobs(&self) -> PathBuf {
        self.root().join("blobs/sha256")
    }

    fn views(&self) -> PathBuf {
        self.root().join("views")
    }

    fn pulls(&self) -> PathBuf {
        self.root().join("pulls")
    }

    /// What is given up gets a name that nobody looks for, at once and whole; it is removed in peace.
    fn throw_away(&self, path: &Path) -> Result<(), StoreError> {
        let trash = self.root().join("trash");
        disk::make_folder(&trash)?;
        let aside = trash.join(disk::lot());
        match std::fs::rename(path, &aside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(StoreError::disk("move away", path, e)),
            Ok(()) => disk::remove_all(&aside),
        }
    }
}

/// A source's name in the cache: the same for all its versions.
fn source_key(source: &Location) -> String {
    let text = serde_json::to_vec(source).unwrap_or_default();
    disk::stamp_bytes(&text).sha256[..24].to_owned()
}

/// The name of one version of a source.
fn view_key(source: &Location, pin: &Pin) -> String {
    let text = format!("{}\0{}\0{}", pin.version, pin.files, pin.bytes);
    format!("{}-{}", source_key(source), &disk::stamp_bytes(text.as_bytes()).sha256[..24])
}
