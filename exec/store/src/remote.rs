//! A source on the other side of a line, whatever it is: files of one version, read in ranges.

use std::{fmt, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mloc_core::task::spec::Pin;

use crate::{disk, error::StoreError, patience::Patience};

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Path below the source; the last part of its own name, where the source is itself the file.
    pub name: String,
    /// What the other side calls it: a whole key, or a URL.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// What the other side calls this version of the content. Without one nothing under way can be taken up again.
    pub etag: Option<String>,
    /// What its bytes must come to, where the other side says so beforehand.
    pub digest: Option<Digest>,
}

impl Object {
    /// SHA-256 that its bytes must have, hex.
    pub fn sha256(&self) -> Option<&String> {
        match &self.digest {
            Some(Digest::Sha256(sha256)) => Some(sha256),
            Some(Digest::GitBlob(_)) | None => None,
        }
    }
}

/// What tells whether bytes are those that were meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Their SHA-256, hex.
    Sha256(String),
    /// The name of the blob that git makes of them: the SHA-1 of a head and the bytes, hex.
    GitBlob(String),
}

/// What a source holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The files, sorted by name.
    pub objects: Vec<Object>,
    /// Whether the source is itself the one file.
    pub one: bool,
    /// The version of all of it, where the other side has such a word: a commit.
    pub version: Option<String>,
}

impl Listing {
    /// What a task's later attempts must meet again, with the objects as they arrived.
    pub fn pin<'o>(&self, arrived: impl Iterator<Item = &'o Object>) -> Pin {
        let (mut files, mut bytes, mut all) = (0, 0, String::new());
        let mut etag = None;
        for object in arrived {
            files += 1;
            bytes += object.bytes;
            etag = object.etag.as_deref();
            all.push_str(&format!("{}\0{}\0{}\n", object.name, object.bytes, etag.unwrap_or_default()));
        }
        let version = match (&self.version, etag) {
            (Some(version), _) => version.clone(),
            (None, Some(etag)) if files == 1 => etag.to_owned(),
            (None, _) => format!("sha256:{}", disk::stamp_bytes(all.as_bytes()).sha256),
        };
        Pin { version, files, bytes }
    }
}

/// The bytes of a range, as they arrive.
pub(crate) type Body = BoxStream<'static, Result<Bytes, StoreError>>;

/// A way to one source. Makes requests and turns answers into [`StoreError`]s; how a transfer goes on after a break is
/// [`crate::transfer`]'s.
#[async_trait]
pub(crate) trait Remote: fmt::Debug + Send + Sync {
    /// The source as text for people, or with a name a file of it.
    fn url(&self, name: &str) -> String;

    /// How long transfers from here go on without progress.
    fn patience(&self) -> Patience;

    /// What it holds: in the version of a pin, where the other side keeps versions. Tries again by itself.
    async fn list(&self, pin: Option<&Pin>) -> Result<Listing, StoreError>;

    /// A part of one version of a file. Tries once.
    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError>;

    /// The version of a file that is there now. Tries again by itself.
    async fn again(&self, object: &Object) -> Result<Object, StoreError>;

    /// What a mirror of this source calls a file, where it lies in a folder.
    fn at_mirror<'o>(&self, object: &'o Object) -> &'o str {
        &object.name
    }

    /// Whether a file can only be had from its first byte to its last, as the listing has shown. Its size is then 0 where
    /// nobody says it beforehand.
    fn one_stream(&self) -> bool {
        false
    }

    /// An error for an answer that ended before its time: the line broke.
    fn cut_short(&self, object: &Object, at: u64) -> StoreError;
}
