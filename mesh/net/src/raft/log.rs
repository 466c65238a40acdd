//! The raft log and the vote, durable in `raft.redb`.
//!
//! Appended entries are readable at once, from memory, and durable when the writer thread (`log_writer`) says so: it
//! takes everything that waits and commits it in one transaction. Votes, truncations and purges pass through the same
//! queue, so that writes stay in order. Reads merge the memory tail over what the file has.
//!
//! The file is locked while it is open: a second daemon on the same data directory is told so.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};

use super::{
    codec,
    log_writer::{self, Op},
    types::{LogEntry, LogId, NodeId, RaftId, TypeConfig, Vote},
};

pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("raft_log");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("raft_meta");
pub(super) const VOTE: &str = "vote";
pub(super) const PURGED: &str = "purged";
pub(super) const COMMITTED: &str = "committed";
pub(super) const IDENTITY: &str = "identity";

/// Entries wait in memory for their commit; at most this many writes queue up before `append` waits its turn.
const QUEUE: usize = 256;

/// redb's default cache is 1 GiB; the log is short because it is purged, and edge nodes are small.
const CACHE_BYTES: usize = 16 << 20;

/// One read hands out at most this many bytes of entries (and at least one entry), so that a replication request
/// stays well below the 1 MiB that a control message may have.
pub(super) const READ_BYTES_MAX: usize = 256 << 10;

/// Why `raft.redb` could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    /// Another process has it.
    #[error("{path}: another mloc runs on this data directory (hint: stop it, or give this one its own --data-dir)")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not what was written.
    #[error(
        "{path}: damaged: {detail} (hint: if the mesh has other voters, move this data directory away and join again; \
         else restore it from a backup)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file belongs to another node.
    #[error(
        "{path}: written by node {found}, but this node's key says {expected} (hint: key and raft.redb belong together)"
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Who wrote it.
        found: NodeId,
        /// Who opens it.
        expected: NodeId,
    },
    /// The disk or its permissions.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What has been appended and is not yet in the file, and what is asked too often to read it from there.
#[derive(Default)]
pub(super) struct Tail {
    /// Encoded entries by index. The writer takes an entry out once it is durable, unless a newer one took its place.
    pub entries: BTreeMap<u64, Arc<[u8]>>,
    /// The durable vote.
    pub vote: Option<Vote>,
    /// The last committed id handed in; reaches the disk with the next durable write.
    pub committed: Option<LogId>,
}

/// What the log's handles and its writer share.
pub(super) struct Shared {
    /// `None` once closed, which also gives the file lock back.
    pub db: RwLock<Option<Database>>,
    pub tail: Mutex<Tail>,
    /// Durable transactions so far: far fewer than appends, when many append at a time.
    pub commits: AtomicU64,
}

impl Shared {
    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        // Nothing can panic half way through a change of the tail, so a poisoned one is whole.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, body: impl FnOnce(&Database) -> io::Result<T>) -> io::Result<T> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| io::Error::other("the raft log is closed"))?;
        body(db)
    }
}

/// The raft log: openraft's log store and log reader. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub struct RaftLog {
    shared: Arc<Shared>,
    ops: mpsc::Sender<Op>,
}

impl RaftLog {
    /// Opens or creates `raft.redb` in `dir` and checks every page and every entry of it.
    ///
    /// `mint` draws the raft id of a new file; a file that has one keeps it. Returns the log and the id.
    pub fn open(dir: &Path, peer: &NodeId, mint: impl FnOnce() -> RaftId) -> Result<(Self, RaftId), LogOpenError> {
        let path = dir.join("raft.redb");
        // redb reports damage as an error where it expects it, and asserts in a few places where it does not.
        let opened = catch_unwind(AssertUnwindSafe(|| open_checked(&path, peer, mint))).unwrap_or_else(|panic| {
            Err(LogOpenError::Damaged { path: path.clone(), detail: panic_text(panic.as_ref()) })
        });
        let (db, tail, id) = opened?;
        let shared = Arc::new(Shared { db: RwLock::new(Some(db)), tail: Mutex::new(tail), commits: AtomicU64::new(0) });
        let (ops, inbox) = mpsc::channel(QUEUE);
        log_writer::spawn(shared.clone(), inbox).map_err(|source| LogOpenError::Io { path, source })?;
        Ok((Self { shared, ops }, id))
    }

    /// Durable transactions since the log was opened.
    pub(super) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// The last entry that was dropped in favour of a snapshot.
    pub(super) fn purged(&self) -> io::Result<Option<LogId>> {
        self.shared.read(|db| {
            let read = db.begin_read().map_err(io::Error::other)?;
            get(&read.open_table(META).map_err(io::Error::other)?, PURGED)
        })
    }

