//! What a user is told when what was pulled, or granted, will not do. One snapshot a case.

mod bench;

use std::{fs, path::Path};

use bench::{Bench, golden, read_json, spec};
use mloc_core::{capability::Grant, task::spec::TestSize};
use mloc_exec::Inputs;
use serde_json::{Value, json};

fn settings() -> Value {
    json!({"max_steps": 1, "per_device_train_batch_size": 2, "max_length": 64})
}

fn adapter() -> Value {
    json!({"type": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
}

/// A LoRA task on a copy of the llama fixture and of its data, for a test to spoil.
fn bench() -> Bench {
    let mut bench = Bench::new(spec("sft", Some(adapter()), settings()), Inputs::default());
    let (model, data) = (bench.folder.path().join("model"), bench.folder.path().join("data.jsonl"));
    fs::create_dir(&model).expect("folder");
    for entry in fs::read_dir(golden("models/llama")).expect("fixture") {
        let from = entry.expect("entry").path();
        fs::copy(&from, model.join(from.file_name().expect("name"))).expect("copy");
    }
    fs::copy(golden("lora/llama/train.jsonl"), &data).expect("copy");
    bench.inputs = Inputs { model: Some(model), dataset: Some(data), ..Inputs::default() };
    bench
}

/// Spoils something of the task's, and looks at what is said.
fn check(name: &str, spoil: impl FnOnce(&mut Bench, &Path)) {
    let mut bench = bench();
    let folder = bench.folder.path().to_owned();
    spoil(&mut bench, &folder);
    insta::assert_snapshot!(name, bench.failure());
}

#[test]
fn the_model() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        check(&format!("model without {file}"), |_, at| fs::remove_file(at.join("model").join(file)).expect("remove"));
    }
    check("model of another shape", |_, at| {
        let path = at.join("model/config.json");
        let mut config = read_json(&path);
        config["intermediate_size"] = json!(100);
        fs::write(path, config.to_string()).expect("write");
    });
    check("model of an unknown architecture", |_, at| {
        let path = at.join("model/config.json");
        let mut config = read_json(&path);
        config["architectures"] = json!(["MambaForCausalLM"]);
        fs::write(path, config.to_string()).expect("write");
    });
    check("model cut short", |_, at| {
        let path = at.join("model/model.safetensors");
        let bytes = fs::read(&path).expect("read");
        fs::write(path, &bytes[..bytes.len() - 1000]).expect("write");
    });
    check("model is some file", |bench, at| bench.inputs.model = Some(at.join("data.jsonl")));
    check("model is two gguf files", |bench, at| {
        let both = at.join("both");
        fs::create_dir(&both).expect("folder");
        for name in ["a.gguf", "b.GGUF"] {
            fs::write(both.join(name), b"GGUF").expect("write");
        }
        bench.inputs.model = Some(both);
    });
    check("model is a gguf file cut short", |bench, at| {
        let file = at.join("a.gguf");
        fs::write(&file, b"GGUF\x03\0\0\0").expect("write");
        bench.inputs.model = Some(file);
    });
    check("model was not pulled", |bench, _| bench.inputs.model = None);
}

#[test]
fn the_adapter() {
    let of = |modules: &[&str]| {
        let mut adapter = adapter();
        adapter["target_modules"] = json!(modules);
        spec("sft", Some(adapter), settings())
    };
    check("adapter for layers that are not there", |bench, _| bench.spec = of(&["q_proj", "query_key_value"]));
    check("adapter of another model", |bench, _| {
        bench.inputs.model = Some(golden("models/mistral"));
        bench.inputs.adapter = Some(golden("lora/llama/adapter_init"));
    });
    check("adapter without its settings", |bench, at| bench.inputs.adapter = Some(at.to_owned()));
    check("adapter by a pattern that matches nothing", |bench, _| {
        let mut adapter = adapter();
        adapter["target_modules"] = json!(r".*\.attention\.(q|v)");
        bench.spec = spec("sft", Some(adapter), settings());
    });
    check("module beside the adapter that is held in 4 bits", |bench, _| {
        let mut adapter = adapter();
        adapter["type"] = json!("qlora");
        adapter["modules_to_save"] = json!(["down_proj"]);
        bench.spec = spec("sft", Some(adapter), settings());
    });
    check("model that is packed already", |_, at| {
        let path = at.join("model/config.json");
        let mut config = read_json(&path);
        config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        fs::write(path, config.to_string()).expect("write");
    });
}

