//! Documents as they come, wait and go. Jobs are notes in the index's own file.

use std::{collections::BTreeMap, sync::PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Kept, Service, ServiceError};
use crate::{
    index::{Index, IndexError, Note, Row},
    parse::{Format, Metadata, Source},
};

/// Chars of an id.
const ID_CHARS: usize = 200;
/// Bytes of a document's metadata, as JSON.
const METADATA_BYTES: usize = 64 << 10;
/// Bytes of a name.
const NAME_BYTES: usize = 1024;
/// Jobs by their documents' ids.
const JOB: &str = "job/";
/// Their files.
pub(super) const FILE: &str = "file/";
/// The number of the last job.
const LAST: &str = "last_job";

/// A document that comes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upload {
    /// Its id; `None` = made from its name, so that the same name replaces it.
    pub id: Option<String>,
    /// Its name, media type and text field.
    pub source: Source,
    /// What filters may ask for.
    pub metadata: Metadata,
    /// The file.
    pub bytes: Vec<u8>,
}

impl Upload {
    /// The id it has, or gets.
    pub fn id(&self) -> String {
        self.id.clone().unwrap_or_else(|| format!("doc-{}", &hex::encode(Sha256::digest(&self.source.name))[..24]))
    }
}

/// What was said to an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The document's id.
    pub id: String,
    /// Whether it is in the index already, as it came.
    pub unchanged: bool,
}

/// Where a document is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// It waits.
    Queued,
    /// It was read, and is embedded.
    Parsed,
    /// It is found.
    Indexed,
    /// It is not found, or only as it was before.
    Failed {
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) source: Source,
    pub(super) metadata: Metadata,
    pub(super) hash: String,
    pub(super) bytes: u64,
    pub(super) status: Status,
    pub(super) at: u64,
}

/// Jobs that wait, by their numbers: what the notes say, read once.
#[derive(Default)]
pub(super) struct Queue {
    jobs: BTreeMap<u64, (String, u64)>,
    bytes: u64,
    last: u64,
    /// The one that was read, and is embedded now. Not in its note: after a restart it is read again.
    pub(super) parsed: Option<u64>,
}

impl Queue {
    pub(super) fn of(index: &Index) -> Result<Self, ServiceError> {
        let mut queue = Self { last: index.note(LAST)?.unwrap_or(0), ..Self::default() };
        for (name, job) in index.notes::<Job>(JOB)? {
            if job.status == Status::Queued {
                queue.push(&name[JOB.len()..], &job);
            }
        }
        Ok(queue)
    }

    /// Numbers and ids of those that wait longest.
    pub(super) fn first(&self, count: usize) -> Vec<(u64, String)> {
        self.jobs.iter().take(count).map(|(number, (id, _))| (*number, id.clone())).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    fn push(&mut self, id: &str, job: &Job) {
        self.last = self.last.max(job.number);
        self.bytes += job.bytes;
        self.jobs.insert(job.number, (id.to_owned(), job.bytes));
    }

    pub(super) fn remove(&mut self, job: Option<&Job>) {
        job.into_iter().for_each(|job| self.pass(job.number));
    }

    /// That job waits no longer.
    pub(super) fn pass(&mut self, number: u64) {
        if let Some((_, bytes)) = self.jobs.remove(&number) {
            self.bytes -= bytes;
        }
    }
}

/// A document, as its user sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where the newest version is on its way.
    #[serde(flatten)]
    pub status: Status,
    /// Seconds since 1970, of that.
    pub at: u64,
    /// The version that is found.
    pub indexed: Option<Row>,
}

pub(super) fn job_row(id: &str, job: &Job) -> Result<Note, ServiceError> {
    let bytes = serde_json::to_vec(job);
    let bytes = bytes.map_err(|error| IndexError::Damaged(error.to_string()))?;
    Ok((format!("{JOB}{id}"), Some(bytes)))
}

