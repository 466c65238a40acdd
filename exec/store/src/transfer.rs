//! Files of a remote source into files: in chunks side by side, each going on where the line broke, and a process that
//! died in the middle is taken up where its last whole chunk ended.
//!
//! A file is written as `.mloc-pull/VERSION.part` and described by `.mloc-pull/NAME.json`: which version of the object
//! (ETag, size), which chunks are on the disk, and, once whole, its digest. Only then it gets its name.

mod one_stream;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use mloc_exec::failpoint;

use crate::{
    disk::{self, Halt, Stamp, off_thread},
    error::StoreError,
    meter::Meter,
    remote::{Digest, Object, Remote},
};

/// Folder of what is under way, below the one that is filled.
pub(crate) const UNDER_WAY: &str = ".mloc-pull";
/// Bytes of one request: a killed process loses at most so much per connection.
const CHUNK: u64 = 8 << 20;
/// Requests for chunks at once: one TCP connection does not fill a long line.
const AT_ONCE: usize = 4;
/// A file of up to so many bytes costs its round trip rather than its bytes.
const SMALL: u64 = 1 << 20;
/// Requests for small files at once.
const SMALL_AT_ONCE: usize = 16;
/// What is gathered before it is written to the disk.
const BLOCK: usize = 1 << 20;
/// How often a file that changes under our hands is begun again.
const RESTARTS: u32 = 3;

/// What is known of a file under way, on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    name: String,
    etag: Option<String>,
    bytes: u64,
    chunk: u64,
    /// Chunks that are durable.
    done: BTreeSet<u64>,
    /// Digest, once all of it is there.
    sha256: Option<String>,
    /// When the file had been written last as its digest was made: seconds and nanoseconds. A file of another moment
    /// is read again before it is believed.
    #[serde(default)]
    modified: Option<(i64, i64)>,
}

impl Part {
    fn fresh(object: &Object) -> Self {
        Self {
            name: object.name.clone(),
            etag: object.etag.clone(),
            bytes: object.bytes,
            chunk: CHUNK,
            done: BTreeSet::new(),
            sha256: None,
            modified: None,
        }
    }

    /// Whether this is of that version of that object. Without an ETag nothing says so, and it is begun again. Not every
    /// source says beforehand how large it is.
    fn is_of(&self, object: &Object) -> bool {
        let same_size = self.bytes == object.bytes || object.bytes == 0;
        self.etag.is_some() && (&self.name, &self.etag) == (&object.name, &object.etag) && same_size
    }

    fn range(&self, chunk: u64) -> std::ops::Range<u64> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.bytes)
    }

    fn is_one_chunk(&self) -> bool {
        self.bytes <= self.chunk
    }

    /// Chunks still to be fetched.
    fn missing(&self) -> Vec<u64> {
        (0..self.bytes.div_ceil(self.chunk)).filter(|c| !self.done.contains(c)).collect()
    }

    /// Bytes on the disk.
    fn there(&self) -> u64 {
        self.done.iter().map(|c| self.range(*c)).map(|r| r.end - r.start).sum()
    }
}

/// The three files of one transfer: description, bytes so far, and the name at last.
#[derive(Clone, Debug)]
struct Paths {
    state: PathBuf,
    part: PathBuf,
    whole: PathBuf,
}

impl Paths {
    fn of(object: &Object, folder: &Path) -> Result<Self, StoreError> {
        let name = disk::below(&object.name)
            .ok_or_else(|| StoreError::BadName { place: folder.display().to_string(), name: object.name.clone() })?;
        let id = |text: String| disk::stamp_bytes(text.as_bytes()).sha256[..16].to_owned();
        let way = folder.join(UNDER_WAY);
        Ok(Self {
            state: way.join(format!("{}.json", id(object.name.clone()))),
            // Another version has another file: a write of the last one may still be on its way to the disk.
            part: way.join(format!("{}.part", id(format!("{} {:?}", object.name, object.etag)))),
            whole: folder.join(name),
        })
    }

