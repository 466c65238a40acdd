//! Backups as bytes: the ledger at one point of the log, and what one needs to know before reading it.
//!
//! ```text
//! "MLOCBKUP"  format (u32 LE)  head length (u32 LE)  head (JSON)  ledger  SHA-256 of all before it
//! ```
//! `ledger` is encoded as in a snapshot: the codec's version byte, then CBOR; the member table is part of it. Every later
//! format begins with the magic and its number and ends with the digest, so that this build can tell a newer backup from a
//! damaged one. There is no key in it and no join token: a mesh restored from it gets new ones.

use std::io;

use bytes::Bytes;
use mloc_core::{id::MeshId, time::Millis};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    codec::{self, CodecError},
    types::Ledger,
};

const MAGIC: &[u8; 8] = b"MLOCBKUP";
/// The format this build writes; it reads no newer one.
const FORMAT: u32 = 1;
const DIGEST_BYTES: usize = 32;
/// Magic, format and head length.
const FIXED_BYTES: usize = MAGIC.len() + 8;

/// What stands before the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The mesh it is of.
    pub mesh: MeshId,
    /// Term of the last entry in it.
    pub term: u64,
    /// Index of the last entry in it.
    pub index: u64,
    /// The moment it shows, in milliseconds since 1970: when the leader was asked, or, of a stopped node, the latest
    /// moment its ledger knows.
    pub as_of: Millis,
    /// The version of mloc that wrote it.
    pub mloc: String,
    /// Bytes of the ledger that follows. Set by [`Backup::to_bytes`].
    ledger_bytes: u64,
}

/// A ledger, kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// What it is.
    pub head: BackupHead,
    /// All of it.
    pub ledger: Ledger,
}

/// Bytes that are no good backup.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BackupError {
    /// Something else.
    #[error("{place}: not a backup of an mloc ledger: it does not begin like one\nhint: `mloc backup FILE` writes one")]
    Foreign {
        /// The file, or who sent it.
        place: String,
    },
    /// The end is missing.
    #[error(
        "{place}: cut short: {found} bytes, and its head says {expected}\nhint: take another copy of it, or the one before"
    )]
    CutShort {
        /// The file, or who sent it.
        place: String,
        /// Bytes found.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// The bytes are not what was written.
    #[error("{place}: damaged: {detail}\nhint: take another copy of it, or the one before")]
    Damaged {
        /// The file, or who sent it.
        place: String,
        /// What was found.
        detail: String,
    },
    /// Written by a later build.
    #[error(
        "{place}: written in {what} {found}; this mloc reads up to {ours}\nhint: use the mloc that wrote it, or a newer one"
    )]
    Newer {
        /// The file, or who sent it.
        place: String,
        /// Whose format.
        what: &'static str,
        /// It.
        found: u32,
        /// The newest that this build knows.
        ours: u32,
    },
}

impl Backup {
    /// A ledger as of a moment and a point of the log.
    pub fn new(mesh: MeshId, (term, index): (u64, u64), as_of: Millis, mloc: &str, ledger: Ledger) -> Self {
        let head = BackupHead { mesh, term, index, as_of, mloc: mloc.to_owned(), ledger_bytes: 0 };
        Self { head, ledger }
    }

    /// The bytes of a backup file.
    ///
    /// # Errors
    /// When a value cannot be written: a mistake in its type.
    pub fn to_bytes(&self) -> io::Result<Bytes> {
        let ledger = codec::encode("backup ledger", &self.ledger)?;
        let head = BackupHead { ledger_bytes: ledger.len() as u64, ..self.head.clone() };
        let head = serde_json::to_vec(&head).map_err(io::Error::from)?;
        let head_len = u32::try_from(head.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(FIXED_BYTES + head.len() + ledger.len() + DIGEST_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&head_len.to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&ledger);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        Ok(bytes.into())
    }

    /// Reads a whole backup and checks all of it. `place` says where the bytes came from, for the error.
    ///
    /// # Errors
    /// When the bytes are none, not all there, not what was written, or of a newer format.
    pub fn from_bytes(place: &str, bytes: &[u8]) -> Result<Self, BackupError> {
        let place = || place.to_owned();
        let damaged = |detail: String| BackupError::Damaged { place: place(), detail };
        if bytes.len() < MAGIC.len() && MAGIC.starts_with(bytes) && !bytes.is_empty() {
            let (found, expected) = (bytes.len() as u64, (FIXED_BYTES + DIGEST_BYTES) as u64);
            return Err(BackupError::CutShort { place: place(), found, expected });
        }
        if !bytes.starts_with(MAGIC) {
            return Err(BackupError::Foreign { place: place() });
        }
        let whole = bytes.len().checked_sub(DIGEST_BYTES).filter(|end| *end >= FIXED_BYTES);
        let intact = whole.is_some_and(|end| Sha256::digest(&bytes[..end])[..] == bytes[end..]);
        let format = number(bytes, MAGIC.len()).unwrap_or(FORMAT);
        if intact && format > FORMAT {
            return Err(BackupError::Newer { place: place(), what: "backup format", found: format, ours: FORMAT });
        }
        let (head, ledger_at) = match split_head(bytes) {
            Ok(found) => found,
            Err(expected) if !intact => {
                return Err(BackupError::CutShort { place: place(), found: bytes.len() as u64, expected });
            }
            Err(_) => return Err(damaged("its head is no head".to_owned())),
        };
        let expected = (ledger_at as u64).saturating_add(head.ledger_bytes).saturating_add(DIGEST_BYTES as u64);
        if !intact && (bytes.len() as u64) < expected {
            return Err(BackupError::CutShort { place: place(), found: bytes.len() as u64, expected });
        }
        let (true, Some(end)) = (intact, whole.filter(|end| *end >= ledger_at)) else {
            return Err(damaged(format!("the checksum over its {} bytes does not fit", bytes.len())));
        };
        match codec::decode("backup ledger", &bytes[ledger_at..end]) {
            Ok(ledger) => Ok(Self { head, ledger }),
            Err(CodecError::Newer { found, .. }) => Err(BackupError::Newer {
                place: place(),
                what: "ledger format",
                found: found.into(),
                ours: codec::FORMAT.into(),
            }),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

/// The head, and where the ledger begins; how many bytes there must be at least when it is not all there.
fn split_head(bytes: &[u8]) -> Result<(BackupHead, usize), u64> {
    let least = (FIXED_BYTES + DIGEST_BYTES) as u64;
    let length = number(bytes, MAGIC.len() + 4).ok_or(least)?;
    let expected = least + u64::from(length);
    let end = usize::try_from(length).ok().and_then(|length| FIXED_BYTES.checked_add(length)).ok_or(expected)?;
    let head = bytes.get(FIXED_BYTES..end).ok_or(expected)?;
    Ok((serde_json::from_slice(head).map_err(|_| expected)?, end))
}