#[test]
fn the_data() {
    let write = |at: &Path, text: &str| fs::write(at.join("data.jsonl"), text).expect("write");
    let good = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}"#;
    check("data with a line that is no JSON", |_, at| write(at, &format!("{good}\n{{\"messages\": [\n{good}\n")));
    check("data with other columns", |_, at| write(at, r#"{"instruction": "Hi", "response": "Hello."}"#));
    check("data without a role", |_, at| write(at, &format!("{good}\n{}", r#"{"messages": [{"content": "Hi"}]}"#)));
    check("data that is empty", |_, at| write(at, "\n"));
    check("data without a target", |bench, at| {
        let rows = r#"{"prompt": "Which time zone is for reports, and why?", "completion": " UTC"}"#;
        write(at, &format!("{rows}\n{rows}"));
        bench.spec.hyperparameters.insert("max_length".into(), json!(4));
    });
    check("data under a name that is nearly right", |bench, at| {
        write(at, r#"{"questions": "Up?", "answer": "Yes."}"#);
        let columns = [("prompt", "question"), ("completion", "answer")];
        let columns = columns.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned()));
        bench.spec.dataset.as_mut().expect("data").columns = columns.into();
    });
    check("data of messages for a model without a chat template", |_, at| {
        let path = at.join("model/tokenizer_config.json");
        let mut config = read_json(&path);
        config.as_object_mut().expect("object").remove("chat_template");
        fs::write(path, config.to_string()).expect("write");
        write(at, good);
    });
    check("answers alone of a template that marks none", |bench, at| {
        write(at, good);
        bench.spec.hyperparameters.insert("assistant_only_loss".into(), json!(true));
    });
    check("data with a token that the model has not", |_, at| {
        let path = at.join("model/tokenizer_config.json");
        let mut config = read_json(&path);
        config["added_tokens_decoder"] = json!({"512": {"content": "<|new|>", "special": true}});
        fs::write(path, config.to_string()).expect("write");
        write(at, &format!("{good}\n{}", r#"{"text": "and now <|new|>"}"#));
    });
    check("data all held out", |bench, at| {
        write(at, &format!("{good}\n{good}"));
        bench.spec.dataset.as_mut().expect("data").test_size = Some(TestSize::Rows(2));
    });
    check("a gguf file of a tokenizer without a name there", |bench, at| {
        let path = at.join("model/tokenizer.json");
        let text = fs::read_to_string(&path).expect("read");
        fs::write(path, text.replace("1,3}", "1,2}")).expect("write");
        bench.spec.output.artifacts = vec!["gguf:q4_0".into()];
    });
    check("data that is not there", |_, at| fs::remove_file(at.join("data.jsonl")).expect("remove"));
}

#[test]
fn the_device() {
    let gpus = |gpus: &[u32], kind: &str| Grant { gpus: gpus.to_vec(), gpu_kind: kind.into(), ..Grant::default() };
    check("a simulated gpu", |bench, _| bench.grant = gpus(&[0], "simulated:nvidia-h100-80gb"));
    if cfg!(not(feature = "cuda")) {
        check("a gpu without cuda in the build", |bench, _| bench.grant = gpus(&[0], "nvidia-h100-80gb"));
    }
}

#[test]
fn the_settings() {
    check("half precision on a processor", |bench, _| {
        bench.spec.hyperparameters.insert("fp16".into(), json!(true));
    });
    check("a rate at which it diverges", |bench, _| {
        bench.spec.hyperparameters.insert("learning_rate".into(), json!(1e30));
        bench.spec.hyperparameters.insert("max_steps".into(), json!(3));
    });
    check("a rate at which it diverges after a checkpoint", |bench, _| {
        for (name, value) in [("learning_rate", json!(1e30)), ("max_steps", json!(3)), ("save_steps", json!(1))] {
            bench.spec.hyperparameters.insert(name.into(), value);
        }
    });
    check("a metric that is not measured", |bench, at| {
        bench.spec = spec("rm", Some(adapter()), settings());
        let rows = r#"{"prompt": "Up?", "chosen": " Yes.", "rejected": " No."}"#;
        fs::write(at.join("data.jsonl"), format!("{rows}\n{rows}\n")).expect("write");
        bench.inputs.eval = bench.inputs.dataset.clone();
        for (name, value) in [
            ("eval_strategy", json!("epoch")),
            ("load_best_model_at_end", json!(true)),
            ("metric_for_best_model", json!("eval_bleu")),
        ] {
            bench.spec.hyperparameters.insert(name.into(), value);
        }
    });
}
