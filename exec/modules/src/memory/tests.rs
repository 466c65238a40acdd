use mloc_core::{capability::GpuRequest, task};
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
    Task::new(&spec(task_type, adapter, hyperparameters), models, Place { on_gpu, devices: 1 })
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

/// The same task on so many GPUs.
fn on_gpus(task: &Task, devices: usize) -> Task {
    Task { place: Place { on_gpu: true, devices }, ..task.clone() }
}

#[test]
fn each_of_several_gpus_holds_the_model_and_its_own_micro_batches() {
    let settings = json!({"per_device_train_batch_size": 2, "max_length": 512});
    let one = task("sft", Value::Null, settings.clone(), true);
    let sizes = Sizes::longest(&one);
    let planned = |task: &Task| task.plan(&sizes).expect("plan");
    let four = on_gpus(&one, 4);
    // What one has with as many micro-batches as a step of four has: the gradients of all meet on the first.
    let accumulating = json!({
        "per_device_train_batch_size": 2, "max_length": 512, "gradient_accumulation_steps": 4,
    });
    let alike = task("sft", Value::Null, accumulating, true);
    assert_eq!(planned(&four), planned(&alike));
    assert_eq!(four.needs(&planned(&four)), alike.needs(&planned(&alike)), "more of them do not divide a model");
    let plan = planned(&four);
    assert_eq!(four.needs_of_others(&plan), four.needs(&plan) - plan.parts.optimizer);

    let room = Room { bytes: 24 * GIB, whose: FREE_ON_GPUS };
    let refusal = told(&four, room);
    assert!(
        refusal.contains("on the first of 4 GPUs") && refusal.contains("GPU that has least is 24.0 GiB"),
        "{refusal}"
    );
    assert!(refusal.contains("more of them hold the model just as often"), "{refusal}");
    let table = told(&four, Room { bytes: 400 * GIB, whose: FREE_ON_GPUS });
    let others = mloc_core::quantity::show_bytes(four.needs_of_others(&plan));
    assert!(table.ends_with(&format!("the others do without the optimizer and need {others}")), "{table}");
}

#[test]
fn a_dry_run_counts_the_gpus_that_are_asked_for() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("config.json"), seven_billion().raw.to_string()).expect("written");
    let mut spec = spec("sft", json!({"type": "lora"}), json!({"max_length": 512}));
    spec.request.gpu = Some(GpuRequest { kind: "any".into(), count: 2, memory_bytes: 0 });
    let said = foretell(&spec, Some(folder.path())).expect("a plan").expect("text");
    assert!(said.contains("on the first of 2 GPUs at the fullest"), "{said}");
}

#[test]
fn devices_of_one_memory_add_up() {
    let one = task("sft", json!({"type": "lora"}), json!({"per_device_train_batch_size": 2, "max_length": 512}), false);
    let sizes = Sizes::longest(&one);
    let three = Task { place: Place { on_gpu: false, devices: 3 }, ..one.clone() };
    let plan = three.plan(&sizes).expect("plan");
    assert_eq!(three.needs(&plan), plan.peak() + 2 * three.replica(&plan) + PROCESS_BYTES);
    assert!(told(&three, NODE).contains("further devices"));
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
