//! The ledger in a file of its own, in the files of a node that stopped, and in those of a mesh that is founded anew.

use std::{collections::BTreeMap, sync::Arc};

use mloc_core::{
    capability::Grant,
    id::{AttemptId, MeshId, RequestId, TaskId},
    ledger::{
        entry::{CheckpointRef, Failure, FailureClass, TaskResult},
        invariants,
        restore::Restore,
        state::Attempt,
    },
    time::Millis,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{
    super::{
        Backup, BackupError, Consensus, ConsensusStart, StartError, lay_down,
        log::LogOpenError,
        read_stopped,
        types::{Entry, Ledger, NodeId},
    },
    sample_entry,
    wire::{Cluster, fast, within},
};

/// What a mesh may commit in its life: tasks that are assigned, run, fail, publish, end, and members that come and go.
fn lived(seed: u64) -> (Vec<Entry>, Ledger) {
    let mut chance = StdRng::seed_from_u64(seed);
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/echo.yaml")).unwrap();
    let spec = mloc_core::task::parse(&text, "echo.yaml").unwrap().spec;
    let (mut entries, mut ledger) = (Vec::new(), Ledger::default());
    for step in 0..chance.random_range(20..200u64) {
        let at = Millis(1_770_000_000_000 + step * 1_000);
        let node = NodeId::new(format!("12D3KooWsample{}", chance.random_range(0..3)));
        let task = TaskId::new(format!("task-{}", chance.random_range(0..6)));
        let last = ledger.tasks.get(&task).and_then(|task| task.replicas[0].attempts.last());
        let number = last.map_or(0, |attempt| attempt.id.attempt);
        let attempt = AttemptId { task: task.clone(), replica: 0, attempt: number.max(1) };
        let failure = Failure { class: FailureClass::Retryable, message: "disk".to_owned() };
        let grant =
            Grant { cpu_millis: 10, gpus: vec![step as u32], gpu_kind: "nvidia-l40".to_owned(), ..Grant::default() };
        let entry = match chance.random_range(0..14) {
            0..3 => Entry::Submit {
                task,
                spec: Box::new(spec.clone()),
                request: RequestId::new(step.to_string()),
                body_digest: "d".to_owned(),
                at,
            },
            3 => sample_entry(chance.random_range(0..3)),
            4..8 => Entry::Assigned {
                attempt: AttemptId { attempt: number + 1, ..attempt },
                node,
                capacity: Grant { cpu_millis: 1_000, ..grant.clone() },
                grant,
                at,
            },
            8..10 => Entry::Started { attempt, at },
            10 => Entry::Publishing { attempt, at },
            11 => Entry::Finished { attempt, result: TaskResult::default(), at },
            12 => Entry::Failed { attempt, failure, at },
            _ => Entry::Checkpointed {
                attempt,
                checkpoint: CheckpointRef { step, manifest_sha256: "ab".repeat(32) },
                at,
            },
        };
        ledger.apply(&entry);
        entries.push(entry);
    }
    (entries, ledger)
}

fn backup(ledger: Ledger) -> Backup {
    Backup::new(MeshId::new("0123456789abcdef"), (3, 41), Millis(1_770_000_000_000), "0.1.0", ledger)
}

fn refused(bytes: &[u8]) -> BackupError {
    Backup::from_bytes("b.mlocbackup", bytes).unwrap_err()
}

#[test]
fn what_a_mesh_lived_through_comes_back_equal_from_a_backup() {
    let mut live = 0;
    for seed in 0..60 {
        let (_, ledger) = lived(seed);
        live += ledger.live_attempts().count();
        let backup = backup(ledger);
        let bytes = backup.to_bytes().unwrap();
        let again = Backup::from_bytes("b", &bytes).unwrap();
        assert_eq!(again.ledger, backup.ledger, "seed {seed}");
        assert_eq!(invariants::all(&again.ledger), Ok(()), "seed {seed}");
        assert_eq!((again.head.term, again.head.index, &again.head.mesh), (3, 41, &backup.head.mesh));
        assert_eq!(again.to_bytes().unwrap(), bytes, "the same ledger has the same bytes");
    }
    assert!(live > 30, "{live} attempts ran: too few for a test of them");
}

#[test]
fn no_byte_can_be_changed_and_none_be_missing() {
    let bytes = backup(lived(1).1).to_bytes().unwrap();
    // Every one of the head and of the end, and many between.
    let chosen = |at: &usize| *at < 300 || bytes.len() - at < 80 || at.is_multiple_of(101);
    for length in (0..bytes.len()).filter(chosen) {
        refused(&bytes[..length]);
    }
    for at in (0..bytes.len()).filter(chosen) {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped);
    }
    refused(&[&bytes[..], b"\n"].concat());
}

