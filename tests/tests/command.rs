//! Programs of users on real nodes: they say what they do, save, are killed with their node and go on elsewhere.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, python, root};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

/// A node that runs programs of users, with these volumes.
fn config(volumes: &[(&str, &Path)]) -> String {
    let volumes: Vec<String> = volumes.iter().map(|(name, path)| format!("{name}: {}", path.display())).collect();
    format!(
        "hardware: {{cpu: '4', memory: 8GiB}}\nmodules: {{command: {{enabled: true, sandbox: best-effort}}}}\nvolumes: {{{}}}",
        volumes.join(", ")
    )
}

/// A task of the code beside the examples.
fn task(name: &str, command: &[&str], settings: &str, more: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: {name}, owner: john-doe, project: llm-research}}
spec:
  taskType: command
  command: {}
  code: {{source: {{type: local, path: examples}}}}
  resources: {{hardware: {{cpu: 100m, memory: 128MiB}}}}
  hyperparameters: {settings}
{more}
",
        json!(command)
    )
}

#[test]
fn a_program_says_what_it_does_and_leaves_what_it_made() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", &config(&[("examples", &root().join("configs/command"))]))?;
    let settings = "{steps: 40, seconds: 0.05, save_steps: 10}";
    let id = sandbox.submit(node, &task("count", &["python3", "progress.py"], settings, ""))?;
    sandbox.until("it says how far it is", |s| {
        let task = s.task(node, &id)?;
        Ok(task["progress"]["step"].as_u64().is_some_and(|step| step > 0) && task["progress"]["total_steps"] == 40)
    })?;
    let done = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(done["result"]["summary"]["counted"], 40, "{done}");
    assert_eq!(done["result"]["artifacts"][0]["path"], "counted.txt", "{done}");
    assert_eq!(done["result"]["artifacts"][0]["kind"], "files", "{done}");
    let log = sandbox.run(node, &["logs", &id])?.out;
    assert!(log.contains("counting from 0 to 40"), "{log}");
    let stats = sandbox.run(node, &["stats", "-o", "json", "--user", "john-doe"])?.json()?;
    assert_eq!(stats["total_tasks_completed"], 1, "{stats}");
    Ok(())
}

#[test]
fn without_a_word_of_the_protocol_the_exit_says_how_it_ended() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", &config(&[("examples", &root().join("configs/command"))]))?;
    let shell = |lines: &str, more: &str| task("shell", &["/bin/sh", "-ec", lines], "{}", more);
    let id = sandbox.submit(node, &shell("echo made > $MLOC_ARTIFACTS/notes.txt; test -f progress.py", ""))?;
    let done = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(done["result"]["artifacts"][0]["path"], "notes.txt", "{done}");

    let id = sandbox.submit(node, &shell("echo about to fail >&2; exit 3", ""))?;
    let failed = sandbox.until_state(node, &id, &["FAILED"])?;
    assert!(failed["reason"].as_str().is_some_and(|r| r.contains("the program exited with 3")), "{failed}");
    assert_eq!(failed["attempts"].as_array().map(Vec::len), Some(1), "it would happen again: {failed}");
    assert!(sandbox.run(node, &["logs", &id])?.out.contains("about to fail"));

    // What may not happen again: the machine's fault, or what the program says is none of its own.
    let once = "test $MLOC_ATTEMPT -gt 1 || ";
    for end in ["exit 75", "kill -9 $$", "exit 137"] {
        let id = sandbox.submit(node, &shell(&format!("{once}{end}"), "  retry: {backoff: 10ms}"))?;
        let done = sandbox.until_state(node, &id, &["COMPLETED"])?;
        assert_eq!(done["attempts"].as_array().map(Vec::len), Some(2), "{end}: {done}");
    }
    Ok(())
}

#[test]
fn a_node_that_does_not_offer_it_is_named_and_passed_over() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let examples = root().join("configs/command");
    let without = format!("hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{examples: {}}}", examples.display());
    let cautious = sandbox.start("cautious", &without)?;
    let id = sandbox.submit(cautious, &task("shell", &["true"], "{}", ""))?;
    sandbox.until("explain says what is missing", |s| {
        let said = s.run(cautious, &["explain", &id])?.out;
        Ok(said.contains("node cautious") && said.contains("set modules.command.enabled: true"))
    })?;
    assert_eq!(sandbox.task(cautious, &id)?["state"], "PENDING");
    sandbox.start("willing", &config(&[("examples", &examples)]))?;
    let done = sandbox.until_state(cautious, &id, &["COMPLETED"])?;
    assert_eq!(done["attempts"][0]["node_name"], "willing", "{done}");
    Ok(())
}

