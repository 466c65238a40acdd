//! `ppo` and `grpo`: the mean reward rises, a run that is cut equals one that is not, and what cannot be learnt from is
//! said.

mod bench;

use std::{fs, path::Path};

use bench::{Bench, golden, rewarded_spec};
use mloc_burn::{
    export::{Storage, write_model},
    model::{Decoder, DecoderConfig},
    weights::SafetensorsSource,
};
use mloc_exec::{Event, Inputs, ModuleError, Programs, Sandbox};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Prompts of a few tokens, with a column for functions.
fn prompts(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("prompts.jsonl");
    let row = |i: usize| json!({"prompt": format!("Is node-{i} up?"), "answer": format!("node-{i}")}).to_string();
    fs::write(&path, (0..12).map(row).collect::<Vec<_>>().join("\n")).expect("prompts");
    path
}

/// A reward model of random weights with the tokens of a golden model, as an `rm` task leaves it.
fn reward_model(folder: &Path, family: &str, change: impl Fn(&mut Decoder)) -> std::path::PathBuf {
    let from = golden(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&from).expect("config");
    let source = SafetensorsSource::open_folder(&from).expect("weights");
    let base = Decoder::load(config, &source, &burn::tensor::Device::flex()).expect("model");
    let mut model = base.into_classifier(1, 3);
    change(&mut model);
    let into = folder.join(format!("reward-{family}"));
    fs::create_dir(&into).expect("folder");
    write_model(&model, &into, Storage::F32, &|| false).expect("model");
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::copy(from.join(file), into.join(file)).expect(file);
    }
    into
}

struct Case {
    bench: Bench,
    /// What lies beside the task.
    folder: TempDir,
}

fn case(task_type: &str, adapter: Option<Value>, reward: Value, hyperparameters: Value) -> Case {
    let folder = tempfile::tempdir().expect("folder");
    let mut inputs =
        Inputs { model: Some(golden("models/llama")), dataset: Some(prompts(folder.path())), ..Inputs::default() };
    if reward.get("model").is_some() {
        // Its score counts: fresh ones say next to nothing.
        inputs.reward = Some(reward_model(folder.path(), "llama", |model| {
            if let Some(head) = &mut model.score {
                head.weight.value = head.weight.value.clone().mul_scalar(20.0);
            }
        }));
    }
    Case { bench: Bench::new(rewarded_spec(task_type, adapter, reward, hyperparameters), inputs), folder }
}

/// A text with an `e` in it is good.
fn toy() -> Value {
    json!({"funcs": [{"type": "regex", "pattern": "e", "name": "has_e"}]})
}

fn a_model() -> Value {
    json!({"model": {"source": {"type": "local", "identifier": "volume/reward"}}})
}

fn lora() -> Value {
    json!({"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"]})
}

fn grpo(seed: u64) -> Value {
    json!({
        "max_steps": 12, "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 4,
        "learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 1, "seed": seed,
    })
}

fn ppo(seed: u64) -> Value {
    json!({
        "total_episodes": 160, "per_device_train_batch_size": 8, "num_ppo_epochs": 2, "response_length": 4,
        "gradient_accumulation_steps": 1, "temperature": 1.0, "learning_rate": 3e-3, "kl_coef": 0.01,
        "lr_scheduler_type": "constant", "logging_steps": 1, "seed": seed,
    })
}

fn with(mut settings: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    settings
}

/// A figure of each logged line that has it.
fn figures(bench: &Bench, name: &str) -> Vec<f64> {
    bench.log().iter().filter_map(|line| line.get(name)?.as_f64()).collect()
}

/// The mean of a figure over the last third of the run, less that over its first three steps.
fn rise(bench: &Bench, name: &str) -> f64 {
    let all = figures(bench, name);
    assert!(all.len() >= 9, "{name}: {all:?}");
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    mean(&all[all.len() * 2 / 3..]) - mean(&all[..3])
}

#[test]
fn grpo_learns_what_is_rewarded() {
    for seed in 1..=3 {
        let case = case("grpo", None, toy(), grpo(seed));
        case.bench.run();
        let rise = rise(&case.bench, "reward");
        assert!(rise > 0.2, "seed {seed}: {rise}, {:?}", figures(&case.bench, "reward"));
    }
}