    /// Writes what waits, closes the file and gives its lock back. Later calls fail.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.ops.send(Op::Close { done }).await.is_ok() {
            // An error means that the writer is gone already, and with it the file.
            closed.await.ok();
        }
    }

    async fn write(&self, make: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Op) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.ops.send(make(done)).await.map_err(|_| writer_gone())?;
        written.await.map_err(|_| writer_gone())?
    }

    /// Encoded entries of `start..end`, in order and without a hole, up to `bytes_max` (but at least one).
    fn encoded(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
        if start >= end {
            return Ok(Vec::new());
        }
        // Tail first: what leaves it meanwhile is in the file by then.
        let tail: BTreeMap<u64, Arc<[u8]>> =
            self.shared.tail().entries.range(start..end).map(|(i, e)| (*i, e.clone())).collect();
        self.shared.read(|db| {
            let read = db.begin_read().map_err(io::Error::other)?;
            let table = read.open_table(LOG).map_err(io::Error::other)?;
            let mut found: Vec<Vec<u8>> = Vec::new();
            let mut bytes = 0;
            let mut next = None;
            let mut take = |index: u64, entry: &[u8]| -> io::Result<bool> {
                if next.is_some_and(|next| next != index) {
                    let gap = next.unwrap_or_default();
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("raft log: entry {gap} is missing"),
                    ));
                }
                next = Some(index + 1);
                bytes += entry.len();
                let full = !found.is_empty() && bytes > bytes_max;
                if !full {
                    found.push(entry.to_vec());
                }
                Ok(full)
            };
            let tail_start = tail.keys().next().copied().unwrap_or(end);
            for row in table.range(start..tail_start.min(end)).map_err(io::Error::other)? {
                let (index, entry) = row.map_err(io::Error::other)?;
                if take(index.value(), entry.value())? {
                    return Ok(found);
                }
            }
            for (index, entry) in &tail {
                if take(*index, entry)? {
                    break;
                }
            }
            Ok(found)
        })
    }

    fn entries(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let encoded = self.encoded(start, end, bytes_max)?;
        encoded.iter().map(|entry| Ok(codec::decode("raft log entry", entry)?)).collect()
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        let (start, end) = half_open(&range);
        self.entries(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.entries(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.tail().vote)
    }
}

impl RaftLogStorage<TypeConfig> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let newest = self.shared.tail().entries.values().next_back().cloned();
        let (purged, on_disk) = self.shared.read(|db| {
            let read = db.begin_read().map_err(io::Error::other)?;
            let purged = get::<LogId>(&read.open_table(META).map_err(io::Error::other)?, PURGED)?;
            let log = read.open_table(LOG).map_err(io::Error::other)?;
            let last = log.last().map_err(io::Error::other)?.map(|(_, entry)| Arc::from(entry.value()));
            Ok((purged, last))
        })?;
        let last = newest.or(on_disk).map(|entry: Arc<[u8]>| codec::decode::<LogEntry>("raft log entry", &entry));
        let last = last.transpose()?.map(|entry| entry.log_id());
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = codec::encode("raft vote", vote)?;
        self.write(|done| Op::Vote { vote: *vote, bytes, done }).await
    }

    /// Lazy: lost with a crash, which only means that a few entries wait for the next leader's word before they are
    /// applied again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.tail().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Vec::new();
        for entry in entries {
            batch.push((entry.index(), Arc::<[u8]>::from(codec::encode("raft log entry", &entry)?)));
        }
        // The place in the queue comes first: an entry must not be readable and then never be written.
        let place = self.ops.reserve().await.map_err(|_| writer_gone())?;
        self.shared.tail().entries.extend(batch.iter().cloned());
        place.send(Op::Append { entries: batch, done: callback });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index() + 1);
        self.shared.tail().entries.split_off(&from);
        self.write(|done| Op::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let bytes = codec::encode("raft purge point", &upto)?;
        self.write(|done| Op::Purge { upto: upto.index(), bytes, done }).await
    }
}

