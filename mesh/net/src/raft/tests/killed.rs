//! A process that appends is killed with SIGKILL, again and again: what it acknowledged is there afterwards.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use openraft::{
    EntryPayload, RaftLogReader,
    entry::RaftEntry,
    storage::{RaftLogStorage, RaftLogStorageExt},
};

use super::{
    super::{
        log::RaftLog,
        types::{self, LogEntry, LogId, NodeId, TypeConfig, Vote},
    },
    sample_entry,
};

const DIR: &str = "MLOC_TEST_RAFT_DIR";

fn entry(index: u64) -> LogEntry {
    let id = LogId::new(openraft::alias::CommittedLeaderIdOf::<TypeConfig>::new(1), index);
    LogEntry::new(id, EntryPayload::Normal(types::Command(sample_entry(index))))
}

fn open(dir: &std::path::Path) -> RaftLog {
    RaftLog::open(dir, &NodeId::new("12D3KooWme"), || 7).unwrap().0
}

/// The process that the test below starts and kills.
#[tokio::test]
#[ignore = "is started by the other case"]
async fn appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let mut log = open(dir.as_ref());
    let next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index() + 1);
    for index in next.. {
        if index % 7 == 0 {
            log.save_vote(&Vote::new(index, 7)).await.unwrap();
        }
        log.blocking_append([entry(index)]).await.unwrap();
        println!("\nACK {index}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = None;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "raft::tests::killed::appends_until_it_is_killed"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let acks = BufReader::new(child.stdout.take().unwrap()).lines();
        let acks = acks.map_while(Result::ok).filter_map(|line| line.strip_prefix("ACK ")?.parse::<u64>().ok());
        for (count, index) in acks.enumerate() {
            acknowledged = acknowledged.max(Some(index));
            if count == 3 + round * 5 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();

        let last = acknowledged.expect("it acknowledged something");
        let mut log = open(dir.path());
        let found = log.try_get_log_entries(..=last).await.unwrap();
        assert_eq!(found, (0..=last).map(entry).collect::<Vec<_>>(), "round {round}");
        let vote = log.read_vote().await.unwrap().expect("a vote before entry 0");
        assert!(vote.leader_id.term >= last - last % 7, "round {round}: {vote} at entry {last}");
        log.close().await;
    }
}
