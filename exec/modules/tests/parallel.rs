//! A task on several devices makes what it would make on one that accumulates as much more: the same bytes. Here the
//! processor counts as several.

mod bench;

use std::fs;

use bench::{Attempt, Bench, golden, spec};
use mloc_exec::{Event, Inputs, ModuleError};
use serde_json::{Value, json};

const DEVICES: usize = 3;

/// Twenty samples: a last step of an epoch with fewer micro-batches than devices. Noise and dropout, so that it matters
/// which micro-batch has which seed.
fn settings(accumulation: usize) -> Value {
    json!({
        "max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "seed": 11,
        "learning_rate": 5e-3, "max_length": 96, "logging_steps": 1, "save_steps": 2, "neftune_noise_alpha": 5,
    })
}

fn with(mut settings: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    settings
}

fn adapter(kind: &str) -> Option<Value> {
    Some(json!({ "type": kind, "r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all-linear" }))
}

fn texts() -> Inputs {
    let data = golden("lora/llama/train.jsonl");
    Inputs { model: Some(golden("models/llama")), dataset: Some(data.clone()), eval: Some(data), ..Inputs::default() }
}

fn pairs(of: &str, model: &str) -> Inputs {
    let data = golden(&format!("{of}/pairs.jsonl"));
    Inputs { model: Some(golden(model)), dataset: Some(data.clone()), eval: Some(data), ..Inputs::default() }
}

type Case = (&'static str, fn(usize) -> Bench);

const CASES: [Case; 8] = [
    ("sft lora", |accumulation| Bench::new(spec("sft", adapter("lora"), settings(accumulation)), texts())),
    ("sft qlora", |accumulation| {
        let settings = with(settings(accumulation), json!({"gradient_checkpointing": true}));
        let mut qlora = adapter("qlora");
        qlora.as_mut().expect("adapter")["use_dora"] = json!(true);
        Bench::new(spec("sft", qlora, settings), texts())
    }),
    ("sft full", |accumulation| Bench::new(spec("sft", None, settings(accumulation)), texts())),
    ("pretrain", |accumulation| {
        let shape = json!({
            "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 128,
        });
        let spec = spec("pretrain", None, with(settings(accumulation), shape));
        Bench::new(spec, Inputs { model: None, ..texts() })
    }),
    ("dpo lora", |accumulation| {
        let settings = with(settings(accumulation), json!({"disable_dropout": false}));
        Bench::new(spec("dpo", adapter("lora"), settings), pairs("dpo", "models/llama"))
    }),
    ("dpo full", |accumulation| Bench::new(spec("dpo", None, settings(accumulation)), pairs("dpo", "models/llama"))),
    ("dpo held to another", |accumulation| {
        let settings = with(settings(accumulation), json!({"precompute_ref_log_probs": true}));
        Bench::new(spec("dpo", adapter("lora"), settings), pairs("dpo", "models/llama"))
    }),
    ("rm lora", |accumulation| {
        let settings = with(settings(accumulation), json!({"disable_dropout": false}));
        Bench::new(spec("rm", adapter("lora"), settings), pairs("rm", "rm/model_init"))
    }),
];

/// A task on so many devices, of six micro-batches a step in all.
fn on(devices: usize, case: fn(usize) -> Bench) -> Bench {
    let mut bench = case(6 / devices);
    bench.cpu_devices = devices;
    bench
}

/// What two tasks made that differ in how a step is shared out: the same, save where settings are told.
fn assert_same_model(what: &str, several: &Bench, one: &Bench) {
    assert_eq!(several.log(), one.log(), "{what}");
    let names = |bench: &Bench| {
        let entries =
            fs::read_dir(bench.artifacts()).expect("artifacts").map(|entry| entry.expect("entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let wanted = names(one);
    assert_eq!(names(several), wanted, "{what}");
    let told = |name: &String| name == "README.md" || name == "training_log.jsonl" || name.contains("tfevents");
    let compared: Vec<&String> = wanted.iter().filter(|name| !told(name)).collect();
    assert!(compared.iter().any(|name| name.ends_with(".safetensors")), "{wanted:?}");
    for name in compared {
        assert!(several.artifact(name) == one.artifact(name), "{what}: {name} differs");
    }
}

#[test]
fn several_devices_make_what_one_makes() {
    for (what, case) in CASES {
        let (several, one) = (on(DEVICES, case), on(1, case));
        let attempt = several.attempt(|_| false);
        attempt.ended.as_ref().unwrap_or_else(|e| panic!("{what}: {e}"));
        one.run();
        assert_same_model(what, &several, &one);
        let said = attempt.said();
        assert!(
            said.contains(
                "data parallel: 3 devices, 12 samples in a step (per_device_train_batch_size 2 × \
                 gradient_accumulation_steps 2 × devices)"
            ),
            "{what}: {said}"
        );
        let card = String::from_utf8(several.artifact("README.md")).expect("text");
        assert!(card.contains("| `num_devices` | 3 |\n"), "{card}");
        assert!(card.contains("| `total_train_batch_size` | 12 |\n"), "{card}");
        assert!(!String::from_utf8(one.artifact("README.md")).expect("text").contains("num_devices"));
    }
}

#[test]
fn a_stopped_run_goes_on_on_another_number_of_devices() {
    for (what, case) in [CASES[0], CASES[2], CASES[4]] {
        let unbroken = on(1, case);
        unbroken.run();
        // One, two and three devices in turn, each with the same samples in a step.
        let mut broken = on(1, case);
        for attempts in 1.. {
            let devices = 1 + attempts % DEVICES;
            let other = on(devices, case);
            (broken.spec, broken.cpu_devices) = (other.spec, devices);
            let Attempt { ended, .. } = broken.attempt(|event| matches!(event, Event::Progress(_)));
            match ended {
                Ok(_) => {
                    assert!(attempts > 3, "{what}: {attempts}");
                    break;
                }
                Err(ModuleError::Cancelled) => {}
                Err(other) => panic!("{what}: {other}"),
            }
        }
        assert_same_model(what, &broken, &unbroken);
    }
}

#[test]
fn few_samples_are_said_to_be_fewer_than_all_devices_take() {
    let mut bench = on(2, CASES[0].1);
    bench.spec.hyperparameters.insert("gradient_accumulation_steps".into(), json!(8));
    bench.spec.hyperparameters.insert("max_steps".into(), json!(1));
    let said = bench.attempt(|_| false).said();
    let wanted = "training data: 20 samples are fewer than a step takes, 32 (per_device_train_batch_size × \
                  gradient_accumulation_steps × devices)";
    assert!(said.contains(wanted), "{said}");
}

#[test]
fn online_methods_say_that_they_compute_on_one_gpu() {
    let reward = json!({"funcs": [{"type": "length", "max": 40}]});
    let settings = json!({"max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2});
    let mut bench = Bench::new(bench::rewarded_spec("grpo", None, reward, settings), texts());
    bench.cpu_devices = 2;
    assert_eq!(bench.failure(), "resources.hardware.gpu.count: 2: grpo computes on one GPU; ask for 1");
}