    /// What an earlier process left of this object; a fresh start when it left nothing of use. Reads a whole file again
    /// when somebody seems to have touched it.
    fn load(&self, object: &Object) -> Part {
        let state: Option<Part> = fs::read(&self.state).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(mut part) = state.filter(|part| part.is_of(object) && part.chunk > 0) else {
            return Part::fresh(object);
        };
        if self.still_whole(&mut part) {
            return part;
        }
        (part.sha256, part.modified) = (None, None);
        let there = fs::metadata(&self.part).is_ok_and(|m| m.len() == part.bytes);
        if there { part } else { Part::fresh(object) }
    }

    /// Whether the file under its name has the bytes that were fetched: it has size and time of then, or the digest.
    fn still_whole(&self, part: &mut Part) -> bool {
        let Some(sha256) = &part.sha256 else { return false };
        let Ok(meta) = fs::metadata(&self.whole) else { return false };
        if meta.len() != part.bytes {
            return false;
        }
        let modified = Some((meta.mtime(), meta.mtime_nsec()));
        if part.modified == modified {
            return true;
        }
        if !disk::stamp(&self.whole).is_ok_and(|stamp| stamp.sha256 == *sha256) {
            tracing::warn!(path = %self.whole.display(), "changed since it was fetched: it is fetched again");
            return false;
        }
        part.modified = modified;
        // Should it not be kept, it is read again the next time too.
        self.save(part).is_ok()
    }

    /// Of a file in one chunk it need not be durable: its bytes are, before this says so, and fetching it again costs
    /// less than two more writes for each of a thousand small files.
    fn save(&self, part: &Part) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(part).map_err(|e| StoreError::Disk {
            action: "describe",
            path: self.state.clone(),
            source: e.into(),
        })?;
        let write = if part.is_one_chunk() { disk::write_unsynced } else { disk::write };
        write(&self.state, &bytes, &Halt::never())
    }
}

/// How many bytes these objects will still take on the disk of a folder.
pub(crate) fn missing_bytes(objects: &[Object], folder: &Path) -> Result<u64, StoreError> {
    let mut missing = 0;
    for object in objects {
        let paths = Paths::of(object, folder)?;
        if paths.load(object).sha256.is_none() {
            // A part has its full length from the start, but as holes: only its blocks are taken.
            let taken = fs::metadata(&paths.part).map_or(0, |m| m.blocks() * 512);
            missing += object.bytes.saturating_sub(taken);
        }
    }
    Ok(missing)
}

/// Removes what a folder holds of objects that are not among these any more: files, what is known of them, and parts.
/// They would take room until the pull is done. Blocks.
pub(crate) fn remove_others(objects: &[Object], folder: &Path) -> Result<(), StoreError> {
    let paths: Vec<_> = objects.iter().map(|o| Paths::of(o, folder)).collect::<Result<_, _>>()?;
    let names: BTreeSet<&str> = objects.iter().map(|o| o.name.as_str()).collect();
    for old in disk::files_below(folder)?.into_iter().filter(|f| !names.contains(f.path.as_str())) {
        tracing::info!(file = old.path, folder = %folder.display(), "left its source: removed");
        disk::remove(&folder.join(&old.path))?;
    }
    let way = folder.join(UNDER_WAY);
    let ours: BTreeSet<&Path> = paths.iter().flat_map(|p| [p.state.as_path(), p.part.as_path()]).collect();
    for entry in fs::read_dir(&way).map_err(|e| StoreError::disk("list", &way, e))? {
        let path = entry.map_err(|e| StoreError::disk("list", &way, e))?.path();
        let known = path.extension().is_some_and(|e| e == "json" || e == "part");
        if known && !ours.contains(path.as_path()) {
            disk::remove(&path)?;
        }
    }
    Ok(())
}

/// A file that is there.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    /// The version that came.
    pub object: Object,
    /// Its bytes.
    pub stamp: Stamp,
}

