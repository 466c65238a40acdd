//! A run that is cut and goes on ends with the same bytes as one that is not.

mod bench;

use std::fs;

use bench::{Attempt, Bench, golden, spec};
use mloc_exec::{Event, Inputs, ModuleError};
use serde_json::{Value, json};

/// Logging and saving out of step, a short last batch, two micro-batches a step, data shuffled in several epochs.
fn settings() -> Value {
    json!({
        "max_steps": 9, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
        "max_length": 64, "logging_steps": 4, "save_steps": 2, "seed": 11, "generation_prompts": ["Is node-2 up?"],
        "generation_max_new_tokens": 4,
    })
}

fn inputs() -> Inputs {
    let data = golden("lora/llama/train.jsonl");
    Inputs { model: Some(golden("models/llama")), dataset: Some(data.clone()), eval: Some(data), ..Inputs::default() }
}

/// With dropout, so that the random state matters.
fn lora() -> Bench {
    let adapter = json!({
        "type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"],
    });
    Bench::new(spec("sft", Some(adapter), settings()), inputs())
}

/// Every element of the frozen weights in 4 bits, and magnitudes beside the factors.
fn qlora() -> Bench {
    let adapter = json!({
        "type": "qlora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all-linear", "use_dora": true,
        "bnb_4bit_use_double_quant": true, "modules_to_save": ["lm_head"],
    });
    let mut settings = settings();
    settings["gradient_checkpointing"] = json!(true);
    Bench::new(spec("sft", Some(adapter), settings), inputs())
}

fn full() -> Bench {
    Bench::new(spec("sft", None, settings()), inputs())
}

fn pretrain() -> Bench {
    let mut settings = settings();
    for (name, value) in [
        ("vocab_size", json!(300)),
        ("hidden_size", json!(32)),
        ("num_hidden_layers", json!(2)),
        ("num_attention_heads", json!(2)),
        ("max_position_embeddings", json!(128)),
    ] {
        settings[name] = value;
    }
    Bench::new(spec("pretrain", None, settings), Inputs { model: None, ..inputs() })
}

