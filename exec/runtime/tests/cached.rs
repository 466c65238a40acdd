//! Attempts with cached inputs: real children, the real store, a real S3 server.

#[path = "support/origin.rs"]
mod origin;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mloc_core::{ledger::entry::FailureClass, wire::Report};
use origin::Origin;
use support::{assign, attempt};

fn program() -> PathBuf {
    // target/PROFILE/deps/THIS → target/PROFILE/examples/child
    let this = std::env::current_exe().unwrap();
    let program = this.parent().unwrap().parent().unwrap().join("examples/child");
    assert!(program.exists(), "{} is missing: run the package's tests as a whole", program.display());
    program
}

fn put(origin: &Origin, key: &str, bytes: &[u8]) {
    origin.put(key, &mut &*bytes, bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_attempt_on_a_warm_node_needs_no_origin() {
    let Some(origin) = Origin::start() else { return };
    put(&origin, "m/config.json", b"{}");
    let dir = tempfile::tempdir().unwrap();
    let store = origin::store(&dir.path().join("cache"));
    let node = origin::node(&dir.path().join("a"), &program(), &store, |_| {}).await;
    let taking = |mode: &str| origin.taking("m", mode);
    let (dies, later, unpinned) = (taking("die"), taking("normal"), taking("normal"));
    node.assign(assign(1, dies)).await;
    assert!(matches!(node.leader.end_of(&attempt(1)).await, Report::Failed(_)));
    let Report::Pinned(pins) = node.leader.report(|r| matches!(r, Report::Pinned(_))).await else { unreachable!() };
    drop(origin);
    let mut later = assign(2, later);
    later.pins = pins;
    node.assign(later.clone()).await;
    assert!(matches!(node.leader.end_of(&attempt(2)).await, Report::Finished(_)));
    node.worker.stop().await;

    // Another worker on this host shares the cache; only who has no pin must ask.
    let node = origin::node(&dir.path().join("b"), &program(), &store, |_| {}).await;
    later.attempt = attempt(3);
    node.assign(later).await;
    assert!(matches!(node.leader.end_of(&attempt(3)).await, Report::Finished(_)));
    // Of another replica: there is no result of an earlier attempt to take over.
    let mut fresh = assign(4, unpinned);
    fresh.attempt.replica = 1;
    let id = fresh.attempt.clone();
    node.assign(fresh).await;
    let Report::Failed(failure) = node.leader.end_of(&id).await else { panic!("nobody was asked") };
    assert_eq!(failure.class, FailureClass::Retryable);
    assert!(failure.message.contains("no answer from"), "{}", failure.message);
    node.worker.stop().await;
}

/// A child has the mark of its inputs itself: should its daemon die, nobody evicts them under it.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_stay_as_long_as_a_child_uses_them() {
    let Some(origin) = Origin::start() else { return };
    put(&origin, "m/config.json", b"{}");
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let store = origin::store(&top.join("cache"));
    let node = origin::node(&top.join("a"), &program(), &store, |_| {}).await;
    let mut slow = origin.taking("m", "slow");
    slow.hyperparameters.insert("steps".into(), 100_000.into());
    node.assign(assign(1, slow)).await;
    node.leader.step(1).await;
    assert_eq!(held_by_children(&top), 1, "the child does not hold its model");
    let views = || fs::read_dir(top.join("cache/views")).unwrap().count();
    store.cache().prune();
    assert_eq!(views(), 1, "it was evicted under a running child");
    node.cancel(attempt(1)).await;
    assert_eq!(node.leader.end().await, Report::Stopped);
    until("nobody holds it any more", || {
        store.cache().prune();
        views() == 0
    })
    .await;
    node.worker.stop().await;
}

/// Marks that processes of attempts below `dir` have open.
fn held_by_children(dir: &Path) -> usize {
    let mark = format!("MLOC_ATTEMPT_DIR={}", dir.display());
    let of_ours = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v.starts_with(mark.as_bytes()))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()).filter(of_ours);
    let open = |process: PathBuf| fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    processes.flat_map(open).filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("in-use"))).count()
}

async fn until(what: &str, there: impl Fn() -> bool) {
    let until = Instant::now() + support::PATIENCE;
    while !there() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
