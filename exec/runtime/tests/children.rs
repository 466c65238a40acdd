//! A worker and real child processes (`examples/child.rs`).

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{Input, Location, Model, Pin},
    wire::{AttemptProgress, Phase, Report, StopReason},
};
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
    let folder = dir.path().join(format!("attempts/{}", attempt(1)));
    until("what it leaves is cleared away", || names(&folder) == ["artifacts", "attempt.log"]).await;
    assert_eq!(artifact(dir.path(), 1), text(5), "a result without a destination stays");
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_attempts_leave_goes_when_the_last_of_a_replica_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let mut published = spec(5, "die");
    published.output.destination =
        Some(mloc_core::task::spec::Location::Local { path: dir.path().join("out").display().to_string() });
    node.assign(assign(1, published.clone())).await;
    node.leader.end_of(&attempt(1)).await;
    published.env.insert("MODE".into(), "normal".into());
    node.assign(assign(2, published)).await;
    assert!(matches!(node.leader.end_of(&attempt(2)).await, Report::Finished(_)));
    for number in [1, 2] {
        let folder = dir.path().join(format!("attempts/{}", attempt(number)));
        until("only its log is left", || names(&folder) == ["attempt.log"]).await;
    }
    node.worker.stop().await;
    // What a daemon could not clear away before it died goes at the next start.
    let lost = dir.path().join(format!("attempts/{}", attempt(7)));
    fs::create_dir_all(lost.join("artifacts")).unwrap();
    fs::write(lost.join("run.json"), "{}").unwrap();
    fs::create_dir_all(dir.path().join("checkpoints/task-gone.0")).unwrap();
    let node = Node::start(dir.path(), &program()).await;
    assert!(names(&lost).is_empty() && names(&dir.path().join("checkpoints")).is_empty());
    node.worker.stop().await;
}