#[test]
fn ppo_learns_what_is_rewarded() {
    // Values from a head on the policy, and from a model that starts as the reward model.
    for (reward, more) in [(toy(), json!({"value_head": true})), (a_model(), json!({}))] {
        for seed in 1..=3 {
            let case = case("ppo", None, reward.clone(), with(ppo(seed), more.clone()));
            case.bench.run();
            let rise = rise(&case.bench, "objective/scores");
            assert!(rise > 0.2, "{reward}, seed {seed}: {rise}, {:?}", figures(&case.bench, "objective/scores"));
        }
    }
}

#[test]
fn a_run_stopped_at_each_checkpoint_equals_the_unbroken_one() {
    // Two steps to a rollout's part, each twice: every second checkpoint is in the middle of one.
    let grpo = json!({
        "max_steps": 6, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2, "beta": 0.1,
        "num_generations": 4, "max_completion_length": 5, "learning_rate": 5e-3, "logging_steps": 2, "save_steps": 1,
        "seed": 5, "loss_type": "grpo", "mask_truncated_completions": false,
    });
    let ppo = json!({
        "total_episodes": 16, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_ppo_epochs": 2,
        "num_mini_batches": 2, "response_length": 5, "stop_token": "eos", "missing_eos_penalty": 1.0,
        "learning_rate": 5e-3, "seed": 5, "save_steps": 1, "logging_steps": 1,
    });
    // Adapters, and all weights: then the reference is all that keeps what the model was before.
    let head = with(ppo.clone(), json!({"value_head": true}));
    for (task_type, adapter, reward, settings) in [
        ("grpo", Some(lora()), toy(), &grpo),
        ("grpo", None, toy(), &grpo),
        ("ppo", Some(lora()), a_model(), &ppo),
        ("ppo", None, a_model(), &ppo),
        ("ppo", None, a_model(), &head),
    ] {
        let fresh = || case(task_type, adapter.clone(), reward.clone(), settings.clone());
        let (unbroken, broken) = (fresh(), fresh());
        unbroken.bench.run();
        let mut attempts = 0;
        loop {
            attempts += 1;
            assert!(attempts < 20, "{task_type} does not come forward");
            // Also between checkpoints, where the rollout is half learnt from.
            let attempt = broken.bench.attempt(|event| matches!(event, Event::Progress(_) | Event::Checkpoint { .. }));
            match attempt.ended {
                Ok(_) => break,
                Err(ModuleError::Cancelled) => {}
                Err(other) => panic!("{task_type}: {other}"),
            }
        }
        assert!(attempts > 2, "{task_type}: {attempts}");
        broken.bench.assert_same(task_type, &unbroken.bench);
    }
}

#[test]
fn the_log_has_the_references_names() {
    let funcs = json!([
        {"type": "regex", "pattern": "e"}, {"type": "exact_match", "column": "answer"}, {"type": "json"},
        {"type": "length", "max": 3, "unit": "tokens"}, {"type": "model"},
    ]);
    let reward = json!({"model": a_model()["model"], "funcs": funcs});
    let settings = with(grpo(1), json!({"max_steps": 1, "beta": 0.04, "reward_weights": [1, 1, 0.5, 1, 0.1]}));
    let grpo = case("grpo", Some(lora()), reward, settings);
    grpo.bench.run();
    let line = &grpo.bench.log()[0];
    for name in [
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/regex/mean",
        "rewards/regex/std",
        "rewards/exact_match/mean",
        "rewards/json/mean",
        "rewards/length/mean",
        "rewards/model/mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "kl",
        "entropy",
        "num_tokens",
        "loss",
        "grad_norm",
        "learning_rate",
        "step",
        "epoch",
    ] {
        assert!(line.get(name).is_some_and(Value::is_number), "{name}: {line:?}");
    }
    assert_eq!(line["kl"], json!(0.0), "a fresh adapter changes nothing");
    let ppo = case("ppo", Some(lora()), a_model(), with(ppo(1), json!({"total_episodes": 8})));
    ppo.bench.run();
    let line = &ppo.bench.log()[0];
    for name in [
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/num_eos_tokens",
        "episode",
        "learning_rate",
    ] {
        assert!(line.get(name).is_some_and(Value::is_number), "{name}: {line:?}");
    }
    assert_eq!(line["episode"], json!(8.0));
    // What was sampled and what is read back agree but for rounding.
    assert!(line["objective/kl"].as_f64().is_some_and(|kl| kl.abs() < 1e-3), "{line:?}");
}

