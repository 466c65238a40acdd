//! The persistent index of one service: a folder that belongs to one embedder.
//!
//! ```text
//! store    index.redb, the truth: documents, texts, chunks, vectors, links, and what the words have not seen
//! words    BM25 by tantivy in words/; caught up from the store after each change and when the index is opened
//! memory   vectors, graph and metadata, read when it is opened      vectors, graph  the dense arm
//! change   a batch of documents in or out: one transaction, then the words
//! search   filter, both arms, fusion                                filter, fuse, hit; statistics: what BM25 counts
//! ```
//!
//! A change is durable when [`Index::put`] or [`Index::delete`] returns, and is seen by searches whole or not at all, but
//! that the words may follow the vectors by the time of their commit. Readers wait for a writer for the length of one
//! transaction at most. Deleted is deleted from all arms; the bytes stay on disk until redb and tantivy write over them.

mod change;
pub mod filter;
pub mod fuse;
pub mod graph;
pub mod hit;
mod memory;
mod search;
pub mod statistics;
mod store;
#[cfg(test)]
mod tests;
pub mod vectors;
pub mod words;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use change::{Entry, Put};
pub use filter::{Condition, Filter};
pub use graph::Measures;
pub use hit::Hit;
pub use search::Query;
pub use statistics::Statistics;
pub use store::{CHUNKS_MAX, FORMAT, Note, Row};
use words::Words;

use self::{
    graph::Graph,
    memory::Memory,
    store::{CHUNKS, DOCUMENTS, LINKS, META, Store, TEXTS, fails},
};

/// Why the index does not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    /// Its vectors are another embedder's.
    #[error(
        "{folder} belongs to the embedder {stored}, and {given} was given\nhint: name the former, or ingest the documents \
         anew into another folder"
    )]
    OtherEmbedder {
        /// The index.
        folder: PathBuf,
        /// Identity and dimension.
        stored: String,
        /// Identity and dimension.
        given: String,
    },
    /// A later build wrote it.
    #[error("{folder} was written by another build (format {found}, this one reads {FORMAT})\nhint: use that build")]
    Format {
        /// The index.
        folder: PathBuf,
        /// Its format.
        found: String,
    },
    /// Another process has it.
    #[error("{0}: another process uses this index\nhint: one process a folder; replicas have folders of their own")]
    InUse(PathBuf),
    /// The bytes are not what was written.
    #[error("the index is damaged: {0}\nhint: move its folder away and ingest the documents anew")]
    Damaged(String),
    /// A vector is none.
    #[error("the embedder {0}")]
    Vector(String),
    /// More chunks than a document may have.
    #[error("{0} chunks of one document, at most {CHUNKS_MAX}\nhint: cut it into several, or its chunks larger")]
    TooMany(usize),
    /// The settings.
    #[error("{0}")]
    Settings(String),
    /// The store's, or its disk's.
    #[error("index.redb: {0}")]
    Store(Arc<redb::Error>),
    /// The words', or their disk's. The store has the change; the words have it once they can be written.
    #[error("the index of words: {0}")]
    Words(#[from] tantivy::TantivyError),
    /// The folder.
    #[error("{0}: {1}")]
    Folder(PathBuf, Arc<std::io::Error>),
}

/// How vectors are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dense {
    /// Each is looked at: exact, and a millisecond for some ten thousand of 384 numbers.
    #[default]
    Flat,
    /// By a graph of neighbours.
    Hnsw(Measures),
}

/// A language whose words are searched by their stems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are languages")]
pub enum Stems {
    English,
    French,
    German,
    Italian,
    Portuguese,
    Russian,
    Spanish,
}

/// How an index is searched; may be another each time it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The vectors.
    pub dense: Dense,
    /// The words; `None` = as they are written, in any language.
    pub stems: Option<Stems>,
}

