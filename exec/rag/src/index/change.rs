//! Documents in and out of the index: one transaction of the store, then the words.

use std::sync::{Arc, PoisonError};

use redb::WriteTransaction;

use super::{
    Arms, CHUNKS, CHUNKS_MAX, DOCUMENTS, Index, IndexError, LINKS, META, Memory, Row, TEXTS, number,
    store::{CHANGES, IDS, Note, StoredChunk, VECTORS, chunk_key, encoded, fails, write_notes},
    vectors::{to_bytes, unit},
    words::Posting,
};
use crate::{chunk::Chunk, parse::Metadata};

/// A document that comes, cut and embedded.
pub struct Entry {
    /// Its id: who has it already is replaced.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// As it was said.
    pub media_type: Option<String>,
    /// SHA-256 of the file.
    pub hash: String,
    /// What its chunks depend on besides: [`crate::chunk::Chunking::recipe`].
    pub recipe: String,
    /// What filters may ask for.
    pub metadata: Metadata,
    /// Bytes of the file.
    pub bytes: u64,
    /// What was read of it.
    pub document: crate::parse::Document,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
    /// A vector for each.
    pub vectors: Vec<Vec<f32>>,
    /// Seconds since 1970.
    pub indexed_at: u64,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is new.
    Added,
    /// It took the place of another of its id.
    Replaced,
}

/// An entry on its way: with its key, slots, and the key of what it replaces.
struct Coming {
    entry: Entry,
    key: u64,
    slots: Vec<u32>,
    replaces: Option<u64>,
}

