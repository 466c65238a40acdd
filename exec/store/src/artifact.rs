//! One file of a result, read where it lies: at a destination, or in the folder of an attempt without one. Only what the
//! result's manifest names is given.

use std::{ops::Range, path::Path};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use mloc_core::{id::AttemptId, task::spec::Location};

use crate::{
    Store,
    disk::{self, off_thread},
    error::StoreError,
    folder::Folder,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    place::Area,
};

/// A file of a result, opened.
pub struct ArtifactFile {
    /// Bytes of the whole file.
    pub total: u64,
    /// SHA-256 of the whole file, hex.
    pub sha256: String,
    /// The bytes that were asked for.
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

impl std::fmt::Debug for ArtifactFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.sha256, self.total)
    }
}

impl Store {
    /// Opens a file of the result that an attempt published at a destination.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when that result does not lie there, or has no such file; others as for any transfer.
    pub async fn open_published(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        path: &str,
        range: Range<u64>,
    ) -> Result<ArtifactFile, StoreError> {
        open(&*self.area(destination)?, attempt, path, range).await
    }

    /// Opens a file of a result that stayed in its attempt's folder, or with [`MANIFEST`] the list of them.
    ///
    /// # Errors
    /// As [`Store::open_published`].
    pub async fn open_kept(
        &self,
        attempt: &AttemptId,
        folder: &Path,
        path: &str,
        range: Range<u64>,
    ) -> Result<ArtifactFile, StoreError> {
        let (folder, given) = (folder.to_owned(), folder.display().to_string());
        let area = off_thread(move || Folder::at(&folder)).await?;
        open(&area.ok_or_else(|| gone(given))?, attempt, path, range).await
    }
}

fn gone(place: String) -> StoreError {
    StoreError::NotFound {
        place,
        found: "no finished result is there".into(),
        hint: "a worker keeps its newest results only; an output.destination keeps them for good".into(),
    }
}

async fn open(
    place: &dyn Area,
    attempt: &AttemptId,
    path: &str,
    range: Range<u64>,
) -> Result<ArtifactFile, StoreError> {
    let Some(bytes) = place.get(MANIFEST, MANIFEST_BYTES_MAX).await? else { return Err(gone(place.url())) };
    let manifest = Manifest::read(&place.join(MANIFEST).url(), &bytes)?;
    let of = &manifest.attempt;
    if (&of.task, of.replica) != (&attempt.task, attempt.replica) {
        return Err(StoreError::Taken { place: place.url(), task: of.task.to_string() });
    }
    if path == MANIFEST {
        let stamp = disk::stamp_bytes(&bytes);
        let part = bytes.slice(clamp(&range, stamp.bytes));
        let bytes = stream::iter([Ok(part)]).boxed();
        return Ok(ArtifactFile { total: stamp.bytes, sha256: stamp.sha256, bytes });
    }
    let Some(file) = manifest.files.into_iter().find(|file| file.path == path) else {
        let found = format!("the result has no file `{path}`");
        return Err(StoreError::NotFound { place: place.url(), found, hint: "its manifest lists what it has".into() });
    };
    let range = range.start.min(file.bytes)..range.end.min(file.bytes);
    let bytes = if range.is_empty() {
        stream::empty().boxed()
    } else {
        place.read(path, range).await?.map_err(std::io::Error::other).boxed()
    };
    Ok(ArtifactFile { total: file.bytes, sha256: file.sha256, bytes })
}

fn clamp(range: &Range<u64>, total: u64) -> Range<usize> {
    let at = |byte: u64| usize::try_from(byte.min(total)).unwrap_or(usize::MAX);
    at(range.start)..at(range.end).max(at(range.start))
}
