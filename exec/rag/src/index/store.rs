//! `index.redb`: documents, their texts, chunks, vectors and the graph's links; jobs that wait; folders that are followed.
//! All that is true is here, and changes in one transaction.

use std::{path::Path, sync::Arc};

use redb::{Database, ReadableDatabase, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Arms, IndexError};
use crate::{chunk::Chunk, parse::Metadata};

pub(super) const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// By key, which no other version of a document has.
pub(super) const DOCUMENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("documents");
/// Keys by id.
pub(super) const IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("ids");
pub(super) const TEXTS: TableDefinition<'_, u64, &str> = TableDefinition::new("texts");
/// By [`chunk_key`].
pub(super) const CHUNKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("chunks");
/// By slot.
pub(super) const VECTORS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("vectors");
/// By slot.
pub(super) const LINKS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("links");
/// By version and document's key: whether it came (else it went). What the words have seen is forgotten.
pub(super) const CHANGES: TableDefinition<'_, (u64, u64), bool> = TableDefinition::new("changes");
/// By name: what others keep here, in the same file and as safe.
pub(super) const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");

/// What is stored, as JSON texts in redb's tables.
pub const FORMAT: &str = "1";
/// Bits of a chunk's key that are its place in its document.
const ORDINAL_BITS: u32 = 24;
/// redb's default is 1 GiB.
const CACHE_BYTES: usize = 64 << 20;

/// Chunks of one document.
pub const CHUNKS_MAX: usize = 1 << ORDINAL_BITS;

/// Unique among all chunks that ever were.
pub(super) fn chunk_key(document: u64, ordinal: u32) -> u64 {
    document << ORDINAL_BITS | u64::from(ordinal)
}

/// A chunk's document.
pub(super) fn document_of(chunk: u64) -> u64 {
    chunk >> ORDINAL_BITS
}

/// A document that is in the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// As it was said when it came.
    pub media_type: Option<String>,
    /// SHA-256 of the file.
    pub hash: String,
    /// What its chunks depend on besides the file.
    pub recipe: String,
    /// What it was given with.
    pub metadata: Metadata,
    /// Of the file.
    pub bytes: u64,
    /// Of its text.
    pub chars: u64,
    /// Of PDF.
    pub pages: Option<u32>,
    /// How many.
    pub chunks: u32,
    /// What it calls itself.
    pub title: Option<String>,
    /// What could not be read of it.
    pub notes: Vec<String>,
    /// Seconds since 1970.
    pub indexed_at: u64,
}

/// A chunk as it is stored: with its text, so that a hit need not read its whole document.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredChunk {
    pub(super) chunk: Chunk,
    pub(super) slot: u32,
    pub(super) text: String,
}

pub(super) fn fails(error: impl Into<redb::Error>) -> IndexError {
    IndexError::Store(Arc::new(error.into()))
}

pub(super) fn decoded<T: DeserializeOwned>(table: &str, bytes: &[u8]) -> Result<T, IndexError> {
    serde_json::from_slice(bytes).map_err(|error| IndexError::Damaged(format!("a row of {table}: {error}")))
}

pub(super) fn encoded(row: &impl Serialize) -> Result<Vec<u8>, IndexError> {
    serde_json::to_vec(row).map_err(|error| IndexError::Damaged(error.to_string()))
}

/// A note's name, and what it says from now on; `None` = it goes.
pub type Note = (String, Option<Vec<u8>>);

pub(super) fn write_notes(write: &WriteTransaction, notes: &[Note]) -> Result<(), IndexError> {
    let mut rows = write.open_table(NOTES).map_err(fails)?;
    for (name, bytes) in notes {
        match bytes {
            Some(bytes) => rows.insert(name.as_str(), bytes.as_slice()).map(drop),
            None => rows.remove(name.as_str()).map(drop),
        }
        .map_err(fails)?;
    }
    Ok(())
}