/// With a digest that fits, as a later build would write it.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

#[test]
fn each_refusal_says_what_was_found_and_what_would_work() {
    let bytes = backup(Ledger::default()).to_bytes().unwrap();
    let body = bytes[..bytes.len() - 32].to_vec();
    let ledger_at = body.len() - backup_ledger_bytes(&bytes);
    let mut flipped = bytes.to_vec();
    flipped[ledger_at + 20] ^= 4;
    let mut format = body.clone();
    format[8] = 2;
    let mut codec = body;
    codec[ledger_at] = 9;
    let said = [&[][..], b"# notes", &bytes[..5], &bytes[..30], &bytes[..bytes.len() - 1], &flipped]
        .map(refused)
        .into_iter()
        .chain([refused(&sealed(format)), refused(&sealed(codec))])
        .map(|error| error.to_string())
        .collect::<Vec<_>>();
    insta::assert_snapshot!(said.join("\n"));
}

fn backup_ledger_bytes(bytes: &[u8]) -> usize {
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[16..16 + length]).unwrap();
    usize::try_from(head["ledger_bytes"].as_u64().unwrap()).unwrap()
}

#[tokio::test]
async fn a_stopped_voters_files_hold_all_that_was_acknowledged() {
    for snapshot_every in [8, 5_000] {
        let settings = super::super::RaftSettings { snapshot_every, keep_entries: 2, ..fast() };
        let cluster = Cluster::voters(3, settings).await;
        for n in 0..30 {
            cluster.submit(n).await;
        }
        for n in 0..3 {
            cluster.has(n, 0..30).await;
        }
        let running = read_stopped(cluster.nodes[0].dir.path()).unwrap_err();
        assert!(matches!(running, StartError::Log(LogOpenError::InUse { .. })), "{running}");
        for n in 0..3 {
            cluster.kill(n).await;
        }
        for node in &cluster.nodes {
            let found = read_stopped(node.dir.path()).unwrap();
            assert_eq!(found.ledger, node.consensus.ledger().read(Ledger::clone));
            assert_eq!(found.index, node.consensus.health().last_log);
            assert!(found.votes && found.term >= 1, "{found:?}");
        }
    }
    let never = Cluster::strangers(1, fast()).await;
    never.kill(0).await;
    assert_eq!(read_stopped(never.nodes[0].dir.path()).unwrap().index, 0, "it never had a part in a ledger");
    let nothing = tempfile::tempdir().unwrap();
    assert!(read_stopped(nothing.path()).unwrap_err().to_string().contains("raft.redb"));
}

