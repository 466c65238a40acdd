//! A mesh that is lost comes back from a backup: over real processes, on one node and on three, under load.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context, ensure};
use mloc_tests::{Ran, Sandbox, mloc, run_to_end};
use serde_json::Value;

const GPU: &str =
    "hardware: {cpu: '4', memory: 8GiB, simulated: {gpus: [{type: nvidia-l40, memory: 48GiB, count: 1}]}}";

/// One mesh at a time: a machine that runs several is so slow that healthy workers look lost.
fn alone() -> MutexGuard<'static, ()> {
    static MESHES: Mutex<()> = Mutex::new(());
    MESHES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn task(name: &str, project: &str, steps: u32, gpus: u32) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: {name}, owner: john-doe, project: {project}}}
spec:
  taskType: echo
  resources: {{hardware: {{cpu: 100m, gpu: {{type: 'simulated:any', count: {gpus}}}}}}}
  hyperparameters: {{steps: {steps}, step_ms: 50}}
"
    )
}

/// The same, publishing to a folder of the volume `out`.
fn published(name: &str, project: &str, steps: u32) -> String {
    format!("{}  output: {{destination: {{type: local, path: out/{name}}}}}\n", task(name, project, steps, 1))
}

/// Runs `mloc` by itself, asking no node.
fn offline(args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = Command::new(mloc());
    // Port 1 answers nobody.
    command.args(args).env("MLOC_NODE", "127.0.0.1:1").env_remove("MLOC_JOIN_TOKEN").env_remove("MLOC_TOKEN_FILE");
    run_to_end(&mut command)
}

fn verified(file: &str) -> anyhow::Result<Value> {
    offline(&["backup", "--verify", "-o", "json", file])?.json()
}

/// A node that founds a mesh anew from this backup, and what the restore said.
fn restored(file: &str, config: &str) -> anyhow::Result<(Sandbox, String)> {
    let mut sandbox = Sandbox::new(&[])?;
    let data = sandbox.dir.path().join("again/data").display().to_string();
    let ran = offline(&["restore", file, "--data-dir", &data, "--name", "again"])?;
    ensure!(ran.code == 0, "{}{}", ran.out, ran.err);
    sandbox.start("again", config)?;
    Ok((sandbox, ran.out))
}

fn hours_of(sandbox: &Sandbox, project: &str) -> anyhow::Result<Value> {
    sandbox.run(0, &["stats", "-o", "json", "--user", "john-doe", "--project", project])?.json()
}

fn secrets_of(data: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut secrets = Vec::new();
    for file in ["join.token", "node.key"] {
        let text = std::fs::read_to_string(data.join(file))?;
        let digits = text.trim().rsplit(['-', ':']).next().context("hex digits")?.to_owned();
        ensure!(digits.len() == 64, "{file} holds 32 bytes");
        let bytes = (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16));
        secrets.extend([bytes.collect::<Result<Vec<_>, _>>()?, digits.into_bytes()]);
    }
    Ok(secrets)
}

