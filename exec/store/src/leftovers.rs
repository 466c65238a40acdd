//! What a publication that died left at its destination. Before its first byte an attempt writes down which files it is
//! about to put there; whoever publishes after it takes away those that the result does not name.

use std::collections::BTreeSet;

use mloc_core::id::AttemptId;
use serde::{Deserialize, Serialize};

use crate::{disk, error::StoreError, manifest::Manifest, meter::Meter, place::Area};

/// The record's name. It lies at a destination while somebody publishes there, and after one who died.
pub const UPLOADING: &str = "mloc-uploading.json";
/// Larger ones are no records of ours.
const BYTES_MAX: u64 = 16 << 20;

/// A publication under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Uploading {
    /// Whose.
    attempt: AttemptId,
    /// Every file that may lie there without belonging to a result: its own, and those of who died before it.
    paths: BTreeSet<String>,
}

/// Writes down what is about to be put there.
pub(crate) async fn announce<'p>(
    place: &dyn Area,
    attempt: &AttemptId,
    paths: impl Iterator<Item = &'p str>,
    meter: &Meter,
) -> Result<(), StoreError> {
    if place.appears_whole() {
        return Ok(());
    }
    let mut paths: BTreeSet<_> = paths.map(str::to_owned).collect();
    paths.extend(recorded(place).await?.into_iter().flatten());
    let record = Uploading { attempt: attempt.clone(), paths };
    let bytes = serde_json::to_vec_pretty(&record).map_err(|e| StoreError::Disk {
        action: "describe",
        path: UPLOADING.into(),
        source: e.into(),
    })?;
    place.put_bytes(UPLOADING, bytes, meter).await
}

/// Takes away what was announced and is not in the manifest. The result is whole without it: what cannot be taken away
/// now is said, and stays for the next one to find.
pub(crate) async fn clear(place: &dyn Area, manifest: &Manifest) {
    if let Err(error) = try_clear(place, manifest).await {
        tracing::warn!(place = place.url(), %error, "files of an earlier attempt stay");
    }
}

async fn try_clear(place: &dyn Area, manifest: &Manifest) -> Result<(), StoreError> {
    if place.appears_whole() {
        return Ok(());
    }
    let Some(paths) = recorded(place).await? else { return Ok(()) };
    let named: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    for path in paths.iter().filter(|path| !named.contains(path.as_str())) {
        tracing::info!(place = place.url(), path, "left by an attempt that died: removed");
        place.remove(path).await?;
    }
    place.remove(UPLOADING).await
}

/// Clears away the temporary files that an attempt was writing when its daemon died, where they lie on this node's disks;
/// only while the record there is that attempt's: nobody has begun to publish since.
pub(crate) async fn sweep(place: &dyn Area, attempt: &AttemptId) -> Result<(), StoreError> {
    if place.folder().is_none() {
        return Ok(());
    }
    let Some(bytes) = place.get(UPLOADING, BYTES_MAX).await? else { return Ok(()) };
    let Some(record) = read(&bytes).filter(|record| record.attempt == *attempt) else { return Ok(()) };
    let paths: Vec<&str> = record.paths.iter().map(String::as_str).chain([UPLOADING]).collect();
    place.sweep(&paths).await;
    Ok(())
}

/// Paths that an earlier record names. One that cannot be read names none.
async fn recorded(place: &dyn Area) -> Result<Option<BTreeSet<String>>, StoreError> {
    let Some(bytes) = place.get(UPLOADING, BYTES_MAX).await? else { return Ok(None) };
    Ok(Some(read(&bytes).map_or_else(BTreeSet::new, |record| record.paths)))
}

fn read(bytes: &[u8]) -> Option<Uploading> {
    let mut record: Uploading = serde_json::from_slice(bytes).ok()?;
    // It lies where others may write: a path out of there is nobody's leftover.
    record.paths.retain(|path| disk::below(path).is_some());
    Some(record)
}
