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
fn a_gguf_file_does_what_the_model_does() {
    let (bench, output) = run(&["gguf", "gguf:f16", "gguf:q8_0", "eval_results"]);
    let kinds = by_kind(&output);
    assert_eq!(kinds["gguf"], ["model-f16.gguf"], "the same file is not written twice");
    assert_eq!(kinds["gguf:q8_0"], ["model-q8_0.gguf"]);
    let after = read_json(&bench.artifacts().join("eval_results.json"))["eval_loss"].as_f64().expect("a loss");
    for (file, most) in [("model-f16.gguf", 2e-3), ("model-q8_0.gguf", 2e-2)] {
        let data = golden("lora/llama/train.jsonl");
        let inputs = Inputs {
            model: Some(bench.artifacts().join(file)),
            dataset: Some(data.clone()),
            eval: Some(data),
            ..Inputs::default()
        };
        let read = Bench::new(spec("sft", None, json!({"max_steps": 1, "max_length": 64})), inputs);
        let loss = read.run().summary["eval_loss_before"].as_f64().expect("a loss");
        assert!((loss - after).abs() < most, "{file}: the loss is {loss}, the adapter's was {after}");
    }
}

#[test]
fn a_model_card_says_what_was_made_of_what() {
    let (bench, _) = run(&[]);
    let card = fs::read_to_string(bench.artifacts().join("README.md")).expect("card");
    let (_, rest) = card.split_once("---\n").expect("a head");
    let (head, body) = rest.split_once("---\n").expect("its end");
    assert_eq!(
        head,
        "base_model: \"volume/model\"\nlibrary_name: \"peft\"\nmodel_name: \"t\"\npipeline_tag: \"text-generation\"\n\
         tags: [\"mloc\",\"sft\",\"lora\"]\n"
    );
    for part in
        ["# t\n", "PeftModel.from_pretrained", "| `learning_rate` | `0.02` |", "| `adapter.r` | 4 |", "eval_loss_after"]
    {
        assert!(body.contains(part), "{part}: {body}");
    }
}

/// The figures of an event file: (tag, step, value).
fn events(bytes: &[u8]) -> Vec<(String, u64, f32)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    /// Field numbers with their bytes; a number's are its own.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = bytes.split_at(length);
            found.push((key >> 3, value.to_vec()));
            bytes = rest;
        }
        found
    }
    let (mut rest, mut found) = (bytes, Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight")) as usize;
        let event = fields(&rest[12..12 + length]);
        rest = &rest[16 + length..];
        let of = |field| event.iter().find(|(number, _)| *number == field).map(|(_, bytes)| bytes.clone());
        let Some(step) = of(2) else { continue };
        let step = u64::from_le_bytes(step.try_into().expect("eight"));
        for (_, value) in fields(&of(5).expect("a summary")) {
            let scalar = fields(&value);
            let tag = String::from_utf8(scalar[0].1.clone()).expect("UTF-8");
            found.push((tag, step, f32::from_le_bytes(scalar[1].1.clone().try_into().expect("four"))));
        }
    }
    found
}

#[test]
fn the_event_file_has_the_figures_of_the_log() {
    let (bench, output) = run(&["training_logs"]);
    let paths: Vec<&str> = output.outputs.iter().map(|o| &*o.path).collect();
    assert_eq!(paths, ["training_log.jsonl", "events.out.tfevents.0.mloc"]);
    let file = bench.artifacts().join(paths[1]);
    let mut wanted = Vec::new();
    for line in fs::read_to_string(bench.artifacts().join(paths[0])).expect("log").lines() {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect("line");
        let step = line["step"].as_u64().expect("step");
        let figures = line.iter().filter(|(name, _)| *name != "step");
        wanted.extend(figures.map(|(name, v)| (format!("train/{name}"), step, v.as_f64().expect("number") as f32)));
    }
    assert!(wanted.iter().any(|(tag, ..)| tag == "train/loss"));
    assert_eq!(events(&fs::read(&file).expect("events")), wanted);

    // And TensorBoard's own loader finds the same, where it can be had.
    let readers = bench::in_tree("tests/fixtures/readers");
    let python = std::process::Command::new(readers.join("python.sh"))
        .arg(env!("CARGO_TARGET_TMPDIR"))
        .args(["tensorboard", "tensorboard==2.21.0", "numpy==2.2.6", "setuptools==80.9.0"])
        .output()
        .expect("sh");
    if !python.status.success() {
        let why = String::from_utf8_lossy(&python.stderr).lines().last().unwrap_or_default().to_owned();
        assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "no tensorboard: {why}");
        // The harness keeps what tests print to itself.
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIP TensorBoard's own loader: {why}\n")).ok();
        return;
    }
    let ended = std::process::Command::new(String::from_utf8_lossy(&python.stdout).trim())
        .arg(readers.join("event_file.py"))
        .arg(&file)
        .output()
        .expect("python");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let found: BTreeMap<String, Vec<(u64, f64)>> = serde_json::from_slice(&ended.stdout).expect("JSON");
    let found: usize = found
        .iter()
        .map(|(tag, values)| {
            let same = |(step, value): &&(u64, f64)| wanted.contains(&(tag.clone(), *step, *value as f32));
            assert!(values.iter().all(|v| same(&v)), "{tag}: {values:?}");
            values.len()
        })
        .sum();
    assert_eq!(found, wanted.len());
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
    assert_eq!(kinds, ["adapter_weights", "eval_results", "model_card", "tokenizer", "training_logs"]);
    assert!(!bench.artifacts().join("merged_model").exists());
}

#[test]
fn patterns_choose_files() {
    let (bench, output) = run(&["files:*.jsonl", "files:nothing/*"]);
    let paths: Vec<&str> = output.outputs.iter().map(|o| &*o.path).collect();
    assert_eq!(paths, ["training_log.jsonl"]);
    assert!(fs::metadata(bench.artifacts().join("training_log.jsonl")).is_ok());
}
