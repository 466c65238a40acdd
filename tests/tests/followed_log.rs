//! `mloc logs -f` through a node that lives, while the leader and then the worker die.

use std::{
    fs::File,
    process::{Child, Command},
};

use mloc_tests::{Sandbox, mloc};

const TASK: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: john-doe, project: llm-research}
spec:
  taskType: echo
  resources: {hardware: {cpu: 100m}}
  hyperparameters: {steps: 100000, step_ms: 50}
";

/// `mloc logs -f`, killed at the end.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_followed_log_outlives_the_leader_and_the_worker() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    for name in ["a", "b", "c"] {
        sandbox.start(name, "hardware: {cpu: '4', memory: 8GiB}")?;
    }
    sandbox.until("there are three voters", |s| {
        let mesh = s.run(0, &["mesh", "-o", "json"])?.json()?;
        Ok(mesh["voters"].as_array().is_some_and(|v| v.len() == 3) && mesh["voters_alive"] == 3)
    })?;
    let leader = sandbox.leader(0)?;
    let id = sandbox.submit(leader, TASK)?;
    let running = sandbox.until_state(leader, &id, &["RUNNING"])?;
    let worker = sandbox.named(running["attempts"][0]["node_name"].as_str().unwrap_or_default())?;
    let ask = (0..3).find(|i| ![leader, worker].contains(i)).expect("three nodes");
    let (out, err) = (sandbox.dir.path().join("followed"), sandbox.dir.path().join("followed.err"));
    let mut follow = Command::new(mloc());
    follow.args(["logs", "-f", &id]).env("MLOC_NODE", sandbox.rest(ask)?);
    let mut follower = Follower(follow.stdout(File::create(&out)?).stderr(File::create(&err)?).spawn()?);
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    sandbox.until("the log comes", |_| Ok(said().contains("\nstep 3: ")))?;
    sandbox.kill(leader)?;
    let seen = said().len();
    sandbox.until("the log goes on under the next leader", |_| Ok(said().len() > seen + 100))?;
    if worker != leader {
        sandbox.restart(leader)?;
        sandbox.kill(worker)?;
    }
    sandbox.until("another worker's log comes", |_| Ok(said().contains(&format!("{id}.0.2 on "))))?;
    let seen = said().len();
    sandbox.until("and goes on", |_| Ok(said().len() > seen + 100))?;
    assert_eq!(sandbox.run(ask, &["cancel", &id])?.code, 0);
    let status = follower.0.wait()?;
    let (text, broke) = (said(), std::fs::read_to_string(&err)?);
    assert!(status.success() && text.ends_with(&format!("--- {id} CANCELLED\n")), "{broke}{text}");
    let (first, second) =
        text.split_once(&format!("--- attempt {id}.0.1 on ")).unwrap_or_else(|| panic!("{broke}{text}"));
    for part in [first, second] {
        let steps = part.lines().filter_map(|line| line.strip_prefix("step ")?.split(':').next());
        let steps: Vec<u32> = steps.map(|step| step.parse()).collect::<Result<_, _>>()?;
        let whole: Vec<u32> = (1..=steps.len() as u32).collect();
        assert_eq!(steps, whole, "from the first step on, none is missing and none is there twice: {text}");
    }
    Ok(())
}
