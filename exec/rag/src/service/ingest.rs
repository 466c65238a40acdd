//! From a job that waits to a document in the index, or to the reason why it isn't there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
};

use super::{
    Parser, Service, ServiceError, Status,
    jobs::{FILE, Job, job_row, without},
};
use crate::{
    chunk::chunks,
    index::{CHUNKS_MAX, Entry, IndexError},
    parse::{Document, Source, child::parse_in_child, parse},
    seams::Side,
};

/// Documents of one commit: it takes as long for one as for many.
const GROUP: usize = 32;
/// With as many chunks a group is whole: the first of it should not wait for ever.
const GROUP_CHUNKS: usize = 128;

/// A job, and what came of it: an entry, nothing to be done, or the reason why not.
type Prepared = (String, Job, Result<Option<Entry>, String>);

impl Service {
    /// Reads and indexes documents that wait longest, as many as make one commit. Returns their ids: none where none waits.
    /// Blocks; one at a time.
    ///
    /// # Errors
    /// When the disk fails: they wait still. What is wrong with a document itself is said by its status.
    pub fn ingest_next(&self, now: u64) -> Result<Vec<String>, ServiceError> {
        let _one = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting: Vec<(u64, String)> = {
            let queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            queue.first(GROUP)
        };
        let mut prepared: Vec<Prepared> = Vec::new();
        let mut passed = Vec::new();
        let mut made = 0;
        for (number, id) in waiting {
            let Some(job) = self.job(&id)?.filter(|job| job.number == number) else {
                // Deleted or replaced since; what took its place has its own number.
                self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pass(number);
                passed.push(id);
                continue;
            };
            let entry = catch_unwind(AssertUnwindSafe(|| self.prepared(&id, &job, now)));
            // A job that stayed would panic for ever.
            let entry = entry.unwrap_or_else(|_| Err("reading it ended in a panic; the log says more".into()));
            made += entry.as_ref().ok().and_then(Option::as_ref).map_or(0, |entry| entry.chunks.len());
            prepared.push((id, job, entry));
            if made >= GROUP_CHUNKS {
                break;
            }
        }
        passed.extend(self.take_in(prepared, now)?);
        Ok(passed)
    }

    /// One commit for all that is good, another for what is not.
    fn take_in(&self, prepared: Vec<Prepared>, now: u64) -> Result<Vec<String>, ServiceError> {
        let mut queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut ids, mut entries, mut done, mut failed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut over = Vec::new();
        for (id, job, entry) in prepared {
            ids.push(id.clone());
            // Deleted, or replaced while it was read: nobody asks about this one any more.
            if self.job(&id)?.is_none_or(|now| now.number != job.number) {
                continue;
            }
            match entry {
                Ok(entry) => {
                    entries.extend(entry);
                    done.extend(without(&id));
                    over.push(job);
                }
                Err(reason) => failed.push((id, job, reason)),
            }
        }
        if !done.is_empty() {
            match self.index.put(entries, &done) {
                Ok(_) => {}
                // They are in all the same; the words follow with the next document, or when the index is opened.
                Err(error @ IndexError::Words(_)) => {
                    tracing::error!(service = self.name, %error, "the words fell behind")
                }
                Err(error) => return Err(error.into()),
            }
            over.iter().for_each(|job| queue.remove(Some(job)));
        }
        let mut notes = Vec::new();
        for (id, job, reason) in &failed {
            tracing::info!(service = self.name, document = id, %reason, "a document was not indexed");
            let status = Status::Failed { reason: reason.clone() };
            notes.push(job_row(id, &Job { status, at: now, ..job.clone() })?);
            notes.push((format!("{FILE}{id}"), None));
        }
        if !notes.is_empty() {
            self.index.put_notes(&notes)?;
            failed.iter().for_each(|(_, job, _)| queue.remove(Some(job)));
        }
        Ok(ids)
    }

    /// The reason is for people.
    fn prepared(&self, id: &str, job: &Job, now: u64) -> Result<Option<Entry>, String> {
        if self.is_indexed(id, job).map_err(|error| error.to_string())? {
            return Ok(None);
        }
        let waits = self.index.raw_note(&format!("{FILE}{id}"));
        let file = waits.and_then(|file| file.map_or_else(|| self.kept_file(id), |file| Ok(Some(file))));
        let file = file.map_err(|error| error.to_string())?;
        let document = self.read(&job.source, &file.ok_or("its file is gone\nhint: send it again")?)?;
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).parsed = Some(job.number);
        self.embedded(id, job.clone(), document, now).map(Some)
    }

    fn read(&self, source: &Source, file: &[u8]) -> Result<Document, String> {
        match &self.parser {
            Parser::Here => parse(source, file, &self.settings.parsing.bounds).map_err(|error| error.to_string()),
            Parser::Child { exe, args } => {
                parse_in_child(exe, args, source, file, &self.settings.parsing).map_err(|error| error.to_string())
            }
        }
    }

    fn embedded(&self, id: &str, job: Job, document: Document, now: u64) -> Result<Entry, String> {
        let made = chunks(&document, &*self.models.tokens, &self.settings.chunking);
        let made = made.map_err(|error| format!("it could not be cut: {error:#}"))?;
        if made.is_empty() {
            return Err("there is no text in it".into());
        }
        if made.len() >= CHUNKS_MAX {
            return Err(IndexError::TooMany(made.len()).to_string());
        }
        let mut vectors = Vec::with_capacity(made.len());
        for batch in made.chunks(self.settings.batch.max(1)) {
            let texts: Vec<String> = batch.iter().map(|chunk| chunk.searched(&document.text)).collect();
            let embedded = self.models.embedder.embed(&texts, Side::Passage);
            vectors.extend(embedded.map_err(|error| ServiceError::Embedder(error).to_string())?);
        }
        // Here, where it is this document's fault alone.
        self.index.check(&vectors, made.len()).map_err(|error| error.to_string())?;
        let recipe = self.recipe(&job.source);
        let Job { source: Source { name, media_type, .. }, metadata, hash, bytes, .. } = job;
        let (id, chunks, indexed_at) = (id.to_owned(), made, now);
        Ok(Entry { id, name, media_type, hash, recipe, metadata, bytes, document, chunks, vectors, indexed_at })
    }
}
