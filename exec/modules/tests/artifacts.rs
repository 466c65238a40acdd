//! What is made is what the task asks for, and it is what its kind says.

mod bench;

use std::{collections::BTreeMap, fs};

use bench::{Bench, golden, read_json, spec};
use mloc_exec::{Inputs, ModuleOutput, checkpoint};
use serde_json::{Value, json};

/// A short run of a plain adapter that asks for these artifacts.
fn run(artifacts: &[&str]) -> (Bench, ModuleOutput) {
    run_with(json!({"type": "lora"}), artifacts)
}

/// As [`run`], of an adapter that has more to it.
fn run_with(more: Value, artifacts: &[&str]) -> (Bench, ModuleOutput) {
    let mut adapter = json!({"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "down_proj"]});
    for (name, value) in more.as_object().expect("settings") {
        adapter[name] = value.clone();
    }
    let settings = json!({
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 2e-2, "max_length": 64, "save_steps": 4,
    });
    let data = golden("lora/llama/train.jsonl");
    let mut spec = spec("sft", Some(adapter), settings);
    spec.output.artifacts = artifacts.iter().map(|a| (*a).to_owned()).collect();
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(data.clone()),
        eval: Some(data),
        ..Inputs::default()
    };
    let bench = Bench::new(spec, inputs);
    let output = bench.run();
    (bench, output)
}

fn by_kind(output: &ModuleOutput) -> BTreeMap<&str, Vec<&str>> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for made in &output.outputs {
        kinds.entry(&made.kind).or_default().push(&made.path);
    }
    kinds
}

#[test]
fn a_merged_model_does_what_base_and_adapter_do() {
    merged_does_what_it_did(json!({"type": "lora"}));
}

#[test]
fn a_model_merged_out_of_4_bits_does_what_base_and_adapter_do() {
    merged_does_what_it_did(json!({"type": "qlora", "use_dora": true, "modules_to_save": ["lm_head"]}));
}

fn merged_does_what_it_did(adapter: Value) {
    let (bench, output) = run_with(adapter, &["merged_model", "eval_results"]);
    let kinds = by_kind(&output);
    assert_eq!(kinds.keys().copied().collect::<Vec<_>>(), ["eval_results", "merged_model"]);
    let measured = read_json(&bench.artifacts().join("eval_results.json"));
    let (before, after) = (measured["eval_loss_before_training"].as_f64(), measured["eval_loss"].as_f64());
    let (before, after) = (before.expect("a loss"), after.expect("a loss"));
    assert!(after < before - 0.1, "nothing was learnt, so nothing is shown: {before} → {after}");

    // Read as any model is, without the adapter.
    let data = golden("lora/llama/train.jsonl");
    let inputs = Inputs {
        model: Some(bench.artifacts().join("merged_model")),
        dataset: Some(data.clone()),
        eval: Some(data),
        ..Inputs::default()
    };
    let merged = Bench::new(spec("sft", None, json!({"max_steps": 1, "max_length": 64})), inputs);
    let loss = merged.run().summary["eval_loss_before"].as_f64().expect("a loss");
    assert!((loss - after).abs() < 2e-3, "the merged model's loss is {loss}, the adapter's was {after}");
}

#[test]
fn checkpoints_are_published_whole() {
    let (bench, output) = run(&["checkpoints"]);
    let kinds = by_kind(&output);
    let paths = &kinds["checkpoints"];
    assert_eq!(kinds.len(), 1);
    for step in [4, 6] {
        let name = format!("checkpoints/step-{step:010}");
        assert!(paths.contains(&&*format!("{name}/manifest.json")), "{paths:?}");
        let manifest = checkpoint::verify(&bench.artifacts().join(&name), step).expect("whole");
        assert!(manifest.files.iter().all(|f| paths.contains(&&*format!("{name}/{}", f.path))), "{paths:?}");
    }
}

#[test]
fn unasked_nothing_costly_is_made() {
    let (bench, output) = run(&[]);
    let kinds = by_kind(&output);
    let kinds: Vec<&str> = kinds.keys().copied().collect();
    assert_eq!(kinds, ["adapter_weights", "eval_results", "tokenizer", "training_logs"]);
    assert!(!bench.artifacts().join("merged_model").exists());
}

#[test]
fn patterns_choose_files() {
    let (bench, output) = run(&["files:*.jsonl", "files:nothing/*"]);
    let paths: Vec<&str> = output.outputs.iter().map(|o| &*o.path).collect();
    assert_eq!(paths, ["training_log.jsonl"]);
    assert!(fs::metadata(bench.artifacts().join("training_log.jsonl")).is_ok());
}
