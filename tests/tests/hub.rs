//! Models and data sets of the Hub on a real node: what a task file names is fetched, trained on and published.

use anyhow::Context;
use mloc_test_hub::{Hub, Kind};
use mloc_tests::{Sandbox, root};

const TOKEN: &str = "hf_of_this_case";

/// The files of a folder of this tree, by name.
fn files(folder: &str, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = root().join(folder);
    let read = |name: &&str| {
        Ok(((*name).to_owned(), std::fs::read(folder.join(name)).context(folder.join(name).display().to_string())?))
    };
    names.iter().map(read).collect()
}

fn commit(hub: &Hub, kind: Kind, id: &str, files: &[(String, Vec<u8>)]) -> String {
    hub.commit(kind, id, &files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>())
}

#[test]
fn a_model_and_parquet_of_the_hub_are_trained_on_and_the_result_is_a_commit() -> anyhow::Result<()> {
    let hub = Hub::start();
    hub.let_in(TOKEN);
    let names =
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let mut model = files("configs/quickstart/model", &names)?;
    // The same weights once more, which nobody needs.
    model.push(("pytorch_model.bin".into(), vec![0; 4096]));
    let model = commit(&hub, Kind::Model, "acme/tiny", &model);
    let pairs = files("tests/fixtures/data/parquet", &["pairs.parquet"])?.remove(0).1;
    let data = [
        ("data/train-00000-of-00001.parquet".to_owned(), pairs.clone()),
        ("data/test-00000-of-00001.parquet".to_owned(), pairs),
    ];
    commit(&hub, Kind::Dataset, "acme/pairs", &data);
    hub.make_private(Kind::Dataset, "acme/pairs");
    hub.commit(Kind::Model, "acme/results", &[("README.md", b"# Results")]);

    let mut sandbox = Sandbox::new(&[("HF_ENDPOINT", &hub.endpoint), ("HF_TOKEN", TOKEN)])?;
    let node = sandbox.start("one", "hardware: {cpu: '1', memory: 4GiB}")?;
    let id = sandbox.submit(node, "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: from-the-hub, owner: john-doe, project: llm-research}
spec:
  taskType: sft
  resources: {hardware: {cpu: '1', memory: 512MiB}}
  model:
    source: {type: huggingface, identifier: acme/tiny}
    adapter: {type: lora, r: 4, target_modules: [q_proj, v_proj]}
  dataset:
    source: {type: huggingface, identifier: acme/pairs, split: 'train[:80%]'}
    eval: {source: {type: huggingface, identifier: acme/pairs, split: 'test[80%:]'}}
  hyperparameters: {max_steps: 4, per_device_train_batch_size: 2, max_length: 64, learning_rate: 2e-3, logging_steps: 1}
  output: {destination: {type: huggingface, identifier: acme/results, path: tiny}, artifacts: [adapter_weights, training_logs]}
")?;
    let done = sandbox.until_state(node, &id, &["COMPLETED"])?;
    assert_eq!(done["result"]["location"], "hf://acme/results/tiny", "{done}");
    let said = sandbox.run(node, &["logs", &id])?.out;
    assert!(said.contains("training data: 20 rows") && said.contains("held-out data: 5 rows"), "{said}");

    let published = hub.files(Kind::Model, "acme/results", "main");
    for name in ["README.md", "tiny/adapter_model.safetensors", "tiny/training_log.jsonl", "tiny/mloc-manifest.json"] {
        assert!(published.contains_key(name), "{name} in {:?}", published.keys());
    }
    assert_eq!(hub.commits(Kind::Model, "acme/results", "main"), 2, "one commit more");
    let log = String::from_utf8_lossy(&published["tiny/training_log.jsonl"]).into_owned();
    assert_eq!(log.lines().count(), 4, "{log}");

    let seen = hub.seen();
    let asked = |name: &str| seen.iter().any(|s| s.path.ends_with(name));
    assert!(
        asked(&format!("/resolve/{model}/model.safetensors")) && !asked("pytorch_model.bin"),
        "other files were fetched"
    );
    assert!(seen.iter().filter(|s| s.store).all(|s| !s.token), "the token went to the store");

    // What cannot be had is told as it is.
    let id = sandbox.submit(
        node,
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: no-split, owner: john-doe, project: llm-research}
spec:
  taskType: sft
  resources: {hardware: {cpu: '1', memory: 512MiB}}
  model: {source: {type: huggingface, identifier: acme/tiny}, adapter: {type: lora, r: 4, target_modules: [q_proj]}}
  dataset: {source: {type: huggingface, identifier: acme/pairs, split: dev}}
  hyperparameters: {max_steps: 1}
",
    )?;
    let failed = sandbox.until_state(node, &id, &["FAILED"])?;
    let reason = failed["reason"].to_string();
    assert!(reason.contains("has no split `dev`") && reason.contains("there are train, test"), "{reason}");
    Ok(())
}