#[test]
fn a_lost_node_comes_back_with_its_usage_and_adopts_what_was_published_after_the_backup() -> anyhow::Result<()> {
    let _alone = alone();
    let volume = tempfile::tempdir()?;
    let config = format!("{GPU}\nvolumes: {{out: {}}}", volume.path().display());
    let mut old = Sandbox::new(&[])?;
    old.start("one", &config)?;
    let done = old.submit(0, &task("done", "finished", 3, 1))?;
    old.until_state(0, &done, &["COMPLETED"])?;
    let running = old.submit(0, &published("running", "interrupted", 60))?;
    let waiting = old.submit(0, &task("waiting", "waits", 3, 2))?;
    old.until("it runs", |s| Ok(s.task(0, &running)?["progress"]["step"].as_u64().is_some_and(|step| step >= 2)))?;

    let file = old.dir.path().join("a.mlocbackup");
    let path = file.display().to_string();
    let ran = old.run(0, &["backup", &path])?;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("read back and checked") && ran.out.contains("no join token"), "{}", ran.out);
    let holds = verified(&path)?;
    assert_eq!(holds["tasks"], serde_json::json!({"COMPLETED": 1, "PENDING": 1, "RUNNING": 1}), "{holds}");
    assert_eq!((&holds["members"], &holds["live_attempts"]), (&serde_json::json!(["one"]), &1.into()));
    // To standard output the same, and nothing else.
    let streamed = run_streamed(&old, &["backup", "-"])?;
    assert!(streamed.starts_with(b"MLOCBKUP"), "only the backup");
    let bytes = std::fs::read(&file)?;
    for secret in secrets_of(&old.data(0))? {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "a secret is in the backup");
    }

    // It goes on after the backup, publishes, and is lost.
    let finished = old.until_state(0, &running, &["COMPLETED"])?;
    let before = hours_of(&old, "finished")?;
    let old_mesh = old.run(0, &["mesh", "-o", "json"])?.json()?["mesh"].clone();
    let old_token = old.token().to_owned();
    old.kill(0)?;

    refusals(&old, &path, &old_token)?;
    let (mut new, said) = restored(&path, &config)?;
    for says in ["next", "mloc up --data-dir", "move its old data directory away", "mloc token USER"] {
        assert!(said.contains(says), "{says}: {said}");
    }
    let mesh = new.run(0, &["mesh", "-o", "json"])?.json()?;
    assert_ne!(mesh["mesh"], old_mesh);
    assert_ne!(new.token(), old_token);
    assert_eq!(hours_of(&new, "finished")?, before, "usage of what had ended is the same to the last digit");
    let there = new.task(0, &done)?;
    assert_eq!((&there["state"], &there["attempts"][0]["state"]), (&"COMPLETED".into(), &"FINISHED".into()));
    assert_eq!(new.task(0, &waiting)?["state"], "PENDING");

    let adopted = new.until_state(0, &running, &["COMPLETED"])?;
    for part in ["artifacts", "destination", "location", "summary"] {
        assert_eq!(adopted["result"][part], finished["result"][part], "the result of before is adopted: {part}");
    }
    let attempts: Vec<_> = adopted["attempts"].as_array().into_iter().flatten().map(|a| a["id"].clone()).collect();
    assert_eq!(attempts, [format!("{running}.0.1"), format!("{running}.0.1001")]);
    assert_eq!(adopted["attempts"][0]["state"], "STOPPED", "{adopted}");
    assert_eq!(adopted["usage"][0]["end_time"], holds["as_of"], "what ran is counted up to the backup");
    let manifest = std::fs::read(volume.path().join("running/mloc-manifest.json"))?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    assert_eq!(manifest["attempt"], format!("{running}.0.1"), "nothing was published again");
    // A mesh that was restored can be backed up and restored as any.
    let again = new.dir.path().join("again.mlocbackup").display().to_string();
    assert_eq!(new.run(0, &["backup", &again])?.code, 0);
    let (newer, _) = restored(&again, &config)?;
    assert_eq!(hours_of(&newer, "interrupted")?, hours_of(&new, "interrupted")?);
    assert_eq!(hours_of(&newer, "finished")?, before);
    Ok(())
}

fn run_streamed(sandbox: &Sandbox, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(mloc());
    command.args(args).env("MLOC_NODE", sandbox.rest(0)?).stdin(Stdio::null()).stderr(Stdio::null());
    let ran = command.output()?;
    ensure!(ran.status.success(), "{:?}", ran.status);
    Ok(ran.stdout)
}

/// What is no good backup, and what is no place for one.
fn refusals(old: &Sandbox, good: &str, old_token: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let bytes = std::fs::read(good)?;
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let empty = dir.path().join("data").display().to_string();
    for (name, bad, says) in [
        ("cut", bytes[..bytes.len() - 7].to_vec(), "cut short"),
        ("flipped", flipped, "damaged"),
        ("other", b"PK\x03\x04".to_vec(), "not a backup"),
    ] {
        let path = dir.path().join(name).display().to_string();
        std::fs::write(&path, bad)?;
        for verb in [vec!["backup", "--verify", &path], vec!["restore", &path, "--data-dir", &empty]] {
            let ran = offline(&verb)?;
            ensure!(ran.code == 1 && ran.err.contains(says) && ran.err.contains("hint: "), "{verb:?}: {}", ran.err);
        }
    }
    let taken = old.data(0).display().to_string();
    let ran = offline(&["restore", good, "--data-dir", &taken])?;
    ensure!(ran.code == 2 && ran.err.contains("not empty"), "{}", ran.err);
    let token = dir.path().join("token").display().to_string();
    std::fs::write(&token, old_token)?;
    let ran = offline(&["restore", good, "--data-dir", &empty, "--token-file", &token])?;
    ensure!(ran.code == 2 && ran.err.contains("mloc token --new-mesh"), "{}", ran.err);
    ensure!(!Path::new(&empty).exists(), "nothing was begun");
    Ok(())
}

