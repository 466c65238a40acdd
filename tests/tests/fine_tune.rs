//! A real fine-tune across real processes: whatever was killed on the way, the weights and the log are those of the
//! run that nobody disturbed.

use anyhow::Context;
use mloc_tests::{Sandbox, root, s3::S3};
use serde_json::Value;

const BUCKET: &str = "mloc-fine-tune";
const STEPS: usize = 160;

/// The quickstart's model and data, with checkpoints that travel; long enough to be killed in the middle.
fn task(result: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: {result}, owner: john-doe, project: llm-research}}
spec:
  taskType: sft
  resources: {{hardware: {{cpu: '1', memory: 512MiB}}}}
  model:
    source: {{type: local, path: quickstart/model}}
    adapter: {{type: lora, r: 8, lora_alpha: 16, lora_dropout: 0.1, target_modules: [q_proj, v_proj, down_proj]}}
  dataset: {{source: {{type: local, path: quickstart/data/train.jsonl}}}}
  hyperparameters:
    {{max_steps: {STEPS}, per_device_train_batch_size: 4, max_length: 128, learning_rate: 2e-3, logging_steps: 3,
     save_steps: 10, save_total_limit: 2, seed: 7}}
  checkpoint: {{destination: {{type: s3, bucket: {BUCKET}, path: checkpoints}}}}
  output: {{destination: {{type: s3, bucket: {BUCKET}, path: results/{result}}}, artifacts: [adapter_weights, training_logs]}}
"
    )
}

/// The log without what depends on the machine's mood.
fn log(s3: &S3, result: &str) -> anyhow::Result<Vec<Value>> {
    let text = String::from_utf8(s3.get(BUCKET, &format!("results/{result}/training_log.jsonl"))?)?;
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line)?;
            let object = value.as_object_mut().context("an object a line")?;
            object.remove("tokens_per_second");
            object.remove("peak_memory_bytes");
            Ok(value)
        })
        .collect()
}

#[test]
fn a_fine_tune_whose_worker_is_killed_gives_the_unbroken_runs_weights_and_log() -> anyhow::Result<()> {
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let mut sandbox = Sandbox::new(&s3.env())?;
    let volume = root().join("configs/quickstart");
    // Equal cores granted, so that both runs add up in the same order.
    let config = format!("hardware: {{cpu: '1', memory: 8GiB}}\nvolumes: {{quickstart: {}}}", volume.display());
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    let whole = sandbox.submit(0, &task("whole"))?;
    sandbox.until_state(0, &whole, &["COMPLETED"])?;

    let broken = sandbox.submit(0, &task("broken"))?;
    sandbox.until("its checkpoint is in the bucket", |_| {
        let keys = s3.keys(BUCKET, &format!("checkpoints/{broken}"))?;
        Ok(keys.iter().any(|key| key.ends_with("mloc-manifest.json")))
    })?;
    let task = sandbox.task(0, &broken)?;
    let worker = sandbox.named(task["attempts"][0]["node_name"].as_str().context("a node")?)?;
    sandbox.kill(worker)?;
    let ask = (0..3).find(|i| *i != worker).context("three nodes")?;
    let done = sandbox.until_state(ask, &broken, &["COMPLETED"])?;
    let attempts = done["attempts"].as_array().context("attempts")?;
    assert_eq!(attempts.len(), 2, "{done}");
    assert_ne!(attempts[0]["node"], attempts[1]["node"], "{done}");
    let said = sandbox.run(ask, &["logs", &broken])?.out;
    assert!(said.contains("going on from the checkpoint of step"), "{said}");

    // The second attempt's manifest tells the whole story.
    let manifest: Value = serde_json::from_slice(&s3.get(BUCKET, "results/broken/mloc-manifest.json")?)?;
    let lineage = &manifest["lineage"];
    assert_eq!(manifest["attempt"]["attempt"], attempts[1]["attempt"], "{manifest}");
    assert_eq!(lineage["node"], attempts[1]["node"], "{manifest}");
    assert_eq!(lineage["inputs"]["dataset"]["source"]["path"], "quickstart/data/train.jsonl", "{manifest}");
    assert_eq!(lineage["hyperparameters"]["seed"], 7, "{manifest}");
    assert!(lineage["usage"]["seconds"].as_f64().is_some_and(|s| s > 0.0), "{manifest}");
    let left = s3.keys(BUCKET, "results/broken")?;
    assert_eq!(left.len(), manifest["files"].as_array().context("files")?.len() + 1, "{left:?}");

    let adapter = |result: &str| s3.get(BUCKET, &format!("results/{result}/adapter_model.safetensors"));
    assert!(adapter("whole")? == adapter("broken")?, "other weights");
    let (unbroken, resumed) = (log(&s3, "whole")?, log(&s3, "broken")?);
    assert_eq!(unbroken.len(), STEPS.div_ceil(3), "a line for each logged step");
    assert_eq!(unbroken, resumed);
    Ok(())
}
