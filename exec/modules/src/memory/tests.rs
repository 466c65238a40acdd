use mloc_core::task;
use serde_json::{Value, json};

use super::*;

/// Mistral-7B.
fn seven_billion() -> DecoderConfig {
    let raw = json!({
        "architectures": ["MistralForCausalLM"], "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32_768,
    });
    DecoderConfig::from_json(raw).expect("config")
}

fn spec(task_type: &str, adapter: Value, hyperparameters: Value) -> TaskSpec {
    let mut task = json!({
        "apiVersion": "mloc/v1", "kind": "TrainingTask", "metadata": {"name": "t", "owner": "o"},
        "spec": {
            "taskType": task_type,
            "model": {"source": {"type": "local", "identifier": "v/m"}},
            "dataset": {"source": {"type": "local", "identifier": "v/d"}},
            "hyperparameters": hyperparameters,
        },
    });
    if !adapter.is_null() {
        task["spec"]["model"]["adapter"] = adapter;
    }
    if task_type == "ppo" {
        task["spec"]["reward"] = json!({"model": {"source": {"type": "local", "identifier": "v/r"}}});
    }
    task::parse(&task.to_string(), "t").unwrap_or_else(|problems| panic!("{problems}")).spec
}

fn task(task_type: &str, adapter: Value, hyperparameters: Value, on_gpu: bool) -> Task {
    let model = seven_billion();
    let reward = (task_type == "ppo").then(|| model.clone().with_labels(1));
    let models = Models { model, reference: None, reward, value: None };
    Task::new(&spec(task_type, adapter, hyperparameters), models, on_gpu)
}

/// What a task is told whose rows are as long as they may be.
fn told(task: &Task, room: Room) -> String {
    let sizes = Sizes::longest(task);
    let plan = task.plan(&sizes).expect("plan");
    match task.needs(&plan) > room.bytes {
        true => words::refusal(task, &plan, &sizes, room),
        false => words::table(task, &plan, Some(room)),
    }
}

const GIB: u64 = 1 << 30;
const GPU: Room = Room { bytes: 24 * GIB, whose: "free on the granted GPU" };
const NODE: Room = Room { bytes: 64 * GIB, whose: "what this node has" };
const ASKED: Room = Room { bytes: 40 * GIB, whose: "resources.hardware.memory" };

#[test]
fn what_tasks_of_a_large_model_are_told() {
    let settings = json!({"per_device_train_batch_size": 8, "max_length": 1024});
    let lora = json!({"type": "lora", "r": 16, "target_modules": "all-linear"});
    let qlora = json!({"type": "qlora", "r": 16, "target_modules": "all-linear"});
    let longer = json!({"per_device_train_batch_size": 4, "max_length": 4096, "bf16": true});
    let ppo = json!({"per_device_train_batch_size": 4, "response_length": 256, "max_length": 512});
    let cases = [
        ("sft full on a GPU", task("sft", Value::Null, settings.clone(), true), GPU),
        ("sft lora on a GPU", task("sft", lora.clone(), settings.clone(), true), GPU),
        ("sft lora on a node", task("sft", lora.clone(), settings.clone(), false), NODE),
        ("sft lora with memory asked for", task("sft", lora.clone(), settings.clone(), false), ASKED),
        ("sft qlora of long rows on a GPU", task("sft", qlora, longer, true), GPU),
        ("dpo lora on a node", task("dpo", lora.clone(), settings, false), NODE),
        ("ppo lora on a node", task("ppo", lora, ppo, false), NODE),
    ];
    let said: Vec<String> = cases.iter().map(|(name, task, room)| format!("# {name}\n{}", told(task, *room))).collect();
    insta::assert_snapshot!(said.join("\n\n"));
}

#[test]
fn what_is_proposed_does_fit() {
    let lora = json!({"type": "lora", "r": 16, "target_modules": "all-linear"});
    let settings = json!({"per_device_train_batch_size": 8, "max_length": 1024});
    for adapter in [Value::Null, lora] {
        for gib in [6, 12, 24, 48, 80] {
            let task = task("sft", adapter.clone(), settings.clone(), true);
            let sizes = Sizes::longest(&task);
            let fits = fitting::settings_that_fit(&task, &sizes, gib * GIB);
            assert!(fits.iter().all(|fit| fit.needs <= gib * GIB && !fit.settings.is_empty()), "{gib}: {fits:?}");
        }
    }
}

#[test]
fn a_smaller_batch_keeps_the_samples_of_a_step() {
    let settings = json!({
        "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "gradient_checkpointing": true, "max_length": 512,
    });
    let task = task("sft", json!({"type": "qlora"}), settings, true);
    let sizes = Sizes::longest(&task);
    let planned = task.needs(&task.plan(&sizes).expect("plan"));
    let fits = fitting::settings_that_fit(&task, &sizes, planned - 1);
    let batch = fits.iter().find(|fit| fit.settings.contains("batch_size")).expect("a smaller batch");
    assert_eq!(batch.settings, "per_device_train_batch_size: 3, gradient_accumulation_steps: 4");
}

#[test]
fn a_dry_run_speaks_of_the_longest_rows() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("config.json"), seven_billion().raw.to_string()).expect("written");
    let lora = json!({"type": "lora"});
    let said =
        foretell(&spec("sft", lora, json!({"max_length": 512})), Some(folder.path())).expect("a plan").expect("text");
    assert!(said.starts_with("memory: ") && said.contains("if all rows of a batch had 512 tokens"), "{said}");
    assert_eq!(foretell(&spec("sft", Value::Null, json!({})), None), Ok(None));
    let none = folder.path().join("none");
    let missing = foretell(&spec("sft", Value::Null, json!({})), Some(&none)).expect_err("there is none");
    assert!(missing.contains("none"), "{missing}");
}