impl Stems {
    fn language(self) -> tantivy::tokenizer::Language {
        use tantivy::tokenizer::Language as L;
        match self {
            Self::English => L::English,
            Self::French => L::French,
            Self::German => L::German,
            Self::Italian => L::Italian,
            Self::Portuguese => L::Portuguese,
            Self::Russian => L::Russian,
            Self::Spanish => L::Spanish,
        }
    }
}

/// Which arms are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arms {
    /// Vectors.
    pub dense: bool,
    /// Words.
    pub words: bool,
}

/// An index, open.
pub struct Index {
    dimension: usize,
    dense: Dense,
    store: Store,
    memory: RwLock<Memory>,
    words: Words,
    /// One writer.
    writing: Mutex<()>,
    /// A test ends a change between its two commits.
    #[cfg(test)]
    stops_before_words: std::sync::atomic::AtomicBool,
}

impl Index {
    /// Opens a folder, or begins an index in it. `identity`, `dimension`: the embedder's.
    ///
    /// # Errors
    /// When it belongs to another embedder, another process or another build, is damaged, or the disk fails.
    pub fn open(folder: &Path, identity: &str, dimension: usize, settings: Settings) -> Result<Self, IndexError> {
        if let Dense::Hnsw(Measures { links, build, search }) = settings.dense
            && (!(2..=1024).contains(&links) || build < links || search == 0)
        {
            let message = format!(
                "hnsw: {links} links, {build} to build, {search} to search: expected 2 to 1024, at least as many, at least 1"
            );
            return Err(IndexError::Settings(message));
        }
        fs::create_dir_all(folder).map_err(|error| IndexError::Folder(folder.to_owned(), Arc::new(error)))?;
        let store = Store::open(&folder.join("index.redb"))?;
        belongs(&store, folder, identity, dimension)?;
        let mut memory = Memory::load(&store, dimension, settings.dense)?;
        memory.next_key = memory.next_key.max(number(&store, "next_key")?);
        graph_as_set(&store, &mut memory, settings.dense)?;
        let stems = format!("{:?}", settings.stems);
        let words_folder = folder.join("words");
        // Words cut otherwise are other words.
        if store.meta("stems")?.is_some_and(|stored| stored != stems) {
            fs::remove_dir_all(&words_folder)
                .map_err(|error| IndexError::Folder(words_folder.clone(), Arc::new(error)))?;
        }
        set(&store, &[("stems", &stems)])?;
        let words = Words::open(&words_folder, settings.stems.map(Stems::language))?;
        let index = Self {
            dimension,
            dense: settings.dense,
            store,
            memory: RwLock::new(memory),
            words,
            writing: Mutex::new(()),
            #[cfg(test)]
            stops_before_words: false.into(),
        };
        index.catch_up()?;
        Ok(index)
    }

    /// A document by its id.
    ///
    /// # Errors
    /// The disk's.
    pub fn document(&self, id: &str) -> Result<Option<Row>, IndexError> {
        let Some(key) = self.key(id) else {
            return Ok(None);
        };
        self.store.row(DOCUMENTS, key)
    }

