//! What a run will need of memory is said before its first step, and one that cannot fit is not begun.

mod bench;

use bench::{Bench, golden, spec};
use mloc_exec::{Event, Inputs, Memory};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn sft(adapter: Option<Value>, more: Value) -> Bench {
    let mut settings = json!({
        "max_steps": 2, "per_device_train_batch_size": 4, "max_length": 64, "save_strategy": "no", "data_order": "given",
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(golden("lora/llama/train.jsonl")),
        ..Inputs::default()
    };
    Bench::new(spec("sft", adapter, settings), inputs)
}

fn with_memory(mut bench: Bench, bytes: u64) -> Bench {
    bench.memory = Memory { host_bytes: bytes, host_free_bytes: bytes, gpu_free_bytes: 0 };
    bench
}

#[test]
fn the_plan_stands_in_the_log_before_the_first_step() {
    let attempt = with_memory(sft(None, json!({})), 8 << 30).attempt(|_| false);
    attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let needs = attempt.events.iter().position(|event| matches!(event, Event::Needs { .. })).expect("what it needs");
    let first = attempt.events.iter().position(|event| matches!(event, Event::Progress(_))).expect("a step");
    assert!(needs < first);
    let said = attempt.said();
    let at = said.find("memory: ").expect("the plan");
    let table: Vec<&str> = said[at..].lines().take_while(|line| !line.starts_with("training: ")).collect();
    insta::assert_snapshot!(table.join("\n"));
    let Event::Needs { bytes, .. } = attempt.events[needs] else { unreachable!() };
    assert!((96 * MIB..128 * MIB).contains(&bytes), "{bytes}");
}

#[test]
fn a_task_that_cannot_fit_is_refused_with_what_would() {
    let adapter = json!({"type": "lora", "r": 4, "target_modules": "all-linear"});
    // Its weights have room, its batches have not.
    let bench = with_memory(sft(Some(adapter), json!({"per_device_train_batch_size": 16})), 97 * MIB + 512 * 1024);
    insta::assert_snapshot!(bench.failure());
    assert!(bench.checkpoints_there().is_empty());
}

#[test]
fn weights_that_have_no_room_are_not_read() {
    let attempt = with_memory(sft(None, json!({})), 96 * MIB).attempt(|_| false);
    let error = attempt.ended.as_ref().expect_err("it is refused").to_string();
    assert!(error.contains("what this node has is 96.0 MiB"), "{error}");
    assert!(!attempt.said().contains("training data"), "{}", attempt.said());
}

#[test]
fn what_was_asked_for_counts_and_not_what_the_node_has() {
    let mut bench = with_memory(sft(None, json!({})), 8 << 30);
    bench.grant.memory_bytes = 96 * MIB;
    let said = bench.failure();
    assert!(said.contains("resources.hardware.memory is 96.0 MiB"), "{said}");
}

#[test]
fn what_others_hold_is_a_warning() {
    let mut bench = with_memory(sft(None, json!({})), 8 << 30);
    bench.memory.host_free_bytes = 50 * MIB;
    let attempt = bench.attempt(|_| false);
    attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    assert!(attempt.said().contains("50.0 MiB are free now"), "{}", attempt.said());
}