/// What a source was is said once, and the next attempt asks for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_was_is_said_once_and_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&dir.path().join("data"), &program()).await;
    let model = dir.path().join("model.gguf");
    fs::write(&model, "m").unwrap();
    fs::write(model.with_extension("version"), "one").unwrap();
    let taking = |mode: &str| {
        let mut spec = spec(1, mode);
        let source = Location::Local { path: model.display().to_string() };
        spec.model = Some(Model { source, adapter: None, reference: None, value: None });
        spec
    };
    node.assign(assign(1, taking("die"))).await;
    assert!(matches!(node.leader.end_of(&attempt(1)).await, Report::Failed(_)));
    let pinned = |node: &Node| -> Vec<_> {
        let of = |report: &Report| if let Report::Pinned(pins) = report { Some(pins.clone()) } else { None };
        node.leader.reports.borrow().iter().filter_map(|(_, report)| of(report)).collect()
    };
    let pin = Pin { version: "one".to_owned(), files: 1, bytes: 2 };
    let pins = std::collections::BTreeMap::from([(Input::Model, pin.clone())]);
    assert_eq!(pinned(&node), std::slice::from_ref(&pins));
    let mut second = assign(2, taking("normal"));
    second.pins = pins;
    node.assign(second).await;
    assert!(matches!(node.leader.end_of(&attempt(2)).await, Report::Finished(_)));
    assert_eq!(*node.places.asked.lock().unwrap(), [None, Some(pin)]);
    assert_eq!(pinned(&node).len(), 1, "it was said again");
    assert!(node.log(attempt(2)).await.contains("the model is version one (1 files, 2 bytes)"));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out_with_the_result_in_hand() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.places.held.store(true, Ordering::SeqCst);
    node.places.outage.store(true, Ordering::SeqCst);
    node.assign(assign(1, spec(5, "normal"))).await;
    let says =
        |text: &'static str| move |a: &AttemptProgress| a.progress.note.as_ref().is_some_and(|n| n.contains(text));
    node.leader
        .says(|a| a.phase == Phase::Uploading && (a.progress.bytes_done, a.progress.bytes_total) == (Some(5), Some(9)))
        .await;
    node.places.held.store(false, Ordering::SeqCst);
    node.leader.says(says("waiting to publish, 3 tries so far: nobody answers")).await;
    node.places.outage.store(false, Ordering::SeqCst);
    assert!(matches!(node.leader.end().await, Report::Finished(_)));
    let log = node.log(attempt(1)).await;
    assert!(log.contains("not published yet (try 3, the next one in "), "{log}");
    assert_eq!(log.matches("mloc: child ").count(), 1, "it was computed again: {log}");
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_can_be_stopped_while_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.places.outage.store(true, Ordering::SeqCst);
    node.assign(assign(1, spec(5, "normal"))).await;
    node.leader.says(|a| a.progress.note.as_ref().is_some_and(|n| n.contains("waiting to publish"))).await;
    node.cancel(attempt(1)).await;
    assert_eq!(node.leader.end().await, Report::Stopped);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cancelled_task_no_checkpoint_is_written_or_pushed() {
    for (why, steps) in [(StopReason::Cancelled, 0), (StopReason::Superseded, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let node = Node::start(&dir.path().join("data"), &program()).await;
        let mut saves = spec(5, "saves");
        saves.checkpoint = support::shared(&shared);
        node.assign(assign(1, saves)).await;
        node.leader.step(1).await;
        node.stop(attempt(1), why.clone()).await;
        assert_eq!(node.leader.end().await, Report::Stopped);
        assert_eq!(names(&shared).len(), steps, "{why:?}");
        let log = node.log(attempt(1)).await;
        assert!(log.contains("stopped as asked"), "{log}");
        node.worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_slower_than_the_childs_saves_comes_through() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let node = Node::start(&dir.path().join("data"), &program()).await;
    node.places.slow_push.store(true, Ordering::SeqCst);
    let mut one_kept = spec(100_000, "slow");
    one_kept.hyperparameters.insert("save_steps".into(), 1.into());
    one_kept.hyperparameters.insert("save_total_limit".into(), 1.into());
    one_kept.checkpoint = support::shared(&shared);
    node.assign(assign(1, one_kept)).await;
    // The child has saved and pruned several times over by then.
    node.leader.step(6).await;
    node.places.slow_push.store(false, Ordering::SeqCst);
    let pushed = node.leader.report(|r| matches!(r, Report::Checkpointed(_))).await;
    let Report::Checkpointed(reference) = pushed else { panic!("{pushed:?}") };
    assert!(reference.step < 6, "the first one was under way: {reference:?}");
    assert!(shared.join(reference.step.to_string()).join("manifest.json").is_file());
    node.cancel(attempt(1)).await;
    assert_eq!(node.leader.end().await, Report::Stopped);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_child_says_is_too_large_to_be_reported() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, spec(1, "large"))).await;
    let Report::Finished(result) = node.leader.end_of(&attempt(1)).await else { panic!() };
    assert_eq!(result.summary["steps"], 1);
    assert!(result.summary.contains_key("left_out") && !result.summary.contains_key("answers"));
    let mut long = assign(1, spec(1, "long"));
    long.attempt.replica = 1;
    node.assign(long.clone()).await;
    let Report::Failed(failure) = node.leader.end_of(&long.attempt).await else { panic!() };
    assert_eq!(failure.class, FailureClass::Fatal);
    assert!(failure.message.len() < 20 << 10 && failure.message.starts_with("begin "));
    assert!(failure.message.ends_with(" end"));
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_stops_before_the_disk_is_full() {
    // A disk of its own, so that nobody else's bytes count.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let stats = nix::sys::statvfs::statvfs(dir.path()).unwrap();
    let free = stats.blocks_available() * stats.fragment_size();
    let node = Node::start_with(dir.path(), &program(), free - (8 << 20)).await;
    node.assign(assign(1, spec(1, "fill"))).await;
    let Report::Failed(failure) = node.leader.end_of(&attempt(1)).await else { panic!() };
    assert_eq!(failure.class, FailureClass::Retryable);
    assert!(failure.message.contains("is nearly full"), "{}", failure.message);
    assert!(node.log(attempt(1)).await.contains("mloc: child "), "it had started");
    node.worker.stop().await;
    // And none starts on a full one.
    let node = Node::start_with(dir.path(), &program(), u64::MAX).await;
    node.assign(assign(2, spec(1, "normal"))).await;
    let Report::Failed(failure) = node.leader.end_of(&attempt(2)).await else { panic!() };
    assert!(failure.message.contains("is nearly full"), "{}", failure.message);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_other_nodes_sends_the_task_there() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let mut named = spec(1, "secret");
    named.secrets_from = vec!["NOT_HERE".into()];
    node.assign(assign(1, named)).await;
    let Report::Failed(failure) = node.leader.end().await else { panic!() };
    assert_eq!(failure.class, FailureClass::Retryable, "another node may have it");
    assert!(failure.message.starts_with("this node has no secret `NOT_HERE`"), "{}", failure.message);
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

/// One of the places a run is killed at.
struct Death {
    dir: tempfile::TempDir,
    failpoint: String,
}

impl Death {
    /// Runs the task on node `a` until it dies there; `None` when it does not come by so often.
    fn at(failpoint: String) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shared")).unwrap();
        fs::create_dir_all(dir.path().join("a")).unwrap();
        let death = Self { dir, failpoint };
        let broken = death.run("a", true);
        let died = death.log("a", 1).contains("dying as asked") || broken.contains("dying as asked");
        died.then_some(death)
    }

    /// Runs the task on a node to its end, or its death; what the daemon said.
    fn run(&self, node: &str, dies: bool) -> String {
        let mut daemon = Command::new(program());
        daemon.arg("__daemon").arg(self.dir.path()).arg(node).env_remove("MLOC_FAILPOINT");
        if dies {
            daemon.env("MLOC_FAILPOINT", &self.failpoint);
        }
        let output = daemon.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(dies || output.status.success(), "{}: {:?}: {said}", self.failpoint, output.status);
        said
    }

    fn log(&self, node: &str, number: u32) -> String {
        let path = self.dir.path().join(format!("{node}/attempts/{}/attempt.log", attempt(number)));
        fs::read_to_string(path).unwrap_or_default()
    }

    fn assert_unbroken(&self) {
        let published = fs::read_to_string(self.dir.path().join("out/text")).unwrap();
        assert_eq!(published, text(6), "{}", self.failpoint);
        let left = living(self.dir.path());
        assert_eq!(left, 0, "{}: {left} processes of the dead daemon are left", self.failpoint);
    }
}

/// Calls `each` with every place and the number of its hit, from the first to the last there is; some at a time.
fn at_every_hit(hits_max: u64, each: impl Fn(Death) + Sync) {
    // The store's own places, and those of training, are killed at in tests of their own.
    let elsewhere = |place: &str| place.starts_with("store.") || place.starts_with("finetune.");
    let ours: Vec<&str> = failpoint::ALL.iter().copied().filter(|place| !elsewhere(place)).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || {
            while let Some(place) = ours.get(next.fetch_add(1, Ordering::SeqCst)) {
                // Of a child that is done before its daemon looks no checkpoint is pushed: one run may miss a place.
                let at = |n: u64| (0..if n == 1 { 5 } else { 1 }).find_map(|_| Death::at(format!("{place}#{n}")));
                let hits = (1..=hits_max).map_while(at).map(&each).count();
                assert!(hits > 0, "no run reaches {place}");
            }
        };
        for _ in 0..3 {
            scope.spawn(work);
        }
    });
}

