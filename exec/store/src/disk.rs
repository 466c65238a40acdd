//! Files of this machine: written whole or not at all, and durable when it is said so.
//!
//! All functions block; async callers go through [`off_thread`].

use std::{
    collections::hash_map::RandomState,
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use sha2::{Digest, Sha256};

use mloc_exec::failpoint;

use crate::error::StoreError;

/// How much is read or written at once.
pub(crate) const BLOCK: usize = 1 << 20;

/// Size and digest of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Runs blocking work on the pool for it. A panic there is passed on.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(gone) if gone.is_panic() => std::panic::resume_unwind(gone.into_panic()),
        // Only at the runtime's shutdown: the caller is being dropped as well.
        Err(_) => std::future::pending().await,
    }
}

/// Tells blocking work that nobody waits for it any more. A thread cannot be dropped as its future can.
#[derive(Clone, Debug, Default)]
pub(crate) struct Halt(Arc<AtomicBool>);

impl Halt {
    /// Work that always comes to its end.
    pub fn never() -> Self {
        Self::default()
    }

    /// An error once nobody waits: before each block, and before a name is given.
    pub(crate) fn check(&self, path: &Path) -> Result<(), StoreError> {
        if self.0.load(Ordering::SeqCst) {
            let source = io::Error::new(io::ErrorKind::Interrupted, "the transfer was stopped");
            return Err(StoreError::Disk { action: "go on with", path: path.to_owned(), source });
        }
        Ok(())
    }
}

/// As [`off_thread`]; dropped, it tells the work to halt at its next block. The work itself may outlive the drop by
/// that block: who must know when it is over lets it hold something that says so.
pub(crate) async fn until_dropped<T: Send + 'static>(work: impl FnOnce(&Halt) -> T + Send + 'static) -> T {
    struct OnDrop(Halt);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.0.store(true, Ordering::SeqCst);
        }
    }
    let halt = Halt::default();
    let _stop = OnDrop(halt.clone());
    off_thread(move || work(&halt)).await
}

/// A name from elsewhere as a path below some folder; `None` when it would lead out of it or into our own files.
pub fn below(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(name);
    let plain = name.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.starts_with(".mloc-"));
    let normal = path.components().all(|c| matches!(c, Component::Normal(_)));
    (plain && normal && !name.contains(['\\', '\0', '\n'])).then_some(path)
}

/// Makes a folder's entries durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| StoreError::disk("sync", folder, e))?;
    failpoint::reached("store.folder.synced");
    Ok(())
}

/// Makes a folder and those above it, each durable.
pub(crate) fn make_folder(folder: &Path) -> Result<(), StoreError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => folder.parent().map_or(Ok(()), sync_folder),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(StoreError::disk("make folder", folder, e)),
    }
}

/// Digest and size of a file.
pub fn stamp(path: &Path) -> Result<Stamp, StoreError> {
    let mut file = File::open(path).map_err(|e| StoreError::disk("open", path, e))?;
    pass_through(path, &mut file, |_| Ok(()))
}

/// Digest and size of some bytes.
pub(crate) fn stamp_bytes(bytes: &[u8]) -> Stamp {
    Stamp { bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(bytes)) }
}

/// What git calls a file's bytes.
pub(crate) fn git_blob(path: &Path) -> Result<String, StoreError> {
    use sha1::Sha1;
    let file = File::open(path).map_err(|e| StoreError::disk("open", path, e))?;
    let bytes = file.metadata().map_err(|e| StoreError::disk("look at", path, e))?.len();
    let mut hasher = Sha1::new_with_prefix(format!("blob {bytes}\0"));
    io::copy(&mut io::BufReader::with_capacity(BLOCK, file), &mut hasher)
        .map_err(|e| StoreError::disk("read", path, e))?;
    Ok(hex::encode(hasher.finalize()))
}

/// Reads a file to its end, block by block, with its digest.
fn pass_through(
    path: &Path,
    from: &mut impl Read,
    mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<Stamp, StoreError> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut block = vec![0; BLOCK];
    loop {
        let n = from.read(&mut block).map_err(|e| StoreError::disk("read", path, e))?;
        if n == 0 {
            return Ok(Stamp { bytes, sha256: hex::encode(hasher.finalize()) });
        }
        hasher.update(&block[..n]);
        each(&block[..n])?;
        bytes += n as u64;
    }
}

