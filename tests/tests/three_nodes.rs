//! A mesh of three real processes with separate data directories: submit anywhere, kill any of them, lose nothing.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, mloc, run_to_end, s3::S3};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const BUCKET: &str = "mloc-e2e";
/// Milliseconds of an hour.
const HOUR_MS: f64 = 3_600_000.0;

fn task(steps: u32) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: echo, owner: john-doe, project: llm-research}}
spec:
  taskType: echo
  resources: {{hardware: {{cpu: 100m, gpu: {{type: 'simulated:any', count: 1}}}}}}
  hyperparameters: {{steps: {steps}, step_ms: 50, save_steps: 5}}
  checkpoint: {{destination: {{type: s3, bucket: {BUCKET}, path: checkpoints}}}}
  output: {{destination: {{type: s3, bucket: {BUCKET}, path: results/{steps}}}}}
"
    )
}

/// The same without a bucket.
fn local_task(steps: u32) -> String {
    task(steps).lines().filter(|l| !l.contains("s3")).collect::<Vec<_>>().join("\n")
}

const GPU: &str =
    "hardware: {cpu: '4', memory: 8GiB, simulated: {gpus: [{type: nvidia-l40, memory: 48GiB, count: 1}]}}";

/// One mesh at a time: a machine that runs several is so slow that healthy workers look lost.
fn alone() -> MutexGuard<'static, ()> {
    static MESHES: Mutex<()> = Mutex::new(());
    MESHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Three nodes, three voters.
fn mesh(env: &[(&str, &str)]) -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::new(env)?;
    sandbox.mesh(&["a", "b", "c"], GPU, 3)?;
    Ok(sandbox)
}

/// A process that ends with this value.
struct Outsider(Child);