/// Killed at any of the places, each time it is reached, in the daemon or in the child, and started again: the result
/// is that of a run nobody disturbed.
#[test]
fn whatever_is_killed_the_result_is_that_of_the_unbroken_run() {
    at_every_hit(u64::MAX, |death| {
        // The next attempt, should the first have failed.
        death.run("a", false);
        death.run("a", false);
        death.assert_unbroken();
    });
}

/// The same, but node `a` never comes back: another node goes on from what is at the shared places.
#[test]
fn another_node_goes_on_where_a_killed_one_was() {
    at_every_hit(3, |death| {
        let whole = |name: &String| name.parse::<u64>().is_ok();
        let pushed = names(&death.dir.path().join("shared")).iter().any(whole);
        let published = death.dir.path().join("out/done.json").exists();
        // The ledger's part: the lease is over, and there is a successor.
        fs::write(death.dir.path().join("attempt"), "2").unwrap();
        death.run("b", false);
        let log = death.log("b", 2);
        let went_on = log.contains("going on from the checkpoint of step");
        assert_eq!(went_on, pushed && !published, "{}: {log}", death.failpoint);
        let published_again = log.contains("mloc: child ");
        assert_eq!(published_again, !published, "{}: {log}", death.failpoint);
        // Its own node was killed with it; a child that outlived it is the next daemon's there to end.
        death.run("a", false);
        death.assert_unbroken();
    });
}

/// A daemon that dies between a child's start and its note leaves a child that only its mark betrays.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_nobody_noted_is_killed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let folder = top.join(format!("attempts/{}", attempt(1)));
    fs::create_dir_all(&folder).unwrap();
    let mut orphan = Command::new("sleep").arg("1000").env("MLOC_ATTEMPT_DIR", &folder).spawn().unwrap();
    let mut neighbour =
        Command::new("sleep").arg("1000").env("MLOC_ATTEMPT_DIR", "/elsewhere/attempts/x").spawn().unwrap();
    let node = Node::start(&top, &program()).await;
    assert_eq!(living(&top), 0);
    assert!(orphan.wait().unwrap().code().is_none(), "it was killed");
    assert!(neighbour.try_wait().unwrap().is_none(), "another node's child is not ours to kill");
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    node.worker.stop().await;
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
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