#[test]
fn a_node_that_is_shut_down_has_its_programs_save_and_goes_on_with_them() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    let node = sandbox.start("one", &config(&[("examples", &root().join("configs/command"))]))?;
    // It saves only when it is asked to stop.
    let settings = "{steps: 200, seconds: 0.05, save_steps: 1000}";
    let id = sandbox.submit(node, &task("count", &["python3", "progress.py"], settings, ""))?;
    sandbox.until("it is at work", |s| Ok(s.task(node, &id)?["progress"]["step"].as_u64().is_some_and(|n| n > 3)))?;
    kill(sandbox.pid(node)?, Signal::SIGTERM)?;
    let checkpoints = sandbox.data(node).join("checkpoints");
    sandbox.until("what it saved is a checkpoint", |_| {
        let below = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
        let steps = below.flat_map(|replica| fs::read_dir(replica.path()).into_iter().flatten().flatten());
        Ok(steps.into_iter().any(|step| step.path().join("manifest.json").is_file()))
    })?;
    sandbox.until("the daemon has ended", |s| Ok(s.run(node, &["mesh"])?.code != 0))?;
    sandbox.kill(node)?;
    sandbox.restart(node)?;
    let done = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(done["result"]["summary"]["counted"], 200, "{done}");
    let log = sandbox.run(node, &["logs", &id])?.out;
    let from = log.lines().filter_map(|line| line.strip_prefix("counting from ")?.split(' ').next()?.parse().ok());
    let from: Vec<u64> = from.collect();
    assert!(matches!(from[..], [0, later] if later > 3), "{log}");
    Ok(())
}

#[test]
fn a_training_in_numpy_whose_node_is_killed_ends_with_the_unbroken_runs_weights() -> anyhow::Result<()> {
    let Some(python) = python::numpy()? else { return Ok(()) };
    let python = python.display().to_string();
    let mut sandbox = Sandbox::new(&[])?;
    let shared = sandbox.dir.path().join("shared");
    fs::create_dir(&shared)?;
    let config = config(&[("examples", &root().join("configs/command")), ("shared", &shared)]);
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    let settings = "{steps: 120, save_steps: 10, step_seconds: 0.05}";
    let ends = |name: &str| {
        format!(
            "  checkpoint: {{destination: {{type: local, path: shared/checkpoints}}}}\n  \
             output: {{destination: {{type: local, path: shared/{name}}}}}"
        )
    };
    let command = [python.as_str(), "numpy_train.py"];
    let whole = sandbox.submit(0, &task("whole", &command, &settings.replace("0.05", "0.0"), &ends("whole")))?;
    sandbox.until_state(0, &whole, &["COMPLETED"])?;

    let broken = sandbox.submit(0, &task("broken", &command, settings, &ends("broken")))?;
    let mut at = 0;
    sandbox.until("it is past a checkpoint that others can read", |s| {
        let task = s.task(0, &broken)?;
        at = task["progress"]["step"].as_u64().unwrap_or(0);
        let pushed = s.run(0, &["logs", &broken])?.out.contains("is at the shared place");
        ensure!(task["state"] != "COMPLETED", "it was over before it was killed: {task}");
        Ok(pushed && at > 20)
    })?;
    let task = sandbox.task(0, &broken)?;
    let worker = sandbox.named(task["attempts"][0]["node_name"].as_str().context("a node")?)?;
    sandbox.kill(worker)?;
    let ask = (0..3).find(|i| *i != worker).context("three nodes")?;
    let done = sandbox.until_state(ask, &broken, &["COMPLETED"])?;
    let attempts = done["attempts"].as_array().context("attempts")?;
    assert_eq!((attempts.len(), &attempts[0]["state"]), (2, &json!("LOST")), "{done}");
    assert_ne!(attempts[0]["node"], attempts[1]["node"], "{done}");
    let log = sandbox.run(ask, &["logs", &broken])?.out;
    assert!(log.contains("going on from the checkpoint of step"), "{log}");
    assert!(log.contains("from step ") && !log.contains(", from step 0"), "{log}");
    for weights in ["w1.npy", "b1.npy", "w2.npy"] {
        let read = |run: &str| fs::read(shared.join(run).join(weights));
        assert!(read("whole")? == read("broken")?, "{weights} differs");
    }
    Ok(())
}