impl Drop for Outsider {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn other_than(sandbox: &Sandbox, not: &[usize]) -> usize {
    (0..3).find(|i| !not.contains(i)).unwrap_or_else(|| panic!("three nodes: {}", sandbox.logs()))
}

/// The node of a task's newest attempt.
fn worker_of(sandbox: &Sandbox, task: &Value) -> anyhow::Result<usize> {
    let newest = task["attempts"].as_array().and_then(|a| a.last()).context("an attempt")?;
    sandbox.named(newest["node_name"].as_str().context("its node")?)
}

/// Waits until a checkpoint of the task is whole in the bucket, and tells which node works on it.
fn checkpoint_in_bucket(sandbox: &mut Sandbox, s3: &S3, ask: usize, id: &str) -> anyhow::Result<usize> {
    sandbox.until("a checkpoint is in the bucket", |_| {
        Ok(s3.keys(BUCKET, &format!("checkpoints/{id}"))?.iter().any(|key| key.ends_with("mloc-manifest.json")))
    })?;
    let running = sandbox.task(ask, id)?;
    worker_of(sandbox, &running)
}

fn millis(text: &Value) -> anyhow::Result<f64> {
    let text = text.as_str().context("a moment")?;
    Ok(OffsetDateTime::parse(text, &Rfc3339)?.unix_timestamp_nanos() as f64 / 1e6)
}

/// Stats are the sum of attempts: one that ended counts from its start to its end, one that was lost at most so long.
fn stats_are_the_sum_of_attempts(sandbox: &Sandbox, ask: usize, tasks: &[&Value]) -> anyhow::Result<()> {
    let (mut exact, mut lost) = (0.0, 0.0);
    for attempt in tasks.iter().flat_map(|task| task["attempts"].as_array().into_iter().flatten()) {
        let Ok(started) = millis(&attempt["started_at"]) else { continue };
        let hours = (millis(&attempt["ended_at"])? - started) / HOUR_MS;
        if attempt["state"] == "LOST" { lost += hours } else { exact += hours }
    }
    let stats =
        sandbox.run(ask, &["stats", "-o", "json", "--user", "john-doe", "--project", "llm-research"])?.json()?;
    let counted = stats["breakdown_by_gpu"]["simulated:nvidia-l40"].as_f64().context("hours")?;
    let slack = 2.0 / HOUR_MS;
    ensure!(
        exact > 0.0 && counted >= exact - slack && counted <= exact + lost + slack,
        "{counted} hours of {exact} and at most {lost} lost ones: {stats}"
    );
    ensure!((stats["total_gpu_hours"].as_f64().unwrap_or_default() - counted).abs() < slack, "{stats}");
    Ok(())
}

#[test]
fn the_worker_is_killed_and_another_finishes_from_the_checkpoint() -> anyhow::Result<()> {
    let _alone = alone();
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = mesh(&s3.env())?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let id = sandbox.submit(follower, &task(200))?;
    let worker = checkpoint_in_bucket(&mut sandbox, &s3, follower, &id)?;
    sandbox.kill(worker)?;
    let ask = other_than(&sandbox, &[worker]);
    let done = sandbox.until_state(ask, &id, &["COMPLETED"])?;
    let attempts = done["attempts"].as_array().cloned().unwrap_or_default();
    assert_eq!(attempts.len(), 2, "{done}");
    assert_eq!(attempts[0]["state"], "LOST");
    assert_eq!(attempts[1]["state"], "FINISHED");
    assert_ne!(attempts[0]["node"], attempts[1]["node"]);
    let log = sandbox.run(ask, &["logs", &id])?;
    assert!(log.out.contains("going on from the checkpoint"), "{}", log.out);
    stats_are_the_sum_of_attempts(&sandbox, ask, &[&done])
}

#[test]
fn the_leader_is_killed_right_after_it_accepted_and_the_task_finishes_once() -> anyhow::Result<()> {
    let _alone = alone();
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = mesh(&s3.env())?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let file = sandbox.dir.path().join("task.yaml");
    std::fs::write(&file, task(20))?;
    let path = file.display().to_string();
    let submit = ["submit", "-o", "json", "--idempotency-key", "across-the-failover", &path];
    let accepted = sandbox.run(follower, &submit)?.json()?;
    assert_eq!(accepted["created"], true);
    sandbox.kill(leader)?;
    // The client did not hear the answer, say, and asks again: whoever leads now knows the key.
    let again = sandbox.run(follower, &submit)?.json()?;
    assert_eq!(again["created"], false, "{again}");
    assert_eq!(again["task"]["id"], accepted["task"]["id"]);

    let id = accepted["task"]["id"].as_str().context("an id")?.to_owned();
    let done = sandbox.until_state(follower, &id, &["COMPLETED"])?;
    let finished = done["attempts"].as_array().into_iter().flatten().filter(|a| a["state"] == "FINISHED").count();
    assert_eq!(finished, 1, "{done}");
    let manifests = s3.keys(BUCKET, "results/")?.iter().filter(|key| key.ends_with("mloc-manifest.json")).count();
    assert_eq!(manifests, 1, "published once");
    let all = sandbox.run(follower, &["tasks", "-o", "json"])?.json()?;
    assert_eq!(all["tasks"].as_array().map(Vec::len), Some(1));
    let stats = sandbox.run(follower, &["stats", "-o", "json"])?.json()?;
    assert_eq!(stats["total_tasks_completed"], 1);
    stats_are_the_sum_of_attempts(&sandbox, follower, &[&done])
}

#[test]
fn a_worker_that_wakes_after_its_lease_publishes_nothing() -> anyhow::Result<()> {
    let _alone = alone();
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = mesh(&s3.env())?;
    let id = sandbox.submit(0, &task(600))?;
    let worker = checkpoint_in_bucket(&mut sandbox, &s3, 0, &id)?;
    sandbox.freeze(worker)?;
    // Not the frozen one; a frozen leader is followed by another.
    let leader = other_than(&sandbox, &[worker]);
    sandbox.until("another attempt has begun", |s| {
        Ok(s.task(leader, &id)?["attempts"].as_array().is_some_and(|attempts| attempts.len() == 2))
    })?;
    sandbox.thaw(worker)?;
    let done = sandbox.until_state(leader, &id, &["COMPLETED"])?;
    assert_eq!(done["attempts"][0]["state"], "LOST", "{done}");
    assert_eq!(done["attempts"][1]["state"], "FINISHED", "{done}");
    let manifest = s3.get(BUCKET, "results/600/mloc-manifest.json")?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    assert_eq!(manifest["attempt"], done["attempts"][1]["id"], "the second attempt's, and nobody else's");
    sandbox.until("the fenced worker is idle again", |s| {
        let nodes = s.run(leader, &["nodes", "-o", "json"])?.json()?;
        let name = s.name(worker).to_owned();
        Ok(nodes.as_array().is_some_and(|all| all.iter().any(|n| n["name"] == name.as_str() && n["state"] == "IDLE")))
    })
}

#[test]
fn every_verb_answers_alike_at_a_node_that_does_not_lead() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = mesh(&[])?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let id = sandbox.submit(follower, &local_task(4))?;
    sandbox.until_state(follower, &id, &["COMPLETED"])?;
    for verb in [
        vec!["tasks", "-o", "json"],
        vec!["task", "-o", "json", &id],
        vec!["logs", &id],
        vec!["logs", "-f", &id],
        vec!["stats", "-o", "json", "--project", "llm-research"],
        vec!["explain", "-o", "json", &id],
    ] {
        let (there, here) = (sandbox.run(leader, &verb)?, sandbox.run(follower, &verb)?);
        assert_eq!((there.code, here.code), (0, 0), "{verb:?}: {} {}", there.err, here.err);
        assert_eq!(there.out, here.out, "{verb:?}");
    }
    assert_eq!(sandbox.run(follower, &["nodes"])?.code, 0);
    assert_eq!(sandbox.run(follower, &["mesh"])?.code, 0);
    let file = sandbox.dir.path().join("task.yaml");
    let path = file.display().to_string();
    assert!(sandbox.run(follower, &["submit", "--dry-run", &path])?.out.contains("valid"));
    let waited = sandbox.run(follower, &["submit", "--wait", "-o", "json", &path])?;
    assert_eq!(waited.json()?["state"], "COMPLETED", "{}", waited.err);
    let long = sandbox.submit(follower, &local_task(100_000))?;
    sandbox.until_state(follower, &long, &["RUNNING"])?;
    assert_eq!(sandbox.run(follower, &["cancel", &long])?.code, 0);
    sandbox.until_state(follower, &long, &["CANCELLED"])?;
    let name = sandbox.name(leader).to_owned();
    assert!(sandbox.run(follower, &["drain", &name])?.out.contains("DRAINING"));
    assert_eq!(sandbox.run(follower, &["drain", "--off", &name])?.code, 0);
    assert_eq!(sandbox.run(follower, &["cancel", &id])?.code, 1, "a task that has completed can't be cancelled");
    assert_eq!(sandbox.run(follower, &["task", "task-nope"])?.code, 3);
    Ok(())
}