/// No job for a document any more, and no file.
pub(super) fn without(id: &str) -> [Note; 2] {
    [(format!("{JOB}{id}"), None), (format!("{FILE}{id}"), None)]
}

impl Service {
    /// Takes a document, to be indexed by [`Service::ingest_next`]. On disk when this returns.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn accept(&self, upload: Upload, now: u64) -> Result<Accepted, ServiceError> {
        self.take(upload, now, None)
    }

    /// With a word to keep its file by the file stays beside the index; without one it goes once it is read.
    pub(super) fn take(&self, upload: Upload, now: u64, kept: Option<&Kept>) -> Result<Accepted, ServiceError> {
        let id = upload.id();
        self.fits(&upload)?;
        self.belongs(&id)?;
        let Upload { source, metadata, bytes, .. } = upload;
        let hash = hex::encode(Sha256::digest(&bytes));
        let mut queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (size, number) = (bytes.len() as u64, queue.last + 1);
        let job = Job { number, source, metadata, hash, bytes: size, status: Status::Queued, at: now };
        let before = self.job(&id)?;
        if self.is_indexed(&id, &job)? {
            self.forget(&mut queue, &id, before.as_ref())?;
            if let Some(kept) = kept.filter(|kept| self.stamp(&id) != Some(kept.stamp())) {
                self.index.put_notes(&kept.rows(&id, Some(bytes))?)?;
                self.say(&id, kept);
            }
            return Ok(Accepted { id, unchanged: true });
        }
        if queue.bytes + size > self.settings.queue_bytes as u64 {
            return Err(ServiceError::Full(self.settings.queue_bytes));
        }
        let file = format!("{FILE}{id}");
        let mut notes = vec![job_row(&id, &job)?, (LAST.to_owned(), Some(number.to_string().into_bytes()))];
        match kept {
            // One that waited without being kept is not read in its place.
            Some(kept) => notes.extend(kept.rows(&id, Some(bytes))?.into_iter().chain([(file, None)])),
            None => notes.push((file, Some(bytes))),
        }
        self.index.put_notes(&notes)?;
        queue.remove(before.as_ref());
        queue.push(&id, &job);
        kept.into_iter().for_each(|kept| self.say(&id, kept));
        Ok(Accepted { id, unchanged: false })
    }

    /// Whether a document may come: to this shard or to another one.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, upload: &Upload) -> Result<(), ServiceError> {
        let id = upload.id();
        let field = |field: &str, message: String| Err(ServiceError::Field { field: field.to_owned(), message });
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if id.is_empty() || id.len() > ID_CHARS || !id.chars().all(plain) {
            return field("id", format!("{id:?} is no id: expected 1 to {ID_CHARS} of a-z A-Z 0-9 - _ . :"));
        }
        if upload.source.name.is_empty() || upload.source.name.len() > NAME_BYTES {
            return field(
                "name",
                format!("a name has 1 to {NAME_BYTES} bytes, this one has {}", upload.source.name.len()),
            );
        }
        let size = serde_json::to_vec(&upload.metadata).map_or(0, |bytes| bytes.len());
        if size > METADATA_BYTES {
            return field("metadata", format!("{size} bytes of metadata, at most {METADATA_BYTES} are kept"));
        }
        let (bytes, max) = (upload.bytes.len(), self.settings.document_bytes);
        if bytes > max {
            return Err(ServiceError::TooLarge { bytes, max });
        }
        Format::of(&upload.source.name, upload.source.media_type.as_deref()).map(drop).map_err(ServiceError::Format)
    }

    /// Whether the index has a document just as a job would bring it.
    pub(super) fn is_indexed(&self, id: &str, job: &Job) -> Result<bool, ServiceError> {
        let recipe = self.recipe(&job.source);
        let same = |row: &Row| {
            let Row { hash, recipe: stored, name, media_type, metadata, .. } = row;
            *hash == job.hash
                && *stored == recipe
                && *name == job.source.name
                && *media_type == job.source.media_type
                && *metadata == job.metadata
        };
        Ok(self.index.document(id)?.is_some_and(|row| same(&row)))
    }

    pub(super) fn recipe(&self, source: &Source) -> String {
        let recipe = self.settings.chunking.recipe(&*self.models.tokens);
        source.text_field.as_ref().map_or_else(|| recipe.clone(), |field| format!("{recipe} {field}"))
    }

    fn jobs(&self) -> Result<Vec<(String, Job)>, ServiceError> {
        let notes = self.index.notes(JOB)?.into_iter();
        Ok(notes.map(|(name, job)| (name[JOB.len()..].to_owned(), job)).collect())
    }

    pub(super) fn job(&self, id: &str) -> Result<Option<Job>, ServiceError> {
        Ok(self.index.note(&format!("{JOB}{id}"))?)
    }

    fn forget(&self, queue: &mut Queue, id: &str, job: Option<&Job>) -> Result<(), ServiceError> {
        if job.is_some() {
            self.index.put_notes(&without(id))?;
            queue.remove(job);
        }
        Ok(())
    }

    /// A document, wherever it is on its way.
    ///
    /// # Errors
    /// When it belongs to another shard, or the disk fails.
    pub fn document(&self, id: &str) -> Result<Option<View>, ServiceError> {
        self.belongs(id)?;
        let (job, row) = (self.job(id)?, self.index.document(id)?);
        Ok(self.view(id, job, row))
    }

    /// Documents whose ids come after one, by their ids.
    ///
    /// # Errors
    /// The disk's.
    pub fn documents(&self, after: &str, count: usize) -> Result<Vec<View>, ServiceError> {
        let rows = self.index.documents(after, count)?;
        let mut all: BTreeMap<String, (Option<Job>, Option<Row>)> =
            rows.into_iter().map(|row| (row.id.clone(), (None, Some(row)))).collect();
        for (id, job) in self.jobs()?.into_iter().filter(|(id, _)| id.as_str() > after) {
            // Its row may lie beyond the page.
            let row = if all.contains_key(&id) { None } else { self.index.document(&id)? };
            let entry = all.entry(id).or_default();
            entry.0 = Some(job);
            entry.1 = entry.1.take().or(row);
        }
        let mut views = Vec::new();
        for (id, (job, row)) in all.into_iter().take(count) {
            views.extend(self.view(&id, job, row));
        }
        Ok(views)
    }

    /// Takes a document out, wherever it is on its way. Whether there was one.
    ///
    /// # Errors
    /// When it belongs to another shard, or the disk fails.
    pub fn delete(&self, id: &str) -> Result<bool, ServiceError> {
        self.delete_saying(id, None)
    }

    /// With a word that it went, which is known once it did.
    pub(super) fn delete_saying(&self, id: &str, gone: Option<&Kept>) -> Result<bool, ServiceError> {
        self.belongs(id)?;
        let mut queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let job = self.job(id)?;
        let mut notes: Vec<Note> = job.as_ref().map(|_| without(id)).into_iter().flatten().collect();
        if let Some(gone) = gone {
            notes.extend(gone.rows(id, None)?);
        }
        let deleted = self.index.delete_noting(id, &notes);
        if matches!(deleted, Ok(_) | Err(IndexError::Words(_))) {
            queue.remove(job.as_ref());
            gone.into_iter().for_each(|gone| self.say(id, gone));
        }
        Ok(deleted? || job.is_some())
    }

    fn view(&self, id: &str, job: Option<Job>, row: Option<Row>) -> Option<View> {
        let parsed = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).parsed;
        let (name, status, at) = match (job, &row) {
            (Some(job), _) if job.status == Status::Queued && parsed == Some(job.number) => {
                (job.source.name, Status::Parsed, job.at)
            }
            (Some(job), _) => (job.source.name, job.status, job.at),
            (None, Some(row)) => (row.name.clone(), Status::Indexed, row.indexed_at),
            (None, None) => return None,
        };
        Some(View { id: id.to_owned(), name, status, at, indexed: row })
    }
}
