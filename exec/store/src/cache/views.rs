//! Sources as folders of plain files, each in one version.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mloc_core::task::spec::{Location, Pin};
use mloc_exec::failpoint;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use serde::{Deserialize, Serialize};

use super::{
    Cache, Say, Verify,
    blobs::{is_sealed, second_name},
    lock::{Hold, Tried, try_lock},
    source_key, view_key,
};
use crate::{
    disk::{self, Halt, Stamp},
    error::StoreError,
    pull::{Pulled, PulledFile},
};

/// Below a view's folder.
pub(super) const FILES: &str = "files";
pub(super) const MARKER: &str = "view.json";
pub(super) const IN_USE: &str = "in-use";
/// Version of [`Marker`]'s file.
pub(super) const FORMAT: u32 = 1;
/// A marker of a million files and more.
const MARKER_BYTES_MAX: u64 = 1 << 30;
/// An eviction gives a view another name within microseconds; one that takes longer has gone wrong.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const LOOKS_MAX: usize = 100;

/// What a view must hold. It is written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub format: u32,
    /// Where it came from.
    pub source: Location,
    /// The same for people.
    pub place: String,
    /// In which version.
    pub pin: Pin,
    /// Whether the source is itself the one file.
    pub one: bool,
    /// Whether the version tells contents apart. Where the other side has no word for versions, only a task that was
    /// pinned to this one may have it again without asking.
    pub exact: bool,
    /// Sorted by path.
    pub files: Vec<Marked>,
    /// Path and target of symbolic links; whoever pulled them has seen to it that they stay inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<(String, String)>,
}

/// A file of a view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marked {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// What the other side called this content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Whether it can be executed. A mode is the file's and not the name's: such a file is the view's own, and no blob.
    #[serde(default, skip_serializing_if = "is_false")]
    pub executable: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Marked {
    pub fn stamp(&self) -> Stamp {
        Stamp { bytes: self.bytes, sha256: self.sha256.clone() }
    }
}

impl Marker {
    /// The marker of a view's folder, when it has one this build understands.
    pub fn read(view: &Path) -> Option<Self> {
        let bytes = disk::read(&view.join(MARKER), MARKER_BYTES_MAX).ok()??;
        let marker: Self = serde_json::from_slice(&bytes).ok()?;
        let mut names = marker.files.iter().map(|f| &f.path).chain(marker.links.iter().map(|(path, _)| path));
        let sane = marker.format == FORMAT && names.all(|name| disk::below(name).is_some());
        sane.then_some(marker)
    }

    fn write(&self, view: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|e| StoreError::Disk {
            action: "describe",
            path: view.join(MARKER),
            source: e.into(),
        })?;
        disk::write(&view.join(MARKER), &bytes, &Halt::never())
    }

    fn pulled(self, view: &Path, held: Arc<File>, fetched: u64) -> Pulled {
        let files = view.join(FILES);
        let path = match self.files.first().filter(|_| self.one) {
            Some(file) => files.join(&file.path),
            None => files,
        };
        let bytes = self.files.iter().map(|f| f.bytes).sum();
        let file = |f: Marked| PulledFile { path: f.path, bytes: f.bytes, sha256: Some(f.sha256) };
        let files = self.files.into_iter().map(file).collect();
        Pulled { path, in_place: false, files, bytes, fetched, pin: Some(self.pin), held: Some(held) }
    }
}

impl Cache {
    /// A source in a version, when it is here and whole. `asked` says that the other side was asked just now which
    /// version is newest: then one without a word for versions is not believed. Waits for nobody. Blocks.
    pub(super) fn find(
        &self,
        source: &Location,
        pin: &Pin,
        asked: bool,
        say: &Say,
    ) -> Result<Option<Pulled>, StoreError> {
        let view = self.views().join(view_key(source, pin));
        let Some(mark) = use_it(&view.join(IN_USE))? else { return Ok(None) };
        let Some(marker) = Marker::read(&view).filter(|m| m.source == *source && m.pin == *pin) else {
            return Ok(None);
        };
        if (asked && !marker.exact) || !self.is_whole(&view, &marker, say)? {
            return Ok(None);
        }
        // When it was used last; should it not be noted, it is evicted a little earlier.
        if let Err(error) = mark.set_modified(SystemTime::now()) {
            tracing::debug!(view = %view.display(), %error, "its use is not noted");
        }
        Ok(Some(marker.pulled(&view, Arc::new(mark), 0)))
    }

