//! openraft's own storage suite on our log and machine, then what the suite does not know about: restarts and damage.

use std::path::Path;

use openraft::{
    EntryPayload, RaftLogReader, RaftSnapshotBuilder, StorageError,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt,
};
use tempfile::TempDir;

use super::{
    super::{
        log::{LogOpenError, RaftLog},
        machine::LedgerMachine,
        snapshot::SnapshotError,
        types::{Command, Ledger, LogEntry, LogId, NodeId, TypeConfig, Vote},
    },
    entry_of_size, sample_entry,
};

type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;

struct OnDisk;

impl StoreBuilder<TypeConfig, RaftLog, LedgerMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, RaftLog, LedgerMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (log, _) = open(dir.path()).expect("a new log opens");
        let machine = LedgerMachine::open(dir.path()).expect("no snapshot yet");
        Ok((dir, log, machine))
    }
}

fn me() -> NodeId {
    NodeId::new("12D3KooWme")
}

fn open(dir: &Path) -> Result<(RaftLog, u64), LogOpenError> {
    RaftLog::open(dir, &me(), || 7)
}

#[tokio::test]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(OnDisk).await.unwrap();
}

fn entry(index: u64) -> LogEntry {
    let id = LogId::new(CommittedLeaderId::new(1), index);
    LogEntry::new(id, EntryPayload::Normal(Command(sample_entry(index))))
}

/// A closed data directory with a vote and entries 0..20, of which 0..=4 are purged.
async fn used_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, id) = open(dir.path()).unwrap();
    assert_eq!(id, 7);
    log.save_vote(&Vote::new(3, 7)).await.unwrap();
    log.blocking_append((0..20).map(entry)).await.unwrap();
    log.save_committed(Some(entry(12).log_id())).await.unwrap();
    log.purge(entry(4).log_id()).await.unwrap();
    log.close().await;
    dir
}

#[tokio::test]
async fn a_restart_finds_everything_and_keeps_the_raft_id() {
    let dir = used_dir().await;
    let (mut log, id) = RaftLog::open(dir.path(), &me(), || unreachable!("the directory has an id")).unwrap();
    assert_eq!(id, 7);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 7)));
    assert_eq!(log.read_committed().await.unwrap(), Some(entry(12).log_id()));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(entry(4).log_id()));
    assert_eq!(state.last_log_id, Some(entry(19).log_id()));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), (5..20).map(entry).collect::<Vec<_>>());
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    for batch in 0..50 {
        let (done, durable) = <TypeConfig as TypeConfigExt>::oneshot();
        log.append((batch * 3..batch * 3 + 3).map(entry), IOFlushed::signal(done)).await.unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len() as u64, batch * 3 + 3);
        if batch % 10 == 0 {
            durable.await.unwrap().unwrap();
        }
    }
    log.truncate_after(Some(entry(9).log_id())).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(entry(9).log_id()));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), (0..10).map(entry).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_read_for_the_network_is_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let big = |index: u64| {
        LogEntry::new(entry(index).log_id(), EntryPayload::Normal(Command(entry_of_size(index, 100 << 10))))
    };
    log.blocking_append((0..10).map(big)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 10).await.unwrap().len(), 2);
    log.blocking_append([LogEntry::new(
        entry(10).log_id(),
        EntryPayload::Normal(Command(entry_of_size(10, 600 << 10))),
    )])
    .await
    .unwrap();
    assert_eq!(log.limited_get_log_entries(10, 11).await.unwrap().len(), 1, "one entry is always handed out");
}

#[tokio::test]
async fn a_second_daemon_and_a_foreign_key_are_told_so() {
    let dir = used_dir().await;
    let (log, _) = open(dir.path()).unwrap();
    let error = open(dir.path()).err().expect("the file is locked");
    assert!(matches!(error, LogOpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another mloc runs on this data directory"), "{error}");
    log.close().await;

    let error = RaftLog::open(dir.path(), &NodeId::new("12D3KooWother"), || 1).err().expect("another node's log");
    assert!(matches!(error, LogOpenError::OtherNode { .. }), "{error}");
}

#[tokio::test]
async fn damage_is_an_error_and_never_a_panic() {
    let dir = used_dir().await;
    let path = dir.path().join("raft.redb");
    let whole = std::fs::read(&path).unwrap();
    let cut =
        [0, 1, 100, 4096, whole.len() / 2, whole.len() - 1].map(|len| (format!("cut to {len}"), whole[..len].to_vec()));
    let flipped = (0..whole.len()).step_by(whole.len() / 97).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        (format!("bit flipped at {at}"), bytes)
    });
    let mut noticed = 0;
    for (how, bytes) in cut.into_iter().chain(flipped) {
        std::fs::write(&path, bytes).unwrap();
        match open(dir.path()) {
            // A flip in a page that nothing refers to harms nothing; the entries were all checked.
            Ok((log, _)) => log.close().await,
            Err(LogOpenError::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("{how}: {error}"),
        }
    }
    assert!(noticed >= 6, "only {noticed} damaged files were noticed");
}

async fn apply(machine: &mut LedgerMachine, entries: std::ops::Range<u64>) {
    machine.apply(futures::stream::iter(entries.map(|index| Ok((entry(index), None))))).await.unwrap();
}

#[tokio::test]
async fn a_restart_begins_at_the_snapshot_and_a_later_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = LedgerMachine::open(dir.path()).unwrap();
    apply(&mut machine, 0..5).await;
    let mut early = machine.get_snapshot_builder().await;
    apply(&mut machine, 5..8).await;
    assert_eq!(*machine.view().applied().borrow(), 7);
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    early.build_snapshot().await.unwrap();

    let mut again = LedgerMachine::open(dir.path()).unwrap();
    assert_eq!(again.applied_state().await.unwrap().0, Some(entry(7).log_id()));
    assert_eq!(again.view().read(Ledger::clone), machine.view().read(Ledger::clone));
}

#[tokio::test]
async fn a_damaged_snapshot_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = LedgerMachine::open(dir.path()).unwrap();
    apply(&mut machine, 0..5).await;
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let path = dir.path().join("raft.snapshot");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(matches!(LedgerMachine::open(dir.path()), Err(SnapshotError::Damaged { .. })), "flip at {at}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(matches!(LedgerMachine::open(dir.path()), Err(SnapshotError::Damaged { .. })), "cut to {at}");
    }
    // A draft that a crash left behind is not looked at.
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(dir.path().join("raft.snapshot.new"), b"half").unwrap();
    LedgerMachine::open(dir.path()).unwrap();
}