#[test]
fn a_log_that_is_followed_through_a_follower_shows_the_attempts_end() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = mesh(&[])?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let id = sandbox.submit(follower, &local_task(40))?;
    // It follows from before the first line to the last one.
    let follow = Command::new(mloc())
        .args(["logs", "-f", &id])
        .env("MLOC_NODE", sandbox.rest(follower)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    sandbox.until_state(follower, &id, &["COMPLETED"])?;
    let said = String::from_utf8(follow.wait_with_output()?.stdout)?;
    let whole = sandbox.run(follower, &["logs", &id])?.out;
    assert!(whole.contains("child") && said.contains(whole.trim()), "followed:\n{said}\nlog:\n{whole}");
    Ok(())
}

#[test]
fn a_wrong_token_is_refused_with_a_reason_on_both_sides_and_a_revoked_node_is_shut_out() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = mesh(&[])?;
    let leader = sandbox.leader(0)?;
    let mut stranger = Sandbox::new(&[])?;
    stranger.start("stranger", "")?;
    // A token of another mesh, and one of this mesh with one digit changed.
    let (rest, last) = sandbox.token().split_at(sandbox.token().len() - 1);
    let forged = format!("{rest}{}", if last == "0" { "1" } else { "0" });
    for (token, reason) in [(stranger.token(), "is of mesh"), (&forged, "token")] {
        let dir = tempfile::tempdir()?;
        let said = dir.path().join("said");
        let mut outsider = Outsider(
            Command::new(mloc())
                .args(["join", &sandbox.gossip(leader)?, "--bind", "127.0.0.1:0", "--link-bind", "127.0.0.1:0"])
                .args(["--rest-bind", "127.0.0.1:0", "--data-dir"])
                .arg(dir.path().join("data"))
                .env("MLOC_JOIN_TOKEN", token)
                .stdin(Stdio::null())
                .stdout(File::create(&said)?)
                .stderr(File::options().append(true).open(&said)?)
                .spawn()?,
        );
        let before = sandbox.log(leader)?.len();
        sandbox.until("the outsider says why it is not in", |_| {
            ensure!(outsider.0.try_wait()?.is_none(), "a node with a seed waits: {}", std::fs::read_to_string(&said)?);
            Ok(std::fs::read_to_string(&said)?.contains(reason))
        })?;
        sandbox.until("the seed says whom it refused, and why", |s| {
            let log = s.log(leader)?;
            Ok(log[before..].lines().any(|line| line.contains("refused") && line.contains(reason)))
        })?;
        let addresses: Value = serde_json::from_slice(&std::fs::read(dir.path().join("data/node.json"))?)?;
        let rest = addresses["rest"].as_str().context("where it answers")?;
        let asked = run_to_end(Command::new(mloc()).args(["tasks", "--node", rest]))?;
        ensure!(asked.code == 4 && asked.err.contains("does not serve yet: joining"), "{}", asked.err);
    }

    let victim = other_than(&sandbox, &[leader]);
    let name = sandbox.name(victim).to_owned();
    let revoked = sandbox.run(leader, &["revoke", &name])?;
    assert_eq!(revoked.code, 0, "{}", revoked.err);
    sandbox.until("the revoked node logged why it is alone", |s| Ok(s.log(victim)?.contains("revoked")))?;
    sandbox.until("the others logged that they refuse it", |s| {
        Ok((0..3).filter(|i| *i != victim).any(|i| s.log(i).is_ok_and(|log| log.contains("revoked"))))
    })?;
    let nodes = sandbox.run(leader, &["nodes", "-o", "json"])?.json()?;
    let state = nodes.as_array().and_then(|all| all.iter().find(|n| n["name"] == name.as_str()));
    assert_eq!(state.map(|n| &n["state"]), Some(&"REVOKED".into()), "{nodes}");
    let id = sandbox.submit(leader, &local_task(2))?;
    let done = sandbox.until_state(leader, &id, &["COMPLETED"])?;
    assert_ne!(worker_of(&sandbox, &done)?, victim);
    Ok(())
}
