//! A node that is told to stop, as platforms tell it: SIGTERM, and a minute.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mloc_tests::Sandbox;
use nix::sys::signal::{Signal, kill};

/// terminationGracePeriodSeconds, TimeoutStopSec and kill_timeout of what deploy/ ships.
const GRACE: Duration = Duration::from_secs(60);

/// Short, and calm enough that a machine under load loses no lease.
const CALM: &str = "timing: {raftHeartbeatMs: 300, electionMinMs: 1500, electionMaxMs: 3000, gossipIntervalMs: 100, \
                    voterStableMs: 500, voterGraceMs: 60000, leaseMs: 10000, workerHeartbeatMs: 300, tickMs: 100}\n";

fn task(shared: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: echo, owner: john-doe, project: llm-research}}
spec:
  taskType: echo
  resources: {{hardware: {{cpu: 100m, gpu: {{type: 'simulated:any', count: 1}}}}}}
  hyperparameters: {{steps: 300, step_ms: 50, save_steps: 5}}
  checkpoint: {{destination: {{type: local, path: {shared}/checkpoints}}}}
"
    )
}

#[test]
fn sigterm_to_the_leader_hands_over_and_its_task_goes_on_elsewhere_from_its_checkpoint() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[("MLOC_LOG_JSON", "true")], CALM)?;
    let shared = sandbox.dir.path().join("shared");
    std::fs::create_dir(&shared)?;
    let config = format!(
        "volumes: {{shared: {}}}\nhardware: {{cpu: '4', memory: 8GiB, simulated: {{gpus: [{{type: nvidia-l40, memory: \
         48GiB, count: 1}}]}}}}",
        shared.display()
    );
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    // The leader is chosen last as a worker: only when the others have work.
    let ids = [(); 3].map(|()| sandbox.submit(0, &task("shared")));
    let ids = ids.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let leader = sandbox.leader(0)?;
    let name = sandbox.name(leader).to_owned();
    let on_leader = |s: &Sandbox| -> anyhow::Result<Option<String>> {
        for id in &ids {
            let task = s.task(leader, id)?;
            let live = task["attempts"].as_array().and_then(|a| a.last()).context("an attempt")?.clone();
            if live["node_name"] == name.as_str() && task["progress"]["step"].as_u64().is_some_and(|step| step >= 8) {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    };
    let mut found = None;
    sandbox.until("the leader has a task with a checkpoint", |s| {
        for id in &ids {
            if s.task(leader, id)?["attempts"].as_array().is_none_or(Vec::is_empty) {
                return Ok(false);
            }
        }
        found = on_leader(s)?;
        Ok(found.is_some())
    })?;
    let id = found.context("its task")?;
    // Another one ends, so that there is room elsewhere.
    let other = ids.iter().find(|other| **other != id).context("three tasks")?;
    let ask = (0..3).find(|i| *i != leader).context("three nodes")?;
    ensure!(sandbox.run(ask, &["cancel", other])?.code == 0, "cancel");

    let begun = Instant::now();
    kill(sandbox.pid(leader)?, Signal::SIGTERM)?;
    let code = sandbox.ended(leader)?;
    ensure!(code == Some(0) && begun.elapsed() < GRACE, "{code:?} after {:?}\n{}", begun.elapsed(), sandbox.logs());
    let log = sandbox.log(leader)?;
    let json = log.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str::<serde_json::Value>);
    let said: Vec<_> = json.collect::<Result<_, _>>()?;
    ensure!(said.iter().any(|line| line["fields"]["message"].to_string().contains("stopping")), "{log}");

    sandbox.until("another leads", |s| Ok(s.leader(ask).is_ok_and(|next| next != leader)))?;
    let done = sandbox.until_state(ask, &id, &["COMPLETED"])?;
    let attempts = done["attempts"].as_array().context("attempts")?;
    let (first, later) = attempts.split_first().context("an attempt")?;
    ensure!(first["state"] == "LOST" && first["node_name"] == name.as_str(), "{done}");
    ensure!(later.last().is_some_and(|last| last["state"] == "FINISHED"), "{done}");
    ensure!(later.iter().all(|attempt| attempt["node_name"] != name.as_str()), "{done}");
    let log = sandbox.run(ask, &["logs", &id])?.out;
    ensure!(log.contains("going on from the checkpoint of step"), "{log}");
    Ok(())
}
