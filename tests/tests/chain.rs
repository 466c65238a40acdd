//! One task's artifacts are another's source.

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, root, s3::S3};
use serde_json::Value;

const BUCKET: &str = "mloc-chain";

/// A short fine-tune of the quickstart's model whose adapter starts from `from`, where there is one.
fn tune(name: &str, from: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: {name}, owner: john-doe}}
spec:
  taskType: sft
  resources: {{hardware: {{cpu: '1', memory: 512MiB}}}}
  model:
    source: {{type: local, path: quickstart/model}}
    adapter: {{type: lora, r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]{from}}}
  dataset:
    source: {{type: local, path: quickstart/data/train.jsonl}}
    eval: {{source: {{type: local, path: quickstart/data/heldout.jsonl}}}}
  hyperparameters: {{max_steps: 20, max_length: 128, learning_rate: 5e-3}}
  output: {{destination: {{type: s3, bucket: {BUCKET}, path: results/{name}}}}}
"
    )
}

#[test]
fn an_adapter_of_one_task_is_where_the_next_one_starts() -> anyhow::Result<()> {
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = Sandbox::new(&s3.env())?;
    let volume = root().join("configs/quickstart");
    let config = format!("hardware: {{cpu: '1', memory: 8GiB}}\nvolumes: {{quickstart: {}}}", volume.display());
    let node = sandbox.start("one", &config)?;

    // Nobody is to wait for a task that never was.
    let file = sandbox.dir.path().join("orphan.yaml");
    std::fs::write(&file, tune("orphan", ", source: {type: task, identifier: never-was}"))?;
    let refused = sandbox.run(node, &["submit", &file.display().to_string()])?;
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("never-was"), "{}", refused.err);

    let first = sandbox.submit(node, &tune("first", ""))?;
    let second = sandbox.submit(node, &tune("second", ", source: {type: task, identifier: first}"))?;
    let why = sandbox.run(node, &["explain", &second])?.out;
    assert!(why.contains(&first), "it waits for the first, though nobody wrote dependsOn: {why}");
    sandbox.until_state(node, &second, &["COMPLETED"])?;

    let manifest = |name: &str| -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&s3.get(BUCKET, &format!("results/{name}/mloc-manifest.json"))?)?)
    };
    let (one, two) = (manifest("first")?, manifest("second")?);
    let adapter = &two["lineage"]["inputs"]["adapter"];
    assert_eq!(adapter["source"]["bucket"], BUCKET, "{two}");
    assert_eq!(adapter["source"]["path"], "results/first", "{two}");
    assert!(adapter["pin"]["version"].as_str().is_some_and(|v| v.starts_with("sha256:")), "{two}");
    let (after, before) = (&one["summary"]["eval_loss_after"], &two["summary"]["eval_loss_before"]);
    let (after, before) = (after.as_f64().context("a loss")?, before.as_f64().context("a loss")?);
    assert!((after - before).abs() < 2e-3, "the second begins at {before}, the first ended at {after}");

    let log = sandbox.run(node, &["logs", &second])?.out;
    assert!(log.contains("the adapter is version sha256:"), "{log}");
    Ok(())
}

/// One of the chain that is shipped, with some lines changed, whose result goes to the volume `results`.
fn shipped(file: &str, name: &str, changes: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut task = std::fs::read_to_string(root().join("configs").join(file))?;
    let into = format!("  output:\n    destination: {{type: local, path: results/{name}}}\n");
    for (from, to) in changes.iter().chain([&("  output:\n", into.as_str())]) {
        ensure!(task.matches(from).count() == 1, "{file}: `{from}` is not there once");
        task = task.replace(from, to);
    }
    Ok(task)
}

#[test]
fn the_reward_model_of_one_task_rewards_another() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::new(&[])?;
    let results = tempfile::tempdir()?;
    let config = format!(
        "hardware: {{cpu: '2', memory: 8GiB}}\nvolumes: {{quickstart: {}, results: {}}}",
        root().join("configs/quickstart").display(),
        results.path().display()
    );
    let node = sandbox.start("one", &config)?;
    let few = ("max_steps: 60", "max_steps: 3");
    sandbox.submit(node, &shipped("rlhf_sft.yaml", "sft", &[few])?)?;
    let rm = sandbox.submit(node, &shipped("rlhf_rm.yaml", "rm", &[few])?)?;
    let short = [("total_episodes: 256", "total_episodes: 32"), ("response_length: 24", "response_length: 4")];
    let ppo = sandbox.submit(node, &shipped("rlhf_ppo.yaml", "ppo", &short)?)?;
    let why = sandbox.run(node, &["explain", &ppo])?.out;
    ensure!(why.contains(&rm), "it waits for its reward model: {why}");
    sandbox.until_state(node, &ppo, &["COMPLETED"])?;

    let manifest: Value = serde_json::from_slice(&std::fs::read(results.path().join("ppo/mloc-manifest.json"))?)?;
    let from = |input: &str| manifest["lineage"]["inputs"][input]["source"]["path"].clone();
    assert_eq!((from("model"), from("reward")), ("results/sft".into(), "results/rm".into()), "{manifest}");
    let log = std::fs::read_to_string(results.path().join("ppo/training_log.jsonl"))?;
    let scores: Vec<f64> = log
        .lines()
        .map(serde_json::from_str::<Value>)
        .filter_map(|line| line.map(|line| line["objective/scores"].as_f64()).transpose())
        .collect::<Result<_, _>>()?;
    assert_eq!(scores.len(), 2, "one a rollout: {log}");
    assert!(scores.iter().all(|score| score.is_finite() && *score != 0.0), "{scores:?}");
    Ok(())
}
