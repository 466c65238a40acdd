//! A model, data set or adapter to where the attempt can open it.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use mloc_core::task::spec::{Location, Pin};
use mloc_exec::{OnMoved, OnSaid};

use crate::{
    Store,
    cache::{Filled, FilledFile, Shelf},
    disk::{self, off_thread},
    error::StoreError,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    meter::Meter,
    mirror::{self, Way},
    rate::Limit,
    remote::Remote,
    transfer::{self, Fetched},
};

/// A source that can be opened.
#[derive(Clone, Debug)]
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
    /// Of one in the cache: it is not evicted while this is open, in whatever process.
    pub held: Option<Arc<File>>,
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
    /// Brings a source to this node, into its cache, and goes on where an earlier try of the same source stopped. `local`
    /// sources are used where they lie. With a `pin` it is what was pinned, or [`StoreError::OtherVersion`]. What the cache
    /// has takes no request where it is pinned, else the one that says which version is newest. Two pulls of one source
    /// wait for one another, whatever process they are in. Dropped, it leaves parts that the next one uses. `say` gets
    /// sentences for the attempt's log.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::class`] says which are worth another try.
    pub async fn pull(
        &self,
        source: &Location,
        pin: Option<&Pin>,
        tell: OnMoved,
        say: OnSaid,
    ) -> Result<Pulled, StoreError> {
        let shelf = Shelf::of(&self.cache, source, say);
        if let Some(pin) = pin
            && let Some(there) = shelf.there(pin, false).await?
        {
            Meter::new(there.bytes, tell).found(there.bytes);
            return Ok(there);
        }
        if pin.is_none()
            && self.config.offline
            && let Some(there) = shelf.newest().await?
        {
            shelf.say("this node is offline: it is what was pulled last");
            Meter::new(there.bytes, tell).found(there.bytes);
            return Ok(there);
        }
        self.bring(source, pin, &shelf, tell).await
    }

    /// A source that is on this disk already: a `local` one where it lies, another one as it was pulled last. Asks nobody.
    ///
    /// # Errors
    /// Those of the disk, and a `local` source that is none.
    pub async fn here(&self, source: &Location) -> Result<Option<Pulled>, StoreError> {
        match source {
            Location::Local { .. } => match mirror::way(self, source)? {
                Way::Folder(place) => {
                    let untold: OnMoved = Arc::new(|_| {});
                    off_thread(move || place.use_in_place(&untold)).await.map(Some)
                }
                Way::Git(_) | Way::Origin(_) | Way::Beside(_) | Way::Instead { .. } => Ok(None),
            },
            _ => Shelf::of(&self.cache, source, Arc::new(|_: &str| {})).newest().await,
        }
    }

    async fn bring(
        &self,
        source: &Location,
        pin: Option<&Pin>,
        shelf: &Shelf,
        tell: OnMoved,
    ) -> Result<Pulled, StoreError> {
        let pull = async |remote: &dyn Remote, mark| {
            let errand = Errand { pin, mark, reserve: self.config.reserve_bytes, limit: &self.limit };
            pull_remote(remote, errand, shelf, tell.clone()).await
        };
        match mirror::way(self, source)? {
            Way::Folder(place) => off_thread(move || place.use_in_place(&tell)).await,
            Way::Git(git) => git.pull(pin, shelf, &self.limit, tell).await,
            Way::Origin(remote) => pull(&*remote, "").await,
            Way::Beside(remote) => match pull(&remote, "").await {
                // Not the origin's bytes: those of the mirror are let go, and it is asked no more.
                Err(why @ StoreError::Damaged { .. }) if remote.leave_mirrors(&why) => {
                    pull(&*remote.into_origin(), "").await
                }
                ended => ended,
            },
            Way::Instead { remote, mark } => pull(&*remote, &mark).await,
        }
    }
}

