//! One read-only file per content, under its digest.

use std::{
    fs::{self, File, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use mloc_exec::failpoint;

use super::{Cache, SEALED_AT_S, Say};
use crate::{
    disk::{self, Halt, Stamp},
    error::StoreError,
};

/// Whether a file is as it was when its digest was made, as far as size and time tell.
pub(super) fn is_sealed(meta: &Metadata, bytes: u64) -> bool {
    meta.is_file() && meta.len() == bytes && meta.modified().is_ok_and(|at| at == sealed_at())
}

fn sealed_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(SEALED_AT_S)
}

/// Marks a file as one whose bytes have the digest it goes by: nobody writes to it from now on.
pub(super) fn seal(path: &Path, executable: bool) -> Result<(), StoreError> {
    let sealed = || -> io::Result<()> {
        let file = File::open(path)?;
        file.set_permissions(Permissions::from_mode(if executable { 0o555 } else { 0o444 }))?;
        // Setting the time needs ownership alone.
        file.set_modified(sealed_at())
    };
    sealed().map_err(|e| StoreError::disk("seal", path, e))
}

impl Cache {
    /// Gives a file the name of its content beside the one it has. One that is there already stays, and `from` becomes
    /// another name of it. `from` is sealed. Blocks.
    pub(super) fn adopt(&self, from: &Path, stamp: &Stamp) -> Result<(), StoreError> {
        seal(from, false)?;
        let blob = self.blob(&stamp.sha256);
        // Not durable: a power failure may cost the name, and the view has its own.
        if let Some(folder) = blob.parent() {
            fs::create_dir_all(folder).map_err(|e| StoreError::disk("make folder", folder, e))?;
        }
        match fs::hard_link(from, &blob) {
            Ok(()) => failpoint::reached("store.cache.blob"),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // The one that is to be linked stays last: should it go meanwhile, `from` is as good.
                let (kept, other) =
                    if whole(&blob, stamp.bytes) { (blob.as_path(), from) } else { (from, blob.as_path()) };
                if let Err(error) = link_over(kept, other)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::debug!(path = %other.display(), %error, "the same bytes are kept twice");
                }
            }
            // A file system without second names, or too many of them: this file is its own copy.
            Err(error) => tracing::debug!(path = %from.display(), %error, "not shared with other sources"),
        }
        Ok(())
    }

    /// Gives a content that is here another name; `false` when it is not here, or is not what its name says. Blocks.
    pub(super) fn lend(&self, stamp: &Stamp, to: &Path, always: bool, say: &Say) -> Result<bool, StoreError> {
        let blob = self.blob(&stamp.sha256);
        match fs::metadata(&blob) {
            Ok(meta) if is_sealed(&meta, stamp.bytes) && !always => {}
            Ok(_) if !self.still(&blob, stamp, say)? => return Ok(false),
            Ok(_) => {}
            Err(_) => return Ok(false),
        }
        to.parent().map_or(Ok(()), disk::make_folder)?;
        match fs::hard_link(&blob, to) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(link_over(&blob, to).is_ok()),
            // It was evicted just now, or has too many names.
            Err(_) => Ok(false),
        }
    }

    /// Reads a blob; one that is not what its name says goes. Blocks.
    pub(super) fn still(&self, blob: &Path, stamp: &Stamp, say: &Say) -> Result<bool, StoreError> {
        match disk::stamp(blob) {
            Ok(found) if found == *stamp => seal(blob, false).map(|()| true),
            Ok(found) => {
                say(&format!(
                    "the cached file {} is damaged (its SHA-256 is {} now): it is removed",
                    blob.display(),
                    found.sha256
                ));
                tracing::warn!(blob = %blob.display(), found = found.sha256, "damaged: removed from the cache");
                disk::remove(blob)?;
                Ok(false)
            }
            Err(_) if !blob.exists() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn whole(blob: &Path, bytes: u64) -> bool {
    fs::metadata(blob).is_ok_and(|meta| is_sealed(&meta, bytes))
}

/// Makes `to` another name of `from`'s file, whatever had the name.
fn link_over(from: &Path, to: &Path) -> io::Result<()> {
    let aside = to.with_file_name(disk::lot());
    fs::hard_link(from, &aside)?;
    let renamed = fs::rename(&aside, to);
    // Two names of one file: then nothing is renamed, and it stays.
    let removed = fs::remove_file(&aside);
    renamed.and_then(|()| removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }))
}

/// Makes `to` hold the bytes of `from`: by a second name, else by a copy of its own.
pub(super) fn second_name(from: &Path, to: &Path, executable: bool) -> Result<(), StoreError> {
    to.parent().map_or(Ok(()), disk::make_folder)?;
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    disk::copy(from, to, &Halt::never(), |_| {})?;
    seal(to, executable)
}

/// Bytes a file takes on its disk: a part under way has its full length from the start, as holes.
pub(super) fn taken(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}