    /// Documents after an id, by their ids.
    ///
    /// # Errors
    /// The disk's.
    pub fn documents(&self, after: &str, count: usize) -> Result<Vec<Row>, IndexError> {
        let ids = self.store.ids(after, count)?;
        let rows = ids.into_iter().map(|(_, key)| self.store.row(DOCUMENTS, key));
        Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// A document's whole text: what spans are places of.
    ///
    /// # Errors
    /// The disk's.
    pub fn text(&self, id: &str) -> Result<Option<String>, IndexError> {
        use redb::ReadableDatabase;
        let Some(key) = self.key(id) else {
            return Ok(None);
        };
        let read = self.store.database.begin_read().map_err(fails)?;
        let texts = read.open_table(TEXTS).map_err(fails)?;
        let text = texts.get(key).map_err(fails)?;
        Ok(text.map(|text| text.value().to_owned()))
    }

    /// Documents and chunks in it.
    pub fn size(&self) -> (usize, usize) {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        (memory.documents.len(), memory.by_chunk.len())
    }

    fn key(&self, id: &str) -> Option<u64> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).keys.get(id).copied()
    }

    /// What somebody else keeps in the same file, by its name.
    ///
    /// # Errors
    /// The disk's.
    pub fn note<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, IndexError> {
        self.store.note(name)
    }

    /// All whose names begin with something, by their names.
    ///
    /// # Errors
    /// The disk's.
    pub fn notes<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, IndexError> {
        self.store.notes(prefix)
    }

    /// A note that is bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn raw_note(&self, name: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.store.raw_note(name)
    }

    /// Keeps notes, or forgets them (`None`), all at once.
    ///
    /// # Errors
    /// The disk's; then none is.
    pub fn put_notes(&self, notes: &[Note]) -> Result<(), IndexError> {
        self.store.put_notes(notes)
    }
}

fn number(store: &Store, name: &str) -> Result<u64, IndexError> {
    Ok(store.meta(name)?.and_then(|value| value.parse().ok()).unwrap_or(0))
}

fn set(store: &Store, values: &[(&str, &str)]) -> Result<(), IndexError> {
    let write = store.write()?;
    {
        let mut meta = write.open_table(META).map_err(fails)?;
        for (name, value) in values {
            meta.insert(*name, *value).map_err(fails)?;
        }
    }
    write.commit().map_err(fails)
}

/// A new one is given to its embedder; one that has one keeps it.
fn belongs(store: &Store, folder: &Path, identity: &str, dimension: usize) -> Result<(), IndexError> {
    let given = format!("{identity} ({dimension} numbers)");
    match (store.meta("format")?, store.meta("embedder")?) {
        (Some(found), _) if found != FORMAT => Err(IndexError::Format { folder: folder.to_owned(), found }),
        (Some(_), Some(stored)) if stored != given => {
            Err(IndexError::OtherEmbedder { folder: folder.to_owned(), stored, given })
        }
        (Some(_), Some(_)) => Ok(()),
        _ => set(store, &[("format", FORMAT), ("embedder", &given)]),
    }
}

/// The graph as it is stored, where it was built as it is wanted now and is whole; else it is built from the vectors.
fn graph_as_set(store: &Store, memory: &mut Memory, dense: Dense) -> Result<(), IndexError> {
    let wanted = match dense {
        Dense::Flat => String::new(),
        Dense::Hnsw(Measures { links, build, .. }) => format!("{links} {build}"),
    };
    let as_wanted = store.meta("graph")?.unwrap_or_default() == wanted;
    if let Some(graph) = &memory.graph {
        let chunks = memory.by_chunk.values();
        if as_wanted && graph.is_whole() && chunks.clone().all(|slot| graph.has(*slot)) {
            return Ok(());
        }
    } else if as_wanted {
        return Ok(());
    }
    let mut links = Vec::new();
    if let Dense::Hnsw(measures) = dense {
        let mut graph = Graph::new(measures);
        let mut slots: Vec<_> = memory.by_chunk.iter().map(|(chunk, slot)| (*slot, *chunk)).collect();
        slots.sort_unstable();
        for (slot, chunk) in slots {
            graph.insert(slot, change::chance(chunk), &memory.vectors);
        }
        links = graph.take_changed();
        memory.graph = Some(graph);
    }
    let write = store.write()?;
    {
        let mut rows = write.open_table(LINKS).map_err(fails)?;
        rows.retain(|_, _| false).map_err(fails)?;
        for (slot, links) in &links {
            if let Some(links) = links {
                rows.insert(slot, links.as_slice()).map_err(fails)?;
            }
        }
        write.open_table(META).map_err(fails)?.insert("graph", wanted.as_str()).map_err(fails)?;
    }
    write.commit().map_err(fails)
}
