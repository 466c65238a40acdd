//! A run that is asked to stop does so wherever it is, and loses no step.

mod bench;

use bench::{Attempt, Bench, golden, spec};
use mloc_exec::{Event, Inputs, ModuleError};
use serde_json::json;

fn bench() -> Bench {
    let settings = json!({
        "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "max_length": 48, "save_steps": 2,
        "generation_prompts": ["Is node-2 up?"], "generation_max_new_tokens": 2,
    });
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(golden("lora/llama/train.jsonl")),
        ..Inputs::default()
    };
    Bench::new(spec("sft", None, settings), inputs)
}

fn assert_stopped(attempt: &Attempt) {
    assert!(matches!(attempt.ended, Err(ModuleError::Cancelled)), "{:?}", attempt.ended);
}

fn says(text: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Log { text: said, .. } if said.contains(text))
}

#[test]
fn before_the_weights_are_read() {
    let attempt = bench().attempt_with(true, |_| false);
    assert_stopped(&attempt);
    assert!(attempt.events.is_empty(), "{:?}", attempt.events);
}

#[test]
fn between_the_data_and_the_first_step() {
    let attempt = bench().attempt(says("training data: 20 rows"));
    assert_stopped(&attempt);
    assert!(!attempt.said().contains("training: "), "{}", attempt.said());
}

#[test]
fn between_two_tensors_that_are_exported() {
    let (unbroken, broken) = (bench(), bench());
    unbroken.run();
    let attempt = broken.attempt(says("→ after training"));
    assert_stopped(&attempt);
    assert_eq!(broken.checkpoints_there(), [2, 3], "the last step is kept too");
    let again = broken.attempt(|_| false);
    again.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    assert!(again.said().contains("going on from the checkpoint of step 3"), "{}", again.said());
    broken.assert_same("export", &unbroken);
}
