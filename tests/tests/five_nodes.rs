//! A mesh grows to five voters by itself, and any two of them may go.

use mloc_tests::Sandbox;

const ECHO: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: john-doe, project: llm-research}
spec:
  taskType: echo
  resources: {hardware: {cpu: 100m}}
  hyperparameters: {steps: 3, step_ms: 50}
";

#[test]
fn five_nodes_are_five_voters_and_two_of_them_may_be_killed() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.mesh(&["a", "b", "c", "d", "e"], "hardware: {cpu: '4', memory: 8GiB}", 5)?;
    let mesh = sandbox.run(4, &["mesh", "-o", "json"])?.json()?;
    assert_eq!(mesh["survives_failures"], 2, "{mesh}");
    let leader = sandbox.leader(0)?;
    let survivors: Vec<usize> = (0..5).filter(|i| *i != leader).skip(1).collect();
    let follower = (0..5).find(|i| *i != leader).unwrap_or_default();
    sandbox.kill(leader)?;
    sandbox.kill(follower)?;
    let id = sandbox.submit(survivors[0], ECHO)?;
    sandbox.until_state(survivors[1], &id, &["COMPLETED"])?;
    Ok(())
}
