//! One task's artifacts are another's source.

use anyhow::Context;
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
