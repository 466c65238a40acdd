//! A plan onto the disk: beside its place, then under its name in one step, so that it is whole or not there. Blocks.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use mloc_core::task::spec::Pin;
use mloc_exec::failpoint;
use serde::{Deserialize, Serialize};

use super::{objects::Objects, tree::Plan};
use crate::{
    cache::FilledFile,
    disk::{self, Halt, Stamp},
    error::StoreError,
};

/// What of a source lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The commit.
    pub commit: String,
    /// The folder with its files, beside `.mloc-pull`.
    pub folder: String,
    /// Whether the source is the one file.
    pub one: bool,
    /// The files.
    pub files: Vec<Written>,
    /// Path and target of symbolic links.
    #[serde(default)]
    pub links: Vec<(String, String)>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    path: String,
    bytes: u64,
    sha256: String,
    #[serde(default)]
    executable: bool,
    /// When it had been written, in seconds and nanoseconds: a file of another moment is read before it is believed.
    modified: (i64, i64),
}

impl Record {
    /// What an earlier pull left of this commit, if nobody has touched it.
    pub fn read(path: &Path, below: &Path, commit: &str) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let folder = below.join(&record.folder);
        let same = |file: &Written| {
            let path = folder.join(&file.path);
            fs::symlink_metadata(&path).is_ok_and(|meta| {
                let untouched = || (meta.mtime(), meta.mtime_nsec()) == file.modified;
                // A pull that died while the cache took its files over has touched some.
                let unchanged = || disk::stamp(&path).is_ok_and(|stamp| stamp.sha256 == file.sha256);
                meta.is_file() && meta.len() == file.bytes && (untouched() || unchanged())
            })
        };
        (record.commit == commit && record.files.iter().all(same)).then_some(record)
    }

    /// Makes it durable.
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|e| StoreError::Disk {
            action: "describe",
            path: path.to_owned(),
            source: e.into(),
        })?;
        disk::write(path, &bytes, &Halt::never())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What it is.
    pub fn pin(&self) -> Pin {
        Pin { version: self.commit.clone(), files: self.files.len() as u64, bytes: self.bytes() }
    }

    /// As a shelf takes them.
    pub fn filled(&self) -> Vec<FilledFile> {
        let file = |f: &Written| FilledFile {
            name: f.path.clone(),
            etag: None,
            stamp: Stamp { bytes: f.bytes, sha256: f.sha256.clone() },
            executable: f.executable,
        };
        self.files.iter().map(file).collect()
    }
}

/// Writes a plan into a new folder, links last: nothing is ever written through one. Large files lie in `large` under
/// their digests; files of the same bytes may be one, as in the cache.
pub(super) fn write(
    plan: &Plan,
    objects: &mut Objects,
    large: &Path,
    into: &Path,
    halt: &Halt,
) -> Result<Vec<Written>, StoreError> {
    disk::remove_all(into)?;
    disk::make_folder(into)?;
    let mut written = Vec::with_capacity(plan.files.len());
    let mut bytes = Vec::new();
    let mut there = PathBuf::new();
    for file in &plan.files {
        let path = into.join(&file.path);
        if let Some(folder) = path.parent().filter(|folder| *folder != there) {
            fs::create_dir_all(folder).map_err(|e| StoreError::disk("make folder", folder, e))?;
            folder.clone_into(&mut there);
        }
        halt.check(&path)?;
        let (size, sha256) = match &file.pointer {
            Some(pointer) => {
                place_large(&large.join(&pointer.oid), &path, file.executable)?;
                (pointer.bytes, pointer.oid.clone())
            }
            None => {
                objects.get(&file.id, &mut bytes)?;
                let mode = if file.executable { 0o755 } else { 0o644 };
                let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
                let mut open = open.map_err(|e| StoreError::disk("create", &path, e))?;
                open.write_all(&bytes).map_err(|e| StoreError::disk("write", &path, e))?;
                (bytes.len() as u64, disk::stamp_bytes(&bytes).sha256)
            }
        };
        let meta = fs::metadata(&path).map_err(|e| StoreError::disk("look at", &path, e))?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        let executable = file.executable;
        written.push(Written { path: file.path.clone(), bytes: size, sha256, executable, modified });
    }
    for (name, target) in &plan.links {
        let path = into.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| StoreError::disk("make folder", folder, e))?;
        }
        symlink(target, &path).map_err(|e| StoreError::disk("link", &path, e))?;
    }
    Ok(written)
}

/// Another name of the fetched file; a mode is the file's and not the name's, so that one that can be executed is a copy.
fn place_large(from: &Path, to: &Path, executable: bool) -> Result<(), StoreError> {
    if !executable && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(|e| StoreError::disk("copy", to, e))?;
    let mode = fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 });
    fs::set_permissions(to, mode).map_err(|e| StoreError::disk("set the mode of", to, e))
}

/// Gives a written folder its name, durable with all in it.
pub(super) fn place(written: &Path, to: &Path) -> Result<(), StoreError> {
    // One for all: thousands of files would be thousands of waits.
    let folder = fs::File::open(written).map_err(|e| StoreError::disk("open", written, e))?;
    nix::unistd::syncfs(&folder).map_err(|e| StoreError::disk("sync", written, e.into()))?;
    failpoint::reached("store.git.written");
    disk::remove_all(to)?;
    fs::rename(written, to).map_err(|e| StoreError::disk("rename", to, e))?;
    failpoint::reached("store.git.placed");
    to.parent().map_or(Ok(()), disk::sync_folder)
}