fn open_checked(
    path: &Path,
    peer: &NodeId,
    mint: impl FnOnce() -> RaftId,
) -> Result<(Database, Tail, RaftId), LogOpenError> {
    let damaged = |detail: String| LogOpenError::Damaged { path: path.to_owned(), detail };
    let fault = |error: redb::Error| fault(path, error);
    let io_fault = |source| LogOpenError::Io { path: path.to_owned(), source };
    if !path.try_exists().map_err(io_fault)? {
        create(path, peer, mint(), &[])?;
    }
    // redb would take an emptied file for a new one, and the node would forget its votes.
    if path.metadata().map_err(io_fault)?.len() == 0 {
        return Err(damaged("the file is empty".to_owned()));
    }
    let db = builder().open(path).map_err(|error| fault(error.into()))?;

    let mut tail = Tail::default();
    let read = db.begin_read().map_err(|error| fault(error.into()))?;
    let meta = read.open_table(META).map_err(|error| fault(error.into()))?;
    let log = read.open_table(LOG).map_err(|error| fault(error.into()))?;
    let wrong = |error: io::Error| damaged(error.to_string());
    tail.vote = get(&meta, VOTE).map_err(wrong)?;
    tail.committed = get(&meta, COMMITTED).map_err(wrong)?;
    let purged: Option<LogId> = get(&meta, PURGED).map_err(wrong)?;
    check_entries(&log, purged).map_err(wrong)?;
    let identity: Option<(RaftId, NodeId)> = get(&meta, IDENTITY).map_err(wrong)?;
    let (id, owner) = identity.ok_or_else(|| damaged("it has no raft id".to_owned()))?;
    if owner != *peer {
        return Err(LogOpenError::OtherNode { path: path.to_owned(), found: owner, expected: peer.clone() });
    }
    drop((meta, log, read));
    Ok((db, tail, id))
}

/// Makes the file under another name and gives it its own when it is whole: a crash on the way leaves no `raft.redb`
/// that lacks an identity. `besides` is what else stands in it from the beginning.
pub(super) fn create(
    path: &Path,
    peer: &NodeId,
    id: RaftId,
    besides: &[(&'static str, Vec<u8>)],
) -> Result<(), LogOpenError> {
    let fault = |error: redb::Error| fault(path, error);
    let io_fault = |source| LogOpenError::Io { path: path.to_owned(), source };
    let draft = path.with_file_name(format!(".raft.redb.{}", std::process::id()));
    if draft.try_exists().map_err(io_fault)? {
        std::fs::remove_file(&draft).map_err(io_fault)?;
    }
    let db = builder().create(&draft).map_err(|error| fault(error.into()))?;
    let write = db.begin_write().map_err(|error| fault(error.into()))?;
    {
        let identity = codec::encode(IDENTITY, &(id, peer)).map_err(|error| io_fault(error.into()))?;
        let mut meta = write.open_table(META).map_err(|error| fault(error.into()))?;
        meta.insert(IDENTITY, identity.as_slice()).map_err(|error| fault(error.into()))?;
        for (key, value) in besides {
            meta.insert(*key, value.as_slice()).map_err(|error| fault(error.into()))?;
        }
        write.open_table(LOG).map_err(|error| fault(error.into()))?;
    }
    write.commit().map_err(|error| fault(error.into()))?;
    drop(db);
    // A link does not replace: of two daemons that start at once on an empty directory, one makes the file.
    match std::fs::hard_link(&draft, path) {
        Ok(()) => std::fs::remove_file(&draft).map_err(io_fault)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => std::fs::remove_file(&draft).map_err(io_fault)?,
        // Not every file system has links.
        Err(_) => std::fs::rename(&draft, path).map_err(io_fault)?,
    }
    super::snapshot::sync_parent(path).map_err(io_fault)
}

pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

pub(super) fn fault(path: &Path, error: redb::Error) -> LogOpenError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => LogOpenError::InUse { path },
        redb::Error::Io(source)
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            LogOpenError::Io { path, source }
        }
        other => LogOpenError::Damaged { path, detail: other.to_string() },
    }
}

/// Every entry can be read, sits at its own index, and none is missing.
pub(super) fn check_entries(log: &impl ReadableTable<u64, &'static [u8]>, purged: Option<LogId>) -> io::Result<()> {
    let wrong = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    let mut next = purged.map(|id| id.index() + 1);
    for row in log.iter().map_err(io::Error::other)? {
        let (index, bytes) = row.map_err(io::Error::other)?;
        let index = index.value();
        let entry: LogEntry = codec::decode("raft log entry", bytes.value())?;
        if entry.index() != index {
            return Err(wrong(format!("entry {index} says it is entry {}", entry.index())));
        }
        if let Some(next) = next.filter(|next| *next != index) {
            return Err(wrong(format!("entry {next} is missing, the next one is {index}")));
        }
        next = Some(index + 1);
    }
    Ok(())
}

pub(super) fn get<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> io::Result<Option<T>> {
    let value = meta.get(key).map_err(io::Error::other)?;
    Ok(value.map(|bytes| codec::decode(key, bytes.value())).transpose()?)
}

/// Encodes a metadata value for the writer.
pub(super) fn meta_bytes<T: Serialize>(key: &'static str, value: &T) -> io::Result<Vec<u8>> {
    Ok(codec::encode(key, value)?)
}

fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn writer_gone() -> io::Error {
    io::Error::other("the raft log's writer has stopped")
}

/// What a caught panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
