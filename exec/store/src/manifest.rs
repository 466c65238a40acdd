//! The last file of a result or a checkpoint: what belongs to it, with digests. Where it lies, all of it lies.

use std::collections::BTreeMap;

use mloc_core::{
    id::AttemptId,
    ledger::entry::{Artifact, TaskResult},
};
use mloc_exec::Lineage;
use serde::{Deserialize, Serialize};

use crate::{disk, error::StoreError};

/// Its name.
pub const MANIFEST: &str = "mloc-manifest.json";
/// The format this build writes; it reads no newer one.
pub const FORMAT: u32 = 1;
/// Larger ones are no manifests of ours.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// What a result or a checkpoint is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's format.
    pub format: u32,
    /// The attempt that wrote it: task and replica say whose it is.
    pub attempt: AttemptId,
    /// Steps done, of a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The files, sorted by path.
    pub files: Vec<Artifact>,
    /// Figures of the run.
    #[serde(default)]
    pub summary: BTreeMap<String, serde_json::Value>,
    /// The run that made it, of a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
}

impl Manifest {
    /// The bytes that are written; the same manifest always gives the same.
    ///
    /// # Errors
    /// [`StoreError::Disk`] when a figure of the summary cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| StoreError::Disk {
            action: "describe",
            path: MANIFEST.into(),
            source: e.into(),
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads one found at `place`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is none, or a newer format, or names files outside its folder.
    pub fn read(place: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |found: String| StoreError::Damaged { place: place.to_owned(), found };
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| damaged(format!("no manifest: {e}")))?;
        if manifest.format > FORMAT {
            return Err(damaged(format!("manifest format {}; this build reads up to {FORMAT}", manifest.format)));
        }
        match manifest.files.iter().find(|f| disk::below(&f.path).is_none()) {
            Some(bad) => Err(StoreError::BadName { place: place.to_owned(), name: bad.path.clone() }),
            None => Ok(manifest),
        }
    }

    /// As the ledger keeps it.
    pub(crate) fn into_result(self, location: String) -> TaskResult {
        TaskResult { location, artifacts: self.files, summary: self.summary }
    }
}