/// What a pull is to bring, and how.
#[derive(Clone, Copy)]
struct Errand<'e> {
    /// The version, as the ledger has it.
    pin: Option<&'e Pin>,
    /// What pins of this way begin with.
    mark: &'e str,
    /// Bytes to leave free.
    reserve: u64,
    limit: &'e Limit,
}

/// A source on the other side of a line. One that is `there` is not fetched; of one that is not, only what the shelf
/// cannot lend.
async fn pull_remote(
    remote: &dyn Remote,
    errand: Errand<'_>,
    shelf: &Shelf,
    tell: OnMoved,
) -> Result<Pulled, StoreError> {
    let Errand { pin, mark, reserve, limit } = errand;
    let bare = pin.map(|pin| mirror::unmarked(pin, mark, remote.url(""))).transpose()?;
    let listing = remote.list(bare.as_ref()).await?;
    let objects = &listing.objects;
    if objects.is_empty() {
        return Err(StoreError::Empty { place: remote.url("") });
    }
    if let Some(bad) = objects.iter().find(|object| disk::below(&object.name).is_none()) {
        return Err(StoreError::BadName { place: remote.url(""), name: bad.name.clone() });
    }
    let listed = mirror::marked(listing.pin(objects.iter()), mark);
    // What does not say its size beforehand is compared when it is here.
    if !remote.one_stream() {
        still(remote, pin, &listed)?;
    }
    let meter = Meter::new(objects.iter().map(|o| o.bytes).sum(), tell).at(limit);
    if let Some(there) = shelf.there(&listed, pin.is_none()).await? {
        meter.found(there.bytes);
        return Ok(there);
    }
    let turn = shelf.alone().await?;
    if turn.waited
        && let Some(there) = shelf.there(&listed, pin.is_none()).await?
    {
        meter.found(there.bytes);
        return Ok(there);
    }
    let folder = shelf.folder();
    let (known, into) = (objects.clone(), folder.to_owned());
    off_thread(move || {
        disk::make_folder(&into.join(transfer::UNDER_WAY))?;
        transfer::remove_others(&known, &into)
    })
    .await?;
    let lent = shelf.lend(objects, folder, &turn).await?;
    let missing: Vec<_> =
        objects.iter().zip(&lent).filter(|(_, lent)| lent.is_none()).map(|(o, _)| o.clone()).collect();
    let (known, here) = (missing.clone(), shelf.clone());
    off_thread(move || match transfer::missing_bytes(&known, here.folder())? {
        0 => Ok(()),
        missing => here.enough_room(missing.saturating_add(reserve)),
    })
    .await?;
    meter.found(lent.iter().flatten().map(|stamp| stamp.bytes).sum());
    let mut came = transfer::fetch(remote, &missing, folder, &meter).await?.into_iter();
    let fetched: Vec<_> = objects
        .iter()
        .zip(lent)
        .filter_map(|(object, lent)| match lent {
            Some(stamp) => Some(Fetched { object: object.clone(), stamp }),
            None => came.next(),
        })
        .collect();
    if let Err(damaged) = check_manifest(remote, &fetched, folder) {
        // What lies here is not to be taken for whole by the next try.
        disk::remove_all(&folder.join(transfer::UNDER_WAY))?;
        return Err(damaged);
    }
    // A file that changed under way has come in another version than was listed.
    let arrived = mirror::marked(listing.pin(fetched.iter().map(|f| &f.object)), mark);
    still(remote, pin, &arrived)?;
    let named = |f: &Fetched| f.object.etag.is_some() || f.object.digest.is_some();
    let filled = Filled {
        place: remote.url(""),
        at: folder.to_owned(),
        pin: arrived,
        exact: listing.version.is_some() || fetched.iter().all(named),
        one: listing.one,
        files: fetched
            .into_iter()
            .map(|f| FilledFile { name: f.object.name, etag: f.object.etag, stamp: f.stamp, executable: false })
            .collect(),
        links: Vec::new(),
        fetched: meter.fetched(),
    };
    shelf.keep(filled, &turn).await
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
