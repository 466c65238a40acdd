//! A real model across a mesh of three: SmolLM2-135M-Instruct, LoRA on real conversations, its worker killed on the way.
//!
//! ```sh
//! MLOC_SMOLLM2_GGUF=$(tests/fetch_smollm2.sh) cargo test -p mloc-tests --test smollm2
//! ```

use std::{fs, path::PathBuf};

use anyhow::Context;
use mloc_tests::{Sandbox, root, s3::S3, skip};
use serde_json::Value;

const BUCKET: &str = "mloc-smollm2";
const STEPS: u64 = 6;

fn task(file: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: smollm2, owner: john-doe, project: llm-research}}
spec:
  taskType: sft
  resources: {{hardware: {{cpu: '2', memory: 4GiB}}}}
  model:
    source: {{type: local, path: models/{file}}}
    adapter: {{type: lora, r: 16, lora_alpha: 32, target_modules: [q_proj, v_proj]}}
  dataset: {{source: {{type: local, path: datasets/mloc_qa.jsonl}}}}
  hyperparameters:
    {{max_steps: {STEPS}, per_device_train_batch_size: 4, max_length: 256, learning_rate: 1e-3, logging_steps: 1,
     save_steps: 2, lr_scheduler_type: constant, data_order: given}}
  checkpoint: {{destination: {{type: s3, bucket: {BUCKET}, path: checkpoints}}}}
  output: {{destination: {{type: s3, bucket: {BUCKET}, path: adapters}}, artifacts: [adapter_weights, training_logs]}}
"
    )
}

#[test]
fn a_real_model_is_fine_tuned_across_a_mesh_that_loses_its_worker() -> anyhow::Result<()> {
    let Some(model) = std::env::var_os("MLOC_SMOLLM2_GGUF").filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return skip("MLOC_SMOLLM2_GGUF is not set: tests/fetch_smollm2.sh fetches the model");
    };
    let Some(s3) = S3::start(BUCKET)? else { return Ok(()) };
    let (folder, file) = (model.parent().context("a folder")?, model.file_name().context("a name")?);
    let mut sandbox = Sandbox::new(&s3.env())?;
    let config = format!(
        "hardware: {{cpu: '2', memory: 8GiB}}\nvolumes: {{models: {}, datasets: {}}}",
        fs::canonicalize(folder)?.display(),
        root().join("tests/fixtures/data").display()
    );
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    let leader = sandbox.leader(0)?;
    let follower = (0..3).find(|i| *i != leader).context("three nodes")?;
    let id = sandbox.submit(follower, &task(&file.to_string_lossy()))?;
    sandbox.until("a checkpoint is in the bucket", |_| {
        Ok(s3.keys(BUCKET, "checkpoints/")?.iter().any(|key| key.ends_with("mloc-manifest.json")))
    })?;
    let running = sandbox.task(follower, &id)?;
    let worker = sandbox.named(running["attempts"][0]["node_name"].as_str().context("a node")?)?;
    sandbox.kill(worker)?;
    let ask = (0..3).find(|i| *i != worker).context("three nodes")?;
    let done = sandbox.until_state(ask, &id, &["COMPLETED"])?;
    assert_eq!(done["attempts"].as_array().map(Vec::len), Some(2), "{done}");
    let said = sandbox.run(ask, &["logs", &id])?.out;
    assert!(said.contains("going on from the checkpoint of step"), "{said}");

    let text = String::from_utf8(s3.get(BUCKET, "adapters/training_log.jsonl")?)?;
    let log = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let steps: Vec<u64> = log.iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "each step is in the log, once");
    let loss = |line: Option<&Value>| line.and_then(|l| l["loss"].as_f64()).context("a loss");
    assert!(loss(log.last())? < loss(log.first())?, "{text}");
    assert!(s3.get(BUCKET, "adapters/adapter_model.safetensors")?.len() > 1_000_000);
    Ok(())
}
