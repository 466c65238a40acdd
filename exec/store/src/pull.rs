//! A model, data set or adapter to where the attempt can open it.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use mloc_core::task::spec::{Location, Pin};
use mloc_exec::{MakeRoom, OnMoved};

use crate::{
    Store,
    disk::{self, off_thread},
    error::StoreError,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    meter::Meter,
    place::Source,
    remote::{Object, Remote},
    transfer::{self, Fetched},
};

/// How often a pull looks whether another one of the same source is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A source that can be opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulled {
    /// The folder, or the file where the source is one file.
    pub path: PathBuf,
    /// Whether this is the source itself: it must not be written to.
    pub in_place: bool,
    /// The files, sorted by path below `path` (or the file's own name).
    pub files: Vec<PulledFile>,
    /// Bytes of them all.
    pub bytes: u64,
    /// Bytes that went over the line for this pull.
    pub fetched: u64,
    /// What it was: a later pull with this gets the same or an error. `local` sources have no versions.
    pub pin: Option<Pin>,
}

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledFile {
    /// Path below the source, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hex; `None` for files used in place, which nobody has read yet.
    pub sha256: Option<String>,
}

impl Store {
    /// Brings a source to this node, below `folder`, and goes on where an earlier try of the same source stopped.
    /// `local` sources are used where they lie. Two pulls into one folder wait for one another, whatever process
    /// they are in. With a `pin` it is what was pinned, or [`StoreError::OtherVersion`]. Dropped, it leaves parts that the next one uses. Where the disk is too full, `room` is asked first.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::class`] says which are worth another try.
    pub async fn pull(
        &self,
        source: &Location,
        pin: Option<&Pin>,
        folder: &Path,
        room: MakeRoom,
        tell: OnMoved,
    ) -> Result<Pulled, StoreError> {
        match self.source(source)? {
            Source::Folder(place) => off_thread(move || place.use_in_place(&tell)).await,
            Source::Git(git) => git.pull(pin, folder, room, tell).await,
            Source::Remote(remote) => pull_remote(&*remote, pin, folder, self.config.reserve_bytes, room, tell).await,
        }
    }
}

async fn pull_remote(
    remote: &dyn Remote,
    pin: Option<&Pin>,
    folder: &Path,
    reserve: u64,
    room: MakeRoom,
    tell: OnMoved,
) -> Result<Pulled, StoreError> {
    let listing = remote.list(pin).await?;
    let objects = &listing.objects;
    if objects.is_empty() {
        return Err(StoreError::Empty { place: remote.url("") });
    }
    still(remote, pin, &listing.pin(objects.iter()))?;
    let _alone = alone(folder).await?;
    let (known, into) = (objects.clone(), folder.to_owned());
    off_thread(move || {
        transfer::remove_others(&known, &into)?;
        enough_room(&known, &into, reserve, &room)
    })
    .await?;
    let bytes = objects.iter().map(|o| o.bytes).sum();
    let meter = Meter::new(bytes, tell);
    let fetched = transfer::fetch(remote, objects, folder, &meter).await?;
    if let Err(damaged) = check_manifest(remote, &fetched, folder) {
        // What lies here is not to be taken for whole by the next try.
        disk::remove_all(&folder.join(transfer::UNDER_WAY))?;
        return Err(damaged);
    }
    // A file that changed under way has come in another version than was listed.
    let arrived = listing.pin(fetched.iter().map(|f| &f.object));
    still(remote, pin, &arrived)?;
    let path = if listing.one { folder.join(&objects[0].name) } else { folder.to_owned() };
    let file = |f: Fetched| PulledFile { path: f.object.name, bytes: f.stamp.bytes, sha256: Some(f.stamp.sha256) };
    let files: Vec<_> = fetched.into_iter().map(file).collect();
    // Sizes may have changed with a file that was begun again.
    let bytes = files.iter().map(|f| f.bytes).sum();
    Ok(Pulled { path, in_place: false, files, bytes, fetched: meter.fetched(), pin: Some(arrived) })
}

/// Whether a source is what was pinned.
fn still(remote: &dyn Remote, pin: Option<&Pin>, found: &Pin) -> Result<(), StoreError> {
    match pin {
        Some(pin) if pin != found => {
            Err(StoreError::OtherVersion { place: remote.url(""), pinned: pin.clone(), found: found.clone() })
        }
        _ => Ok(()),
    }
}

/// Says it before the first byte when they will not all fit, even with what `room` could free.
fn enough_room(objects: &[Object], folder: &Path, reserve: u64, room: &MakeRoom) -> Result<(), StoreError> {
    let missing = transfer::missing_bytes(objects, folder)?;
    let needed = missing.saturating_add(reserve);
    let free = || disk::free_bytes(folder).map_err(|e| StoreError::disk("look at", folder, e));
    if missing == 0 || needed <= free()? {
        return Ok(());
    }
    room(needed);
    match free()? {
        free if needed > free => Err(StoreError::NoSpace { folder: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// A result that MLOC published says what its bytes must be.
fn check_manifest(remote: &dyn Remote, fetched: &[Fetched], folder: &Path) -> Result<(), StoreError> {
    if !fetched.iter().any(|f| f.object.name == MANIFEST) {
        return Ok(());
    }
    let place = remote.url(MANIFEST);
    let Some(bytes) = disk::read(&folder.join(MANIFEST), MANIFEST_BYTES_MAX)? else { return Ok(()) };
    let there: BTreeMap<_, _> = fetched.iter().map(|f| (f.object.name.as_str(), &f.stamp)).collect();
    for file in Manifest::read(&place, &bytes)?.files {
        let place = remote.url(&file.path);
        match there.get(file.path.as_str()) {
            None => return Err(StoreError::Damaged { place, found: "missing; the manifest names it".into() }),
            Some(stamp) if stamp.sha256 != file.sha256 => {
                let found = format!("SHA-256 is {}, the manifest says {}", stamp.sha256, file.sha256);
                return Err(StoreError::Damaged { place, found });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Waits until no other pull fills this folder. The lock goes with its process.
pub(crate) async fn alone(folder: &Path) -> Result<File, StoreError> {
    let way = folder.join(transfer::UNDER_WAY);
    disk::make_folder(&way)?;
    let path = way.join("lock");
    let lock = File::create(&path).map_err(|e| StoreError::disk("create", &path, e))?;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_AGAIN).await,
            Err(TryLockError::Error(e)) => return Err(StoreError::disk("lock", &path, e)),
        }
    }
}
