//! What a run says of data and settings that are not quite what they should be, and goes on or does not.

mod bench;

use std::fs;

use bench::{Bench, golden, spec};
use mloc_exec::{Event, Inputs, event::Level};
use serde_json::{Value, json};

fn settings(more: Value) -> Value {
    let mut settings = json!({
        "max_steps": 1, "per_device_train_batch_size": 2, "max_length": 64, "save_strategy": "no", "data_order": "given",
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    settings
}

fn sft(adapter: Option<Value>, more: Value) -> Bench {
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(golden("lora/llama/train.jsonl")),
        ..Inputs::default()
    };
    Bench::new(spec("sft", adapter, settings(more)), inputs)
}

fn with_rows(mut bench: Bench, rows: &str) -> Bench {
    let data = bench.folder.path().join("data.jsonl");
    fs::write(&data, rows).expect("write");
    bench.inputs.dataset = Some(data);
    bench
}

/// The warnings of a run that ends well.
fn warnings(bench: &Bench) -> Vec<String> {
    let attempt = bench.attempt(|_| false);
    attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let warning = |event: &Event| match event {
        Event::Log { level: Level::Warn, text } => Some(text.clone()),
        _ => None,
    };
    attempt.events.iter().filter_map(warning).collect()
}

#[test]
fn samples_without_a_target_are_left_out_and_counted() {
    let long = "Which time zone is for reports, and why is it that one and no other?";
    let rows = format!(
        "{}\n{}\n{}\n",
        json!({"prompt": long, "completion": " UTC"}),
        json!({"prompt": "Up?", "completion": " Yes."}),
        json!({"prompt": long, "completion": " UTC"}),
    );
    let bench = with_rows(sft(None, json!({"max_length": 12, "num_train_epochs": 1, "max_steps": -1})), &rows);
    let warnings = warnings(&bench);
    assert_eq!(warnings[0], "training data: 2 samples were cut to max_length 12");
    assert!(warnings[1].starts_with("training data: 2 of 3 samples have no target and are left out: "), "{warnings:?}");
    assert!(warnings[1].ends_with("hint: max_length is 12: a larger one leaves room for what is to be learnt"));
    let log = bench.log();
    assert_eq!(log.len(), 1, "one step: there is one sample to learn from");
    for figure in ["loss", "grad_norm"] {
        assert!(log[0][figure].as_f64().is_some_and(|v| v > 0.0), "{log:?}");
    }
}

#[test]
fn samples_longer_than_the_models_positions() {
    let mut bench = sft(None, json!({}));
    let model = bench.folder.path().join("model");
    fs::create_dir(&model).expect("folder");
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("models/llama").join(name), model.join(name)).expect("copy");
    }
    let mut config = bench::read_json(&golden("models/llama/config.json"));
    config["max_position_embeddings"] = json!(63);
    fs::write(model.join("config.json"), config.to_string()).expect("write");
    bench.inputs.model = Some(model);
    let warnings = warnings(&bench);
    let said = warnings.last().expect("a warning");
    assert!(said.contains("samples are longer than the 63 tokens that the model's positions are made for"), "{said}");
    assert!(said.ends_with("hint: set max_length to 63 or less"), "{said}");
}

#[test]
fn an_adapters_own_settings() {
    let adapter = |more: Value| {
        let mut adapter = json!({
            "type": "lora", "source": {"type": "local", "identifier": "volume/adapter"}, "target_modules": ["q_proj"],
        });
        for (name, value) in more.as_object().expect("settings") {
            adapter[name] = value.clone();
        }
        let mut bench = sft(Some(adapter), json!({"max_length": 256}));
        bench.inputs.adapter = Some(golden("lora/llama/adapter_init"));
        bench
    };
    let own = bench::read_json(&golden("lora/llama/adapter_init/adapter_config.json"));
    let same = ["r", "lora_alpha", "lora_dropout", "target_modules"].map(|name| (name.to_owned(), own[name].clone()));
    let same = Value::Object(same.into_iter().collect());
    assert_eq!(warnings(&adapter(same.clone())), Vec::<String>::new());
    let mut other = same;
    for (name, value) in [("lora_dropout", json!(0.25)), ("target_modules", json!(["o_proj"]))] {
        other[name] = value;
    }
    let mut targets: Vec<&str> =
        own["target_modules"].as_array().expect("list").iter().filter_map(Value::as_str).collect();
    targets.sort_unstable();
    let wanted = format!(
        "model.adapter: the adapter that this starts from has settings of its own, and they hold: lora_dropout {} (the \
         task: 0.25), target_modules {} (the task: o_proj)",
        own["lora_dropout"].as_f64().expect("dropout"),
        targets.join(" ")
    );
    assert_eq!(warnings(&adapter(other)), [wanted]);
}

#[test]
fn a_last_step_that_leaves_no_numbers_is_a_failure() {
    // Its own loss is that of the weights before it. Once they can still be written down, once they are infinite.
    for (rate, wanted) in [
        (1e18, "the loss on held-out data after training is NaN: the model's weights are out of range"),
        (1e39, "has values that are no numbers: training diverged"),
    ] {
        let mut bench = sft(None, json!({"learning_rate": rate, "lr_scheduler_type": "constant"}));
        bench.inputs.eval = bench.inputs.dataset.clone();
        let said = bench.failure();
        assert!(said.contains(wanted), "{said}");
        assert!(said.ends_with("(hint: lower the learning rate)"), "{said}");
    }
}

#[test]
fn pretraining_reads_data_through_a_prompt_template() {
    let shape = settings(json!({
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }));
    let mut bench = Bench::new(spec("pretrain", None, shape), Inputs::default());
    let dataset = bench.spec.dataset.as_mut().expect("data");
    dataset.prompt_template = Some("Question: {instruction}\nAnswer: {response}".into());
    let rows: String = (0..8)
        .map(|n| format!("{}\n", json!({"instruction": format!("How many nodes are up at {n}?"), "response": n})))
        .collect();
    let bench = with_rows(bench, &rows);
    let attempt = bench.attempt(|_| false);
    attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let said = attempt.said();
    assert!(
        said.contains("training data: 8 rows, read as the text that prompt_template makes of its columns"),
        "{said}"
    );
    // The tokenizer learnt the words of the template too.
    let tokenizer = String::from_utf8(bench.artifact("tokenizer.json")).expect("JSON");
    assert!(tokenizer.contains("Question"), "{tokenizer}");
}

#[test]
fn the_datas_own_format_is_named() {
    let said = sft(None, json!({})).attempt(|_| false).said();
    assert!(said.contains("training data: 20 rows, read as its own format (messages)"), "{said}");
}
