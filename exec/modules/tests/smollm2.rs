//! A task on a real model from a GGUF file: SmolLM2-135M-Instruct.
//!
//! 98 MB are not kept in the tree: `export MLOC_SMOLLM2_GGUF=$(tests/fetch_smollm2.sh)`, or the test says `SKIP`;
//! MLOC_NO_SKIP=1 makes that a failure.

mod bench;

use std::io::Write;

use bench::{Bench, in_tree, spec};
use mloc_exec::Inputs;
use serde_json::json;

#[test]
fn a_lora_task_on_a_gguf_file_learns() {
    let Some(model) = std::env::var_os("MLOC_SMOLLM2_GGUF") else {
        let (test, why) = ("a_lora_task_on_a_gguf_file_learns", "MLOC_SMOLLM2_GGUF names no file");
        assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "{test} must not be skipped: {why}");
        // Past the test harness, which hides what is printed.
        writeln!(std::io::stderr(), "SKIP {test}: {why}; tests/fetch_smollm2.sh fetches one").ok();
        return;
    };
    let adapter = json!({"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]});
    let settings = json!({
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "max_length": 64, "data_order": "given", "logging_steps": 1, "save_strategy": "no",
    });
    let data = in_tree("configs/quickstart/data/train.jsonl");
    let inputs = Inputs { model: Some(model.into()), dataset: Some(data), ..Inputs::default() };
    let bench = Bench::new(spec("sft", Some(adapter), settings), inputs);
    bench.run();
    let losses: Vec<f64> = bench.log().iter().map(|line| line["loss"].as_f64().expect("loss")).collect();
    // Made of what it has not seen: above what an instructed model has on its own text, below chance (ln 49152 = 10.8).
    assert!((1.0..8.0).contains(&losses[0]), "{losses:?}");
    assert!(losses[3] < losses[0], "{losses:?}");
    let adapter = mloc_burn::lora::LoraConfig::from_folder(&bench.artifacts()).expect("adapter_config.json");
    assert_eq!((adapter.r, adapter.scale()), (16, 2.0));
}