    /// The version of a source that was placed last, of those that are whole and `wanted`. Blocks.
    pub(super) fn find_newest(
        &self,
        source: &Location,
        wanted: impl Fn(&Pin) -> bool,
        say: &Say,
    ) -> Result<Option<Pulled>, StoreError> {
        let prefix = format!("{}-", source_key(source));
        let views = disk::folders(&self.views())?.into_iter().filter(|name| name.starts_with(&prefix));
        let mut placed: Vec<_> = views
            .filter_map(|name| {
                let view = self.views().join(name);
                let at = fs::metadata(view.join(MARKER)).and_then(|meta| meta.modified()).ok()?;
                Some((at, Marker::read(&view)?.pin)).filter(|(_, pin)| wanted(pin))
            })
            .collect();
        placed.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (_, pin) in placed {
            if let Some(there) = self.find(source, &pin, false, say)? {
                return Ok(Some(there));
            }
        }
        Ok(None)
    }

    /// Looks at every file; those that were touched are read. Damaged contents lose their names as blobs.
    fn is_whole(&self, view: &Path, marker: &Marker, say: &Say) -> Result<bool, StoreError> {
        let always = self.config.verify == Verify::Always;
        if always {
            say(&format!("reading its {} files in the cache, as cache.verify asks", marker.files.len()));
        }
        let mut whole = true;
        for file in &marker.files {
            whole &= self.is_whole_file(view, file, always, say)?;
        }
        for (path, target) in &marker.links {
            if fs::read_link(view.join(FILES).join(path)).is_ok_and(|there| there == Path::new(target)) {
                continue;
            }
            say(&format!("the cached link {path} does not lead to {target} any more"));
            whole = false;
        }
        Ok(whole)
    }

