//! A mesh of three real processes with separate data directories: submit anywhere, kill any of them, lose nothing.

use mloc_tests::{Sandbox, s3::S3};

const BUCKET: &str = "mloc-e2e";

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

const GPU: &str =
    "hardware: {cpu: '4', memory: 8GiB, simulated: {gpus: [{type: nvidia-l40, memory: 48GiB, count: 1}]}}";

/// Three nodes, three voters.
fn mesh(env: &[(&str, &str)]) -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::new(env)?;
    for name in ["a", "b", "c"] {
        sandbox.start(name, GPU)?;
    }
    sandbox.until("there are three voters", |s| {
        let mesh = s.run(0, &["mesh", "-o", "json"])?.json()?;
        Ok(mesh["voters"].as_array().is_some_and(|v| v.len() == 3) && mesh["voters_alive"] == 3)
    })?;
    Ok(sandbox)
}

fn other_than(sandbox: &Sandbox, not: &[usize]) -> usize {
    (0..3).find(|i| !not.contains(i)).unwrap_or_else(|| panic!("three nodes: {}", sandbox.logs()))
}

#[test]
fn the_worker_is_killed_and_another_finishes_from_the_checkpoint() -> anyhow::Result<()> {
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = mesh(&s3.env())?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let id = sandbox.submit(follower, &task(200))?;
    sandbox.until("a checkpoint is at the shared place", |s| {
        Ok(s.task(follower, &id)?["progress"]["step"].as_u64().is_some_and(|step| step >= 12))
    })?;
    let running = sandbox.task(leader, &id)?;
    let worker = sandbox.named(running["attempts"][0]["node_name"].as_str().unwrap_or_default())?;
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

    // Usage is the sum of both attempts: each held one GPU from its start to its end.
    let stats = sandbox.run(ask, &["stats", "-o", "json"])?.json()?;
    assert!(stats["breakdown_by_gpu"]["simulated:nvidia-l40"].as_f64().is_some_and(|h| h > 0.0), "{stats}");
    assert_eq!(stats["total_tasks_completed"], 1);
    Ok(())
}

#[test]
fn the_leader_is_killed_right_after_it_accepted_and_the_task_finishes_once() -> anyhow::Result<()> {
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = mesh(&s3.env())?;
    let leader = sandbox.leader(0)?;
    let id = sandbox.submit(leader, &task(20))?;
    sandbox.kill(leader)?;
    let ask = other_than(&sandbox, &[leader]);
    let done = sandbox.until_state(ask, &id, &["COMPLETED"])?;
    let finished = done["attempts"].as_array().into_iter().flatten().filter(|a| a["state"] == "FINISHED").count();
    assert_eq!(finished, 1, "{done}");
    let stats = sandbox.run(ask, &["stats", "-o", "json"])?.json()?;
    assert_eq!(stats["total_tasks_completed"], 1);
    let all = sandbox.run(ask, &["tasks", "-o", "json"])?.json()?;
    assert_eq!(all["tasks"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn every_verb_answers_alike_at_a_node_that_does_not_lead() -> anyhow::Result<()> {
    let mut sandbox = mesh(&[])?;
    let leader = sandbox.leader(0)?;
    let follower = other_than(&sandbox, &[leader]);
    let local = task(4).lines().filter(|l| !l.contains("s3")).collect::<Vec<_>>().join("\n");
    let id = sandbox.submit(follower, &local)?;
    sandbox.until_state(follower, &id, &["COMPLETED"])?;
    for verb in [
        vec!["tasks", "-o", "json"],
        vec!["task", "-o", "json", &id],
        vec!["logs", &id],
        vec!["stats", "-o", "json", "--project", "llm-research"],
        vec!["explain", "-o", "json", &id],
    ] {
        let (there, here) = (sandbox.run(leader, &verb)?, sandbox.run(follower, &verb)?);
        assert_eq!((there.code, here.code), (0, 0), "{verb:?}: {} {}", there.err, here.err);
        assert_eq!(there.out, here.out, "{verb:?}");
    }
    assert_eq!(sandbox.run(follower, &["nodes"])?.code, 0);
    assert_eq!(sandbox.run(follower, &["mesh"])?.code, 0);
    let name = sandbox.name(leader).to_owned();
    assert!(sandbox.run(follower, &["drain", &name])?.out.contains("DRAINING"));
    assert_eq!(sandbox.run(follower, &["drain", "--off", &name])?.code, 0);
    assert_eq!(sandbox.run(follower, &["cancel", &id])?.code, 1, "a task that has ended can't be cancelled");
    assert_eq!(sandbox.run(follower, &["task", "task-nope"])?.code, 3);
    Ok(())
}
