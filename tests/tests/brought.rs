//! Files beside a task file go with it to the node that takes it, and from there to the worker; what the task leaves
//! comes back through any node. The leader carries none of it, and nothing that stops in between is lost.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, root};
use serde_json::Value;

/// Rides along with the model, so that its way takes a while.
const BALLAST: usize = 64 << 20;

/// A fine-tune of a few steps on a model and data at these places.
fn task(model: &str, data: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: brought, owner: john-doe, project: llm-research}}
spec:
  taskType: sft
  resources: {{hardware: {{cpu: '1', memory: 512MiB}}}}
  retry: {{limit: 200, backoff: 200ms, backoffMax: 1s}}
  model:
    source: {{type: local, path: {model}}}
    adapter: {{type: lora, r: 4, lora_alpha: 8, target_modules: [q_proj]}}
  dataset: {{source: {{type: local, path: {data}}}}}
  hyperparameters: {{max_steps: 2, per_device_train_batch_size: 1, max_length: 32, logging_steps: 1, seed: 7}}
  output: {{artifacts: [adapter_weights, training_logs]}}
"
    )
}

/// What is tried here is the way of bytes, not how fast a silence is noticed: a machine that is busy with them, and with
/// other things, must not look dead.
const PATIENT: &str = "timing: {raftHeartbeatMs: 500, electionMinMs: 4000, electionMaxMs: 8000, gossipIntervalMs: 200, \
                       voterStableMs: 500, voterGraceMs: 600000, leaseMs: 30000, workerHeartbeatMs: 1000, tickMs: 200}\n";
/// One mesh at a time.
fn alone() -> MutexGuard<'static, ()> {
    static MESHES: Mutex<()> = Mutex::new(());
    MESHES.lock().unwrap_or_else(PoisonError::into_inner)
}

const IDLE: &str = "role: {work: false}";

/// The quickstart's model with ballast, and some of its data, beside the sandbox's task files.
fn beside(dir: &Path, ballast: usize) -> anyhow::Result<()> {
    let quickstart = root().join("configs/quickstart");
    fs::create_dir_all(dir.join("model"))?;
    for entry in fs::read_dir(quickstart.join("model"))? {
        let entry = entry?;
        fs::copy(entry.path(), dir.join("model").join(entry.file_name()))?;
    }
    fs::copy(quickstart.join("data/heldout.jsonl"), dir.join("train.jsonl"))?;
    // Bytes that differ, so that nothing is taken for something else.
    let noise: Vec<u8> = (0..ballast as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8).collect();
    fs::write(dir.join("model/ballast.bin"), noise)?;
    Ok(())
}

/// A node's figure of bytes that went over streams.
fn stream_bytes(sandbox: &Sandbox, node: usize, about: &str, direction: &str) -> anyhow::Result<u64> {
    let address = sandbox.rest(node)?;
    let mut stream = TcpStream::connect(&address)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let name = format!("mloc_stream_bytes_total{{about=\"{about}\",direction=\"{direction}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.with_context(|| format!("{name} in {text}"))?.trim().parse()?)
}

/// Whether a pull has chunks on a node's disk and is not at its end: by what it writes of its files under way.
fn in_the_middle_of_a_pull(data: &Path) -> bool {
    let mut left = vec![data.join("cache")];
    while let Some(here) = left.pop() {
        // What is there one moment may be gone the next.
        for entry in fs::read_dir(here).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "json")
                && let Some(part) = fs::read(&path).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok())
            {
                let done = part["done"].as_array().map_or(0, Vec::len);
                let under_way = part["name"] == "ballast.bin" && part["sha256"].is_null();
                if under_way && done > 0 && done < BALLAST / (8 << 20) {
                    return true;
                }
            }
        }
    }
    false
}