    /// Whether one file of a view has the bytes it must have; read when it was touched, or `always`.
    pub(super) fn is_whole_file(
        &self,
        view: &Path,
        file: &Marked,
        always: bool,
        say: &Say,
    ) -> Result<bool, StoreError> {
        let path = view.join(FILES).join(&file.path);
        let found = match fs::metadata(&path) {
            Ok(meta) if is_sealed(&meta, file.bytes) && !always => return Ok(true),
            Ok(meta) if meta.is_file() && meta.len() == file.bytes => disk::stamp(&path)?.sha256,
            Ok(meta) => format!("another size, {} bytes", meta.len()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => "missing".into(),
            Err(e) => return Err(StoreError::disk("look at", &path, e)),
        };
        if found == file.sha256 {
            return super::blobs::seal(&path, file.executable).map(|()| true);
        }
        say(&format!("the cached file {} is damaged ({found}; it must be {})", file.path, file.sha256));
        tracing::warn!(path = %path.display(), found, must = file.sha256, "damaged in the cache");
        // Its blob is the same file, or another that deserves a look.
        let blob = self.blob(&file.sha256);
        if blob.exists() {
            self.still(&blob, &file.stamp(), say)?;
        }
        Ok(false)
    }

    /// What is known of a source's contents by what the other side calls them: from its views in other versions.
    pub(super) fn known(&self, source: &Location) -> Result<BTreeMap<(String, String, u64), String>, StoreError> {
        let prefix = format!("{}-", source_key(source));
        let mut known = BTreeMap::new();
        for name in disk::folders(&self.views())?.into_iter().filter(|name| name.starts_with(&prefix)) {
            let Some(marker) = Marker::read(&self.views().join(name)) else { continue };
            known.extend(
                marker.files.into_iter().filter_map(|f| f.etag.map(|etag| ((f.path, etag, f.bytes), f.sha256))),
            );
        }
        Ok(known)
    }

    /// Makes a view of files that lie in `from`, sealed and known as blobs, in `pull`'s folder for it; then gives it its
    /// name. Whoever has the lock of the pull calls this. Blocks.
    pub(super) fn place(&self, marker: Marker, from: &Path, new: &Path, fetched: u64) -> Result<Pulled, StoreError> {
        disk::remove_all(new)?;
        let files = new.join(FILES);
        disk::make_folder(&files)?;
        let mut folders = BTreeSet::from([files.clone()]);
        for file in &marker.files {
            let to = files.join(&file.path);
            second_name(&from.join(&file.path), &to, file.executable)?;
            folders.extend(to.ancestors().skip(1).take_while(|p| p.starts_with(&files)).map(Path::to_owned));
        }
        // Last: nothing is ever written through one.
        for (path, target) in &marker.links {
            let link = files.join(path);
            link.parent().map_or(Ok(()), disk::make_folder)?;
            symlink(target, &link).map_err(|e| StoreError::disk("link", &link, e))?;
            folders.extend(link.ancestors().skip(1).take_while(|p| p.starts_with(&files)).map(Path::to_owned));
        }
        folders.iter().try_for_each(|folder| disk::sync_folder(folder))?;
        let view = self.views().join(view_key(&marker.source, &marker.pin));
        let mark = Arc::new(self.mark(&view, new)?);
        marker.write(new)?;
        disk::make_folder(&self.views())?;
        failpoint::reached("store.cache.built");
        rename_into(new, &view)?;
        failpoint::reached("store.cache.placed");
        disk::sync_folder(&self.views())?;
        // What had the name before is where the new one was made.
        disk::remove_all(new)?;
        Ok(marker.pulled(&view, mark, fetched))
    }

    /// The mark of those who use a view that is being made. Where a damaged one is in use, its users keep theirs: it is
    /// the same mark.
    fn mark(&self, old: &Path, new: &Path) -> Result<File, StoreError> {
        let path = new.join(IN_USE);
        if let Tried::Held(mark) = try_lock(&old.join(IN_USE), Hold::Shared, false)?
            && fs::hard_link(old.join(IN_USE), &path).is_ok()
        {
            mark.set_modified(SystemTime::now()).map_err(|e| StoreError::disk("touch", &path, e))?;
            return Ok(mark);
        }
        match try_lock(&path, Hold::Shared, true)? {
            Tried::Held(mark) => Ok(mark),
            Tried::Busy | Tried::Gone => {
                let source = io::Error::new(io::ErrorKind::ResourceBusy, "somebody else has locked a new file");
                Err(StoreError::disk("lock", &path, source))
            }
        }
    }
}

/// The mark of one who uses a view. Only who evicts it refuses, until it has lost its name.
fn use_it(path: &Path) -> Result<Option<File>, StoreError> {
    for _ in 0..LOOKS_MAX {
        match try_lock(path, Hold::Shared, false)? {
            Tried::Held(mark) => return Ok(Some(mark)),
            Tried::Gone => return Ok(None),
            Tried::Busy => std::thread::sleep(LOOK_AGAIN),
        }
    }
    Ok(None)
}

/// Gives a folder a name. What had it before is at `new` afterwards, or gone; there is no moment without either.
fn rename_into(new: &Path, to: &Path) -> Result<(), StoreError> {
    let rename = |flags| renameat2(AT_FDCWD, new, AT_FDCWD, to, flags);
    loop {
        match rename(RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => return rename_plainly(new, to),
            Err(e) => return Err(StoreError::disk("rename", to, e.into())),
        }
        match rename(RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => return Ok(()),
            // It was evicted just now.
            Err(Errno::ENOENT) if new.exists() => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => return rename_plainly(new, to),
            Err(e) => return Err(StoreError::disk("rename", to, e.into())),
        }
    }
}

/// The same on file systems that cannot exchange: with a moment in between.
fn rename_plainly(new: &Path, to: &Path) -> Result<(), StoreError> {
    let aside: PathBuf = to.with_file_name(disk::lot());
    match fs::rename(to, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::disk("move away", to, e)),
        _ => {}
    }
    fs::rename(new, to).map_err(|e| StoreError::disk("rename", to, e))?;
    disk::remove_all(&aside)
}