/// The file.
pub(super) struct Store {
    pub(super) database: Database,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => IndexError::InUse(path.to_owned()),
            other => fails(other),
        })?;
        let store = Self { database };
        // All tables exist from the beginning on, so that reading never fails for want of one.
        let write = store.write()?;
        write.open_table(META).map_err(fails)?;
        write.open_table(DOCUMENTS).map_err(fails)?;
        write.open_table(IDS).map_err(fails)?;
        write.open_table(TEXTS).map_err(fails)?;
        write.open_table(CHUNKS).map_err(fails)?;
        write.open_table(VECTORS).map_err(fails)?;
        write.open_table(LINKS).map_err(fails)?;
        write.open_table(CHANGES).map_err(fails)?;
        write.open_table(NOTES).map_err(fails)?;
        write.commit().map_err(fails)?;
        Ok(store)
    }

    pub(super) fn write(&self) -> Result<WriteTransaction, IndexError> {
        self.database.begin_write().map_err(fails)
    }

    pub(super) fn meta(&self, name: &str) -> Result<Option<String>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let table = read.open_table(META).map_err(fails)?;
        let value = table.get(name).map_err(fails)?;
        Ok(value.map(|value| value.value().to_owned()))
    }

    /// A row of a table of JSON.
    pub(super) fn row<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, u64, &[u8]>,
        key: u64,
    ) -> Result<Option<T>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(table).map_err(|error: TableError| fails(error))?;
        let row = rows.get(key).map_err(fails)?;
        row.map(|row| decoded("documents", row.value())).transpose()
    }

    /// Chunks of a document.
    pub(super) fn chunks(&self, document: u64) -> Result<Vec<(u64, StoredChunk)>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(CHUNKS).map_err(fails)?;
        let range = chunk_key(document, 0)..chunk_key(document + 1, 0);
        let chunks = rows.range(range).map_err(fails)?.map(|row| {
            let (key, row) = row.map_err(fails)?;
            Ok((key.value(), decoded("chunks", row.value())?))
        });
        chunks.collect()
    }

    /// Changes after a version, in their order, and the version that is reached with them.
    pub(super) fn changes(&self, after: u64) -> Result<Vec<(u64, u64, bool)>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(CHANGES).map_err(fails)?;
        let changes = rows.range((after + 1, 0)..).map_err(fails)?.map(|row| {
            let (key, came) = row.map_err(fails)?;
            let (version, document) = key.value();
            Ok((version, document, came.value()))
        });
        changes.collect()
    }

    /// A note by its name.
    pub(super) fn note<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(NOTES).map_err(fails)?;
        let row = rows.get(name).map_err(fails)?;
        row.map(|row| decoded("notes", row.value())).transpose()
    }

    /// Notes whose names begin with something.
    pub(super) fn notes<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(NOTES).map_err(fails)?;
        let mut notes = Vec::new();
        for row in rows.range(prefix..).map_err(fails)? {
            let (name, row) = row.map_err(fails)?;
            if !name.value().starts_with(prefix) {
                break;
            }
            notes.push((name.value().to_owned(), decoded("notes", row.value())?));
        }
        Ok(notes)
    }

    /// The bytes of a note that is no JSON.
    pub(super) fn raw_note(&self, name: &str) -> Result<Option<Vec<u8>>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(NOTES).map_err(fails)?;
        let row = rows.get(name).map_err(fails)?;
        Ok(row.map(|row| row.value().to_vec()))
    }

    /// Writes notes, or takes them out, all or none.
    pub(super) fn put_notes(&self, notes: &[Note]) -> Result<(), IndexError> {
        let write = self.write()?;
        write_notes(&write, notes)?;
        write.commit().map_err(fails)
    }

    /// Ids after one, in order.
    pub(super) fn ids(&self, after: &str, count: usize) -> Result<Vec<(String, u64)>, IndexError> {
        let read = self.database.begin_read().map_err(fails)?;
        let rows = read.open_table(IDS).map_err(fails)?;
        let mut ids = Vec::new();
        for row in rows.range(after..).map_err(fails)? {
            let (id, key) = row.map_err(fails)?;
            if id.value() != after || after.is_empty() {
                ids.push((id.value().to_owned(), key.value()));
            }
            if ids.len() >= count {
                break;
            }
        }
        Ok(ids)
    }
}

/// Which arms are asked; both, unless one is to be looked at alone.
impl Default for Arms {
    fn default() -> Self {
        Self { dense: true, words: true }
    }
}
