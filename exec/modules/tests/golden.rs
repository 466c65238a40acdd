//! Whole tasks against the reference trainer: its hyperparameters' names in a task, its numbers in the log.

mod bench;

use std::collections::BTreeMap;

use bench::{Bench, golden, read_json, spec};
use mloc_burn::weights::{SafetensorsSource, TensorSource};
use mloc_exec::Inputs;
use serde_json::{Value, json};

/// The settings of a golden run, logging each step.
fn hyperparameters(expected: &Value) -> Value {
    let mut settings = expected["hyperparameters"].clone();
    for (name, value) in [("data_order", json!("given")), ("logging_steps", json!(1)), ("save_strategy", json!("no"))] {
        settings[name] = value;
    }
    settings
}

fn compare_logs(what: &str, bench: &Bench, expected: &Value) {
    let data = std::fs::read_to_string(bench.inputs.dataset.as_ref().expect("data")).expect("data");
    let size = |name: &str| expected["hyperparameters"][name].as_u64().expect("size") as usize;
    let in_step = size("per_device_train_batch_size") * size("gradient_accumulation_steps");
    let in_epoch = data.lines().count().div_ceil(in_step) as f64;
    let lines = bench.log();
    let wanted = expected["logs"].as_array().expect("logs");
    assert_eq!(lines.len(), wanted.len(), "{what}");
    for (line, wanted) in lines.iter().zip(wanted) {
        for (key, relative, absolute) in [
            ("step", 0.0, 0.0),
            ("loss", 0.0, 2e-3),
            ("grad_norm", 1e-2, 0.0),
            ("learning_rate", 1e-6, 0.0),
            ("num_tokens", 0.0, 0.0),
            ("mean_token_accuracy", 0.0, 1e-6),
            ("entropy", 0.0, 2e-3),
        ] {
            let (found, wanted) = (line[key].as_f64().expect(key), wanted[key].as_f64().expect(key));
            let close = (found - wanted).abs() <= absolute + relative * wanted.abs();
            assert!(close, "{what} step {}: {key}: found {found}, expected {wanted}", line["step"]);
        }
        // The fixtures lack it; the reference counts optimizer steps in those of an epoch.
        let (found, wanted) =
            (line["epoch"].as_f64().expect("epoch"), wanted["step"].as_f64().expect("step") / in_epoch);
        assert!(
            (found - wanted).abs() <= 5e-5,
            "{what} step {}: epoch: found {found}, expected {wanted}",
            line["step"]
        );
    }
}

fn tensors(path: &std::path::Path) -> BTreeMap<String, Vec<f32>> {
    let source = SafetensorsSource::open_file(path).expect("file");
    source.names().into_iter().map(|name| (name.clone(), source.read_f32(&name).expect("tensor"))).collect()
}

#[test]
fn a_lora_task_follows_the_reference_in_four_families() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let folder = golden(&format!("lora/{family}"));
        let expected = read_json(&folder.join("expected.json"));
        let mut adapter = expected["lora"].clone();
        adapter["type"] = json!("lora");
        adapter["source"] = json!({"type": "local", "identifier": "volume/adapter"});
        let bench = Bench::new(
            spec("sft", Some(adapter), hyperparameters(&expected)),
            Inputs {
                model: Some(golden(&format!("models/{family}"))),
                adapter: Some(folder.join("adapter_init")),
                dataset: Some(folder.join("train.jsonl")),
                ..Inputs::default()
            },
        );
        let output = bench.run();
        compare_logs(family, &bench, &expected);

        let found = tensors(&bench.artifacts().join("adapter_model.safetensors"));
        let wanted = tensors(&folder.join("adapter_final/adapter_model.safetensors"));
        assert!(found.keys().eq(wanted.keys()), "{family}: names");
        for (name, values) in &found {
            let worst = values.iter().zip(&wanted[name]).map(|(f, w)| (f - w).abs()).fold(0.0, f32::max);
            assert!(values.len() == wanted[name].len() && worst <= 1e-3, "{family} {name}: off by {worst}");
        }
        let mut kinds: Vec<&str> = output.outputs.iter().map(|o| &*o.kind).collect();
        kinds.dedup();
        assert_eq!(kinds, ["training_logs", "adapter_weights", "tokenizer", "model_card"], "{family}");
        assert_eq!(output.summary["steps"], json!(10));
    }
}

#[test]
fn a_full_task_follows_the_reference() {
    let expected = read_json(&golden("sft_full/expected.json"));
    let bench = Bench::new(
        spec("sft", None, hyperparameters(&expected)),
        Inputs {
            model: Some(golden("models/llama")),
            dataset: Some(golden("lora/llama/train.jsonl")),
            ..Inputs::default()
        },
    );
    bench.run();
    compare_logs("full", &bench, &expected);
    for (name, values) in tensors(&bench.artifacts().join("model.safetensors")) {
        let norm = values.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let wanted = expected["param_norms_after"][&name].as_f64().expect("norm");
        assert!((norm - wanted).abs() <= 1e-3 * wanted, "{name}: norm {norm}, expected {wanted}");
    }
}

#[test]
fn what_was_trained_is_a_model_to_start_from() {
    let data = golden("lora/llama/train.jsonl");
    let inputs = |model| Inputs {
        model: Some(model),
        dataset: Some(data.clone()),
        eval: Some(data.clone()),
        ..Inputs::default()
    };
    let settings = json!({
        "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_length": 96, "save_strategy": "no",
        "generation_prompts": ["Is node-2 up?"], "generation_max_new_tokens": 4,
    });
    let first = Bench::new(spec("sft", None, settings.clone()), inputs(golden("models/llama")));
    let after = first.run().summary;
    let second = Bench::new(spec("sft", None, settings), inputs(first.artifacts()));
    let again = second.run().summary;
    assert_eq!(after["eval_loss_after"], again["eval_loss_before"]);
    assert_eq!(after["samples"][0]["after"], again["samples"][0]["before"]);
    assert_eq!(after["samples"][0]["prompt"], json!("Is node-2 up?"));
    let fell = |s: &BTreeMap<String, Value>| s["eval_loss_after"].as_f64() < s["eval_loss_before"].as_f64();
    assert!(fell(&after) && fell(&again), "{after:?} {again:?}");
}
