//! One node, as a user meets it: a task goes down the whole line, and bad input is answered with what would work.

use mloc_tests::Sandbox;

const ECHO: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: john-doe, project: llm-research}
spec:
  taskType: echo
  resources: {hardware: {cpu: 100m, gpu: {type: 'simulated:nvidia-l40', count: 2}}}
  hyperparameters: {steps: 3, step_ms: 50}
";
const GPUS: &str =
    "hardware: {cpu: '4', memory: 8GiB, simulated: {gpus: [{type: nvidia-l40, memory: 48GiB, count: 2}]}}";

#[test]
fn a_task_leaves_artifacts_a_log_events_and_usage() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", GPUS)?;
    let id = sandbox.submit(node, ECHO)?;
    let task = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(task["attempts"][0]["state"], "FINISHED");
    assert!(task["result"]["artifacts"].as_array().is_some_and(|a| !a.is_empty()), "{task}");

    let stats = sandbox.run(node, &["stats", "-o", "json", "--user", "john-doe"])?.json()?;
    assert_eq!(stats["total_tasks_completed"], 1);
    assert!(stats["breakdown_by_gpu"]["simulated:nvidia-l40"].as_f64().is_some_and(|h| h > 0.0), "{stats}");
    assert_eq!(stats["query_parameters"]["user"], "john-doe");
    let nobody = sandbox.run(node, &["stats", "-o", "json", "--user", "nobody"])?.json()?;
    assert_eq!(nobody["total_gpu_hours"], 0.0);
    assert_eq!(sandbox.run(node, &["logs", &id])?.code, 0);
    Ok(())
}

#[test]
fn the_same_key_makes_one_task_and_another_body_is_refused() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", GPUS)?;
    let file = sandbox.dir.path().join("task.yaml");
    std::fs::write(&file, ECHO)?;
    let path = file.display().to_string();
    let submit = ["submit", "-o", "json", "--idempotency-key", "k1", &path];
    let first = sandbox.run(node, &submit)?.json()?;
    let second = sandbox.run(node, &submit)?.json()?;
    assert_eq!((&first["created"], &second["created"]), (&true.into(), &false.into()));
    assert_eq!(first["task"]["id"], second["task"]["id"]);
    std::fs::write(&file, ECHO.replace("steps: 3", "steps: 4"))?;
    let other = sandbox.run(node, &submit)?;
    assert_eq!(other.code, 2, "{}", other.err);
    assert!(other.err.contains("Idempotency-Key"), "{}", other.err);
    Ok(())
}

#[test]
fn bad_input_names_every_problem_and_the_exit_code_says_whose_it_is() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", GPUS)?;
    let file = sandbox.dir.path().join("bad.yaml");
    std::fs::write(&file, ECHO.replace("cpu: 100m", "cpu: lots").replace("taskType: echo", "taskType: ecko"))?;
    let bad = sandbox.run(node, &["submit", &file.display().to_string()])?;
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("ecko") && bad.err.contains("lots"), "both problems: {}", bad.err);
    assert_eq!(sandbox.run(node, &["task", "task-nope"])?.code, 3);
    Ok(())
}

#[test]
fn cancel_stops_a_running_task_and_frees_its_slots() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", GPUS)?;
    let id = sandbox.submit(node, &ECHO.replace("steps: 3", "steps: 100000"))?;
    sandbox.until_state(node, &id, &["RUNNING"])?;
    assert_eq!(sandbox.run(node, &["cancel", &id])?.code, 0);
    sandbox.until_state(node, &id, &["CANCELLED"])?;
    let next = sandbox.submit(node, ECHO)?;
    sandbox.until_state(node, &next, &["COMPLETED"])?;
    Ok(())
}

#[test]
fn a_killed_node_goes_on_where_it_was() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", GPUS)?;
    let id = sandbox.submit(node, &ECHO.replace("steps: 3", "steps: 200, save_steps: 5"))?;
    sandbox.until("a checkpoint is written", |s| {
        Ok(s.task(node, &id)?["progress"]["step"].as_u64().is_some_and(|step| step >= 8))
    })?;
    sandbox.kill(node)?;
    sandbox.restart(node)?;
    let task = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(task["attempts"].as_array().map(Vec::len), Some(1), "a short absence costs no attempt: {task}");
    let log = sandbox.run(node, &["logs", &id])?.out;
    assert!(log.contains("going on from the checkpoint of step"), "{log}");
    Ok(())
}
