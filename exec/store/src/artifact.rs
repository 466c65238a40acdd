//! One file of a result, read where it lies: at a destination, or in the folder of an attempt without one. Only what the
//! result's manifest names is given.

use std::{io::SeekFrom, ops::Range, path::Path};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use mloc_core::{id::AttemptId, task::spec::Location};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::{
    Store,
    disk::{self, off_thread},
    error::StoreError,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    place::Place,
    remote::{Object, Remote},
    volume::Inside,
};

/// Bytes of a file read at once.
const PIECE_BYTES: usize = 256 << 10;

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
        open(&self.place(destination)?, attempt, path, range).await
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
        let folder = folder.to_owned();
        let place = off_thread(move || {
            let given = folder.display().to_string();
            match folder.canonicalize() {
                Ok(root) => Ok(Place::Folder { given, inside: Inside { path: root.clone(), root } }),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(gone(given)),
                Err(e) => Err(StoreError::disk("follow", &folder, e)),
            }
        });
        open(&place.await?, attempt, path, range).await
    }
}

fn gone(place: String) -> StoreError {
    StoreError::NotFound {
        place,
        found: "no finished result is there".into(),
        hint: "a worker keeps its newest results only; an output.destination keeps them for good".into(),
    }
}

async fn open(place: &Place, attempt: &AttemptId, path: &str, range: Range<u64>) -> Result<ArtifactFile, StoreError> {
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
    let bytes = match place {
        Place::Folder { given, inside } => read_file(given, inside, path, range).await?,
        Place::Bucket(bucket) => {
            let key = bucket.join(path).key_of_itself();
            let object = Object { name: path.to_owned(), key, bytes: file.bytes, etag: None, sha256: None };
            bucket.read(&object, range).await?.map_err(std::io::Error::other).boxed()
        }
    };
    Ok(ArtifactFile { total: file.bytes, sha256: file.sha256, bytes })
}

fn clamp(range: &Range<u64>, total: u64) -> Range<usize> {
    let at = |byte: u64| usize::try_from(byte.min(total)).unwrap_or(usize::MAX);
    at(range.start)..at(range.end).max(at(range.start))
}

/// A file below a folder, never one that a link has put elsewhere.
async fn read_file(
    given: &str,
    inside: &Inside,
    name: &str,
    range: Range<u64>,
) -> Result<BoxStream<'static, std::io::Result<Bytes>>, StoreError> {
    let bad = || StoreError::BadName { place: given.to_owned(), name: name.to_owned() };
    let path = inside.path.join(disk::below(name).ok_or_else(bad)?);
    let (root, given) = (inside.root.clone(), given.to_owned());
    let path = off_thread(move || {
        let real = path.canonicalize().map_err(|e| StoreError::disk("follow", &path, e))?;
        if real.starts_with(&root) {
            return Ok(real);
        }
        Err(StoreError::Escapes { path: given, found: format!("a link leads to {}", real.display()) })
    })
    .await?;
    let opening = async {
        let mut file = tokio::fs::File::open(&path).await?;
        file.seek(SeekFrom::Start(range.start)).await?;
        Ok::<_, std::io::Error>(file)
    };
    let file = opening.await.map_err(|e| StoreError::disk("open", &path, e))?;
    let left = range.end.saturating_sub(range.start);
    let pieces = stream::try_unfold((file.take(left), left), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES)));
        let read = file.read_buf(&mut piece).await? as u64;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((Bytes::from(piece), (file, left - read))))
    });
    Ok(pieces.boxed())
}