/// Where a file is written before it gets its name.
fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(lot())
}

/// A name for something aside. Drawn by lot: process numbers are the same in all containers that share a volume, and two
/// writers of one name must not share a temporary.
pub(crate) fn lot() -> String {
    let lot = RandomState::new().build_hasher().finish();
    format!(".mloc-{lot:016x}-{}.tmp", std::process::id())
}

/// Copies a file under a name, whole or not at all, durable but for the folder's entry. What had the name is replaced.
pub(crate) fn copy(from: &Path, to: &Path, halt: &Halt, mut moved: impl FnMut(u64)) -> Result<Stamp, StoreError> {
    let mut source = File::open(from).map_err(|e| StoreError::disk("open", from, e))?;
    let temp = temporary(to);
    let mut fill = || {
        halt.check(&temp)?;
        let mut target = File::create(&temp).map_err(|e| StoreError::disk("create", &temp, e))?;
        let stamp = pass_through(from, &mut source, |block| {
            halt.check(&temp)?;
            target.write_all(block).map_err(|e| StoreError::disk("write", &temp, e))?;
            moved(block.len() as u64);
            Ok(())
        })?;
        failpoint::reached("store.file.written");
        halt.check(&temp)?;
        target.sync_all().map_err(|e| StoreError::disk("sync", &temp, e))?;
        failpoint::reached("store.file.synced");
        halt.check(&temp)?;
        fs::rename(&temp, to).map_err(|e| StoreError::disk("rename", to, e))?;
        Ok(stamp)
    };
    let stamp = fill().inspect_err(|_| drop(fs::remove_file(&temp)))?;
    failpoint::reached("store.file.renamed");
    Ok(stamp)
}

/// Writes bytes under a name, whole or not at all, and durable with the folder's entry.
pub(crate) fn write(to: &Path, bytes: &[u8], halt: &Halt) -> Result<(), StoreError> {
    let temp = write_temporary(to, bytes, halt)?;
    fs::rename(&temp, to).map_err(|e| StoreError::disk("rename", to, e))?;
    failpoint::reached("store.file.renamed");
    to.parent().map_or(Ok(()), sync_folder)
}

/// As [`write()`], but a power failure may leave what was there before, or an empty or damaged file: for what is only
/// believed when it can be read, and can be had again.
pub(crate) fn write_unsynced(to: &Path, bytes: &[u8], halt: &Halt) -> Result<(), StoreError> {
    let temp = temporary(to);
    let fill = || {
        halt.check(&temp)?;
        fs::write(&temp, bytes).map_err(|e| StoreError::disk("write", &temp, e))?;
        failpoint::reached("store.file.written");
        fs::rename(&temp, to).map_err(|e| StoreError::disk("rename", to, e))
    };
    fill().inspect_err(|_| drop(fs::remove_file(&temp)))?;
    failpoint::reached("store.file.renamed");
    Ok(())
}

/// As [`write()`], but only where nothing has the name yet: `false` when something has.
pub(crate) fn write_new(to: &Path, bytes: &[u8], halt: &Halt) -> Result<bool, StoreError> {
    let temp = write_temporary(to, bytes, halt)?;
    let mut placed = renameat2(AT_FDCWD, &temp, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    if matches!(placed, Err(Errno::EINVAL | Errno::ENOSYS)) {
        // NFS and some others cannot rename so, but can link.
        placed = match fs::hard_link(&temp, to) {
            Ok(()) => Ok(()),
            Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32))),
        };
        drop(fs::remove_file(&temp));
    }
    match placed {
        Ok(()) => {
            failpoint::reached("store.manifest.placed");
            to.parent().map_or(Ok(()), sync_folder)?;
            Ok(true)
        }
        Err(Errno::EEXIST) => {
            drop(fs::remove_file(&temp));
            Ok(false)
        }
        Err(e) => Err(StoreError::disk("place", to, e.into())),
    }
}

