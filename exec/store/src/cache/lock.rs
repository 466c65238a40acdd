//! Locks between processes, on files that may be removed by whoever holds them alone. A lock goes with its process.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::{disk, error::StoreError};

/// Who else may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Others who hold it shared.
    Shared,
    /// Nobody.
    Alone,
}

/// What a try came to.
#[derive(Debug)]
pub(super) enum Tried {
    Held(File),
    /// Somebody else holds it in a way that excludes this one.
    Busy,
    /// There is no such file.
    Gone,
}

/// Tries to lock the file that has this name now; a missing one is made when `create` says so.
pub(super) fn try_lock(path: &Path, hold: Hold, create: bool) -> Result<Tried, StoreError> {
    loop {
        if create {
            path.parent().map_or(Ok(()), disk::make_folder)?;
        }
        // Writable, for file systems over a network that lock alone only what can be written.
        let opened = File::options().read(true).write(true).create(create).truncate(false).open(path);
        let file = match opened {
            Ok(file) => file,
            // Its folder was moved away between the two lines above.
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Tried::Gone),
            Err(e) => return Err(StoreError::disk("open", path, e)),
        };
        let tried = match hold {
            Hold::Shared => file.try_lock_shared(),
            Hold::Alone => file.try_lock(),
        };
        match tried {
            // The holder before may have removed it: then this is a lock on nothing.
            Ok(()) if has_the_name(path, &file) => return Ok(Tried::Held(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Tried::Busy),
            Err(TryLockError::Error(e)) => return Err(StoreError::disk("lock", path, e)),
        }
    }
}

fn has_the_name(path: &Path, file: &File) -> bool {
    let (Ok(named), Ok(held)) = (fs::metadata(path), file.metadata()) else { return false };
    (named.dev(), named.ino()) == (held.dev(), held.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_on_a_removed_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock");
        assert!(matches!(try_lock(&path, Hold::Shared, false).unwrap(), Tried::Gone));
        let Tried::Held(one) = try_lock(&path, Hold::Shared, true).unwrap() else { panic!() };
        assert!(matches!(try_lock(&path, Hold::Shared, false).unwrap(), Tried::Held(_)));
        assert!(matches!(try_lock(&path, Hold::Alone, false).unwrap(), Tried::Busy));
        // It loses its name while it is held; who comes later gets a new one.
        fs::remove_file(&path).unwrap();
        assert!(matches!(try_lock(&path, Hold::Shared, false).unwrap(), Tried::Gone));
        let Tried::Held(two) = try_lock(&path, Hold::Alone, true).unwrap() else { panic!() };
        assert!(!has_the_name(&path, &one) && has_the_name(&path, &two));
    }
}
