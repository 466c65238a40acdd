//! What a [`Location`] means on this node: a folder of a volume, or a prefix of a bucket.

use std::{collections::BTreeSet, path::PathBuf};

use bytes::Bytes;
use mloc_core::task::spec::Location;

use crate::{
    bucket::{Bucket, Client},
    config::StoreConfig,
    disk::{self, Stamp, off_thread, until_dropped},
    error::StoreError,
    meter::Meter,
    volume::{self, Inside},
};

/// A place that can be read and written.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A file or folder of a declared volume.
    Folder {
        /// As given.
        given: String,
        /// Where that is.
        inside: Inside,
    },
    /// A key or prefix of a bucket.
    Bucket(Bucket),
}

impl Place {
    /// Finds a place. Touches the local disk, never the network.
    pub fn open(config: &StoreConfig, client: &Client, location: &Location) -> Result<Self, StoreError> {
        match location {
            Location::Local { path } => {
                Ok(Place::Folder { given: path.clone(), inside: volume::resolve(&config.volumes, path)? })
            }
            Location::S3 { bucket, path, endpoint, region } => {
                Ok(Place::Bucket(Bucket::open(config, client, bucket, path, endpoint.as_deref(), region.as_deref())?))
            }
            Location::Gcs { .. }
            | Location::Azblob { .. }
            | Location::Http { .. }
            | Location::HuggingFace { .. }
            | Location::Git { .. }
            | Location::Task { .. }
            | Location::Submitted { .. }
            | Location::Kept { .. } => Err(StoreError::Unsupported { scheme: location.scheme() }),
        }
    }

    /// The place as text for people and the ledger: an absolute path, or `s3://bucket/path`.
    pub fn url(&self) -> String {
        match self {
            Place::Folder { inside, .. } => inside.path.display().to_string(),
            Place::Bucket(bucket) => bucket.url(""),
        }
    }

    /// A place below this one. `name` has been checked by [`disk::below`], or is ours.
    pub fn join(&self, name: &str) -> Self {
        match self {
            Place::Folder { given, inside } => Place::Folder {
                given: format!("{given}/{name}"),
                inside: Inside { root: inside.root.clone(), path: inside.path.join(name) },
            },
            Place::Bucket(bucket) => Place::Bucket(bucket.join(name)),
        }
    }

    /// A small file, whole; `None` when there is none.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let path = inside.path.join(name);
                off_thread(move || disk::read(&path, bytes_max)).await
            }
            Place::Bucket(bucket) => bucket.get(name, bytes_max).await,
        }
    }

    /// A file of this machine under a name; what had the name is replaced. Returns the stamp of the bytes that were
    /// sent. Dropped, it gives no name any more; the meter is held until it touches nothing.
    pub async fn put(&self, name: &str, from: &std::path::Path, meter: &Meter) -> Result<Stamp, StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let (from, inside, name, meter) = (from.to_owned(), inside.clone(), name.to_owned(), meter.clone());
                until_dropped(move |halt| {
                    let to = inside.goal(&name)?;
                    let stamp = disk::copy(&from, &to, halt, |bytes| meter.moved(bytes))?;
                    to.parent().map_or(Ok(()), disk::sync_folder)?;
                    Ok(stamp)
                })
                .await
            }
            Place::Bucket(bucket) => bucket.put(name, from, meter).await,
        }
    }

    /// Some bytes under a name that nothing has yet; `false` when something has it. Dropped: as [`Place::put`].
    pub async fn put_new(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<bool, StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let (inside, name, held) = (inside.clone(), name.to_owned(), meter.clone());
                until_dropped(move |halt| {
                    let _held = held;
                    disk::write_new(&inside.goal(&name)?, &bytes, halt)
                })
                .await
            }
            Place::Bucket(bucket) => bucket.put_new(name, bytes).await,
        }
    }

    /// Some bytes under a name; what had the name is replaced. Dropped: as [`Place::put`].
    pub async fn put_bytes(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<(), StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let (inside, name, held) = (inside.clone(), name.to_owned(), meter.clone());
                until_dropped(move |halt| {
                    let _held = held;
                    disk::write(&inside.goal(&name)?, &bytes, halt)
                })
                .await
            }
            Place::Bucket(bucket) => bucket.put_bytes(name, bytes).await,
        }
    }

    /// Names of the folders right below this place, sorted; none when the place does not exist.
    pub async fn folders(&self) -> Result<Vec<String>, StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let path = inside.path.clone();
                off_thread(move || disk::folders(&path)).await
            }
            Place::Bucket(bucket) => bucket.folders().await,
        }
    }

    /// Removes one file; not there is fine.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let path = inside.path.join(name);
                off_thread(move || disk::remove(&path)).await
            }
            Place::Bucket(bucket) => bucket.remove(name).await,
        }
    }

    /// Clears away what dead writers left below this place, in these folders of it.
    pub async fn sweep(&self, names: impl Iterator<Item = &str>) {
        let Place::Folder { inside, .. } = self else { return };
        let folders: BTreeSet<_> =
            names.filter_map(|name| inside.path.join(name).parent().map(std::path::Path::to_owned)).collect();
        let swept = off_thread(move || folders.iter().try_for_each(|folder| disk::sweep(folder))).await;
        if let Err(error) = swept {
            tracing::warn!(place = self.url(), %error, "temporary files stay");
        }
    }

    /// Bytes that are free where this place lies, when it is on this node's disks; for a bucket there is no bound.
    pub fn free_bytes(&self) -> Result<Option<(PathBuf, u64)>, StoreError> {
        let Place::Folder { inside, .. } = self else { return Ok(None) };
        let free = disk::free_bytes(&inside.path).map_err(|e| StoreError::disk("look at", &inside.path, e))?;
        Ok(Some((inside.path.clone(), free)))
    }

    /// Removes all below this place.
    pub async fn remove_all(&self) -> Result<(), StoreError> {
        match self {
            Place::Folder { inside, .. } => {
                let path = inside.path.clone();
                off_thread(move || disk::remove_all(&path)).await
            }
            Place::Bucket(bucket) => bucket.remove_all().await,
        }
    }
}