/// A program that answers each batch of four completions with the same line.
fn program(answer: &str) -> Value {
    let script = format!("while read -r line; do echo a word for the log; echo '{answer}'; done");
    json!({"funcs": [{"type": "command", "name": "mine", "command": ["sh", "-c", script]}]})
}

fn of_a_program(reward: Value) -> Case {
    let settings = with(grpo(1), json!({"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4}));
    let mut case = case("grpo", Some(lora()), reward, settings);
    case.bench.programs = Some(Programs { sandbox: Sandbox::Off, hidden: Vec::new(), processes: Programs::PROCESSES });
    case
}

#[test]
fn a_program_rewards() {
    let case = of_a_program(program("[1, 2.5, null, 0]"));
    case.bench.run();
    let line = &case.bench.log()[0];
    let mean = line["rewards/mine/mean"].as_f64().expect("mean");
    assert!((mean - 3.5 / 3.0).abs() < 1e-9, "null is left out: {mean}");
}

#[test]
fn what_cannot_be_learnt_from_is_said() {
    let said = |case: &Case| {
        let said = case.bench.failure();
        said.replace(&format!("{}/", case.folder.path().display()), "")
    };
    insta::assert_snapshot!(said(&of_a_program(program("[1, 2]"))), @"reward function `mine`: the program answered with 2 numbers, expected 4, one a completion: `[1, 2]`");
    insta::assert_snapshot!(said(&of_a_program(program("[NaN, 1, 1, 1]"))), @"reward function `mine`: the program answered `[NaN, 1, 1, 1]`, expected a list of numbers and nulls: expected value at line 1 column 2");
    let gone = json!({"funcs": [{"type": "command", "command": ["sh", "-c", "exit 3"]}]});
    insta::assert_snapshot!(said(&of_a_program(gone)), @"
    reward function `command`: the program ended (exit status: 3) before it answered
    hint: its log says why, if it said so
    ");
    let column = json!({"funcs": [{"type": "exact_match", "column": "solution"}]});
    insta::assert_snapshot!(said(&case("grpo", None, column, grpo(1))), @"reward function `exact_match`: no column `solution` in the data, found answer");
    insta::assert_snapshot!(said(&case("grpo", None, toy(), with(grpo(1), json!({"num_generations": 2})))), @"dataset.source: 12 prompts, and 16 are answered together: give more, or make batches smaller");

    let mut other_words = case("ppo", None, a_model(), ppo(1));
    other_words.bench.inputs.reward = Some(reward_model(other_words.folder.path(), "qwen2", |_| {}));
    insta::assert_snapshot!(said(&other_words), @r#"
    reward.model: it is given the tokens of the trained model, and its vocabulary is another: token 343 is "ag" there and "00" here
    hint: use one that was made from the same base model
    "#);
    let mut no_scores = case("ppo", None, a_model(), ppo(1));
    no_scores.bench.inputs.reward = Some(golden("models/llama"));
    insta::assert_snapshot!(said(&no_scores), @"reward.model: LlamaForCausalLM has a head over the vocabulary, expected a score head of one label (hint: `taskType: rm` makes one)");
    let mut broken = case("ppo", None, a_model(), ppo(1));
    let folder = tempfile::tempdir().expect("folder");
    broken.bench.inputs.reward = Some(reward_model(folder.path(), "llama", |model| {
        if let Some(head) = &mut model.score {
            head.weight.value = head.weight.value.clone().mul_scalar(f32::NAN);
        }
    }));
    let found = said(&broken);
    let (before, after) = (found.split('"').next().unwrap_or_default(), found.rsplit('"').next().unwrap_or_default());
    insta::assert_snapshot!(format!("{before}…{after}"), @"reward function `model`: it says NaN of the completion …: a reward is a finite number, or null where the function has nothing to say");
}

#[test]
fn a_node_that_runs_no_programs_says_so() {
    let mut case = of_a_program(program("[1]"));
    case.bench.programs = None;
    match case.bench.attempt(|_| false).ended {
        Err(ModuleError::Retryable(said)) => {
            assert!(said.contains("this node runs no programs of its users"), "{said}")
        }
        other => panic!("{other:?}"),
    }
}
