//! Death by SIGKILL at each failpoint in turn, between checkpoints as well: whatever is left is taken up again, and what
//! comes out is what an unbroken run makes. The test binary starts itself as the process that dies.

mod bench;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use bench::{Bench, golden, spec};
use mloc_exec::{Inputs, child};
use serde_json::{Value, json};

/// The run file of the process that dies.
const RUN_FILE: &str = "MLOC_KILL_RUN";

/// What the dying process does: a worker's child from its run file on. Nothing when it is run as a test.
#[test]
#[ignore = "is started by the other cases"]
fn victim() {
    let Some(run) = std::env::var_os(RUN_FILE) else { return };
    assert!(child::main(&PathBuf::from(run), mloc_modules::registry()) == ExitCode::SUCCESS, "the attempt failed");
}

/// Runs an attempt in a process that dies at the `n`th failpoint it reaches.
fn die(bench: &Bench, n: u64) -> ExitStatus {
    let run = bench.folder.path().join("run.json");
    bench.fresh_run().write(&run).expect("run file");
    let mut victim = Command::new(std::env::current_exe().expect("this binary"));
    victim.args(["--exact", "victim", "--ignored", "--nocapture", "--test-threads", "1"]);
    victim.env(RUN_FILE, run).env("MLOC_FAILPOINT", format!("@{n}"));
    // Its stdin stays open as long as it lives: an end of it would mean that the daemon is gone.
    victim.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut victim = victim.spawn().expect("it starts");
    let _daemon = victim.stdin.take();
    let output = victim.wait_with_output().expect("it ends");
    let by_signal = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(
        output.status.success() || by_signal,
        "@{n} failed by itself: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.status
}

/// Kills a run at each of its failpoints, each time from its start on, and has another attempt go on. Returns how many
/// failpoints there were.
fn at_every_failpoint(what: &str, fresh: impl Fn() -> Bench) -> u64 {
    let unbroken = fresh();
    unbroken.run();
    for n in 1.. {
        let broken = fresh();
        let survived = die(&broken, n).success();
        if survived {
            broken.assert_same(&format!("{what} in a process of its own"), &unbroken);
        }
        let checkpoints = broken.checkpoints_there();
        let again = broken.attempt(|_| false);
        again.ended.as_ref().unwrap_or_else(|e| panic!("{what} @{n}: {e}"));
        broken.assert_same(&format!("{what} @{n}"), &unbroken);
        let said = again.said();
        if let Some(newest) = checkpoints.last() {
            assert!(said.contains(&format!("going on from the checkpoint of step {newest}")), "{what} @{n}: {said}");
        }
        if survived {
            return n - 1;
        }
    }
    0
}

/// As little as there can be with checkpoints, and steps between them: data of 8 rows, in epochs of 4 steps.
fn bench(task_type: &str, adapter: Option<Value>, steps: u64, more: Value) -> Bench {
    let mut settings = json!({
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "max_length": 24,
        "logging_steps": 3, "save_steps": 2, "save_total_limit": 1, "seed": 11,
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    let mut bench = Bench::new(spec(task_type, adapter, settings), Inputs::default());
    let data = bench.folder.path().join("data.jsonl");
    let text = std::fs::read_to_string(golden("lora/llama/train.jsonl")).expect("data");
    let rows: String = text.lines().take(8).map(|row| format!("{row}\n")).collect();
    std::fs::write(&data, rows).expect("write");
    let model = (task_type == "sft").then(|| golden("models/llama"));
    bench.inputs = Inputs { model, dataset: Some(data), ..Inputs::default() };
    bench
}

/// Points of a small file that is written whole: written, synced, renamed, its folder synced.
const SMALL_FILE: u64 = 4;
/// Points of a checkpoint, from its folder's making until it is told: each of its eight files synced, and its manifest.
const CHECKPOINT: u64 = 8 + 8 + SMALL_FILE;
/// An old one goes.
const PRUNE: u64 = 1;
/// Points of the result: synced, written, told.
const RESULT: u64 = 3 + SMALL_FILE;

#[test]
fn a_lora_run() {
    let adapter = json!({
        "type": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"],
    });
    let points = at_every_failpoint("lora", || bench("sft", Some(adapter.clone()), 5, json!({})));
    assert_eq!(points, 5 + 2 * CHECKPOINT + PRUNE + RESULT);
}

/// The entropy rises at first, so that the least of it, which is asked for, was there before the first step: those weights
/// are kept through all that follows, and patience ends the run a step early.
#[test]
fn a_run_that_evaluations_steer() {
    let adapter = json!({"type": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]});
    let steered = || {
        let more = json!({
            "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
            "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": true, "load_best_model_at_end": true,
            "metric_for_best_model": "eval_entropy", "greater_is_better": false, "early_stopping_patience": 3,
            "optim": "adamw_8bit", "neftune_noise_alpha": 5,
        });
        let mut bench = bench("sft", Some(adapter.clone()), 4, more);
        bench.inputs.eval = bench.inputs.dataset.clone();
        bench
    };
    let points = at_every_failpoint("steered", steered);
    // Three steps and four evaluations; the best weights are another file of both checkpoints, the second of which is
    // that of the last step, written before the best weights take its place.
    assert_eq!(points, 3 + 4 + 2 * (CHECKPOINT + 1) + PRUNE + RESULT);
}

#[test]
fn a_full_run() {
    let points = at_every_failpoint("full", || bench("sft", None, 3, json!({})));
    assert_eq!(points, 3 + CHECKPOINT + RESULT);
}

#[test]
fn a_pretraining_run() {
    let shape = json!({
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32,
    });
    let points = at_every_failpoint("pretrain", || bench("pretrain", None, 3, shape.clone()));
    assert_eq!(points, 3 + CHECKPOINT + RESULT);
}
