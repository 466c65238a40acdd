//! What a [`Location`](mloc_core::task::spec::Location) comes to on this node: something to read from, or something
//! to write to. Which kind of place comes to what is [`crate::kinds`]'.

use std::{fmt, ops::Range, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use mloc_core::ledger::entry::Artifact;

use crate::{
    disk::Stamp,
    error::StoreError,
    folder::Folder,
    git::Git,
    meter::Meter,
    remote::{Body, Remote},
};

/// Something to read from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file or folder of a declared volume: used where it lies.
    Folder(Folder),
    /// A repository: its files come out of a pack.
    Git(Git),
    /// Something on the other side of a line: brought here first.
    Remote(Box<dyn Remote>),
}

/// Something to write to: a folder of a volume, a prefix of a bucket, a branch of a repository of the Hub, where nothing
/// that was put is seen before [`Area::put_new`] commits it. Results and checkpoints lie in areas. Names have
/// been checked by [`crate::disk::below`], or are ours.
///
/// Every call tries again by itself as long as the node's patience lasts.
#[async_trait]
pub(crate) trait Area: fmt::Debug + Send + Sync {
    /// The area as text for people and the ledger: an absolute path, or `s3://bucket/path`.
    fn url(&self) -> String;

    /// An area below this one.
    fn join(&self, name: &str) -> Box<dyn Area>;

    /// A small file, whole; `None` when there is none.
    async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError>;

    /// A file of this machine under a name; what had the name is replaced. Returns the stamp of the bytes that were
    /// sent. Dropped, it gives no name any more; the meter is held until it touches nothing.
    async fn put(&self, name: &str, from: &Path, meter: &Meter) -> Result<Stamp, StoreError>;

    /// Some bytes under a name that nothing has yet; `false` when something has it. Dropped: as [`Area::put`].
    async fn put_new(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<bool, StoreError>;

    /// Some bytes under a name; what had the name is replaced. Dropped: as [`Area::put`].
    async fn put_bytes(&self, name: &str, bytes: Vec<u8>, meter: &Meter) -> Result<(), StoreError>;

    /// Names of the folders right below this area, sorted; none when the area does not exist.
    async fn folders(&self) -> Result<Vec<String>, StoreError>;

    /// Brings files of this area into a folder of this machine, and says what came, in the same order. One that is
    /// missing is [`StoreError::Damaged`]: a manifest has named it.
    async fn fetch(&self, files: &[Artifact], folder: &Path, meter: &Meter) -> Result<Vec<Stamp>, StoreError>;

    /// A part of a file of it, as it arrives. Tries once.
    async fn read(&self, name: &str, range: Range<u64>) -> Result<Body, StoreError>;

    /// Removes one file; not there is fine.
    async fn remove(&self, name: &str) -> Result<(), StoreError>;

    /// Removes all below this area.
    async fn remove_all(&self) -> Result<(), StoreError>;

    /// Whether the files of a result appear with its manifest, all at once, so that a dead writer leaves none.
    fn appears_whole(&self) -> bool {
        false
    }

    /// Clears away what dead writers left in the folders of these names. Areas whose writers leave nothing have nothing
    /// to do.
    async fn sweep(&self, _names: &[&str]) {}

    /// The folder it is, when it is on this node's disks: elsewhere nobody says how much room there is.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// A file of it that the manifest names and that is not there.
    fn missing(&self, name: &str) -> StoreError {
        StoreError::Damaged { place: self.join(name).url(), found: "missing; the manifest names it".into() }
    }
}
