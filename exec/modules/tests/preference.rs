//! `dpo` and `rm` from a task to its artifacts: the reference's numbers in the log, resuming, what is published, and what a
//! user is told when the pairs will not do.

mod bench;

use std::{collections::BTreeMap, fs};

use bench::{Attempt, Bench, golden, read_json, spec};
use mloc_burn::{
    export,
    model::{Decoder, DecoderConfig},
    weights::{SafetensorsSource, TensorSource},
};
use mloc_core::task::spec::TestSize;
use mloc_exec::{Event, Inputs, ModuleError, event::Level};
use serde_json::{Value, json};

fn tensors(path: &std::path::Path) -> BTreeMap<String, Vec<f32>> {
    let source = SafetensorsSource::open_file(path).expect("file");
    source.names().into_iter().map(|name| (name.clone(), source.read_f32(&name).expect("tensor"))).collect()
}

/// A recorded run as a task: same names, same order, every step logged.
fn recorded(method: &str) -> (Value, Value) {
    let expected = read_json(&golden(&format!("{method}/expected.json")));
    let mut settings = expected["hyperparameters"].clone();
    for (name, value) in [("data_order", json!("given")), ("logging_steps", json!(1)), ("save_strategy", json!("no"))] {
        settings[name] = value;
    }
    (expected, settings)
}

fn assert_follows(what: &str, bench: &Bench, expected: &Value) {
    let lines = bench.log();
    let wanted = expected["logs"].as_array().expect("logs");
    assert_eq!(lines.len(), wanted.len(), "{what}");
    for (line, wanted) in lines.iter().zip(wanted) {
        for (name, wanted) in wanted.as_object().expect("log") {
            let wanted = wanted.as_f64().expect("number");
            let within = match name.as_str() {
                "step" | "num_tokens" => 0.0,
                "grad_norm" => 1e-2 * wanted,
                "learning_rate" => 1e-6 * wanted,
                name if name.starts_with("logps/") => 2e-3 + 1e-4 * wanted.abs(),
                _ => 2e-3,
            };
            let found = line[name].as_f64().expect(name);
            assert!((found - wanted).abs() <= within, "{what} {}: {name}: {found}, expected {wanted}", line["step"]);
        }
    }
}