#[tokio::test]
async fn entries_that_no_majority_confirmed_are_kept_and_counted() {
    let cluster = Cluster::voters(3, fast()).await;
    cluster.submit(0).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for n in &others {
        cluster.net.isolate(&cluster.nodes[*n].peer);
    }
    // It is in the leader's log, and may be in another's; whoever asked does not know.
    let asked = cluster.nodes[leader].consensus.clone();
    let proposed = tokio::spawn(async move { asked.propose(sample_entry(1)).await });
    within("it is in the log", async {
        while cluster.nodes[leader].consensus.health().log_commits == 0
            || cluster.nodes[leader].consensus.health().last_log <= cluster.nodes[leader].consensus.health().applied
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.kill(leader).await;
    assert!(proposed.await.unwrap().is_err());
    let found = read_stopped(cluster.nodes[leader].dir.path()).unwrap();
    assert!(super::has(&found.ledger, 0) && super::has(&found.ledger, 1), "{:?}", found.ledger.members);
    assert!(found.uncertain >= 1, "{}", found.uncertain);
}

struct Nobody;

#[async_trait::async_trait]
impl super::super::RaftWire for Nobody {
    async fn call(&self, peer: &NodeId, _: Vec<u8>) -> Result<Vec<u8>, super::super::WireError> {
        Err(super::super::WireError::Unreachable { peer: peer.clone(), why: "a mesh of one".to_owned() })
    }
}

async fn start(dir: &std::path::Path, me: &NodeId) -> Result<Consensus, StartError> {
    let (dir, me) = (dir.to_owned(), me.clone());
    let settings = super::super::RaftSettings { snapshot_every: 8, keep_entries: 2, ..fast() };
    Consensus::start(ConsensusStart { dir, me, settings, wire: Arc::new(Nobody), is_member: Arc::new(|_| true) }).await
}

#[tokio::test]
async fn a_restored_ledger_leads_at_once_goes_on_and_survives_restarts() {
    for seed in [3, 4, 5] {
        let (entries, ledger) = lived(seed);
        let dir = tempfile::tempdir().unwrap();
        let me = NodeId::new("12D3KooWsample9");
        let restore =
            Restore { as_of: Millis(0), at: Millis(1_790_000_000_000), founder: me.clone(), name: "n".to_owned() };
        let restored = ledger.restored(&restore);
        lay_down(dir.path(), &me, 77, (3, 41), &restored).unwrap().finish().unwrap();

        let node = start(dir.path(), &me).await.unwrap();
        within("it leads", node.leadership().wait_for(|now| now.mine)).await.unwrap();
        node.read_index().await.unwrap();
        assert_eq!(node.ledger().read(Ledger::clone), restored, "seed {seed}");
        assert_eq!((node.raft_id(), node.health().leadership.term > 4), (77, true), "above the old mesh's terms");
        assert!(node.bootstrap().await.is_err(), "a restored mesh is not founded again");
        // The ledger goes on from there as any does, past a snapshot and a restart.
        let mut expected = restored;
        for entry in entries.into_iter().take(20).chain([sample_entry(5)]) {
            let outcome = node.propose(entry.clone()).await.unwrap();
            assert_eq!(outcome, expected.apply(&entry), "{entry:?}");
        }
        node.stop().await;
        let again = start(dir.path(), &me).await.unwrap();
        within("it leads", again.leadership().wait_for(|now| now.mine)).await.unwrap();
        again.read_index().await.unwrap();
        assert_eq!(again.ledger().read(Ledger::clone), expected, "seed {seed}");
        again.stop().await;
        let found = read_stopped(dir.path()).unwrap();
        assert_eq!((found.ledger, found.votes), (expected, true));
    }
}

#[tokio::test]
async fn a_restore_that_broke_off_before_its_snapshot_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let me = NodeId::new("12D3KooWsample9");
    drop(lay_down(dir.path(), &me, 77, (3, 41), &lived(3).1).unwrap());
    let error = start(dir.path(), &me).await.err().expect("it does not start").to_string();
    assert!(error.contains("raft.snapshot") && error.contains("restore again"), "{error}");
    // With a key that was minted since: it is another node.
    let other = start(dir.path(), &NodeId::new("12D3KooWother")).await.err().expect("it does not start");
    assert!(matches!(other, StartError::Log(LogOpenError::OtherNode { .. })), "{other}");
}

#[test]
fn the_generator_makes_attempts_of_every_kind() {
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..60 {
        let ledger = lived(seed).1;
        let attempts = ledger.tasks.values().flat_map(|t| &t.replicas).flat_map(|r| &r.attempts);
        let state = |attempt: &Attempt| {
            let text = format!("{:?}", attempt.how().map_or(format!("{:?}", attempt.state), |how| format!("{how:?}")));
            text.trim_matches('"').split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
        };
        attempts.for_each(|attempt| *ends.entry(state(attempt)).or_default() += 1);
    }
    for kind in ["Assigned", "Running", "Publishing", "Finished", "Failed"] {
        assert!(ends.get(kind).is_some_and(|n| *n > 0), "{kind}: {ends:?}");
    }
}
