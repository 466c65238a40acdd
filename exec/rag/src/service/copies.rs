//! Files that came over HTTP, kept beside the index: those that came to this shard, and copies of those that came to the
//! shard before it. So whoever takes a shard's place and begins anew has them from the next one, and a newer version of the
//! service, with as many shards as it likes, from those of the older one.
//!
//! For each document the newest word counts, wherever it was said: that it came, or that it went. Two shards that tell each
//! other all they know agree then, in whatever order; what is said of a document is stamped later than what was known.
//!
//! Deliberately absent: files of a folder that is followed, which are read there again; who tells whom, and when
//! ([`crate::http::keep`]).

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Service, ServiceError, Upload, jobs::Accepted};
use crate::{
    index::{Index, IndexError, Note},
    parse::{Metadata, Source},
    shard::shard_of,
};

/// What is said of documents, by their ids.
const KEPT: &str = "kept/";
/// Their files.
const KEPT_FILE: &str = "kept_file/";
/// Whether this shard has all documents that belong to it.
const WHOLE: &str = "whole";
/// That a document went is known for so long: longer than shards that live are out of each other's reach.
const GONE_MS: u64 = 24 * 3600 * 1000;

/// The newest word on a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// When it was said, in milliseconds since 1970, and later than what was known before.
    pub at: u64,
    /// What came; `None` = it went.
    pub came: Option<Came>,
}

/// A file that came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Came {
    /// Its name, media type and text field.
    pub source: Source,
    /// What it came with.
    pub metadata: Metadata,
    /// SHA-256 of the file.
    pub hash: String,
}

/// What two shards compare: when, and the file's hash; `None` = it went.
pub type Stamp = (u64, Option<String>);

/// Stamps of all documents that files are kept of.
#[derive(Default)]
pub(super) struct Stamps(BTreeMap<String, Stamp>);

impl Kept {
    pub(super) fn stamp(&self) -> Stamp {
        (self.at, self.came.as_ref().map(|came| came.hash.clone()))
    }

    /// As notes, with the file if it came.
    pub(super) fn rows(&self, id: &str, file: Option<Vec<u8>>) -> Result<[Note; 2], IndexError> {
        let row = serde_json::to_vec(self).map_err(|error| IndexError::Damaged(error.to_string()))?;
        Ok([(format!("{KEPT}{id}"), Some(row)), (format!("{KEPT_FILE}{id}"), file)])
    }
}

impl Stamps {
    pub(super) fn of(index: &Index) -> Result<Self, IndexError> {
        let notes = index.notes::<Kept>(KEPT)?.into_iter();
        Ok(Self(notes.map(|(name, kept)| (name[KEPT.len()..].to_owned(), kept.stamp())).collect()))
    }
}

/// One number of many stamps: alike where they are.
pub fn digest(stamps: &BTreeMap<String, Stamp>) -> String {
    let mut digest = Sha256::new();
    for (id, (at, hash)) in stamps {
        digest.update(format!("{id} {at} {}\n", hash.as_deref().unwrap_or("-")));
    }
    hex::encode(digest.finalize())
}

impl Service {
    fn stamps(&self) -> MutexGuard<'_, Stamps> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on disk is known.
    pub(super) fn say(&self, id: &str, kept: &Kept) {
        self.stamps().0.insert(id.to_owned(), kept.stamp());
    }

    /// Stamps of a shard's documents, as far as files of them are kept here; of as many shards as there are here, or would
    /// be elsewhere.
    pub fn stamps_of(&self, shard: u32, count: u32) -> BTreeMap<String, Stamp> {
        let all = self.stamps();
        let of = all.0.iter().filter(|(id, _)| shard_of(id, count) == shard);
        of.map(|(id, stamp)| (id.clone(), stamp.clone())).collect()
    }

    /// When the newest word on a document was said, where files are kept.
    pub fn stamp(&self, id: &str) -> Option<Stamp> {
        self.stamps().0.get(id).cloned()
    }

    /// The newest word on a document, with its file if it came.
    ///
    /// # Errors
    /// The disk's.
    pub fn kept(&self, id: &str) -> Result<Option<(Kept, Vec<u8>)>, ServiceError> {
        let Some(kept) = self.index.note::<Kept>(&format!("{KEPT}{id}"))? else { return Ok(None) };
        let file = if kept.came.is_some() { self.kept_file(id)? } else { None };
        Ok(Some((kept, file.unwrap_or_default())))
    }

    /// A kept file's bytes.
    pub(super) fn kept_file(&self, id: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.index.raw_note(&format!("{KEPT_FILE}{id}"))
    }

