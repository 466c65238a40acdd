//! Places on this node's own disks: files and folders of declared volumes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use mloc_core::{ledger::entry::Artifact, task::spec::Location};
use mloc_exec::OnMoved;

use crate::{
    Store,
    disk::{self, Halt, Stamp, off_thread, until_dropped},
    error::StoreError,
    meter::Meter,
    place::{Area, Source},
    pull::{Pulled, PulledFile},
    volume::{self, Inside},
};

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

    /// A `local` source.
    pub fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
        Self::open(store, location).map(Source::Folder)
    }

    /// A `local` destination.
    pub fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
        Ok(Box::new(Self::open(store, location)?))
    }

    /// What a task finds here, without a copy. Blocks.
    pub fn use_in_place(&self, tell: &OnMoved) -> Result<Pulled, StoreError> {
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
        let bytes = files.iter().map(|f| f.bytes).sum();
        Meter::new(bytes, tell.clone()).found(bytes);
        let files = files.into_iter().map(|f| PulledFile { path: f.path, bytes: f.bytes, sha256: None }).collect();
        Ok(Pulled { path: inside.path.clone(), in_place: true, files, bytes, fetched: 0, pin: None })
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
        let swept = off_thread(move || folders.iter().try_for_each(|folder| disk::sweep(folder))).await;
        if let Err(error) = swept {
            tracing::warn!(place = self.url(), %error, "temporary files stay");
        }
    }

    fn free_bytes(&self) -> Result<Option<(PathBuf, u64)>, StoreError> {
        let path = &self.inside.path;
        let free = disk::free_bytes(path).map_err(|e| StoreError::disk("look at", path, e))?;
        Ok(Some((path.clone(), free)))
    }
}
