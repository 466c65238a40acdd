//! The quickstart as it is in the tree: its model, its data and its task fit together.

mod bench;

use std::fs;

use bench::{Bench, in_tree};
use mloc_core::task::{self, TaskSpec, spec::Location};
use mloc_exec::Inputs;
use serde_json::json;

fn config(file: &str) -> TaskSpec {
    let bytes = fs::read(in_tree("configs").join(file)).expect("file");
    task::parse_bytes(&bytes, file).unwrap_or_else(|problems| panic!("{problems}")).spec
}

/// Its inputs, where `mloc run` finds them: below the folder of the task file.
fn inputs(spec: &TaskSpec) -> Inputs {
    let place = |location: &Location| match location {
        Location::Local { path } => in_tree("configs").join(path),
        other => panic!("the quickstart needs no network: {other:?}"),
    };
    let mut inputs = Inputs::default();
    for (input, source) in spec.sources() {
        *inputs.of(input) = Some(place(source));
    }
    inputs
}

#[test]
fn its_first_steps_bring_its_loss_down() {
    let mut spec = config("quickstart.yaml");
    assert_eq!(spec.output.destination, None, "so that it can be run again");
    for (name, value) in [("max_steps", json!(6)), ("logging_steps", json!(1)), ("warmup_steps", json!(0))] {
        spec.hyperparameters.insert(name.into(), value);
    }
    spec.hyperparameters.insert("generation_max_new_tokens".into(), json!(4));
    let bench = Bench::new(spec.clone(), inputs(&spec));
    let summary = bench.run().summary;
    let loss = |name: &str| summary[name].as_f64().expect("loss");
    assert!(loss("eval_loss_after") < 0.8 * loss("eval_loss_before"), "{summary:?}");
}

#[test]
fn its_pairs_are_told_apart_after_some_steps() {
    for file in ["rm_quickstart.yaml", "dpo_quickstart.yaml"] {
        let mut spec = config(file);
        assert_eq!(spec.output.destination, None, "so that it can be run again");
        for (name, value) in [("max_steps", json!(26)), ("logging_steps", json!(13)), ("warmup_steps", json!(0))] {
            spec.hyperparameters.insert(name.into(), value);
        }
        spec.hyperparameters.insert("save_strategy".into(), json!("no"));
        let bench = Bench::new(spec.clone(), inputs(&spec));
        bench.run();
        // The second time through the same pairs.
        let losses: Vec<f64> = bench.log().iter().map(|line| line["loss"].as_f64().expect("loss")).collect();
        assert!(losses.len() == 2 && losses[1] < 0.8 * losses[0], "{file}: {losses:?}");
    }
}

#[test]
fn its_packed_run_makes_what_it_asks_for() {
    let mut spec = config("sft_packed.yaml");
    spec.hyperparameters.insert("max_steps".into(), json!(2));
    let bench = Bench::new(spec.clone(), inputs(&spec));
    let output = bench.run();
    let kinds: Vec<&str> = output.outputs.iter().map(|o| &*o.kind).collect();
    for artifact in &spec.output.artifacts {
        assert!(kinds.contains(&artifact.as_str()), "{artifact}: {kinds:?}");
    }
    assert!(output.summary["eval_loss_after"].is_number(), "{:?}", output.summary);
}

#[test]
fn its_model_has_the_shape_that_its_pretraining_gives() {
    let spec = config("pretrain_quickstart.yaml");
    let shape = task::settings::Shape::of(&spec);
    let config = bench::read_json(&in_tree("configs/quickstart/model/config.json"));
    for (name, value) in [
        ("hidden_size", shape.hidden_size),
        ("intermediate_size", shape.intermediate_size),
        ("num_hidden_layers", shape.num_hidden_layers),
        ("num_attention_heads", shape.num_attention_heads),
        ("num_key_value_heads", shape.num_key_value_heads),
        ("vocab_size", shape.vocab_size),
    ] {
        assert_eq!(config[name], json!(value), "{name}");
    }
    let inputs = inputs(&spec);
    assert!(inputs.dataset.is_some_and(|p| p.is_file()) && inputs.eval.is_some_and(|p| p.is_file()));
}

/// Runs one of the chain's tasks, cut short, on what the former ones left.
fn cut_short(name: &str, more: &[(&str, serde_json::Value)], inputs: Inputs) -> Bench {
    let mut spec = config(name);
    for (name, value) in more {
        spec.hyperparameters.insert((*name).to_owned(), value.clone());
    }
    let bench = Bench::new(spec, inputs);
    bench.run();
    bench
}

#[test]
fn a_chain_of_sft_rm_and_ppo_hands_its_models_on() {
    let (sft, rm, ppo) = (config("rlhf_sft.yaml"), config("rlhf_rm.yaml"), config("rlhf_ppo.yaml"));
    for (task, waits_for) in [(&rm, vec!["rlhf-sft"]), (&ppo, vec!["rlhf-rm", "rlhf-sft"])] {
        let mut names: Vec<&str> = task.waits_for().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names, waits_for, "{}", task.metadata.name);
    }
    let data = |file: &str| Some(in_tree("configs/quickstart/data").join(file));
    let few = [("max_steps", json!(2))];
    let base = Some(in_tree("configs/quickstart/model"));
    let first =
        cut_short("rlhf_sft.yaml", &few, Inputs { model: base, dataset: data("train.jsonl"), ..Inputs::default() });
    assert_eq!(sft.metadata.name, "rlhf-sft");
    let of = |bench: &Bench| Some(bench.artifacts());
    let second = cut_short(
        "rlhf_rm.yaml",
        &few,
        Inputs { model: of(&first), dataset: data("preferences.jsonl"), ..Inputs::default() },
    );
    let third = cut_short(
        "rlhf_ppo.yaml",
        &[("total_episodes", json!(16)), ("response_length", json!(4))],
        Inputs { model: of(&first), reward: of(&second), dataset: data("train.jsonl"), ..Inputs::default() },
    );
    assert!(third.artifacts().join("adapter_model.safetensors").is_file());
    assert!(third.log().iter().any(|line| line.contains_key("objective/scores")));
}

#[test]
fn the_grpo_quickstart_is_rewarded() {
    let inputs = Inputs {
        model: Some(in_tree("configs/quickstart/model")),
        dataset: Some(in_tree("configs/quickstart/data/train.jsonl")),
        ..Inputs::default()
    };
    let bench = cut_short("grpo_quickstart.yaml", &[("max_steps", json!(1))], inputs);
    assert!(bench.log()[0].contains_key("rewards/names_the_program/mean"));
}