/// The bytes aside, durable, ready for their name.
fn write_temporary(to: &Path, bytes: &[u8], halt: &Halt) -> Result<PathBuf, StoreError> {
    let temp = temporary(to);
    let fill = || {
        halt.check(&temp)?;
        let mut file = File::create(&temp).map_err(|e| StoreError::disk("create", &temp, e))?;
        file.write_all(bytes).map_err(|e| StoreError::disk("write", &temp, e))?;
        failpoint::reached("store.file.written");
        file.sync_all().map_err(|e| StoreError::disk("sync", &temp, e))?;
        failpoint::reached("store.file.synced");
        halt.check(&temp)
    };
    fill().inspect_err(|_| drop(fs::remove_file(&temp)))?;
    Ok(temp)
}

/// A small file, whole; `None` when there is none.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(StoreError::disk("open", path, e)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| StoreError::disk("read", path, e))?;
    if bytes.len() as u64 > bytes_max {
        let found = format!("larger than {bytes_max} bytes");
        return Err(StoreError::Damaged { place: path.display().to_string(), found });
    }
    Ok(Some(bytes.into()))
}

/// Names of the folders right below a folder, sorted; none when it does not exist.
pub(crate) fn folders(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::disk("list", path, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::disk("list", path, e))?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes one file; not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::disk("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a folder with all in it; not there is fine.
pub(crate) fn remove_all(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::disk("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes what dead writers left among the files of a folder: the temporaries of [`copy`] and [`write()`].
pub(crate) fn sweep(folder: &Path, halt: &Halt) -> Result<(), StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // Whoever died had not come so far.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::disk("list", folder, e)),
    };
    for entry in entries {
        halt.check(folder)?;
        let entry = entry.map_err(|e| StoreError::disk("list", folder, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".mloc-") && name.ends_with(".tmp") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// A file below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Path below the folder, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// All files below a folder, sorted; links are followed, `.mloc-*` are ours and left out.
pub fn files_below(folder: &Path) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    let mut left = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((here, prefix, depth)) = left.pop() {
        let entries = fs::read_dir(&here).map_err(|e| StoreError::disk("list", &here, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| StoreError::disk("list", &here, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".mloc-") {
                continue;
            }
            let path = entry.path();
            let meta = fs::metadata(&path).map_err(|e| StoreError::disk("look at", &path, e))?;
            let relative = format!("{prefix}{name}");
            // A link to a folder above would go round for ever.
            if meta.is_dir() && depth < 32 {
                left.push((path, format!("{relative}/"), depth + 1));
            } else if meta.is_file() {
                found.push(Found { path: relative, bytes: meta.len() });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        for good in ["a", "a/b.txt", "tokenizer.json", ".gitattributes", "a/..b"] {
            assert!(below(good).is_some(), "{good} was refused");
        }
        for bad in ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "./a", "a\\b", "a\0b", ".mloc-pull/x"] {
            assert!(below(bad).is_none(), "{bad:?} was taken");
        }
    }

    /// The names that `git hash-object` gives.
    #[test]
    fn files_have_the_names_that_git_gives_them() {
        let dir = tempfile::tempdir().unwrap();
        for (text, want) in [
            ("", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
            ("test content\n", "d670460b4b4aece5915caf5c68d12f560a9fe3e4"),
        ] {
            fs::write(dir.path().join("f"), text).unwrap();
            assert_eq!(git_blob(&dir.path().join("f")).unwrap(), want);
        }
    }

    #[test]
    fn a_new_file_is_placed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        assert!(write_new(&path, b"one", &Halt::never()).unwrap());
        assert!(!write_new(&path, b"two", &Halt::never()).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "temporaries stay behind");
    }

    #[test]
    fn halted_work_gives_no_name_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, vec![7; 3 * BLOCK]).unwrap();
        let halt = Halt::default();
        let mut moved = 0;
        let stopped = copy(&from, &to, &halt, |bytes| {
            moved += bytes;
            halt.0.store(true, Ordering::SeqCst);
        });
        assert!(stopped.is_err() && moved == BLOCK as u64, "{stopped:?} after {moved} bytes");
        assert!(write_new(&to, b"x", &halt).is_err() && write(&to, b"x", &halt).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["from"]);
    }

    #[test]
    fn no_two_writers_share_a_temporary() {
        let path = Path::new("/shared/model.safetensors");
        let all: std::collections::BTreeSet<_> = (0..100).map(|_| temporary(path)).collect();
        assert_eq!(all.len(), 100);
    }
}
