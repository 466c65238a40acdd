//! `journal.redb`: the worker's inbox and outbox. An instruction is acknowledged after it is here, a report stays here
//! until the leader has committed it.
//!
//! One thread writes: it takes everything that waits, commits it in one transaction and says up to which number all is
//! durable. Values begin with the byte of their version.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use mloc_core::worker::{AttemptRow, JournalRows, Write};
use mloc_exec::failpoint;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};

const ATTEMPTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("attempts");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const TERM: &str = "highest_term";
/// Version of every stored value: a JSON text follows.
const VERSION: u8 = 1;
/// redb's default cache is 1 GiB; this file is small.
const CACHE_BYTES: usize = 4 << 20;
/// Writes that wait before the worker waits for the disk.
const QUEUE: usize = 1024;
/// One transaction takes at most this many, so that the first does not wait for ever.
const GROUP: usize = 512;

/// Why `journal.redb` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("{path}: another mloc runs on this data directory\nhint: stop it, or give this one its own --data-dir")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not what was written.
    #[error(
        "{path}: damaged: {found}\nhint: move the file away; attempts that ran here will be given to a worker again once their lease is over"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A later build wrote it.
    #[error("{path}: written by a later build (value version {found}, this one reads {VERSION})\nhint: use that build")]
    Later {
        /// The file.
        path: PathBuf,
        /// The version.
        found: u8,
    },
    /// The disk or its permissions.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// The way to the writer thread. Dropped, it closes the file once what waits is written.
#[derive(Debug)]
pub struct Journal {
    writes: mpsc::Sender<(u64, Write)>,
    durable: watch::Receiver<Durable>,
    closed: watch::Receiver<bool>,
}

/// How far the writer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Everything up to this number is on disk.
    pub upto: u64,
    /// Nothing more will be: the disk's words.
    pub broken: Option<String>,
}

impl Journal {
    /// Opens or creates the journal in a folder, and reads it.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn open(dir: &Path) -> Result<(Self, JournalRows), JournalError> {
        let path = dir.join("journal.redb");
        // redb says most damage by an error, and asserts in a few places where it does not expect it.
        let opened = catch_unwind(AssertUnwindSafe(|| open(&path)));
        let (db, rows) = opened.unwrap_or_else(|panic| {
            Err(JournalError::Damaged { path: path.clone(), found: panic_text(panic.as_ref()) })
        })?;
        let (writes, inbox) = mpsc::channel(QUEUE);
        let (tell, durable) = watch::channel(Durable::default());
        let (tell_closed, closed) = watch::channel(false);
        let run = move || {
            write_all(&db, inbox, &tell);
            drop(db);
            tell_closed.send_replace(true);
        };
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(run)
            .map_err(|source| JournalError::Io { path, source })?;
        Ok((Self { writes, durable, closed }, rows))
    }

    /// Queues a write; waits only when the disk is far behind.
    pub async fn write(&self, id: u64, write: Write) {
        // A writer that is gone has said why through `durable`.
        self.writes.send((id, write)).await.ok();
    }

    /// Waits until more is durable, or nothing ever will be.
    pub async fn progressed(&mut self) -> Durable {
        match self.durable.changed().await {
            Ok(()) => self.durable.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Writes what waits, closes the file and gives its lock back.
    pub async fn close(self) {
        let Self { writes, mut closed, .. } = self;
        drop(writes);
        // An error means that the writer is gone already.
        closed.wait_for(|closed| *closed).await.ok();
    }
}

fn open(path: &Path) -> Result<(Database, JournalRows), JournalError> {
    let io = |source: io::Error| JournalError::Io { path: path.to_owned(), source };
    let damaged = |e: &dyn std::fmt::Display| JournalError::Damaged { path: path.to_owned(), found: e.to_string() };
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => JournalError::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(e)) if e.kind() != io::ErrorKind::InvalidData => io(e),
        other => damaged(&other),
    })?;
    // Tables exist from the start, so that reading needs no special case.
    let write = db.begin_write().map_err(|e| damaged(&e))?;
    write.open_table(ATTEMPTS).map_err(|e| damaged(&e))?;
    write.open_table(META).map_err(|e| damaged(&e))?;
    write.commit().map_err(|e| damaged(&e))?;
    let read = db.begin_read().map_err(|e| damaged(&e))?;
    let mut rows = JournalRows::default();
    let meta = read.open_table(META).map_err(|e| damaged(&e))?;
    if let Some(term) = meta.get(TERM).map_err(|e| damaged(&e))? {
        rows.highest_term = decode(path, TERM, term.value())?;
    }
    for row in read.open_table(ATTEMPTS).map_err(|e| damaged(&e))?.iter().map_err(|e| damaged(&e))? {
        let (key, value) = row.map_err(|e| damaged(&e))?;
        rows.attempts.push(decode::<AttemptRow>(path, key.value(), value.value())?);
    }
    Ok((db, rows))
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value)?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(path: &Path, key: &str, bytes: &[u8]) -> Result<T, JournalError> {
    let damaged = |found: String| JournalError::Damaged { path: path.to_owned(), found };
    match bytes.split_first() {
        Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|e| damaged(format!("row {key}: {e}"))),
        Some((&found, _)) if found > VERSION => Err(JournalError::Later { path: path.to_owned(), found }),
        _ => Err(damaged(format!("row {key}: no version"))),
    }
}

fn write_all(db: &Database, mut inbox: mpsc::Receiver<(u64, Write)>, tell: &watch::Sender<Durable>) {
    while let Some(first) = inbox.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = inbox.try_recv()
        {
            group.push(next);
        }
        let upto = group.last().map_or(0, |(id, _)| *id);
        failpoint::reached("journal.before");
        let committed = catch_unwind(AssertUnwindSafe(|| commit(db, group)))
            .unwrap_or_else(|panic| Err(io::Error::other(panic_text(panic.as_ref()))));
        match committed {
            Ok(()) => {
                failpoint::reached("journal.after");
                tell.send_replace(Durable { upto, broken: None });
            }
            Err(error) => {
                // Nothing is known about the disk any more: no later write may look as if it were there.
                tell.send_modify(|durable| durable.broken = Some(error.to_string()));
                return;
            }
        }
    }
}

fn commit(db: &Database, group: Vec<(u64, Write)>) -> io::Result<()> {
    let write = db.begin_write().map_err(io::Error::other)?;
    {
        let mut attempts = write.open_table(ATTEMPTS).map_err(io::Error::other)?;
        let mut meta = write.open_table(META).map_err(io::Error::other)?;
        for (_, change) in group {
            match change {
                Write::Term(term) => {
                    meta.insert(TERM, encode(&term)?.as_slice()).map_err(io::Error::other)?;
                }
                Write::Attempt(row) => {
                    let key = row.assign.attempt.to_string();
                    attempts.insert(key.as_str(), encode(&row)?.as_slice()).map_err(io::Error::other)?;
                }
                Write::Forget(id) => {
                    attempts.remove(id.to_string().as_str()).map_err(io::Error::other)?;
                }
            }
        }
    }
    write.commit().map_err(io::Error::other)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "redb panicked".into())
}
