//! What becomes of data on its way to steps: packed, grouped, shuffled, held out, under names of its own.

mod bench;

use std::fs;

use bench::{Bench, golden, spec};
use mloc_core::task::spec::TestSize;
use mloc_exec::{Event, Inputs, ModuleError};
use serde_json::{Value, json};

fn sft(more: Value) -> Bench {
    let mut settings = json!({
        "num_train_epochs": 1, "per_device_train_batch_size": 2, "max_length": 64, "logging_steps": 1,
        "save_strategy": "no", "learning_rate": 1e-3,
    });
    for (name, value) in more.as_object().expect("settings") {
        settings[name] = value.clone();
    }
    let adapter = json!({"type": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    let inputs = Inputs {
        model: Some(golden("models/llama")),
        dataset: Some(golden("lora/llama/train.jsonl")),
        ..Inputs::default()
    };
    Bench::new(spec("sft", Some(adapter), settings), inputs)
}

/// What a run that ends well says, and its log.
fn said(bench: &Bench) -> String {
    let attempt = bench.attempt(|_| false);
    attempt.ended.as_ref().unwrap_or_else(|e| panic!("{e}"));
    attempt.said()
}

fn number_before(said: &str, after: &str, before: &str) -> u64 {
    let (_, rest) = said.split_once(after).unwrap_or_else(|| panic!("no `{after}` in {said}"));
    rest.split_once(before).and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn packed_samples_hold_every_token_once_an_epoch_in_fewer_steps() {
    // Longer than every sample: none is cut.
    let plain = sft(json!({"max_length": 160}));
    let said_plain = said(&plain);
    assert!(said_plain.contains("training data: 20 rows, read as its own format (messages), "), "{said_plain}");
    let tokens = plain.log().last().expect("a line")["num_tokens"].clone();
    for strategy in ["bfd", "bfd_split", "wrapped"] {
        let packed = sft(json!({"max_length": 160, "packing": true, "packing_strategy": strategy}));
        let said = said(&packed);
        let samples = number_before(&said, "samples are packed into ", " of at most 160 tokens");
        assert!((8..15).contains(&samples), "{strategy}: {said}");
        let log = packed.log();
        assert_eq!(log.len() as u64, samples.div_ceil(2), "{strategy}");
        assert_eq!(log.last().expect("a line")["num_tokens"], tokens, "{strategy}");
        assert!(log.iter().all(|line| line["loss"].as_f64().is_some_and(|loss| loss > 0.0)));
    }
}

#[test]
fn a_broken_run_over_packed_and_grouped_samples_equals_the_unbroken_one() {
    for more in [
        json!({"packing": true, "shuffle_dataset": true, "save_strategy": "steps", "save_steps": 2, "seed": 3}),
        json!({"train_sampling_strategy": "group_by_length", "save_strategy": "steps", "save_steps": 3, "seed": 3}),
    ] {
        let (unbroken, broken) = (sft(more.clone()), sft(more.clone()));
        unbroken.run();
        let mut attempts = 1;
        while let Err(error) = broken.attempt(|event| matches!(event, Event::Checkpoint { .. })).ended {
            assert!(matches!(error, ModuleError::Cancelled) && attempts < 9, "{error}");
            attempts += 1;
        }
        assert!(attempts > 2, "it was not broken");
        broken.assert_same(&more.to_string(), &unbroken);
    }
}

#[test]
fn some_of_the_data_is_held_out_where_the_task_says_so() {
    let with = |size, seed: u64| {
        let mut bench = sft(json!({"seed": seed}));
        bench.spec.dataset.as_mut().expect("data").test_size = Some(size);
        bench
    };
    let losses = |bench: &Bench| {
        let output = bench.run();
        (output.summary["eval_loss_before"].clone(), bench.log().len())
    };
    let bench = with(TestSize::Millionths(250_000), 1);
    assert!(said(&bench).contains("held-out data: 5 of 20 samples, picked by the seed"));
    let (loss, steps) = losses(&bench);
    assert_eq!(steps, 8, "15 samples, two a step");
    assert_eq!(losses(&with(TestSize::Rows(5), 1)), (loss.clone(), steps), "the same five");
    assert_ne!(losses(&with(TestSize::Rows(5), 2)).0, loss, "five others");
}

#[test]
fn a_chat_template_and_names_of_columns_come_with_the_task() {
    let mut bench = sft(json!({"assistant_only_loss": true}));
    let marking = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                   <|eot_id|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let dataset = bench.spec.dataset.as_mut().expect("data");
    dataset.chat_template = Some(marking.to_owned());
    dataset.columns = [("messages".to_owned(), "talk".to_owned())].into();
    let data = bench.folder.path().join("data.jsonl");
    let rows = fs::read_to_string(golden("lora/llama/train.jsonl")).expect("data");
    fs::write(&data, rows.replace("\"messages\"", "\"talk\"")).expect("write");
    bench.inputs.dataset = Some(data);
    bench.run();
    // It is what the adapter is published with.
    let config = bench::read_json(&bench.artifacts().join("tokenizer_config.json"));
    assert_eq!(config["chat_template"], json!(marking));
}
