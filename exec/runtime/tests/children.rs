//! A worker and real child processes (`examples/child.rs`).

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mloc_core::{ledger::entry::FailureClass, wire::Report};
use mloc_exec::failpoint;
use support::{Node, assign, attempt, spec};

fn program() -> PathBuf {
    // target/PROFILE/deps/THIS → target/PROFILE/examples/child
    let this = std::env::current_exe().unwrap();
    let program = this.parent().unwrap().parent().unwrap().join("examples/child");
    assert!(program.exists(), "{} is missing: run the package's tests as a whole", program.display());
    program
}

fn text(steps: u64) -> String {
    (1..=steps).map(|step| format!("step {step}\n")).collect()
}

fn artifact(dir: &Path, number: u32) -> String {
    fs::read_to_string(dir.join(format!("attempts/{}/artifacts/text", attempt(number)))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(5, "normal"))).await;
    let Report::Finished(result) = node.leader.end().await else { panic!("{:?}", *node.leader.reports.borrow()) };
    assert_eq!(result.summary["steps"], 5);
    assert_eq!(artifact(dir.path(), 1), text(5));
    let kinds: Vec<_> = node.leader.reports.borrow().iter().map(|(_, r)| std::mem::discriminant(r)).collect();
    let result = Report::Finished(result);
    assert_eq!(kinds, [&Report::Started, &Report::Publish, &result].map(std::mem::discriminant));
    assert!(!dir.path().join("checkpoints/task-01TEST.0").exists(), "published work needs no checkpoints");
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_takes_the_whole_family_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(5, "family"))).await;
    node.leader.step(1).await;
    assert_eq!(living(dir.path()), 3, "child, grandchild, orphan");
    let asked = Instant::now();
    node.cancel(attempt(1)).await;
    assert_eq!(node.leader.end().await, Report::Stopped);
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert_eq!(living(dir.path()), 0);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ignores_the_ask_is_killed_when_its_grace_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let mut deaf = spec(5, "ignore");
    deaf.timeouts.stop_ms = Some(300);
    node.assign(assign(1, deaf)).await;
    node.leader.step(1).await;
    node.cancel(attempt(1)).await;
    assert_eq!(node.leader.end().await, Report::Stopped);
    assert_eq!(living(dir.path()), 0);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_by_signal_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(5, "die"))).await;
    let Report::Failed(failure) = node.leader.end().await else { panic!() };
    assert_eq!(failure.class, FailureClass::Retryable);
    assert!(failure.message.contains("killed by signal 9 (SIGKILL)"), "{}", failure.message);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_bounded_and_does_not_stop_the_child() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(2, "flood"))).await;
    assert!(matches!(node.leader.end().await, Report::Finished(_)));
    let log = node.log(attempt(1)).await;
    assert!(log.len() < 33 << 20, "{}", log.len());
    assert!(log.contains("bytes left out") && log.contains("the end of it"));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_by_name_and_the_daemons_own_stay_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let mut named = spec(1, "secret");
    named.secrets_from = vec!["TOKEN".into()];
    node.assign(assign(1, named.clone())).await;
    assert!(matches!(node.leader.end().await, Report::Finished(_)));
    assert!(node.log(attempt(1)).await.contains("secret hunter2 path false"));
    let run = fs::read_to_string(dir.path().join(format!("attempts/{}/run.json", attempt(1)))).unwrap();
    assert!(!run.contains("hunter2"));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_logged_and_another_protocol_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("child.sh");
    let say = "#!/bin/sh\necho garbage\necho '{\"v\":1,\"event\":\"weather\"}'\necho '{\"v\":9,\"event\":\"hello\"}'\nexec sleep 1000\n";
    fs::write(&script, say).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let node = Node::start(dir.path(), &script).await;
    node.assign(assign(1, spec(1, "normal"))).await;
    let Report::Failed(failure) = node.leader.end().await else { panic!() };
    assert!(failure.message.contains("event protocol version 9"), "{}", failure.message);
    assert!(node.log(attempt(1)).await.contains("no event:"));
    assert_eq!(living(dir.path()), 0);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(60, "slow"))).await;
    node.leader.step(4).await;
    node.worker.stop().await;
    assert_eq!(living(dir.path()), 0);
    // Nothing is assigned again: it is in the journal.
    let node = Node::start(dir.path(), &program()).await;
    assert!(matches!(node.leader.end().await, Report::Finished(_)));
    assert_eq!(artifact(dir.path(), 1), text(60));
    assert!(node.log(attempt(1)).await.contains("going on from the checkpoint of step"));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_wait_until_the_leader_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(30, "slow"))).await;
    node.leader.step(2).await;
    node.leader.down.store(true, Ordering::SeqCst);
    let artifact = dir.path().join(format!("attempts/{}/result.json", attempt(1)));
    until("it is computed without contact", || artifact.exists()).await;
    node.leader.down.store(false, Ordering::SeqCst);
    assert!(matches!(node.leader.end().await, Report::Finished(_)));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_on_the_same_journal_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = mloc_runtime::Journal::open(dir.path()).unwrap();
    let said = mloc_runtime::Journal::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains("another mloc runs on this data directory"), "{said}");
    journal.close().await;
    mloc_runtime::Journal::open(dir.path()).unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("journal.redb"), vec![7; 8192]).unwrap();
    let said = mloc_runtime::Journal::open(other.path()).unwrap_err().to_string();
    assert!(said.contains("damaged"), "{said}");
}

/// Killed at any of the places, in the daemon or in the child, and started again: the result is that of a run nobody
/// disturbed.
#[test]
fn whatever_is_killed_the_result_is_that_of_the_unbroken_run() {
    let mut unreached = Vec::new();
    let later = ["checkpoint.rename#3", "checkpoint.event#4", "journal.after#5", "journal.before#7"];
    // The store's own places are killed at in its own tests.
    let ours = ["checkpoint.", "result.", "journal.", "attempt."];
    let all = failpoint::ALL.iter().filter(|place| ours.iter().any(|ours| place.starts_with(ours)));
    for place in all.chain(&later) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shared")).unwrap();
        fs::create_dir_all(dir.path().join("data")).unwrap();
        let run = |failpoint: Option<&str>| {
            let mut daemon = Command::new(program());
            daemon.arg("__daemon").arg(dir.path()).env_remove("MLOC_FAILPOINT");
            if let Some(failpoint) = failpoint {
                daemon.env("MLOC_FAILPOINT", failpoint);
            }
            daemon.output().unwrap()
        };
        let broken = run(Some(place));
        let log = format!("data/attempts/{}/attempt.log", attempt(1));
        let log = fs::read_to_string(dir.path().join(log)).unwrap_or_default();
        if !log.contains("dying as asked") && !String::from_utf8_lossy(&broken.stderr).contains("dying as asked") {
            unreached.push(place);
        }
        for _ in 0..2 {
            let again = run(None);
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(again.status.success(), "{place}: {:?}: {said}", again.status);
        }
        assert_eq!(fs::read_to_string(dir.path().join("out/text")).unwrap(), text(10), "{place}");
    }
    assert!(unreached.is_empty(), "places that no run reaches: {unreached:?}");
}

/// Processes that carry the mark of an attempt below `dir`.
fn living(dir: &Path) -> usize {
    let mark = format!("MLOC_ATTEMPT_DIR={}", dir.display());
    let marked = |pid: &str| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v.starts_with(mark.as_bytes()))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|e| e.file_name().to_str().is_some_and(marked)).count()
}

async fn until(what: &str, there: impl Fn() -> bool) {
    let until = Instant::now() + support::PATIENCE;
    while !there() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