#[test]
fn a_restore_that_broke_off_anywhere_founds_no_empty_mesh() -> anyhow::Result<()> {
    let _alone = alone();
    let mut old = Sandbox::new(&[])?;
    old.start("one", "")?;
    let path = old.dir.path().join("b").display().to_string();
    ensure!(old.run(0, &["backup", &path])?.code == 0);
    let dir = tempfile::tempdir()?;
    let whole = dir.path().join("whole");
    let ran = offline(&["restore", &path, "--data-dir", &whole.display().to_string()])?;
    ensure!(ran.code == 0, "{}", ran.err);
    let written = ["raft.redb", "node.key", "members.json", "join.token", "raft.snapshot"];
    let mut found: Vec<_> = std::fs::read_dir(&whole)?
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    found.sort();
    let mut expected = written.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected, "a restore writes these, and in the order above");
    for length in 1..written.len() {
        let part = dir.path().join(format!("part-{length}"));
        std::fs::create_dir(&part)?;
        for file in &written[..length] {
            std::fs::copy(whole.join(file), part.join(file))?;
        }
        for _ in 0..2 {
            let ran = up(&part)?;
            assert_eq!(ran.code, 1, "after {:?}: {}{}", &written[..length], ran.out, ran.err);
            assert!(!ran.out.contains("founded"), "{}", ran.out);
        }
    }
    Ok(())
}

fn up(data: &Path) -> anyhow::Result<Ran> {
    let data = data.display().to_string();
    offline(&[
        "up",
        "--data-dir",
        &data,
        "--bind",
        "127.0.0.1:0",
        "--link-bind",
        "127.0.0.1:0",
        "--rest-bind",
        "127.0.0.1:0",
    ])
}

/// Submissions without a pause, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(sandbox: &Sandbox, node: usize) -> anyhow::Result<Self> {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let file = sandbox.dir.path().join("load.yaml");
        std::fs::write(&file, task("load", "load", 1, 1))?;
        let (stopped, counted, rest) = (stop.clone(), accepted.clone(), sandbox.rest(node)?);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let ran = run_to_end(Command::new(mloc()).arg("submit").arg(&file).env("MLOC_NODE", &rest));
                if ran.is_ok_and(|ran| ran.code == 0) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(Self { stop, accepted, thread: Some(thread) })
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load's thread");
        }
        self.accepted()
    }
}

fn tasks_in(holds: &Value) -> u64 {
    holds["users"]["john-doe"]["tasks"].as_u64().unwrap_or(0)
}