fn kinds(output: &mloc_exec::ModuleOutput) -> Vec<&str> {
    let mut kinds: Vec<&str> = output.outputs.iter().map(|o| &*o.kind).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_dpo_task_follows_the_reference() {
    let (expected, settings) = recorded("dpo");
    let mut adapter = expected["lora"].clone();
    adapter["type"] = json!("lora");
    adapter["source"] = json!({"type": "local", "identifier": "volume/adapter"});
    for precompute in [false, true] {
        let mut settings = settings.clone();
        settings["precompute_ref_log_probs"] = json!(precompute);
        let bench = Bench::new(
            spec("dpo", Some(adapter.clone()), settings),
            Inputs {
                model: Some(golden("models/llama")),
                adapter: Some(golden("dpo/adapter_init")),
                dataset: Some(golden("dpo/pairs.jsonl")),
                ..Inputs::default()
            },
        );
        let output = bench.run();
        assert_follows("dpo", &bench, &expected);
        let found = tensors(&bench.artifacts().join("adapter_model.safetensors"));
        let wanted = tensors(&golden("dpo/adapter_final/adapter_model.safetensors"));
        assert!(found.keys().eq(wanted.keys()));
        for (name, values) in &found {
            let worst = values.iter().zip(&wanted[name]).map(|(f, w)| (f - w).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-3, "{name}: off by {worst}");
        }
        assert_eq!(kinds(&output), ["training_logs", "adapter_weights", "tokenizer", "model_card"]);
    }
}

#[test]
fn a_reward_task_follows_the_reference_and_its_model_is_one_to_start_from() {
    let (expected, settings) = recorded("rm");
    let inputs = |model| Inputs {
        model: Some(model),
        dataset: Some(golden("rm/pairs.jsonl")),
        eval: Some(golden("rm/pairs.jsonl")),
        ..Inputs::default()
    };
    let bench = Bench::new(spec("rm", None, settings.clone()), inputs(golden("rm/model_init")));
    let output = bench.run();
    assert_follows("rm", &bench, &expected);
    assert_eq!(kinds(&output), ["training_logs", "full_model", "tokenizer", "eval_results", "model_card"]);
    let found = &tensors(&bench.artifacts().join("model.safetensors"))["score.weight"];
    let wanted = tensors(&golden("rm/score_final.safetensors")).into_values().next().expect("one tensor");
    assert!(found.iter().zip(&wanted).all(|(f, w)| (f - w).abs() <= 1e-3));
    let config = read_json(&bench.artifacts().join("config.json"));
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!((&config["id2label"], &config["pad_token_id"]), (&json!({"0": "LABEL_0"}), &json!(511)));
    let measured = read_json(&bench.artifacts().join("eval_results.json"));
    for name in
        ["eval_loss", "eval_accuracy", "eval_margin", "eval_loss_before_training", "eval_margin_before_training"]
    {
        assert!(measured[name].is_f64(), "{name} in {measured}");
    }
    let again = Bench::new(spec("rm", None, settings), inputs(bench.artifacts()));
    let summary = again.run().summary;
    assert_eq!(summary["eval_loss_before"], output.summary["eval_loss_after"]);
}

/// Logging and saving out of step, a short last batch, two micro-batches a step, shuffled in several epochs, dropout.
fn settings(more: Value) -> Value {
    let mut settings = json!({
        "max_steps": 5, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
        "max_length": 64, "logging_steps": 2, "save_steps": 2, "seed": 11, "disable_dropout": false,
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    settings
}

fn lora() -> Value {
    json!({"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"]})
}

fn inputs(method: &str) -> Inputs {
    let data = golden(&format!("{method}/pairs.jsonl"));
    Inputs { model: Some(golden("models/llama")), dataset: Some(data.clone()), eval: Some(data), ..Inputs::default() }
}

fn dpo(adapter: Option<Value>, more: Value) -> Bench {
    Bench::new(spec("dpo", adapter, settings(more)), inputs("dpo"))
}

fn rm(adapter: Option<Value>, more: Value) -> Bench {
    Bench::new(spec("rm", adapter, settings(more)), inputs("rm"))
}

/// Makes a task that has not begun.
type Fresh = fn() -> Bench;

#[test]
fn a_run_stopped_after_each_step_equals_the_unbroken_one() {
    let cases: [(&str, Fresh); 5] = [
        ("dpo, adapter", || dpo(Some(lora()), json!({}))),
        ("dpo, adapter, precomputed", || dpo(Some(lora()), json!({"precompute_ref_log_probs": true}))),
        ("dpo, all weights", || dpo(None, json!({"loss_type": ["ipo", "hinge"], "loss_weights": [1.0, 0.5]}))),
        ("rm, adapter", || rm(Some(lora()), json!({}))),
        ("rm, all weights", || rm(None, json!({"center_rewards_coefficient": 0.01}))),
    ];
    for (what, fresh) in cases {
        let (unbroken, broken) = (fresh(), fresh());
        unbroken.run();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Attempt { ended, .. } = broken.attempt(|event| matches!(event, Event::Progress(_)));
            match ended {
                Ok(_) => break,
                Err(ModuleError::Cancelled) => assert!(attempts < 20, "{what}: it does not come forward"),
                Err(other) => panic!("{what}: {other}"),
            }
        }
        assert_eq!(attempts, 6, "{what}: each of five did one step, and the last one measured");
        broken.assert_same(what, &unbroken);
    }
}

#[test]
fn other_settings_of_the_method_are_refused_by_name() {
    let mut bench = dpo(Some(lora()), json!({}));
    let first = bench.attempt(|event| matches!(event, Event::Checkpoint { .. }));
    assert!(matches!(first.ended, Err(ModuleError::Cancelled)), "{:?}", first.ended);
    bench.spec.hyperparameters.insert("beta".into(), json!(0.5));
    let said = bench.failure();
    assert!(said.contains("made with other settings: beta was 0.1, is now 0.5\n"), "{said}");
}

#[test]
fn a_reward_adapter_holds_its_head_and_merges_into_a_whole_model() {
    let mut bench = rm(Some(lora()), json!({"save_strategy": "no", "max_steps": 2}));
    bench.spec.output.artifacts = vec!["adapter_weights".into(), "merged_model".into(), "tokenizer".into()];
    let output = bench.run();
    let names: Vec<String> = tensors(&bench.artifacts().join("adapter_model.safetensors")).into_keys().collect();
    assert!(names.contains(&"base_model.model.score.weight".to_owned()), "{names:?}");
    let config = read_json(&bench.artifacts().join("adapter_config.json"));
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let merged = bench.artifacts().join("merged_model");
    assert_eq!(read_json(&merged.join("config.json"))["architectures"], json!(["LlamaForSequenceClassification"]));
    let again = Bench::new(
        spec("rm", None, settings(json!({"save_strategy": "no", "max_steps": 1}))),
        Inputs { model: Some(merged), ..inputs("rm") },
    );
    let (was, is) = (output.summary["eval_loss_after"].as_f64(), again.run().summary["eval_loss_before"].as_f64());
    assert!((was.expect("loss") - is.expect("loss")).abs() <= 2e-4, "{was:?} {is:?}");
}

#[test]
fn some_pairs_are_held_out_by_the_seed_where_a_task_asks_for_it() {
    let run = |method: fn(Option<Value>, Value) -> Bench, seed: u64| {
        let mut bench = method(Some(lora()), json!({"max_steps": 1, "save_strategy": "no", "seed": seed}));
        bench.inputs.eval = None;
        bench.spec.dataset.as_mut().expect("data").test_size = Some(TestSize::Rows(3));
        let attempt = bench.attempt(|_| false);
        let said = attempt.said();
        assert!(said.contains("held-out data: 3 of 10 pairs, picked by the seed"), "{said}");
        attempt.ended.expect("it ends well").summary["eval_loss_before"].clone()
    };
    assert_eq!(run(rm, 1), run(rm, 1));
    assert_ne!(run(rm, 1), run(rm, 2), "other pairs, and another head");
    // Of an adapter that changes nothing yet: ln 2 of any pair.
    assert_eq!(run(dpo, 1).to_string(), "0.6931");
}

fn with_rows(mut bench: Bench, rows: &[Value]) -> Bench {
    let data = bench.folder.path().join("data.jsonl");
    fs::write(&data, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("write");
    bench.inputs.dataset = Some(data);
    bench.inputs.eval = None;
    bench
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Value {
    json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
}

#[test]
fn what_is_said_of_pairs_that_will_not_do() {
    let check = |name: &str, bench: Bench| insta::assert_snapshot!(name, bench.failure());
    let rows = [pair("Up?", " Yes.", " No."), pair("Down?", " No.", " Yes, they all are at once.")];
    check("no chosen column", with_rows(dpo(None, json!({})), &[json!({"prompt": "Up?", "completion": "Yes."})]));
    check("both sides equal", with_rows(rm(None, json!({})), &[rows[0].clone(), pair("Up?", " No.", " No.")]));
    check("a prompt fills max_length", with_rows(dpo(None, json!({"max_length": 2})), &rows));
    check("all pairs are longer than max_length", with_rows(rm(None, json!({"max_length": 2})), &rows));
    let margin = json!({"chosen": "a", "rejected": "b", "margin": 1});
    check("some pairs have a margin", with_rows(rm(None, json!({})), &[rows[0].clone(), margin]));
    let mut template = with_rows(dpo(None, json!({})), &rows);
    template.spec.dataset.as_mut().expect("data").prompt_template = Some("{prompt}{chosen}".into());
    check("a prompt template for pairs", template);

    let copy = |bench: &mut Bench, from: &str, change: &dyn Fn(&mut Value, &str)| {
        let model = bench.folder.path().join("model");
        fs::create_dir(&model).expect("folder");
        fs::copy(golden(from).join("model.safetensors"), model.join("model.safetensors")).expect("copy");
        fs::copy(golden(from).join("tokenizer.json"), model.join("tokenizer.json")).expect("copy");
        for name in ["config.json", "tokenizer_config.json"] {
            let mut file = read_json(&golden(from).join(name));
            change(&mut file, name);
            fs::write(model.join(name), file.to_string()).expect("write");
        }
        bench.inputs.model = Some(model);
    };
    let mut plain = dpo(None, json!({}));
    copy(&mut plain, "models/llama", &|file, _| {
        file.as_object_mut().expect("object").remove("chat_template");
    });
    check("messages without a chat template", plain);
    let mut scored = dpo(None, json!({}));
    scored.inputs.model = Some(golden("rm/model_init"));
    check("dpo of a reward model", scored);
    let mut two = rm(None, json!({}));
    copy(&mut two, "models/llama", &|_, _| {});
    let folder = two.inputs.model.clone().expect("model");
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    let model = Decoder::load(config, &source, &burn::tensor::Device::flex()).expect("model").into_classifier(2, 1);
    export::write_model(&model, &folder, export::Storage::F32, &|| false).expect("write");
    check("two scores in place of one", two);
}

#[test]
fn pairs_that_are_left_out_or_say_nothing_are_counted() {
    let long = "Which time zone is for reports, and why is it that one and no other?";
    let rows = [pair(long, " UTC", " Mars"), pair("Up?", " Yes.", " No."), pair("Up?", " Yes it is", " Yes it was")];
    let warnings = |bench: &Bench| {
        let attempt = bench.attempt(|_| false);
        attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
        let warning = |event: &Event| match event {
            Event::Log { level: Level::Warn, text } => Some(text.clone()),
            _ => None,
        };
        attempt.events.iter().filter_map(warning).collect::<Vec<_>>()
    };
    let short = json!({"max_length": 6, "max_steps": 1, "save_strategy": "no"});
    let said = warnings(&with_rows(dpo(Some(lora()), short.clone()), &rows));
    assert!(said[0].starts_with("training data: 1 of 3 pairs are left out: no token of an answer is left"), "{said:?}");
    let margin = json!({"prompt": "Up?", "chosen": " Yes.", "rejected": " No.", "margin": 2});
    let off = json!({"disable_dropout": true, "max_steps": 1, "save_strategy": "no"});
    let said = warnings(&with_rows(dpo(Some(lora()), off), &[margin]));
    assert!(said[0].starts_with("model.adapter.lora_dropout: 0.2 has no effect: "), "{said:?}");
    assert_eq!(said[1], "training data: the column `margin` has no part in dpo: it is read by rm only");
    let scored =
        json!({"prompt": "Up?", "chosen": " Yes.", "rejected": " No.", "score_chosen": 9, "score_rejected": 2});
    let once = json!({"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 1});
    for bench in [rm(None, once.clone()), dpo(None, once)] {
        let said = warnings(&with_rows(bench, &[scored.clone(), scored.clone()]));
        let told: Vec<&String> = said.iter().filter(|said| said.contains("score_chosen")).collect();
        assert_eq!(told.len(), 1, "{said:?}");
        assert!(told[0].starts_with("training data: the columns `score_chosen` and `score_rejected` have no part"));
        assert!(told[0].contains("hint: rm reads a column `margin`"), "{said:?}");
    }
    let one_a_step = json!({
        "max_length": 12, "max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
    });
    let said = warnings(&with_rows(rm(Some(lora()), one_a_step), &rows));
    assert_eq!(
        said[0],
        "training data: 1 of 3 pairs are left out: one of their sides has no tokens, or more than max_length 12"
    );
}
