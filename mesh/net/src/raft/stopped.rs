//! The raft files of a node that does not run: the ledger in them read, and those of a restored mesh laid down.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use openraft::{EntryPayload, entry::RaftEntry};
use redb::{ReadableDatabase, ReadableTable};

use super::{
    codec,
    errors::StartError,
    log::{self, COMMITTED, IDENTITY, LOG, LogOpenError, META, PURGED, VOTE},
    snapshot::{self, SnapshotFile},
    types::{Ledger, LogEntry, LogId, Membership, NodeId, RaftId, RaftNode, SnapshotMeta, TypeConfig, Vote},
};

/// What a stopped node's files hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stopped {
    /// The ledger with every entry of the log applied. The last ones may never have been committed; which, one node alone
    /// cannot tell, and none that was committed may be left out.
    pub ledger: Ledger,
    /// Term of the last entry.
    pub term: u64,
    /// Its index; 0 when the node never had a part in a ledger.
    pub index: u64,
    /// How many of the entries this node did not know to be committed.
    pub uncertain: u64,
    /// Whether it votes, by the last entry that names the voters.
    pub votes: bool,
}

/// A snapshot, and what comes after it as it is read.
#[derive(Default)]
struct Replay {
    ledger: Ledger,
    last: Option<LogId>,
    membership: Membership,
    uncertain: u64,
}

impl Replay {
    fn take(&mut self, entry: LogEntry, committed: Option<LogId>) {
        let id = entry.log_id();
        if self.last.is_some_and(|last| id.index() <= last.index()) {
            return; // the snapshot has it
        }
        self.last = Some(id);
        self.uncertain += u64::from(committed.is_none_or(|committed| id.index() > committed.index()));
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => drop(self.ledger.apply(&command.0)),
            EntryPayload::Membership(voters) => self.membership = Membership::new(Some(id), voters),
        }
    }
}

/// Reads the files of a stopped node. A `raft.redb` that a kill left half-written is put in order on the way, as a start
/// would; nothing else is changed.
///
/// # Errors
/// When a daemon has them open, or they are missing, damaged, or cannot be read.
pub fn read_stopped(dir: &Path) -> Result<Stopped, StartError> {
    let path = dir.join("raft.redb");
    // Asked first: redb's own words for it name no file.
    path.metadata().map_err(|source| LogOpenError::Io { path: path.clone(), source })?;
    let (_, snapshot) = SnapshotFile::open(dir)?;
    let from = snapshot.map_or_else(Replay::default, |(meta, ledger)| Replay {
        ledger,
        last: meta.last_log_id,
        membership: meta.last_membership,
        uncertain: 0,
    });
    // As at a start: redb asserts where it does not expect damage.
    let replayed = catch_unwind(AssertUnwindSafe(|| replay(dir, &path, from))).unwrap_or_else(|panic| {
        Err(LogOpenError::Damaged { path: path.clone(), detail: log::panic_text(panic.as_ref()) }.into())
    });
    let (id, replay) = replayed?;
    let Some(last) = replay.last else { return Ok(Stopped::default()) };
    Ok(Stopped {
        ledger: replay.ledger,
        term: **last.committed_leader_id(),
        index: last.index(),
        uncertain: replay.uncertain,
        votes: replay.membership.membership().voter_ids().any(|voter| voter == id),
    })
}

fn replay(dir: &Path, path: &Path, mut replay: Replay) -> Result<(RaftId, Replay), StartError> {
    let fault = |error: redb::Error| log::fault(path, error);
    let wrong = |error: io::Error| LogOpenError::Damaged { path: path.to_owned(), detail: error.to_string() };
    let db = log::builder().open(path).map_err(|error| fault(error.into()))?;
    let read = db.begin_read().map_err(|error| fault(error.into()))?;
    let meta = read.open_table(META).map_err(|error| fault(error.into()))?;
    let entries = read.open_table(LOG).map_err(|error| fault(error.into()))?;
    let identity: Option<(RaftId, NodeId)> = log::get(&meta, IDENTITY).map_err(wrong)?;
    let (id, _) = identity.ok_or_else(|| wrong(io::Error::other("it has no raft id")))?;
    let purged: Option<LogId> = log::get(&meta, PURGED).map_err(wrong)?;
    if let Some(purged) = purged
        && replay.last.is_none_or(|last| last.index() < purged.index())
    {
        return Err(StartError::SnapshotMissing { path: dir.join("raft.snapshot"), purged: purged.index() });
    }
    log::check_entries(&entries, purged).map_err(wrong)?;
    let committed: Option<LogId> = log::get(&meta, COMMITTED).map_err(wrong)?;
    for row in entries.iter().map_err(|error| fault(error.into()))? {
        let (_, bytes) = row.map_err(|error| fault(error.into()))?;
        let entry = codec::decode("raft log entry", bytes.value()).map_err(|error| wrong(error.into()))?;
        replay.take(entry, committed);
    }
    Ok((id, replay))
}

/// Lays down the raft files of a node that is the one voter of a mesh with this ledger, in two steps: `raft.redb` at
/// once, the snapshot by [`Laid::finish`]. In between the node refuses to start, for its log begins after a snapshot that
/// is not there.
///
/// Terms and indices go on above the old mesh's `(term, index)`: where two numbers were ever compared, the restored
/// mesh's would be the later one.
///
/// # Errors
/// When the disk does not take them.
pub(crate) fn lay_down(
    dir: &Path,
    peer: &NodeId,
    id: RaftId,
    (term, index): (u64, u64),
    ledger: &Ledger,
) -> io::Result<Laid> {
    let (term, index) = (term.saturating_add(1), index.saturating_add(1));
    let last = LogId::new(openraft::alias::CommittedLeaderIdOf::<TypeConfig>::new(term), index);
    let nodes = BTreeMap::from([(id, RaftNode { peer: peer.clone() })]);
    let voters = openraft::Membership::new(vec![BTreeSet::from([id])], nodes).map_err(io::Error::other)?;
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: Membership::new(Some(last), voters) };
    let bytes = snapshot::encode(&meta, ledger)?;
    let path = dir.join("raft.redb");
    let besides = [
        (PURGED, log::meta_bytes(PURGED, &last)?),
        (COMMITTED, log::meta_bytes(COMMITTED, &last)?),
        // Of no election yet: the next one is in a higher term.
        (VOTE, log::meta_bytes(VOTE, &Vote::new(term, id))?),
    ];
    log::create(&path, peer, id, &besides).map_err(|error| match error {
        LogOpenError::Io { source, .. } => source,
        other => io::Error::other(other),
    })?;
    Ok(Laid { dir: dir.to_owned(), meta, bytes })
}

/// Raft files that lack their snapshot.
pub(crate) struct Laid {
    dir: PathBuf,
    meta: SnapshotMeta,
    bytes: bytes::Bytes,
}

impl Laid {
    /// Writes it: from here on the node can start.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(self) -> io::Result<()> {
        let (file, _) = SnapshotFile::open(&self.dir)?;
        Ok(file.save(&self.meta, &self.bytes)?)
    }
}