#[test]
fn backups_under_load_miss_nothing_and_the_last_voter_is_the_way_out() -> anyhow::Result<()> {
    let _alone = alone();
    let mut old = Sandbox::new(&[])?;
    old.mesh(&["a", "b", "c"], GPU, 3)?;
    let leader = old.leader(0)?;
    let followers: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let load = Load::start(&old, followers[0])?;
    let path = old.dir.path().join("load.mlocbackup").display().to_string();
    for round in 0..6 {
        // What was answered before the backup was asked for is in it, whichever node is asked.
        let enough = load.accepted() + 3;
        old.until("tasks are taken", |_| Ok(load.accepted() >= enough))?;
        let before = load.accepted();
        let ran = old.run(round % 3, &["backup", &path])?;
        ensure!(ran.code == 0, "{}", ran.err);
        let holds = verified(&path)?;
        assert!(tasks_in(&holds) >= before, "{} of {before} tasks: {holds}", tasks_in(&holds));
        assert_eq!(holds["broken"], Value::Null, "{holds}");
    }
    let accepted = load.end();

    // Two of three are gone for good. The leader has all that was acknowledged.
    let survivor = old.leader(followers[0])?;
    let lost: Vec<usize> = (0..3).filter(|i| *i != survivor).collect();
    let running =
        old.run(survivor, &["backup", "--from-data-dir", &old.data(survivor).display().to_string(), &path])?;
    ensure!(running.code == 1 && running.err.contains("another mloc runs"), "{}", running.err);
    for node in &lost {
        old.kill(*node)?;
    }
    let none = old.dir.path().join("none.mlocbackup");
    let ran = old.run(survivor, &["backup", &none.display().to_string()])?;
    ensure!(ran.code == 4 && !none.exists(), "without a majority there is no backup: {} {}", ran.code, ran.err);
    old.kill(survivor)?;
    let data = old.data(survivor).display().to_string();
    let ran = offline(&["backup", "--from-data-dir", &data, &path])?;
    ensure!(ran.code == 0, "{}", ran.err);
    let holds = verified(&path)?;
    assert!(tasks_in(&holds) >= accepted, "{} of {accepted}: {holds}", tasks_in(&holds));
    let mut members: Vec<_> = holds["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["a", "b", "c"]);

    let (mut new, _) = restored(&path, "role: {work: false}")?;
    let stats = new.run(0, &["stats", "-o", "json", "--user", "john-doe"])?.json()?;
    assert_eq!(stats["total_gpu_hours"], holds["users"]["john-doe"]["gpu_hours"], "{stats}");
    let before_loss = stats["total_tasks_completed"].as_u64().context("a number")?;
    let mut listed = 0;
    let mut cursor = None;
    loop {
        let mut verb = vec!["tasks".to_owned(), "-o".into(), "json".into(), "--limit".into(), "1000".into()];
        verb.extend(cursor.iter().flat_map(|c: &String| ["--cursor".to_owned(), c.clone()]));
        let page = new.run(0, &verb.iter().map(String::as_str).collect::<Vec<_>>())?.json()?;
        listed += page["tasks"].as_array().map_or(0, Vec::len) as u64;
        let Some(next) = page["next"].as_str() else { break };
        cursor = Some(next.to_owned());
    }
    assert_eq!(listed, tasks_in(&holds));

    no_way_back(&old, lost[0], &new)?;
    // With an empty data directory and the new token any machine joins, votes and works.
    for name in ["fresh", "other"] {
        new.start(name, GPU)?;
    }
    new.until("three vote", |s| {
        let mesh = s.run(0, &["mesh", "-o", "json"])?.json()?;
        Ok(mesh["voters_alive"] == 3)
    })?;
    new.kill(0)?;
    new.until("the two that joined have the ledger, and do its tasks", |s| {
        let asked = s.run(1, &["stats", "-o", "json", "--user", "john-doe"])?;
        if asked.code == 4 {
            // They are choosing a leader.
            return Ok(false);
        }
        let stats = asked.json()?;
        Ok(stats["total_tasks_completed"].as_u64().is_some_and(|n| n > before_loss + 1))
    })
}

/// A node of the old mesh on its old data: it is told why it is not let in, by itself or by the new mesh.
fn no_way_back(old: &Sandbox, node: usize, new: &Sandbox) -> anyhow::Result<()> {
    let join = |data: &PathBuf, token: &str| {
        let mut command = Command::new(mloc());
        command
            .args(["join", &new.gossip(0)?, "--bind", "127.0.0.1:0", "--link-bind", "127.0.0.1:0"])
            .args(["--rest-bind", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .env("MLOC_JOIN_TOKEN", token);
        run_to_end(&mut command)
    };
    let data = old.data(node);
    let ran = join(&data, new.token())?;
    ensure!(ran.code == 1 && ran.err.contains("use another data directory"), "{} {}", ran.code, ran.err);
    // Somebody helps it to forget which mesh it was of: its key is known, and revoked.
    std::fs::remove_file(data.join("members.json"))?;
    std::fs::remove_file(data.join("join.token"))?;
    let ran = join(&data, new.token())?;
    ensure!(ran.code == 1 && ran.err.contains("revoked"), "{} {}", ran.code, ran.err);
    Ok(())
}
