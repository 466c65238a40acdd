//! Where a pull's files go on their way into the cache.
//!
//! A kind of source asks [`Shelf::there`] once it knows the version, takes [`Shelf::alone`], fills [`Shelf::folder`] and
//! hands it over with [`Shelf::keep`].

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mloc_core::task::spec::{Location, Pin};
use mloc_exec::failpoint;

use super::{
    Cache, Say, Verify,
    blobs::seal,
    lock::{Hold, Tried, try_lock},
    source_key,
    views::{FILES, FORMAT, Marked, Marker},
};
use crate::{
    disk::{self, Stamp, off_thread},
    error::StoreError,
    pull::Pulled,
    remote::Object,
};

/// How often a pull looks whether another one of the same source is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where the files of one pull go.
#[derive(Clone)]
pub(crate) struct Shelf {
    cache: Cache,
    source: Location,
    folder: PathBuf,
    lock: PathBuf,
    say: Say,
}

/// A pull's turn: while it lasts nobody else fills the same folder. A thread of it that is still busy has it too.
#[derive(Clone)]
pub(crate) struct Turn {
    _lock: Arc<File>,
    /// Whether somebody else had it before.
    pub waited: bool,
}

/// What a pull has put into its folder.
#[derive(Debug)]
pub(crate) struct Filled {
    /// The source, for people.
    pub place: String,
    /// Where the files lie: the shelf's folder, or one in it.
    pub at: PathBuf,
    /// The version.
    pub pin: Pin,
    /// Whether the version tells contents apart: the other side has a word for it.
    pub exact: bool,
    /// Whether the source is itself the one file.
    pub one: bool,
    /// Sorted by name.
    pub files: Vec<FilledFile>,
    /// Path and target of symbolic links. They stay inside.
    pub links: Vec<(String, String)>,
    /// Bytes that went over the line.
    pub fetched: u64,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct FilledFile {
    /// Path below [`Filled::at`].
    pub name: String,
    /// What the other side calls its content.
    pub etag: Option<String>,
    /// Its bytes, durable.
    pub stamp: Stamp,
    /// Whether it can be executed. Such a file must not be one with another by a second name.
    pub executable: bool,
}

impl Shelf {
    /// The one of a source.
    pub fn of(cache: &Cache, source: &Location, say: Say) -> Self {
        let pull = cache.pulls().join(source_key(source));
        let (folder, lock) = (pull.join(FILES), pull.join("lock"));
        Self { cache: cache.clone(), source: source.clone(), folder, lock, say }
    }

    /// The folder to be filled.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether so many bytes fit, with what the cache could give up for them. Blocks.
    pub fn enough_room(&self, needed: u64) -> Result<(), StoreError> {
        self.cache.enough_room(&self.folder, needed)
    }

    /// The source in this version, when the cache has all of it. `asked`: this is what the other side named as newest.
    pub async fn there(&self, pin: &Pin, asked: bool) -> Result<Option<Pulled>, StoreError> {
        let (here, pin) = (self.clone(), pin.clone());
        off_thread(move || here.cache.find(&here.source, &pin, asked, &here.say)).await
    }

    /// The source as it was pulled last, when the cache has all of it: for those who cannot ask which version is newest.
    pub async fn newest(&self) -> Result<Option<Pulled>, StoreError> {
        let here = self.clone();
        off_thread(move || here.cache.find_newest(&here.source, |_| true, &here.say)).await
    }

    /// The source in a version that is known by its name alone, when the cache has all of it: for those who see the
    /// sizes only in what they fetch.
    pub async fn there_by_name(&self, version: &str) -> Result<Option<Pulled>, StoreError> {
        let (here, version) = (self.clone(), version.to_owned());
        off_thread(move || here.cache.find_newest(&here.source, |pin| pin.version == version, &here.say)).await
    }

    /// A sentence for the attempt's log.
    pub fn say(&self, text: &str) {
        (self.say)(text);
    }

    /// Waits until nobody else fills this folder, in whatever process.
    pub async fn alone(&self) -> Result<Turn, StoreError> {
        let mut waited = false;
        loop {
            let path = self.lock.clone();
            if let Tried::Held(lock) = off_thread(move || try_lock(&path, Hold::Alone, true)).await? {
                // By it an abandoned pull is as old as its last try.
                lock.set_modified(SystemTime::now()).map_err(|e| StoreError::disk("touch", &self.lock, e))?;
                return Ok(Turn { _lock: Arc::new(lock), waited });
            }
            if !waited {
                (self.say)("another pull on this host is bringing the same: waiting for it");
                waited = true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Puts into a folder what the cache has of these objects, under their names: by the digest that the other side
    /// gives, or by what it called the same content in another version. The folder is the shelf's, or one in it.
    pub async fn lend(&self, objects: &[Object], into: &Path, turn: &Turn) -> Result<Vec<Option<Stamp>>, StoreError> {
        let (here, objects, turn, folder) = (self.clone(), objects.to_vec(), turn.clone(), into.to_owned());
        off_thread(move || {
            let (_turn, cache) = (turn, &here.cache);
            let known = cache.known(&here.source)?;
            let always = cache.config.verify == Verify::Always;
            let lend = |object: &Object| {
                let by_etag = || known.get(&(object.name.clone(), object.etag.clone()?, object.bytes)).cloned();
                let Some(sha256) = object.sha256().cloned().or_else(by_etag) else { return Ok(None) };
                let stamp = Stamp { bytes: object.bytes, sha256 };
                let Some(name) = disk::below(&object.name) else { return Ok(None) };
                Ok(cache.lend(&stamp, &folder.join(name), always, &here.say)?.then_some(stamp))
            };
            objects.iter().map(lend).collect()
        })
        .await
    }

    /// Takes over what the folder holds now.
    pub async fn keep(&self, filled: Filled, turn: &Turn) -> Result<Pulled, StoreError> {
        let (here, turn) = (self.clone(), turn.clone());
        off_thread(move || {
            let _turn = turn;
            let pulled = here.cache.keep(here.source, filled, &here.folder)?;
            here.cache.keep_bound();
            Ok(pulled)
        })
        .await
    }
}

impl Cache {
    /// What a pull brought, as blobs and a view; its folder goes. Blocks.
    fn keep(&self, source: Location, filled: Filled, folder: &Path) -> Result<Pulled, StoreError> {
        for file in &filled.files {
            let path = filled.at.join(&file.name);
            if file.executable { seal(&path, true)? } else { self.adopt(&path, &file.stamp)? }
        }
        let mark = |f: FilledFile| Marked {
            path: f.name,
            bytes: f.stamp.bytes,
            sha256: f.stamp.sha256,
            etag: f.etag,
            executable: f.executable,
        };
        let files = filled.files.iter().cloned().map(mark).collect();
        let Filled { place, at, pin, exact, one, fetched, files: _, links } = filled;
        let marker = Marker { format: FORMAT, source, place, pin, one, exact, files, links };
        let pull = folder.parent().unwrap_or(folder);
        let pulled = self.place(marker, &at, &pull.join("view"), fetched)?;
        // With its lock, which is held: who waits for it looks for the name and finds that it is gone.
        self.throw_away(pull)?;
        failpoint::reached("store.cache.cleared");
        Ok(pulled)
    }
}
