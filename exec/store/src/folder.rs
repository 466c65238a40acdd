//! Places on this node's own disks: files and folders of declared volumes.

use std::{
    collections::BTreeSet,
    fs::File,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use mloc_core::{
    ledger::entry::Artifact,
    task::spec::{Location, Pin},
};
use mloc_exec::OnMoved;

use crate::{
    Store,
    disk::{self, Halt, Stamp, off_thread, until_dropped},
    error::StoreError,
    meter::Meter,
    patience::Patience,
    place::{Area, Source},
    pull::{Pulled, PulledFile},
    remote::{Body, Listing, Object, Remote},
    volume::{self, Inside},
};

/// Bytes of a file read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// A file or folder of a declared volume.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    /// As given.
    given: String,
    /// Where that is.
    inside: Inside,
}

impl Folder {
    fn open(store: &Store, location: &Location) -> Result<Self, StoreError> {
        let Location::Local { path } = location else { return Err(StoreError::unsupported(location)) };
        Ok(Self { given: path.clone(), inside: volume::resolve(&store.config.volumes, path)? })
    }

    /// A folder of ours, wherever it lies; `None` when there is none. Blocks.
    pub fn at(folder: &Path) -> Result<Option<Self>, StoreError> {
        let given = folder.display().to_string();
        match folder.canonicalize() {
            Ok(root) => Ok(Some(Self { given, inside: Inside { path: root.clone(), root } })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::disk("follow", folder, e)),
        }
    }

    /// A `local` source.
    pub fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
        Self::open(store, location).map(Source::Folder)
    }

    /// A `local` destination.
    pub fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
        Ok(Box::new(Self::open(store, location)?))
    }

    /// The same as something that is brought here from elsewhere: a mirror.
    pub fn as_remote(&self, patience: Patience) -> FolderRemote {
        FolderRemote { folder: self.clone(), patience }
    }

    /// What a task finds here, without a copy. Blocks.
    pub fn use_in_place(&self, tell: &OnMoved) -> Result<Pulled, StoreError> {
        let files = self.files()?;
        let bytes = files.iter().map(|f| f.bytes).sum();
        Meter::new(bytes, tell.clone()).found(bytes);
        let files = files.into_iter().map(|f| PulledFile { path: f.path, bytes: f.bytes, sha256: None }).collect();
        Ok(Pulled { path: self.inside.path.clone(), in_place: true, files, bytes, fetched: 0, pin: None, held: None })
    }

    /// Its files, or the one that it is. Blocks.
    fn files(&self) -> Result<Vec<disk::Found>, StoreError> {
        let (given, inside) = (&self.given, &self.inside);
        let place = inside.path.display().to_string();
        let files = match std::fs::metadata(&inside.path) {
            Ok(meta) if meta.is_file() => {
                let name = inside.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                vec![disk::Found { path: name, bytes: meta.len() }]
            }
            Ok(_) => {
                let files = disk::files_below(&inside.path)?;
                volume::all_inside(given, inside, &files)?;
                files
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound {
                    place,
                    found: "no such file or folder on this node".into(),
                    hint: format!("`{given}` was looked for below {}", inside.root.display()),
                });
            }
            Err(e) => return Err(StoreError::disk("look at", &inside.path, e)),
        };
        if files.is_empty() {
            return Err(StoreError::Empty { place });
        }
        Ok(files)
    }

    fn copy_all(&self, to: &Path, files: &[Artifact], halt: &Halt, meter: &Meter) -> Result<Vec<Stamp>, StoreError> {
        let copied = |file: &Artifact| {
            let (source, target) = (self.inside.path.join(&file.path), to.join(&file.path));
            if !source.is_file() {
                return Err(self.missing(&file.path));
            }
            let folder = target.parent().unwrap_or(to);
            disk::make_folder(folder)?;
            let stamp = disk::copy(&source, &target, halt, |bytes| meter.moved(bytes))?;
            disk::sync_folder(folder)?;
            Ok(stamp)
        };
        files.iter().map(copied).collect()
    }
}

#[async_trait]
impl Area for Folder {
    fn url(&self) -> String {
        self.inside.path.display().to_string()
    }

    fn join(&self, name: &str) -> Box<dyn Area> {
        Box::new(Self {
            given: format!("{}/{name}", self.given),
            inside: Inside { root: self.inside.root.clone(), path: self.inside.path.join(name) },
        })
    }