    /// A time for a word on a document that is said now, in milliseconds.
    fn next_stamp(&self, id: &str, now: u64) -> u64 {
        let before = self.stamp(id).map_or(0, |(at, _)| at + 1);
        before.max(now.saturating_mul(1000))
    }

    /// Takes a document that came over HTTP: as [`Service::accept`], and its file stays.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn accept_kept(&self, upload: Upload, now: u64) -> Result<Accepted, ServiceError> {
        self.accept_said(upload, now, None)
    }

    fn accept_said(&self, upload: Upload, now: u64, at: Option<u64>) -> Result<Accepted, ServiceError> {
        let id = upload.id();
        let hash = hex::encode(Sha256::digest(&upload.bytes));
        let came = Came { source: upload.source.clone(), metadata: upload.metadata.clone(), hash };
        let mut kept = Kept { at: at.unwrap_or_else(|| self.next_stamp(&id, now)), came: Some(came) };
        // Sent again as it was: nothing new was said.
        let before = self.index.note::<Kept>(&format!("{KEPT}{id}"))?;
        if let Some(before) = before.filter(|before| at.is_none() && before.came == kept.came) {
            kept.at = before.at;
        }
        self.take(upload, now, Some(&kept))
    }

    /// Takes a document out, wherever it is on its way, with its file. Whether there was one.
    ///
    /// # Errors
    /// When it belongs to another shard, or the disk fails.
    pub fn delete_kept(&self, id: &str, now: u64) -> Result<bool, ServiceError> {
        let known = matches!(self.stamp(id), Some((_, Some(_))));
        let gone = Kept { at: self.next_stamp(id, now), came: None };
        Ok(self.delete_saying(id, known.then_some(&gone))? || known)
    }

    /// Hears a word on a document from another shard: one that belongs here, or one that copies are kept of here. What is no
    /// newer than what is known is not taken. Whether it was.
    ///
    /// # Errors
    /// When it belongs to neither, its file is not the one that is spoken of, or the disk fails.
    pub fn hear(&self, id: &str, kept: Kept, file: Vec<u8>, now: u64) -> Result<bool, ServiceError> {
        let sharding = self.settings.sharding;
        let shard = shard_of(id, sharding.count);
        if self.stamp(id).is_some_and(|(at, _)| at >= kept.at) {
            return Ok(false);
        }
        let damaged = kept.came.as_ref().is_some_and(|came| came.hash != hex::encode(Sha256::digest(&file)));
        if damaged {
            let message = format!("the copy of {id:?} is not the file that is spoken of");
            return Err(ServiceError::Field { field: "file".into(), message });
        }
        if shard == sharding.index {
            let Kept { at, came } = kept;
            match came {
                Some(Came { source, metadata, .. }) => {
                    let upload = Upload { id: Some(id.to_owned()), source, metadata, bytes: file };
                    self.accept_said(upload, now, Some(at))?;
                }
                None => drop(self.delete_saying(id, Some(&Kept { at, came: None }))?),
            }
        } else if Some(shard) == sharding.kept_for() {
            let file = kept.came.is_some().then_some(file);
            self.index.put_notes(&kept.rows(id, file)?)?;
            self.say(id, &kept);
        } else {
            return Err(ServiceError::OtherShard { id: id.to_owned(), shard, here: sharding.index });
        }
        Ok(true)
    }

    /// Forgets that documents went long ago.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget_gone(&self, now: u64) -> Result<(), ServiceError> {
        let before = now.saturating_mul(1000).saturating_sub(GONE_MS);
        let gone = |(_, (at, hash)): &(&String, &Stamp)| hash.is_none() && *at < before;
        let old: Vec<String> = self.stamps().0.iter().filter(gone).map(|(id, _)| id.clone()).collect();
        if !old.is_empty() {
            let notes: Vec<Note> = old.iter().map(|id| (format!("{KEPT}{id}"), None)).collect();
            self.index.put_notes(&notes)?;
            let mut stamps = self.stamps();
            old.iter().for_each(|id| drop(stamps.0.remove(id)));
        }
        Ok(())
    }

    /// Whether this shard has all documents that belong to it, as far as is known; `None` = nobody has said.
    ///
    /// # Errors
    /// The disk's.
    pub fn is_whole(&self) -> Result<Option<bool>, ServiceError> {
        Ok(self.index.note(WHOLE)?)
    }

    /// From now on it has, or has not until it heard of them.
    ///
    /// # Errors
    /// The disk's.
    pub fn set_whole(&self, whole: bool) -> Result<(), ServiceError> {
        Ok(self.index.put_notes(&[(WHOLE.to_owned(), Some(whole.to_string().into_bytes()))])?)
    }

    /// Documents that wait to be indexed.
    pub fn waiting(&self) -> usize {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
