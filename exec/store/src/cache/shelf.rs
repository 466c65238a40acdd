//! Where a pull's files go: into a folder of the caller's, or through the cache.
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
use mloc_exec::{MakeRoom, failpoint};

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
    pull::{Pulled, PulledFile},
    remote::Object,
    transfer,
};

/// How often a pull looks whether another one of the same source is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where the files of one pull go.
#[derive(Clone)]
pub(crate) struct Shelf {
    folder: PathBuf,
    lock: PathBuf,
    cached: Option<(Cache, Location)>,
    room: MakeRoom,
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
    /// A folder of the caller's, which holds the source and nothing else afterwards.
    pub fn plain(folder: &Path, room: MakeRoom, say: Say) -> Self {
        let lock = folder.join(transfer::UNDER_WAY).join("lock");
        Self { folder: folder.to_owned(), lock, cached: None, room, say }
    }

    /// The cache.
    pub fn of(cache: &Cache, source: &Location, say: Say) -> Self {
        let pull = cache.pulls().join(source_key(source));
        let evicting = cache.clone();
        let room: MakeRoom = Arc::new(move |bytes| evicting.make_room(bytes));
        let cached = Some((cache.clone(), source.clone()));
        Self { folder: pull.join(FILES), lock: pull.join("lock"), cached, room, say }
    }

    /// The folder to be filled.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Frees what it can until so many bytes are free. Blocks.
    pub fn make_room(&self, bytes: u64) {
        (self.room)(bytes);
    }

    /// The source in this version, when the cache has all of it. `asked`: this is what the other side named as newest.
    pub async fn there(&self, pin: &Pin, asked: bool) -> Result<Option<Pulled>, StoreError> {
        let Some((cache, source)) = self.cached.clone() else { return Ok(None) };
        let (pin, say) = (pin.clone(), self.say.clone());
        off_thread(move || cache.find(&source, &pin, asked, &say)).await
    }

    /// The source as it was pulled last, when the cache has all of it: for those who cannot ask which version is newest.
    pub async fn newest(&self) -> Result<Option<Pulled>, StoreError> {
        let Some((cache, source)) = self.cached.clone() else { return Ok(None) };
        let say = self.say.clone();
        off_thread(move || cache.find_newest(&source, |_| true, &say)).await
    }

    /// The source in a version that is known by its name alone, when the cache has all of it: for those who see the
    /// sizes only in what they fetch.
    pub async fn there_by_name(&self, version: &str) -> Result<Option<Pulled>, StoreError> {
        let Some((cache, source)) = self.cached.clone() else { return Ok(None) };
        let (version, say) = (version.to_owned(), self.say.clone());
        off_thread(move || cache.find_newest(&source, |pin| pin.version == version, &say)).await
    }

    /// Whether contents are kept once, whatever source they are of: then files of the same bytes may be one.
    pub fn shares(&self) -> bool {
        self.cached.is_some()
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
        let Some((cache, source)) = self.cached.clone() else { return Ok(vec![None; objects.len()]) };
        let (objects, turn, folder, say) = (objects.to_vec(), turn.clone(), into.to_owned(), self.say.clone());
        off_thread(move || {
            let _turn = turn;
            let known = cache.known(&source)?;
            let always = cache.config.verify == Verify::Always;
            let lend = |object: &Object| {
                let by_etag = || known.get(&(object.name.clone(), object.etag.clone()?, object.bytes)).cloned();
                let Some(sha256) = object.sha256.clone().or_else(by_etag) else { return Ok(None) };
                let stamp = Stamp { bytes: object.bytes, sha256 };
                let Some(name) = disk::below(&object.name) else { return Ok(None) };
                Ok(cache.lend(&stamp, &folder.join(name), always, &say)?.then_some(stamp))
            };
            objects.iter().map(lend).collect()
        })
        .await
    }

    /// Takes over what the folder holds now.
    pub async fn keep(&self, filled: Filled, turn: &Turn) -> Result<Pulled, StoreError> {
        let Some((cache, source)) = self.cached.clone() else { return Ok(filled.in_folder()) };
        let (turn, folder) = (turn.clone(), self.folder.clone());
        off_thread(move || {
            let _turn = turn;
            let pulled = cache.keep(source, filled, &folder)?;
            cache.keep_bound();
            Ok(pulled)
        })
        .await
    }
}

impl Filled {
    fn in_folder(self) -> Pulled {
        let path = match self.files.first().filter(|_| self.one) {
            Some(file) => self.at.join(&file.name),
            None => self.at,
        };
        let bytes = self.files.iter().map(|f| f.stamp.bytes).sum();
        let file = |f: FilledFile| PulledFile { path: f.name, bytes: f.stamp.bytes, sha256: Some(f.stamp.sha256) };
        let files = self.files.into_iter().map(file).collect();
        Pulled { path, in_place: false, files, bytes, fetched: self.fetched, pin: Some(self.pin), held: None }
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