    async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let path = self.inside.path.join(name);
        off_thread(move || disk::read(&path, bytes_max)).await
    }

    async fn put(&self, name: &str, from: &Path, meter: &Meter) -> Result<Stamp, StoreError> {
        let (from, inside, name, meter) = (from.to_owned(), self.inside.clone(), name.to_owned(), meter.clone());
        until_dropped(move |halt| {
            let to = inside.goal(&name)?;
            let stamp = disk::copy(&from, &to, halt, |bytes| meter.moved(bytes))?;
            to.parent().map_or(Ok(()), disk::sync_folder)?;
            Ok(stamp)
        })
        .await
    }

    async fn put_new(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<bool, StoreError> {
        let (inside, name, held) = (self.inside.clone(), name.to_owned(), meter.clone());
        until_dropped(move |halt| {
            let _held = held;
            disk::write_new(&inside.goal(&name)?, &bytes, halt)
        })
        .await
    }

    async fn put_bytes(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<(), StoreError> {
        let (inside, name, held) = (self.inside.clone(), name.to_owned(), meter.clone());
        until_dropped(move |halt| {
            let _held = held;
            disk::write(&inside.goal(&name)?, &bytes, halt)
        })
        .await
    }

    async fn folders(&self) -> Result<Vec<String>, StoreError> {
        let path = self.inside.path.clone();
        off_thread(move || disk::folders(&path)).await
    }

    async fn fetch(&self, files: &[Artifact], folder: &Path, meter: &Meter) -> Result<Vec<Stamp>, StoreError> {
        let found = |f: &Artifact| disk::Found { path: f.path.clone(), bytes: f.bytes };
        let there = files.iter().filter(|f| self.inside.path.join(&f.path).exists());
        volume::all_inside(&self.given, &self.inside, &there.map(found).collect::<Vec<_>>())?;
        let (here, to, files, meter) = (self.clone(), folder.to_owned(), files.to_vec(), meter.clone());
        until_dropped(move |halt| here.copy_all(&to, &files, halt, &meter)).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Body, StoreError> {
        let bad = || StoreError::BadName { place: self.given.clone(), name: name.to_owned() };
        let path = self.inside.path.join(disk::below(name).ok_or_else(bad)?);
        let (root, given) = (self.inside.root.clone(), self.given.clone());
        // A link may have been put in its place.
        let path = off_thread(move || {
            let real = path.canonicalize().map_err(|e| StoreError::disk("follow", &path, e))?;
            if real.starts_with(&root) {
                return Ok(real);
            }
            Err(StoreError::Escapes { path: given, found: format!("a link leads to {}", real.display()) })
        })
        .await?;
        read_part(path, range).await
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.inside.path.join(name);
        off_thread(move || disk::remove(&path)).await
    }

    async fn remove_all(&self) -> Result<(), StoreError> {
        let path = self.inside.path.clone();
        off_thread(move || disk::remove_all(&path)).await
    }

    async fn sweep(&self, names: &[&str]) {
        let parents = names.iter().filter_map(|name| self.inside.path.join(name).parent().map(Path::to_owned));
        let folders: BTreeSet<PathBuf> = parents.collect();
        let swept = until_dropped(move |halt| folders.iter().try_for_each(|folder| disk::sweep(folder, halt))).await;
        if let Err(error) = swept {
            tracing::warn!(place = self.url(), %error, "temporary files stay");
        }
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.inside.path)
    }
}

/// A folder of a volume as a mirror: its files are copied and looked at as if they came from far away.
#[derive(Clone, Debug)]
pub(crate) struct FolderRemote {
    folder: Folder,
    patience: Patience,
}

impl FolderRemote {
    /// What is known of a file before it is read: its size, and when it was written last.
    fn object(&self, name: String) -> Result<Object, StoreError> {
        let root = &self.folder.inside.path;
        let path = if root.is_file() { root.clone() } else { root.join(&name) };
        let meta = path.metadata().map_err(|e| StoreError::disk("look at", &path, e))?;
        let etag = Some(format!("modified {}.{:09}", meta.mtime(), meta.mtime_nsec()));
        Ok(Object { name, key: path.display().to_string(), bytes: meta.len(), etag, digest: None })
    }
}

#[async_trait]
impl Remote for FolderRemote {
    fn url(&self, name: &str) -> String {
        self.folder.inside.path.join(name).display().to_string().trim_end_matches('/').to_owned()
    }

    fn patience(&self) -> Patience {
        self.patience
    }

    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        let here = self.clone();
        off_thread(move || {
            let files = here.folder.files()?;
            let objects = files.into_iter().map(|file| here.object(file.path)).collect::<Result<_, _>>()?;
            Ok(Listing { objects, one: here.folder.inside.path.is_file(), version: None })
        })
        .await
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        read_part(PathBuf::from(&object.key), range).await
    }

    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        let (here, name) = (self.clone(), object.name.clone());
        off_thread(move || here.object(name)).await
    }

    fn cut_short(&self, object: &Object, _: u64) -> StoreError {
        StoreError::Changed { place: self.url(&object.name) }
    }
}

/// A part of a file, block by block. One that has become shorter is [`StoreError::Changed`].
async fn read_part(path: PathBuf, range: Range<u64>) -> Result<Body, StoreError> {
    let opened = off_thread(move || match File::open(&path) {
        Ok(file) => Ok((file, path)),
        Err(e) => Err(StoreError::disk("open", &path, e)),
    });
    let opened = Arc::new(opened.await?);
    let blocks = stream::try_unfold(range, move |left| {
        let opened = opened.clone();
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            off_thread(move || {
                let (file, path) = &*opened;
                let mut block = vec![0; (left.end - left.start).min(PIECE_BYTES) as usize];
                let n = file.read_at(&mut block, left.start).map_err(|e| StoreError::disk("read", path, e))?;
                if n == 0 {
                    return Err(StoreError::Changed { place: path.display().to_string() });
                }
                block.truncate(n);
                Ok(Some((Bytes::from(block), left.start + n as u64..left.end)))
            })
            .await
        }
    });
    Ok(blocks.boxed())
}
