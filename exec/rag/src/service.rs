//! One service's documents: accepted, read, indexed, found. All of it blocks; the shell around it ([`crate::http`]) doesn't.
//!
//! An accepted document is on disk before it is said to be, and is indexed after a restart too. Of a service of several
//! shards its file is kept, here and by another one.

mod copies;
mod folder;
mod ingest;
mod jobs;
mod retrieve;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};

pub use copies::{Came, Kept, Stamp, digest};
pub use folder::Followed;
pub use jobs::{Accepted, Status, Upload, View};
pub use retrieve::{Ask, Floor, Found};

use copies::Stamps;
use jobs::Queue;

use crate::{
    chunk::Chunking,
    index::{Arms, Index, IndexError},
    parse::{ParseError, child::Limits},
    seams::{Embedder, Reranker, Tokens},
    shard::Sharding,
};

/// Where files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parser {
    /// In this process: for files of one's own, and for tests.
    Here,
    /// In a child: a program and its arguments that lead to [`crate::parse::child::child_main`].
    Child {
        /// The program.
        exe: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// How a service works.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How documents are cut.
    pub chunking: Chunking,
    /// Hits that a question gets where it doesn't say.
    pub top_k: usize,
    /// Candidates of each arm.
    pub depth: usize,
    /// Of them the best are given to the reranker.
    pub rerank: usize,
    /// Arms that are asked where a question doesn't say.
    pub arms: Arms,
    /// What a hit must reach to be one.
    pub floor: Floor,
    /// Bytes of one document's file.
    pub document_bytes: usize,
    /// Bytes of files that wait to be indexed, together.
    pub queue_bytes: usize,
    /// Texts that are embedded at once.
    pub batch: usize,
    /// What a child that reads may use.
    pub parsing: Limits,
    /// Which documents belong here.
    pub sharding: Sharding,
}

impl Default for Settings {
    /// Six hits of 50 candidates an arm, no floor, files of 64 MiB, a queue of 1 GiB, 32 texts at once, one shard.
    fn default() -> Self {
        Self {
            chunking: Chunking::default(),
            top_k: 6,
            depth: 50,
            rerank: 30,
            arms: Arms::default(),
            floor: Floor::default(),
            document_bytes: 64 << 20,
            queue_bytes: 1 << 30,
            batch: 32,
            parsing: Limits::default(),
            sharding: Sharding::default(),
        }
    }
}

/// Models that work for a service.
#[derive(Clone)]
pub struct Models {
    /// The index belongs to it.
    pub embedder: Arc<dyn Embedder>,
    /// Its tokenizer.
    pub tokens: Arc<dyn Tokens>,
    /// Weighs what was found, where there is one.
    pub reranker: Option<Arc<dyn Reranker>>,
}

/// Why a service does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Something that was given won't do.
    #[error("{message}")]
    Field {
        /// Its name.
        field: String,
        /// What was found, and what would work.
        message: String,
    },
    /// The file is larger than this service takes.
    #[error("the document has {bytes} bytes, at most {max} are taken\nhint: cut it into several")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// How many there may be.
        max: usize,
    },
    /// Nobody here reads such files.
    #[error(transparent)]
    Format(ParseError),
    /// As much waits as may.
    #[error("documents of {0} bytes wait to be indexed, as many as may: try again later")]
    Full(usize),
    /// The document belongs to another shard.
    #[error("the document {id:?} belongs to shard {shard}, and this is shard {here}")]
    OtherShard {
        /// The document.
        id: String,
        /// Where it belongs.
        shard: u32,
        /// This one.
        here: u32,
    },
    /// The embedder's.
    #[error("the embedder failed: {0:#}")]
    Embedder(anyhow::Error),
    /// The index's.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A service, open.
pub struct Service {
    name: String,
    index: Index,
    models: Models,
    parser: Parser,
    settings: Settings,
    /// Jobs that wait. Held while jobs change: a document that is deleted or replaced while it is read must not come in
    /// afterwards.
    jobs: Mutex<Queue>,
    /// What was said of documents whose files are kept. Taken after `jobs`, where both are.
    stamps: Mutex<Stamps>,
    /// One document is indexed at a time.
    ingesting: Mutex<()>,
}

impl Service {
    /// Over an index that was opened with the models' embedder.
    ///
    /// # Errors
    /// When the jobs that wait in it can't be read.
    pub fn new(
        name: &str,
        index: Index,
        models: Models,
        parser: Parser,
        settings: Settings,
    ) -> Result<Self, ServiceError> {
        let (jobs, stamps) = (Mutex::new(Queue::of(&index)?), Mutex::new(Stamps::of(&index)?));
        let (name, ingesting) = (name.to_owned(), Mutex::new(()));
        Ok(Self { name, index, models, parser, settings, jobs, stamps, ingesting })
    }

    /// Its name, as paths say it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// How it works.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn belongs(&self, id: &str) -> Result<(), ServiceError> {
        let Sharding { index: here, count } = self.settings.sharding;
        let shard = crate::shard::shard_of(id, count);
        if shard == here { Ok(()) } else { Err(ServiceError::OtherShard { id: id.to_owned(), shard, here }) }
    }
}