/// Runs attempt after attempt, each asked to stop when `stop_when` says so, until one ends. Returns how many there were.
fn in_pieces(bench: &Bench, stop_when: fn(&Event) -> bool) -> usize {
    for attempts in 1..20 {
        let Attempt { events, ended } = bench.attempt(stop_when);
        match ended {
            Ok(_) => return attempts,
            Err(ModuleError::Cancelled) => {
                assert!(events.iter().any(|e| matches!(e, Event::Checkpoint { .. })), "a stopped run keeps its work");
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it does not come forward");
}

#[test]
fn a_run_stopped_at_each_checkpoint_equals_the_unbroken_one() {
    for (what, fresh) in [("lora", lora as fn() -> Bench), ("qlora", qlora), ("full", full), ("pretrain", pretrain)] {
        let (unbroken, broken) = (fresh(), fresh());
        unbroken.run();
        let steps: Vec<Value> = unbroken.log().iter().map(|line| line["step"].clone()).collect();
        assert_eq!(steps, [4, 8, 9], "{what}");
        let attempts = in_pieces(&broken, |event| matches!(event, Event::Checkpoint { .. }));
        assert_eq!(attempts, 5, "{what}: checkpoints at 2, 4, 6, 8");
        broken.assert_same(what, &unbroken);
    }
}

#[test]
fn a_run_stopped_between_checkpoints_keeps_its_steps() {
    let (unbroken, broken) = (lora(), lora());
    unbroken.run();
    // The first figures of an attempt come after its first step.
    let attempts = in_pieces(&broken, |event| matches!(event, Event::Progress(_)));
    assert_eq!(attempts, 10, "each of nine did one step, and the last one measured");
    broken.assert_same("lora", &unbroken);
}

/// Stops a run at its first checkpoint, changes something of what it began with, and looks at how it is refused.
fn refusal(change: impl FnOnce(&mut Bench)) -> String {
    let mut bench = lora();
    let folder = bench.folder.path().to_owned();
    let (model, data) = (folder.join("model"), folder.join("data.jsonl"));
    fs::create_dir(&model).expect("folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("models/llama").join(name), model.join(name)).expect("copy");
    }
    fs::copy(golden("lora/llama/train.jsonl"), &data).expect("copy");
    bench.inputs = Inputs { model: Some(model), dataset: Some(data), ..inputs() };
    let first = bench.attempt(|event| matches!(event, Event::Checkpoint { .. }));
    assert!(matches!(first.ended, Err(ModuleError::Cancelled)), "{:?}", first.ended);
    change(&mut bench);
    bench.failure()
}

fn edit(path: &std::path::Path, change: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(path).expect("read");
    fs::write(path, change(&text)).expect("write");
}

#[test]
fn other_data_under_the_same_name_is_refused() {
    let data = |bench: &Bench| bench.inputs.dataset.clone().expect("data");
    let said = refusal(|bench| edit(&data(bench), |text| text.replace("Yes", "No!")));
    assert!(
        said.starts_with("dataset.source: the data changed since the checkpoint of step 2: it had 20 samples"),
        "{said}"
    );
    assert!(said.contains(" now 20 of "), "{said}");
    assert!(said.ends_with("hint: put back what was there, or submit the task anew: a new task begins at step 0"));
    let said = refusal(|bench| edit(&data(bench), |text| text.lines().skip(1).map(|row| format!("{row}\n")).collect()));
    assert!(said.contains(" now 19 of "), "{said}");
    let said = refusal(|bench| bench.inputs.eval = None);
    assert!(said.starts_with("dataset.eval: the held-out data changed since the checkpoint of step 2"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn another_model_under_the_same_name_is_refused() {
    let model = |bench: &Bench| bench.inputs.model.clone().expect("model");
    let changed = "model: the model or the adapter that it starts from changed since the checkpoint of step 2";
    let said = refusal(|bench| {
        let weights = model(bench).join("model.safetensors");
        let mut bytes = fs::read(&weights).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(weights, bytes).expect("write");
    });
    assert!(said.starts_with(changed), "{said}");
    let said = refusal(|bench| edit(&model(bench).join("config.json"), |text| text.replace("1e-05", "1e-06")));
    assert!(said.starts_with(changed), "{said}");
}

#[test]
fn other_settings_are_named_one_by_one() {
    let said = refusal(|bench| {
        for (name, value) in [("learning_rate", json!(1e-3)), ("weight_decay", json!(0.1))] {
            bench.spec.hyperparameters.insert(name.into(), value);
        }
    });
    assert!(said.starts_with("the checkpoint of step 2 cannot be gone on from: "), "{said}");
    assert!(
        said.contains(
            "made with other settings: schedule.peak was 0.005, is now 0.001; optimizer.weight_decay was 0.0, is now 0.1\n"
        ),
        "{said}"
    );
}

#[test]
fn a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used() {
    let bench = lora();
    bench.run();
    let (log, adapter) = (bench.log(), bench.artifact("adapter_model.safetensors"));
    let newest = mloc_exec::checkpoint::dir_of(&bench.checkpoints(), 8).join("optimizer.safetensors");
    let mut bytes = fs::read(&newest).expect("state");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).expect("write");

    let again = bench.attempt(|_| false);
    again.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let said = again.said();
    assert!(said.contains("step-0000000008 is damaged: optimizer.safetensors: SHA-256"), "{said}");
    assert!(said.contains("going on from the checkpoint of step 6"), "{said}");
    assert!(!said.contains("before training"), "what was measured at first is not measured again: {said}");
    assert_eq!(bench.log(), log);
    assert!(bench.artifact("adapter_model.safetensors") == adapter);
}

#[test]
fn only_so_many_checkpoints_are_kept_as_the_task_says() {
    let mut bench = lora();
    bench.spec.hyperparameters.insert("save_total_limit".into(), json!(2));
    bench.run();
    let mut kept: Vec<_> =
        fs::read_dir(bench.checkpoints()).expect("folder").map(|e| e.expect("entry").path()).collect();
    kept.sort();
    assert_eq!(kept, [6, 8].map(|step| mloc_exec::checkpoint::dir_of(&bench.checkpoints(), step)));
}
