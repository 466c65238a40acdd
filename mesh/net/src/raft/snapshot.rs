//! Snapshots as bytes and as files: the ledger at one point of the log, whole or not there at all.
//!
//! ```text
//! "MLOCSNAP"  meta length (u32 LE)  meta  ledger  SHA-256 of all before it
//! ```
//! `meta` and `ledger` carry the version byte of the codec. The file is written under another name, synced, renamed
//! over the one before, and the folder is synced: until the new one is whole, the one before is the snapshot.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    codec,
    types::{Ledger, SnapshotMeta},
};

const MAGIC: &[u8; 8] = b"MLOCSNAP";
const DIGEST_BYTES: usize = 32;

/// Written in pieces of this size, so that one large ledger does not occupy the disk's queue in one go.
const WRITE_BYTES: usize = 256 << 10;

/// A snapshot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes are not a whole snapshot.
    #[error("{place}: damaged snapshot: {detail} (hint: move this node's data directory away and join again)")]
    Damaged {
        /// The file, or who sent it.
        place: String,
        /// What was found.
        detail: String,
    },
    /// The disk or its permissions.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

pub(super) fn encode(meta: &SnapshotMeta, ledger: &Ledger) -> io::Result<Bytes> {
    let meta = codec::encode("snapshot meta", meta)?;
    let ledger = codec::encode("snapshot ledger", ledger)?;
    let meta_len = u32::try_from(meta.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + meta.len() + ledger.len() + DIGEST_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&meta_len.to_le_bytes());
    bytes.extend_from_slice(&meta);
    bytes.extend_from_slice(&ledger);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    Ok(bytes.into())
}

/// `place` says where the bytes came from, for the error.
pub(super) fn decode(place: &str, bytes: &[u8]) -> Result<(SnapshotMeta, Ledger), SnapshotError> {
    let damaged = |detail: String| SnapshotError::Damaged { place: place.to_owned(), detail };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin like one".to_owned()))?;
    let body_end = rest.len().checked_sub(DIGEST_BYTES).ok_or_else(|| damaged("cut short".to_owned()))?;
    if Sha256::digest(&bytes[..MAGIC.len() + body_end])[..] != rest[body_end..] {
        return Err(damaged(format!("the checksum over its {} bytes does not fit", bytes.len())));
    }
    let (len, body) = rest[..body_end].split_first_chunk::<4>().ok_or_else(|| damaged("cut short".to_owned()))?;
    let len = u32::from_le_bytes(*len) as usize;
    let (meta, ledger) = body.split_at_checked(len).ok_or_else(|| damaged("its head is cut short".to_owned()))?;
    let meta = codec::decode("snapshot meta", meta).map_err(|error| damaged(error.to_string()))?;
    let ledger = codec::decode("snapshot ledger", ledger).map_err(|error| damaged(error.to_string()))?;
    Ok((meta, ledger))
}

/// The one snapshot of a data directory, `raft.snapshot`.
#[derive(Clone)]
pub(super) struct SnapshotFile {
    path: PathBuf,
    /// Which snapshot the file holds. A build and an installation may end at the same time; the later state wins.
    newest: Arc<Mutex<Option<SnapshotMeta>>>,
}

impl SnapshotFile {
    /// Opens the snapshot of `dir` and returns what it holds, if there is one.
    pub fn open(dir: &Path) -> Result<(Self, Option<(SnapshotMeta, Ledger)>), SnapshotError> {
        let path = dir.join("raft.snapshot");
        let mut this = Self { path, newest: Arc::default() };
        let Some(bytes) = this.read()? else { return Ok((this, None)) };
        let (meta, ledger) = decode(&this.path.display().to_string(), &bytes)?;
        this.newest = Arc::new(Mutex::new(Some(meta.clone())));
        Ok((this, Some((meta, ledger))))
    }

    /// Makes `bytes` the snapshot, durably, unless a later one is there already. Blocks on the disk.
    pub fn save(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_some_and(|newest| newest.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        self.write(bytes).map_err(|source| SnapshotError::Io { path: self.path.clone(), source })?;
        *newest = Some(meta.clone());
        Ok(())
    }

    /// The bytes of the snapshot. Blocks on the disk.
    pub fn read(&self) -> Result<Option<Bytes>, SnapshotError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SnapshotError::Io { path: self.path.clone(), source }),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let draft = self.path.with_extension("snapshot.new");
        let mut file = File::create(&draft)?;
        for piece in bytes.chunks(WRITE_BYTES) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        sync_parent(&self.path)
    }

    pub fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// Makes a rename or a new file in `path`'s folder durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