/// Chance that belongs to a chunk, the same wherever it is drawn (the finalizer of SplitMix64).
pub(super) fn chance(chunk: u64) -> u64 {
    let mut x = chunk.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Index {
    /// Takes documents in, all or none, and with them notes as [`Index::put_notes`] does.
    ///
    /// # Errors
    /// When a vector is none of this index's, or the disk fails. After [`IndexError::Words`] they are in all the same, and
    /// words follow with the next change or when the index is opened.
    pub fn put(&self, entries: Vec<Entry>, notes: &[Note]) -> Result<Vec<Put>, IndexError> {
        let mut entries = entries.into_iter().map(|entry| self.checked(entry)).collect::<Result<Vec<_>, _>>()?;
        // Of two of one id the last stays.
        let mut later = std::collections::BTreeSet::new();
        entries.reverse();
        entries.retain(|entry| later.insert(entry.id.clone()));
        entries.reverse();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut coming = Vec::with_capacity(entries.len());
        let mut added = Vec::new();
        for entry in entries {
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            let key = memory.next_key;
            memory.next_key += 1;
            let slots = memory.take_slots(entry.chunks.len());
            let replaces = memory.keys.get(&entry.id).copied();
            drop(memory);
            // Nothing is accepted from these slots yet; a lock for each, so that searches pass between.
            for ((slot, vector), ordinal) in slots.iter().zip(&entry.vectors).zip(0..) {
                let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
                let memory = &mut *memory;
                memory.vectors.set(*slot, vector);
                if let Some(graph) = &mut memory.graph {
                    graph.insert(*slot, chance(chunk_key(key, ordinal)), &memory.vectors);
                }
            }
            added.push(if replaces.is_some() { Put::Replaced } else { Put::Added });
            coming.push(Coming { entry, key, slots, replaces });
        }
        let gone = coming.iter().filter_map(|coming| coming.replaces).collect();
        self.change(coming, gone, notes)?;
        Ok(added)
    }

    /// Takes a document out of all arms. Whether there was one.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete(&self, id: &str) -> Result<bool, IndexError> {
        self.delete_noting(id, &[])
    }

    /// The same, and with it notes as [`Index::put_notes`] does, whether there was one or not.
    ///
    /// # Errors
    /// The disk's. After [`IndexError::Words`] it is out all the same.
    pub fn delete_noting(&self, id: &str, notes: &[Note]) -> Result<bool, IndexError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = self.key(id) else {
            if !notes.is_empty() {
                self.put_notes(notes)?;
            }
            return Ok(false);
        };
        self.change(Vec::new(), vec![key], notes)?;
        Ok(true)
    }

    /// Whether vectors are such as this index takes, one for each of so many texts.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, vectors: &[Vec<f32>], texts: usize) -> Result<(), IndexError> {
        let wrong = |message: String| Err(IndexError::Vector(message));
        if vectors.len() != texts {
            return wrong(format!("made {} vectors of {texts} texts", vectors.len()));
        }
        if let Some(other) = vectors.iter().find(|vector| vector.len() != self.dimension) {
            return wrong(format!("made a vector of {} numbers, expected {}", other.len(), self.dimension));
        }
        if vectors.iter().any(|vector| unit(vector).is_none()) {
            return wrong("made a vector with numbers that are none".into());
        }
        Ok(())
    }

    fn checked(&self, mut entry: Entry) -> Result<Entry, IndexError> {
        if entry.chunks.len() >= CHUNKS_MAX {
            return Err(IndexError::TooMany(entry.chunks.len()));
        }
        self.check(&entry.vectors, entry.chunks.len())?;
        for vector in &mut entry.vectors {
            *vector = unit(vector).unwrap_or_default();
        }
        Ok(entry)
    }

    fn change(&self, coming: Vec<Coming>, gone: Vec<u64>, notes: &[Note]) -> Result<(), IndexError> {
        {
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = self.commit(&mut memory, coming, &gone, notes) {
                // Nothing of it is stored: what is in memory is read again.
                let next_key = memory.next_key;
                *memory = Memory::load(&self.store, self.dimension, self.dense)?;
                memory.next_key = memory.next_key.max(next_key);
                return Err(error);
            }
        }
        #[cfg(test)]
        if self.stops_before_words.load(std::sync::atomic::Ordering::SeqCst) {
            return Ok(());
        }
        self.catch_up()
    }

    fn commit(&self, memory: &mut Memory, coming: Vec<Coming>, gone: &[u64], notes: &[Note]) -> Result<(), IndexError> {
        let version = number(&self.store, "version")? + 1;
        let seen = self.words.version()?.unwrap_or(0).min(version - 1);
        let write = self.store.write()?;
        write_notes(&write, notes)?;
        let mut free = Vec::new();
        for &key in gone {
            let chunks = self.store.chunks(key)?;
            let ordinals = chunks.iter().map(|(chunk, stored)| (*chunk, stored.slot));
            erase(&write, memory, key, version, ordinals)?;
            let slots = memory.drop_document(key);
            if let Some(graph) = &mut memory.graph {
                graph.remove(&slots, &memory.vectors);
            }
            free.extend(slots);
        }
        for coming in coming {
            insert(&write, memory, coming, version)?;
        }
        {
            let mut links = write.open_table(LINKS).map_err(fails)?;
            for (slot, stored) in memory.graph.as_mut().map(|graph| graph.take_changed()).unwrap_or_default() {
                match stored {
                    Some(stored) => links.insert(slot, stored.as_slice()).map(drop),
                    None => links.remove(slot).map(drop),
                }
                .map_err(fails)?;
            }
            let mut changes = write.open_table(CHANGES).map_err(fails)?;
            changes.retain_in(..=(seen, u64::MAX), |_, _| false).map_err(fails)?;
            let mut meta = write.open_table(META).map_err(fails)?;
            let numbers = [("version", version), ("forgotten", seen), ("next_key", memory.next_key)];
            for (name, value) in numbers {
                meta.insert(name, value.to_string().as_str()).map_err(fails)?;
            }
        }
        write.commit().map_err(fails)?;
        memory.free.extend(free);
        Ok(())
    }

    /// Writes to the words what they have not seen; all of it where that can't be told.
    pub(super) fn catch_up(&self) -> Result<(), IndexError> {
        let (version, forgotten) = (number(&self.store, "version")?, number(&self.store, "forgotten")?);
        let seen = self.words.version()?;
        if seen == Some(version) {
            return Ok(());
        }
        let changes = match seen {
            Some(seen) if (forgotten..version).contains(&seen) => Some(self.store.changes(seen)?),
            _ => None,
        };
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let (gone, mut came): (Vec<u64>, Vec<u64>) = match &changes {
            Some(changes) => (
                changes.iter().map(|(_, key, _)| *key).collect(),
                changes
                    .iter()
                    .filter(|(_, key, came)| *came && memory.documents.contains_key(key))
                    .map(|c| c.1)
                    .collect(),
            ),
            None => (Vec::new(), memory.documents.keys().copied().collect()),
        };
        drop(memory);
        came.sort_unstable();
        let postings = came.into_iter().flat_map(|document| match self.store.chunks(document) {
            Ok(chunks) => chunks.into_iter().map(|(chunk, stored)| Ok(posting(document, chunk, &stored))).collect(),
            Err(error) => vec![Err(tantivy::TantivyError::InternalError(error.to_string()))],
        });
        Ok(self.words.apply(changes.is_none(), &gone, postings, version)?)
    }
}

