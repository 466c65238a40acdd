//! What steers a run beside its steps: evaluations on the way, the best weights, an early end, lines of the log.

mod bench;

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use bench::{Attempt, Bench, golden, spec};
use mloc_burn::weights::{SafetensorsSource, TensorSource};
use mloc_exec::{Event, Inputs, ModuleError, checkpoint};
use serde_json::{Value, json};

/// A LoRA task on the llama fixture, measured on the data that it is trained on.
fn bench(more: Value) -> Bench {
    let adapter = json!({"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]});
    let mut settings = json!({
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "max_length": 48, "seed": 11,
        "logging_steps": 2, "save_strategy": "no",
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    let data = golden("lora/llama/train.jsonl");
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(data.clone()),
        eval: Some(data),
        ..Inputs::default()
    };
    Bench::new(spec("sft", Some(adapter), settings), inputs)
}

/// Lines of evaluations: step and figures.
fn evaluations(bench: &Bench) -> Vec<(u64, BTreeMap<String, Value>)> {
    let lines = bench.log().into_iter().filter(|line| line.contains_key("eval_loss"));
    lines.map(|line| (line["step"].as_u64().expect("step"), line)).collect()
}

fn steps_of(lines: &[(u64, BTreeMap<String, Value>)]) -> Vec<u64> {
    lines.iter().map(|(step, _)| *step).collect()
}

#[test]
fn held_out_data_is_looked_at_on_the_way() {
    let bench = bench(json!({"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": true, "max_steps": 5}));
    let attempt = bench.attempt(|_| false);
    let summary = attempt.ended.as_ref().expect("it ends").summary.clone();
    let lines = evaluations(&bench);
    assert_eq!(steps_of(&lines), [0, 2, 4, 5], "before the first step, every second one, and the last");
    for (step, line) in &lines {
        let names: Vec<&str> = line.keys().map(String::as_str).collect();
        assert_eq!(names, ["epoch", "eval_entropy", "eval_loss", "eval_mean_token_accuracy", "step"], "step {step}");
    }
    let rounded = |value: &Value| (value.as_f64().expect("loss") * 1e4).round() / 1e4;
    assert_eq!(rounded(&lines[0].1["eval_loss"]), rounded(&summary["eval_loss_before"]));
    assert_eq!(rounded(&lines[3].1["eval_loss"]), rounded(&summary["eval_loss_after"]));
    let mut notes = attempt.events.iter().filter_map(|event| match event {
        Event::Progress(progress) => progress.note.clone(),
        _ => None,
    });
    let last = notes.next_back().expect("figures for people");
    assert!(last.starts_with("eval_entropy ") && last.ends_with(" after step 5"), "{last}");
}

#[test]
fn evaluations_wait_and_keep_to_epochs() {
    // 20 samples, 4 a step: 5 steps an epoch.
    let by_epoch = bench(json!({"eval_strategy": "epoch", "max_steps": 12}));
    by_epoch.run();
    assert_eq!(steps_of(&evaluations(&by_epoch)), [5, 10, 12]);
    let late = bench(json!({"eval_strategy": "epoch", "eval_delay": 2, "max_steps": 12}));
    late.run();
    assert_eq!(steps_of(&evaluations(&late)), [10, 12]);
    let late = bench(json!({"eval_strategy": "steps", "eval_steps": 0.25, "eval_delay": 4, "max_steps": 8}));
    late.run();
    assert_eq!(steps_of(&evaluations(&late)), [4, 6, 8]);
}

#[test]
fn lines_of_the_log_come_when_they_are_asked_for() {
    let logged = |more: Value| {
        let bench = bench(more);
        bench.run();
        bench.log().iter().map(|line| line["step"].as_u64().expect("step")).collect::<Vec<_>>()
    };
    assert_eq!(logged(json!({"logging_steps": 4, "logging_first_step": true})), [1, 4, 6]);
    assert_eq!(logged(json!({"logging_strategy": "epoch"})), [5, 6]);
    assert_eq!(logged(json!({"logging_strategy": "no"})), Vec::<u64>::new());
}

/// Learns, then unlearns: the rate is far too high, and grows at first.
fn unlearning(more: Value) -> Bench {
    let mut settings = json!({
        "learning_rate": 0.2, "warmup_steps": 5, "lr_scheduler_type": "constant_with_warmup", "eval_strategy": "steps",
        "eval_steps": 1, "load_best_model_at_end": true, "save_strategy": "steps", "save_steps": 1, "max_steps": 8,
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    bench(settings)
}

fn tensors(path: &std::path::Path) -> BTreeMap<String, Vec<f32>> {
    let source = SafetensorsSource::open_file(path).expect("file");
    source.names().into_iter().map(|name| (name.clone(), source.read_f32(&name).expect("tensor"))).collect()
}

#[test]
fn the_best_weights_come_out_however_few_checkpoints_are_kept() {
    let all = unlearning(json!({}));
    let summary = all.run().summary;
    let best = summary["best_step"].as_u64().expect("a best step");
    assert!((1..8).contains(&best), "neither the first weights nor the last: {summary:?}");
    let lines = evaluations(&all);
    let loss = |step: u64| lines[step as usize - 1].1["eval_loss"].as_f64().expect("loss");
    assert!((1..=8).all(|step| loss(best) <= loss(step)), "{lines:?}");
    assert_eq!(summary["eval_loss_after"], summary["best_eval_loss"], "what is measured at last is what comes out");
    let kept = tensors(&checkpoint::dir_of(&all.checkpoints(), best).join("weights.safetensors"));
    let wanted: Vec<&Vec<f32>> = kept.values().collect();
    let few = unlearning(json!({"save_total_limit": 1}));
    few.run();
    // As in the reference the best one stays beside the newest, where only one is to be kept.
    assert_eq!(few.checkpoints_there(), [best, 8]);
    let two = unlearning(json!({"save_total_limit": 2, "load_best_model_at_end": false}));
    two.run();
    assert_eq!(two.checkpoints_there(), [best, 7]);
    for bench in [&all, &few] {
        let found = tensors(&bench.artifacts().join("adapter_model.safetensors"));
        assert_eq!(found.values().collect::<Vec<_>>(), wanted);
    }
    let last = unlearning(json!({"load_best_model_at_end": false}));
    last.run();
    let found = tensors(&last.artifacts().join("adapter_model.safetensors"));
    assert_ne!(found.values().collect::<Vec<_>>(), wanted);
}

#[test]
fn checkpoints_of_the_best_are_written_when_they_are_asked_for() {
    let bench = unlearning(json!({"save_strategy": "best", "load_best_model_at_end": false}));
    let summary = bench.run().summary;
    let steps = bench.checkpoints_there();
    assert_eq!(steps.last().copied(), summary["best_step"].as_u64(), "{steps:?}");
    assert!(steps.len() < 8, "{steps:?}");
}

#[test]
fn training_ends_when_it_gets_no_better() {
    let bench = unlearning(json!({"early_stopping_patience": 2, "max_steps": 12}));
    let attempt = bench.attempt(|_| false);
    let said = attempt.said();
    let summary = attempt.ended.expect("it ends well").summary;
    let best = summary["best_step"].as_u64().expect("a best step");
    assert_eq!(summary["steps"], json!(best + 2), "{summary:?}");
    assert!(
        said.contains(&format!(
            "training ends early, after step {} of 12: no evaluation since that of step {best}",
            best + 2
        )),
        "{said}"
    );
    assert!(said.contains(&format!("the best weights are those after step {best}: eval_loss")), "{said}");
}

/// Runs attempt after attempt until one ends. Each is asked to stop: by turns between a step and its evaluation, and
/// after the second evaluation. Returns how many there were.
fn in_pieces(bench: &Bench) -> usize {
    for attempts in 1..40 {
        let evaluations = AtomicUsize::new(0);
        let Attempt { ended, .. } = bench.attempt(move |event| match event {
            Event::Progress(_) => attempts % 2 == 1,
            Event::Log { text, .. } if text.contains("held-out data after step") => {
                evaluations.fetch_add(1, Ordering::Relaxed) == 1
            }
            _ => false,
        });
        match ended {
            Ok(_) => return attempts,
            Err(ModuleError::Cancelled) => {
                // What is below the attempt's own folder is of no use to the next one, which may run elsewhere.
                fs::remove_dir_all(bench.folder.path().join("work")).expect("the folder of the best weights");
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it does not come forward");
}

#[test]
fn a_steered_run_in_pieces_equals_the_unbroken_one() {
    for (what, more) in [
        ("best weights", json!({"save_total_limit": 1})),
        ("an early end", json!({"early_stopping_patience": 2, "save_steps": 3})),
        (
            "a plateau",
            json!({
                "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.3},
                "optim": "adamw_8bit", "neftune_noise_alpha": 5, "label_smoothing_factor": 0.1,
            }),
        ),
        ("adafactor", json!({"optim": "adafactor", "eval_on_start": true, "logging_first_step": true})),
        ("sgd", json!({"optim": "sgd", "optim_args": "momentum=0.9", "metric_for_best_model": "eval_entropy"})),
    ] {
        let (unbroken, broken) = (unlearning(more.clone()), unlearning(more));
        unbroken.run();
        let attempts = in_pieces(&broken);
        assert!(attempts > 4, "{what}: {attempts}");
        broken.assert_same(what, &unbroken);
    }
}

#[test]
fn published_checkpoints_may_hold_the_model_alone() {
    let published = |only: bool| {
        let mut bench = bench(json!({"save_only_model": only, "max_steps": 2}));
        bench.spec.output.artifacts.push("checkpoints".into());
        let outputs = bench.run().outputs.into_iter().filter(|output| output.kind == "checkpoints");
        let names = outputs.filter_map(|output| Some(output.path.rsplit_once('/')?.1.to_owned()));
        names.collect::<Vec<_>>()
    };
    assert!(published(false).contains(&"optimizer.safetensors".to_owned()));
    assert_eq!(published(true), ["training_log.jsonl", "weights.safetensors"]);
}

#[test]
fn data_shorter_than_a_step_is_said() {
    let mut bench = bench(json!({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 2}));
    let data = bench.folder.path().join("data.jsonl");
    let text = fs::read_to_string(golden("lora/llama/train.jsonl")).expect("data");
    fs::write(&data, text.lines().take(5).map(|row| format!("{row}\n")).collect::<String>()).expect("write");
    bench.inputs.dataset = Some(data);
    let attempt = bench.attempt(|_| false);
    attempt.ended.as_ref().expect("it goes on");
    let said = attempt.said();
    assert!(said.contains("training data: 5 samples are fewer than a step takes, 6 ("), "{said}");
}