/// Fetches objects into a folder. Files that are there already, in this version, are left as they are.
pub(crate) async fn fetch(
    remote: &dyn Remote,
    objects: &[Object],
    folder: &Path,
    meter: &Meter,
) -> Result<Vec<Fetched>, StoreError> {
    disk::make_folder(&folder.join(UNDER_WAY))?;
    let (lanes, small) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(SMALL_AT_ONCE)));
    let lane = |object: &Object| if object.bytes <= SMALL { &small } else { &lanes };
    // Collected first: as a lazy closure over references these futures could not be sent between threads.
    let files: Vec<_> = objects.iter().map(|object| fetch_file(remote, object, folder, meter, lane(object))).collect();
    stream::iter(files).buffered(AT_ONCE + SMALL_AT_ONCE).try_collect().await
}

/// One file, begun again when the object changes meanwhile.
async fn fetch_file(
    remote: &dyn Remote,
    object: &Object,
    folder: &Path,
    meter: &Meter,
    lanes: &Arc<Semaphore>,
) -> Result<Fetched, StoreError> {
    let paths = Paths::of(object, folder)?;
    let mut object = object.clone();
    let mut restarts = 0;
    let meter = &meter.of_one_file();
    loop {
        let part = {
            let (paths, object) = (paths.clone(), object.clone());
            off_thread(move || paths.load(&object)).await
        };
        if let Some(sha256) = part.sha256 {
            meter.found(part.bytes);
            object.bytes = part.bytes;
            return Ok(Fetched { object, stamp: Stamp { bytes: part.bytes, sha256 } });
        }
        let ended = if remote.one_stream() {
            one_stream::fetch(remote, &object, &paths, meter).await
        } else {
            meter.found(part.there());
            fetch_chunks(remote, &object, &paths, part, meter, lanes).await
        };
        match ended {
            Ok(stamp) => {
                object.bytes = stamp.bytes;
                return Ok(Fetched { object, stamp });
            }
            Err(StoreError::Changed { .. }) if restarts < RESTARTS => {
                restarts += 1;
                tracing::info!(place = remote.url(&object.name), "changed while it was read: the file is begun again");
                meter.start_over();
                object = remote.again(&object).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The missing chunks of one version of one object, then its digest and its name.
async fn fetch_chunks(
    remote: &dyn Remote,
    object: &Object,
    paths: &Paths,
    part: Part,
    meter: &Meter,
    lanes: &Semaphore,
) -> Result<Stamp, StoreError> {
    let file = {
        let (paths, part) = (paths.clone(), part.clone());
        off_thread(move || open_part(&paths, &part)).await?
    };
    let file = Arc::new(file);
    let missing: Vec<_> = part.missing().into_iter().map(|c| (c, part.range(c))).collect();
    let state = Arc::new(Mutex::new(part));
    let chunks = missing.into_iter().map(|(chunk, range)| {
        let (file, state) = (file.clone(), state.clone());
        async move {
            let Ok(_lane) = lanes.acquire().await else { return Ok(()) };
            fetch_range(remote, object, range, &file, &paths.part, meter).await?;
            let paths = paths.clone();
            off_thread(move || {
                file.sync_data().map_err(|e| StoreError::disk("sync", &paths.part, e))?;
                failpoint::reached("store.pull.chunk");
                let mut part = state.lock().unwrap_or_else(PoisonError::into_inner);
                part.done.insert(chunk);
                // Its only chunk: it gets its digest next, and is described then.
                if part.is_one_chunk() { Ok(()) } else { paths.save(&part) }
            })
            .await
        }
    });
    let all: Vec<()> = stream::iter(chunks).buffer_unordered(AT_ONCE).try_collect().await?;
    drop(all);
    let part = state.lock().unwrap_or_else(PoisonError::into_inner).clone();
    name_it(remote, object, paths, part).await
}

/// All bytes of it are on the disk: its digest, and then its name.
async fn name_it(remote: &dyn Remote, object: &Object, paths: &Paths, mut part: Part) -> Result<Stamp, StoreError> {
    // Servers that know no If-Match would have given us two halves of different files. Where the digest is known it
    // tells, without a request.
    if object.digest.is_none() {
        let now = remote.again(object).await?;
        if (&now.etag, now.bytes) != (&object.etag, object.bytes) {
            return Err(StoreError::Changed { place: remote.url(&object.name) });
        }
    }
    let (paths, must, place) = (paths.clone(), object.digest.clone(), remote.url(&object.name));
    off_thread(move || {
        let stamp = disk::stamp(&paths.part)?;
        if let Some(found) = must.map(|must| differs(&paths.part, &stamp, &must)).transpose()?.flatten() {
            // What lies here is not to be taken for whole by the next try.
            disk::remove(&paths.state)?;
            return Err(StoreError::Damaged { place, found });
        }
        part.sha256 = Some(stamp.sha256.clone());
        // Its name is given after this, which leaves the time as it is.
        part.modified = fs::metadata(&paths.part).ok().map(|m| (m.mtime(), m.mtime_nsec()));
        paths.save(&part)?;
        failpoint::reached("store.pull.whole");
        let folder = paths.whole.parent().unwrap_or(&paths.whole);
        disk::make_folder(folder)?;
        fs::rename(&paths.part, &paths.whole).map_err(|e| StoreError::disk("rename", &paths.whole, e))?;
        failpoint::reached("store.pull.renamed");
        if !part.is_one_chunk() {
            disk::sync_folder(folder)?;
        }
        Ok(stamp)
    })
    .await
}

/// What a file has for a digest, when it is another one than it must have.
fn differs(path: &Path, stamp: &Stamp, must: &Digest) -> Result<Option<String>, StoreError> {
    let (what, found, must) = match must {
        Digest::Sha256(must) => ("SHA-256", stamp.sha256.clone(), must),
        Digest::GitBlob(must) => ("git blob", disk::git_blob(path)?, must),
    };
    Ok((found != *must).then(|| format!("its {what} is {found}, not {must}")))
}

/// The file chunks are written to, at its full length.
fn open_part(paths: &Paths, part: &Part) -> Result<File, StoreError> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&paths.part);
    let file = file.map_err(|e| StoreError::disk("create", &paths.part, e))?;
    file.set_len(part.bytes).map_err(|e| StoreError::disk("size", &paths.part, e))?;
    Ok(file)
}

/// One range, going on from the last byte that came whenever the line breaks.
async fn fetch_range(
    remote: &dyn Remote,
    object: &Object,
    range: std::ops::Range<u64>,
    file: &Arc<File>,
    path: &Path,
    meter: &Meter,
) -> Result<(), StoreError> {
    let patience = remote.patience();
    let (mut at, mut failures) = (range.start, 0);
    while at < range.end {
        let from = at;
        let ended = read_on(remote, object, &mut at, range.end, file, path, meter).await;
        let Err(error) = ended else { break };
        failures = if at > from { 1 } else { failures + 1 };
        let Some(wait) = patience.wait_for(&error, failures) else { return Err(error.after(failures)) };
        tracing::debug!(place = remote.url(&object.name), at, %error, ?wait, "the line broke; going on");
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// Reads and writes until the end of the range or of the line; `at` says how far it came.
async fn read_on(
    remote: &dyn Remote,
    object: &Object,
    at: &mut u64,
    end: u64,
    file: &Arc<File>,
    path: &Path,
    meter: &Meter,
) -> Result<(), StoreError> {
    let mut stream = remote.read(object, *at..end).await?;
    let mut held = Vec::with_capacity(BLOCK);
    loop {
        let next = stream.try_next().await;
        if let Ok(Some(bytes)) = &next {
            meter.pass(bytes.len() as u64).await;
            let room = (end - *at) as usize - held.len();
            held.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        // A server without ranges sends all that follows: what nobody asked for is not waited for.
        let full = *at + held.len() as u64 == end;
        let over = full || !matches!(next, Ok(Some(_)));
        if held.len() >= BLOCK || (over && !held.is_empty()) {
            let (block, offset, file, path) = (std::mem::take(&mut held), *at, file.clone(), path.to_owned());
            let written = block.len() as u64;
            off_thread(move || file.write_all_at(&block, offset).map_err(|e| StoreError::disk("write", &path, e)))
                .await?;
            *at += written;
            meter.moved(written);
        }
        if full {
            return Ok(());
        }
        match next {
            Ok(Some(_)) => {}
            Ok(None) => return Err(remote.cut_short(object, *at)),
            Err(error) => return Err(error),
        }
    }
}