fn adapter(sandbox: &Sandbox, ask: usize, id: &str, dir: &str) -> anyhow::Result<Vec<u8>> {
    let dir = sandbox.dir.path().join(dir);
    let got = sandbox.run(ask, &["artifacts", "get", id, "-o", &dir.display().to_string()])?;
    ensure!(got.code == 0, "{}", got.err);
    let (file, listed) = (dir.join("adapter_model.safetensors"), got.out.lines().count());
    ensure!(got.out.contains("adapter_model.safetensors") && listed >= 3, "{}", got.out);
    Ok(fs::read(file)?)
}

#[test]
fn files_beside_a_task_reach_a_worker_that_dies_in_between_and_the_leader_carries_none() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = Sandbox::with_timing(&[], PATIENT)?;
    let (leader, taker) = (sandbox.start("a", IDLE)?, sandbox.start("b", IDLE)?);
    let quickstart = root().join("configs/quickstart");
    let config = format!("hardware: {{cpu: '1', memory: 8GiB}}\nvolumes: {{quickstart: {}}}", quickstart.display());
    let worker = sandbox.start("c", &config)?;
    sandbox.until("there are 3 voters", |s| {
        Ok(s.run(0, &["mesh", "-o", "json"])?.json()?["voters"].as_array().is_some_and(|v| v.len() == 3))
    })?;
    assert_eq!(sandbox.leader(taker)?, leader, "the founder leads");
    let dir = sandbox.dir.path().to_owned();
    beside(&dir, BALLAST)?;

    // Nothing is sent for a dry run, and what is wrong is said where it stands, before anything is sent.
    let (file, wrong) = (dir.join("task.yaml"), dir.join("wrong.yaml"));
    fs::write(&file, task("./model", "./train.jsonl"))?;
    fs::write(&wrong, task("./model", "./gone.jsonl").replace("max_steps: 2", "max_steps: -3"))?;
    let dry = sandbox.run(taker, &["submit", "--dry-run", &file.display().to_string()])?;
    assert_eq!(dry.code, 0, "{}", dry.err);
    let refused = sandbox.run(taker, &["submit", &wrong.display().to_string()])?;
    assert_eq!(refused.code, 2, "{}", refused.out);
    for part in
        ["wrong.yaml:12:", "spec.dataset.source.path: found `./gone.jsonl`", "max_steps", "no such file or folder"]
    {
        assert!(refused.err.contains(part), "{part} in {}", refused.err);
    }
    let uploads = |node: usize| fs::read_dir(sandbox.data(node).join("uploads/sha256")).map_or(0, Iterator::count);
    assert_eq!(uploads(taker), 0);

    let quiet = stream_bytes(&sandbox, leader, "http", "received")?;
    let submit = ["submit", "-o", "json", "--idempotency-key", "k", &file.display().to_string()];
    let accepted = sandbox.run(taker, &submit)?;
    assert!(accepted.err.contains("along with the task"), "{}", accepted.err);
    let id = accepted.json()?["task"]["id"].as_str().context("an id")?.to_owned();
    let data = sandbox.data(worker);
    sandbox.until("the worker is in the middle of its pull", |_| Ok(in_the_middle_of_a_pull(&data)))?;
    sandbox.kill(worker)?;
    assert!(in_the_middle_of_a_pull(&data), "it was killed too late to prove anything");
    sandbox.restart(worker)?;
    let done = sandbox.until_state(taker, &id, &["COMPLETED"])?;
    assert_eq!(
        done["attempts"].as_array().and_then(|a| a.last()).map(|a| &a["node_name"]),
        Some(&"c".into()),
        "{done}"
    );

    // The same again is the same task; with other data it is another.
    let again = sandbox.run(taker, &submit)?.json()?;
    assert_eq!((&again["created"], &again["task"]["id"]), (&false.into(), &id.as_str().into()));
    fs::copy(quickstart.join("data/pretrain_heldout.jsonl"), dir.join("train.jsonl"))?;
    let other = sandbox.run(taker, &submit)?;
    assert!(other.code == 2 && other.err.contains("Idempotency-Key"), "{}", other.err);

    // Who carried what: all of it left the node that took it, most of it once, and none of it met the leader.
    let total = BALLAST as u64 + 4_000_000;
    let sent = stream_bytes(&sandbox, taker, "files", "sent")?;
    // A killed process loses what its four connections had not finished: 8 MiB each.
    assert!(sent > BALLAST as u64 && sent < total + (4 << 23), "{sent} bytes sent of {total}");
    for direction in ["received", "sent"] {
        assert_eq!(stream_bytes(&sandbox, leader, "files", direction)?, 0);
    }
    let heard = stream_bytes(&sandbox, leader, "http", "received")? - quiet;
    assert!(heard < 256 << 10, "{heard} bytes of requests");

    // On the worker's own disk the same files give the same weights.
    let local = sandbox.submit(taker, &task("quickstart/model", "quickstart/data/heldout.jsonl"))?;
    sandbox.until_state(taker, &local, &["COMPLETED"])?;
    let there = adapter(&sandbox, worker, &local, "from-volume")?;
    let (by_worker, by_taker) = (adapter(&sandbox, worker, &id, "w")?, adapter(&sandbox, taker, &id, "t")?);
    assert!(by_worker == there && by_taker == there, "other weights");
    assert_eq!(stream_bytes(&sandbox, leader, "files", "received")?, 0, "a follower reads past the leader");
    assert!(adapter(&sandbox, leader, &id, "l")? == there, "other weights");
    assert!(stream_bytes(&sandbox, leader, "files", "received")? > 0, "now the leader itself was asked");

    let listed = sandbox.run(taker, &["artifacts", "ls", &id])?.out;
    for part in ["adapter_weights", "adapter_model.safetensors", "training_log.jsonl", "on c"] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    // Once more it is there already; one that somebody changed is not written over.
    assert!(adapter(&sandbox, taker, &id, "t")? == there);
    fs::write(dir.join("t/training_log.jsonl"), "mine")?;
    let place = dir.join("t").display().to_string();
    let kept = sandbox.run(taker, &["artifacts", "get", &id, "*.jsonl", "-o", &place])?;
    assert!(kept.code == 1 && kept.err.contains("--force"), "{}", kept.err);
    assert_eq!(fs::read(dir.join("t/training_log.jsonl"))?, b"mine");
    let forced = sandbox.run(taker, &["artifacts", "get", &id, "*.jsonl", "-o", &place, "--force"])?;
    assert_eq!((forced.code, forced.out.lines().count()), (0, 1), "{}{}", forced.out, forced.err);
    assert_eq!(fs::read(dir.join("t/training_log.jsonl"))?, fs::read(dir.join("w/training_log.jsonl"))?);
    let none = sandbox.run(taker, &["artifacts", "get", &id, "nothing"])?;
    assert_eq!(none.code, 3, "{}", none.err);
    Ok(())
}

#[test]
fn a_task_waits_for_the_node_that_took_it_when_that_node_is_away() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = Sandbox::with_timing(&[], PATIENT)?;
    sandbox.mesh(&["a", "b", "d"], IDLE, 3)?;
    let (ask, taker) = (0, 1);
    let dir = sandbox.dir.path().to_owned();
    beside(&dir, 1 << 20)?;
    let id = sandbox.submit(taker, &task("./model", "./train.jsonl"))?;
    sandbox.kill(taker)?;
    sandbox.start("c", "hardware: {cpu: '1', memory: 8GiB}")?;
    sandbox.until("it says whom it waits for", |s| {
        Ok(s.run(ask, &["explain", &id])?.out.contains("node b, which alone has files of this task, is silent"))
    })?;
    sandbox.restart(taker)?;
    let done = sandbox.until_state(ask, &id, &["COMPLETED"])?;
    // Some may have begun before anybody knew; the wait itself uses up none.
    let failed = done["attempts"].as_array().into_iter().flatten().filter(|a| a["state"] == "FAILED").count();
    assert!(failed <= 2, "{done}");
    assert!(!adapter(&sandbox, ask, &id, "out")?.is_empty());
    Ok(())
}