fn posting(document: u64, chunk: u64, stored: &StoredChunk) -> Posting {
    let StoredChunk { chunk: Chunk { context, .. }, text, .. } = stored;
    Posting { document, chunk, text: format!("{context}\n{text}") }
}

fn erase(
    write: &WriteTransaction,
    memory: &Memory,
    key: u64,
    version: u64,
    chunks: impl Iterator<Item = (u64, u32)>,
) -> Result<(), IndexError> {
    let mut rows = write.open_table(CHUNKS).map_err(fails)?;
    let mut vectors = write.open_table(VECTORS).map_err(fails)?;
    for (chunk, slot) in chunks {
        rows.remove(chunk).map_err(fails)?;
        vectors.remove(slot).map_err(fails)?;
    }
    if let Some(held) = memory.documents.get(&key) {
        write.open_table(IDS).map_err(fails)?.remove(held.id.as_str()).map_err(fails)?;
    }
    write.open_table(DOCUMENTS).map_err(fails)?.remove(key).map_err(fails)?;
    write.open_table(TEXTS).map_err(fails)?.remove(key).map_err(fails)?;
    write.open_table(CHANGES).map_err(fails)?.insert((version, key), false).map_err(fails)?;
    Ok(())
}

fn insert(write: &WriteTransaction, memory: &mut Memory, coming: Coming, version: u64) -> Result<(), IndexError> {
    let Coming { entry, key, slots, .. } = coming;
    let Entry { id, name, media_type, hash, recipe, metadata, bytes, document, chunks, vectors, indexed_at } = entry;
    let row = Row {
        id,
        name,
        media_type,
        hash,
        recipe,
        metadata,
        bytes,
        chars: document.text.chars().count() as u64,
        pages: document.pages,
        chunks: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
        title: document.title,
        notes: document.notes,
        indexed_at,
    };
    write.open_table(DOCUMENTS).map_err(fails)?.insert(key, encoded(&row)?.as_slice()).map_err(fails)?;
    write.open_table(IDS).map_err(fails)?.insert(row.id.as_str(), key).map_err(fails)?;
    write.open_table(TEXTS).map_err(fails)?.insert(key, document.text.as_str()).map_err(fails)?;
    write.open_table(CHANGES).map_err(fails)?.insert((version, key), true).map_err(fails)?;
    memory.hold(key, &row);
    let mut rows = write.open_table(CHUNKS).map_err(fails)?;
    let mut stored_vectors = write.open_table(VECTORS).map_err(fails)?;
    for ((chunk, vector), slot) in chunks.into_iter().zip(&vectors).zip(slots) {
        let place = chunk_key(key, chunk.ordinal);
        memory.fill(slot, place, chunk.metadata.clone().map(Arc::new));
        let text = chunk.bytes.of(&document.text).to_owned();
        rows.insert(place, encoded(&StoredChunk { chunk, slot, text })?.as_slice()).map_err(fails)?;
        stored_vectors.insert(slot, to_bytes(vector).as_slice()).map_err(fails)?;
    }
    Ok(())
}

impl Arms {
    /// Vectors alone.
    pub const DENSE: Self = Self { dense: true, words: false };
    /// Words alone.
    pub const WORDS: Self = Self { dense: false, words: true };
}
