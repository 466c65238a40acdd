//! The whole way from bytes to a spec, over the files of this repository.

use std::{fs, path::PathBuf};

use super::*;

mod properties;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Task files under a folder, by name.
fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(repository().join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"));
    paths.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

#[test]
fn the_smallest_task_is_taken() {
    let text = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: hi}\nspec: {taskType: echo}\n";
    let spec = parse(text, "task.yaml").unwrap().spec;
    assert_eq!(spec.task_type, TaskType::Echo);
    assert_eq!(spec.metadata.project, "default");
}

#[test]
fn every_example_is_taken_and_survives_its_canonical_form() {
    let mut count = 0;
    for folder in ["configs", "tests/fixtures/tasks/good"] {
        for (name, bytes) in files(folder).into_iter().filter(|(name, _)| name != "node.yaml") {
            let spec = match parse_bytes(&bytes, &name) {
                Ok(parsed) => parsed.spec,
                Err(problems) => panic!("{problems}"),
            };
            let canonical = canonical::write(&spec).unwrap();
            match parse(&canonical, &name) {
                Ok(again) => assert_eq!(again.spec, spec, "{canonical}"),
                Err(problems) => panic!("{problems}\n{canonical}"),
            }
            // The ledger and the wire keep specs as JSON.
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
            count += 1;
        }
    }
    assert!(count >= 5, "only {count} examples");
}

/// One snapshot a file: read them as a user would.
#[test]
fn every_bad_file_says_what_would_work() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(repository().join("tests/fixtures/tasks/bad/messages"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let files = files("tests/fixtures/tasks/bad");
    assert!(files.len() >= 25, "only {} files", files.len());
    for (name, bytes) in files {
        let problems = match parse_bytes(&bytes, &name) {
            Ok(parsed) => panic!("{name} was taken: {:?}", parsed.spec),
            Err(problems) => problems,
        };
        assert!(!problems.problems.is_empty(), "{name} was refused without a reason");
        settings.bind(|| insta::assert_snapshot!(name.trim_end_matches(".yaml"), problems.to_string()));
    }
}

#[test]
fn a_huge_body_is_refused_by_its_size() {
    let body = vec![b'#'; 100 << 20];
    let problems = parse_bytes(&body, "body").unwrap_err();
    insta::assert_snapshot!(problems.to_string(), @"
    body:1:1: found 104857600 bytes, expected at most 262144 bytes
      hint: a task names its data and does not hold it: put the data where a `source` can name it
    ");
}

#[test]
fn problems_are_plain_data_for_rest() {
    let problems = parse("kind: TrainingTask\n", "task.yaml").unwrap_err();
    let json = serde_json::to_value(&problems.problems[0]).unwrap();
    let want = serde_json::json!({
        "path": "apiVersion", "line": 1, "column": 1, "found": "nothing", "expected": "`mloc/v1`",
    });
    assert_eq!(json, want);
}

#[test]
fn notes_tell_what_has_no_effect() {
    let bytes = fs::read(repository().join("configs/sft_mistral_7b.yaml")).unwrap();
    let parsed = parse_bytes(&bytes, "sft_mistral_7b.yaml").unwrap();
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"
    40:24: spec.dataset.preprocessing.prompt_template: `...` stands for the data set's own format
    44:5: spec.hyperparameters.output_dir: has no effect: the worker chooses its own folder, and artifacts go to `output.destination`
    ");
}

#[test]
fn notes_tell_what_other_settings_leave_without_effect() {
    let text = "apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: x}
spec:
  taskType: pretrain
  dataset: {source: {type: local, path: data/train}}
  hyperparameters:
    optim: adafactor
    adam_beta1: 0.8
    lr_scheduler_type: constant
    warmup_ratio: 0.1
    save_strategy: epoch
    save_steps: 10
    eval_steps: 10
    logging_steps: 10
    early_stopping_threshold: 0.1
";
    let notes: Vec<_> = parse(text, "task.yaml").unwrap().notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"
    9:17: spec.hyperparameters.adam_beta1: has no effect with `optim: adafactor`
    11:5: spec.hyperparameters.warmup_ratio: an old name: read as `warmup_steps: 0.1`
    11:19: spec.hyperparameters.warmup_ratio: has no effect with `lr_scheduler_type: constant`
    13:17: spec.hyperparameters.save_steps: has no effect with `save_strategy: epoch`
    14:17: spec.hyperparameters.eval_steps: has no effect with `eval_strategy: no`
    16:31: spec.hyperparameters.early_stopping_threshold: has no effect without `early_stopping_patience`
    ");
}

#[test]
fn an_absolute_path_is_taken_and_said_to_choose_no_node() {
    let text = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: x}\nspec:\n  taskType: echo\n  output:\n    \
                destination: {type: local, path: /data/out}\n";
    let parsed = parse(text, "task.yaml").unwrap();
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"7:5: spec.output.destination: an absolute path: no node is chosen for having it; write `VOLUME/path`, and one with that volume is");
    assert!(parsed.spec.needs().iter().all(|need| !need.starts_with("volume:")));
}

#[test]
fn the_contracts_example_means_what_it_says() {
    let bytes = fs::read(repository().join("configs/sft_mistral_7b.yaml")).unwrap();
    let spec = parse_bytes(&bytes, "sft_mistral_7b.yaml").unwrap().spec;
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(repository().join("tests/fixtures/tasks/good/meanings"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_json_snapshot!("sft_mistral_7b", spec));
}

#[test]
fn settings_read_what_was_typed_and_fill_in_the_rest() {
    use settings::{DataOrder, Interval, Optimizer, Precision, Save, Schedule, Span, Training};
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/everything.yaml")).unwrap();
    let spec = parse_bytes(&bytes, "everything.yaml").unwrap().spec;
    let training = Training::of(&spec);
    assert_eq!(training.num_train_epochs, 1.0);
    assert_eq!((training.max_steps, training.max_length), (None, Some(512)));
    assert_eq!(training.learning_rate, 2e-5, "SFTConfig's default, not TrainingArguments'");
    assert_eq!((training.warmup, training.warmup.steps(11)), (Span::Share(0.1), 2));
    assert_eq!((training.data_order, training.precision), (DataOrder::Given, Precision::Bf16));
    let every = |steps| Interval::Steps(Span::Steps(steps));
    assert_eq!((training.lr_scheduler, training.save), (Schedule::Linear, Save::At(every(500))));
    assert_eq!((training.optimizer, training.logging), (Optimizer::AdamW, every(10)));
    assert_eq!((training.evaluation.interval, training.best), (Interval::No, None));
    assert_eq!(training.generation_prompts, ["12", "null", "true", "a: b"]);

    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/no_length_bound.yaml")).unwrap();
    let training = Training::of(&parse_bytes(&bytes, "x").unwrap().spec);
    assert_eq!((training.max_length, training.max_steps), (None, Some(10)));
    assert_eq!((training.warmup, training.save_total_limit), (Span::Steps(5), Some(3)));

    let bytes = fs::read(repository().join("configs/pretrain_quickstart.yaml")).unwrap();
    let shape = settings::Shape::of(&parse_bytes(&bytes, "x").unwrap().spec);
    assert_eq!(shape.hidden_size % shape.num_attention_heads, 0);

    let bytes = fs::read(repository().join("configs/echo.yaml")).unwrap();
    let echo = settings::Echo::of(&parse_bytes(&bytes, "x").unwrap().spec);
    assert_eq!((echo.steps, echo.step_ms, echo.fail), (5, 200, None));
}

#[test]
fn settings_of_the_data_are_read() {
    use settings::{DataOrder, Packing, Training, Truncation};
    use spec::TestSize;
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/data_settings.yaml")).unwrap();
    let parsed = parse_bytes(&bytes, "data_settings.yaml").unwrap();
    let training = Training::of(&parsed.spec);
    assert_eq!((training.packing, training.eval_packing), (Some(Packing::Wrapped), None));
    assert_eq!((training.truncation, training.data_order), (Truncation::KeepEnd, DataOrder::GroupedByLength));
    assert!(training.assistant_only_loss && training.shuffle_dataset);
    assert_eq!(training.dataset_text_field.as_deref(), Some("body"));
    let dataset = parsed.spec.dataset.unwrap();
    assert_eq!((&*dataset.columns["prompt"], &*dataset.columns["completion"]), ("question", "answer"));
    assert!(dataset.chat_template.is_some_and(|template| template.contains("{% generation %}")));
    // As `train_test_split` counts: a share is rounded up.
    assert_eq!(dataset.test_size, Some(TestSize::Millionths(50_000)));
    assert_eq!((TestSize::Millionths(50_000).of(341), TestSize::Rows(7).of(341)), (18, 7));
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"
    25:5: spec.hyperparameters.group_by_length: an old name: read as `data_order: \"group_by_length\"`
    26:5: spec.hyperparameters.padding_free: has no effect: padding is never computed on here
    ");

    // Whatever is not said is the reference's default.
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/everything.yaml")).unwrap();
    let training = Training::of(&parse_bytes(&bytes, "everything.yaml").unwrap().spec);
    assert_eq!((training.packing, training.eval_packing), (None, None));
    assert_eq!((training.truncation, training.dataset_text_field), (Truncation::KeepStart, None));
    assert!(!training.assistant_only_loss && !training.shuffle_dataset);
}

#[test]
fn rewards_bring_models_and_programs_with_them() {
    use reward::Judge;
    use spec::Input;
    let read = |name: &str| {
        let bytes = fs::read(repository().join("tests/fixtures/tasks/good").join(name)).unwrap();
        parse_bytes(&bytes, name).unwrap().spec
    };
    let spec = read("grpo.yaml");
    let inputs: Vec<Input> = spec.sources().map(|(input, _)| input).collect();
    assert_eq!(inputs, [Input::Model, Input::Dataset, Input::Code, Input::Reward, Input::Reference]);
    assert_eq!(spec.clone().sources_mut().count(), inputs.len());
    assert_eq!(spec.waits_for().collect::<Vec<_>>(), ["rm"]);
    assert!(
        spec.needs().is_superset(&["grpo", "command", "source:task"].map(str::to_owned).into()),
        "{:?}",
        spec.needs()
    );
    let reward = spec.reward.as_ref().unwrap();
    let names: Vec<&str> = reward.funcs.iter().map(|func| func.name.as_str()).collect();
    assert_eq!(names, ["regex", "starts", "exact_match", "json", "length", "model", "command"]);
    assert_eq!(reward.funcs[6].judge, Judge::Command { argv: vec!["python3".into(), "reward.py".into()] });
    let grpo = settings::Grpo::of(&spec);
    assert_eq!((grpo.num_generations, grpo.generation_batch_size, grpo.steps_per_generation), (4, 8, 1));
    assert_eq!((grpo.scale_rewards.as_str(), grpo.loss_type.as_str()), ("group", "dapo"));
    assert_eq!((grpo.epsilon, grpo.epsilon_high), (0.2, 0.2), "the upper bound is the lower one's");

    let spec = read("ppo.yaml");
    let inputs: Vec<Input> = spec.sources().map(|(input, _)| input).collect();
    assert_eq!(inputs, [Input::Model, Input::Dataset, Input::Reward, Input::Value]);
    assert!(!spec.needs().contains("command"));
    assert_eq!(spec.reward.as_ref().unwrap().funcs[0].judge, Judge::Model, "the only function where there is no other");
    let ppo = settings::Ppo::of(&spec);
    assert_eq!((ppo.stop, ppo.missing_eos_penalty, ppo.num_ppo_epochs), (settings::StopToken::Eos, Some(1.0), 4));
    assert_eq!(settings::Training::of(&spec).max_grad_norm, None, "the reference does not clip in PPO");
}

#[test]
fn a_service_is_called_and_scaled_as_it_says() {
    use spec::{Health, Scale, Service, Update};
    let read = |name: &str| {
        let bytes = fs::read(repository().join("tests/fixtures/tasks/good").join(name)).unwrap();
        parse_bytes(&bytes, name).unwrap().spec
    };
    let spec = read("service_command.yaml");
    let service = Service {
        served_name: "org/llama-3:8b".into(),
        health: Health { path: "/healthz?full=1".into(), every_ms: 500, timeout_ms: 2_000, failures: 5 },
        scale: Scale { min: 2, max: 5, queue_depth: 8, up_after_ms: 1_000, down_after_ms: 30_000 },
        update: Update { max_surge: 2, max_unavailable: 1 },
    };
    assert_eq!((spec.replicas, spec.service), (2, Some(service)));
    assert_eq!((spec.timeouts.stop_ms, spec.timeouts.ready_ms), (Some(45_000), Some(300_000)));
    assert_eq!((spec.timeouts.idle_ms, spec.timeouts.run_ms), (Some(600_000), None));

    let spec = read("service.yaml");
    let service = spec.service.unwrap();
    assert_eq!((service.served_name.as_str(), service.scale), ("chat", Scale::fixed(3)));
    assert_eq!((service.health, service.update), (Health::default(), Update::default()));
    assert_eq!((spec.timeouts.stop_ms, spec.timeouts.idle_ms), (Some(30_000), None));
}

#[test]
fn an_engine_is_set_by_the_names_of_vllm() {
    use settings::{CacheDtype, CacheLayout, Dtype, Inference, Quantization, Reasoning, ToolCalls};
    let read = |name: &str| {
        let bytes = fs::read(repository().join("tests/fixtures/tasks/good").join(name)).unwrap();
        parse_bytes(&bytes, name).unwrap()
    };
    let parsed = read("inference.yaml");
    let all = Inference {
        max_model_len: Some(4096),
        max_num_seqs: 16,
        max_num_batched_tokens: 256,
        max_num_waiting: 64,
        enable_prefix_caching: false,
        block_size: 64,
        kv_cache_layout: CacheLayout::Static,
        kv_cache_memory_bytes: Some(1 << 30),
        kv_cache_dtype: CacheDtype::Float16,
        dtype: Dtype::Float32,
        quantization: Quantization::Int8,
        num_speculative_tokens: 5,
        prompt_lookup_max: 6,
        prompt_lookup_min: 3,
        seed: 7,
        tool_call_parser: ToolCalls::Hermes,
        reasoning_parser: Reasoning::Think,
        chat_template: Some("{% for m in messages %}{{ m.content }}\n{% endfor %}".into()),
        generation_config_of_model: false,
    };
    assert_eq!(Inference::of(&parsed.spec), all);
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"
    23:5: spec.hyperparameters.spec_tokens: an old name: read as `num_speculative_tokens: 5`
    24:5: spec.hyperparameters.ngram_prompt_lookup_max: an old name: read as `prompt_lookup_max: 6`
    33:5: spec.hyperparameters.gpu_memory_utilization: has no effect: the cache has its part of what `resources.hardware` grants, or `kv_cache_memory_bytes`
    34:5: spec.hyperparameters.enforce_eager: has no effect: there are no graphs to capture here
    35:5: spec.hyperparameters.enable_lora: has no effect: as many adapters are served as are loaded, each with the rank that it has
    36:5: spec.hyperparameters.port: has no effect: a service is reached through every node, by `spec.servedName`
    ");

    let parsed = read("rag_inference.yaml");
    let defaults = Inference {
        max_model_len: None,
        max_num_seqs: 8,
        max_num_batched_tokens: 512,
        max_num_waiting: 1024,
        enable_prefix_caching: true,
        block_size: 32,
        kv_cache_layout: CacheLayout::Paged,
        kv_cache_memory_bytes: None,
        kv_cache_dtype: CacheDtype::Auto,
        dtype: Dtype::Auto,
        quantization: Quantization::None,
        num_speculative_tokens: 0,
        prompt_lookup_max: 8,
        prompt_lookup_min: 2,
        seed: 0,
        tool_call_parser: ToolCalls::Auto,
        reasoning_parser: Reasoning::Auto,
        chat_template: None,
        generation_config_of_model: true,
    };
    assert_eq!(Inference::of(&parsed.spec), defaults);
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"10:57: spec.hyperparameters.prompt_lookup_max: has no effect without `num_speculative_tokens`");
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/service.yaml")).unwrap();
    let service = parse_bytes(&bytes, "service.yaml").unwrap().spec;
    assert_eq!(Inference::of(&service), Inference { max_num_seqs: 64, prompt_lookup_max: 4, ..defaults });
}

#[test]
fn documents_are_found_as_a_task_says() {
    use spec::{Input, Location, Retrieval, RetrievalMode};
    let read = |name: &str| {
        let bytes = fs::read(repository().join("tests/fixtures/tasks/good").join(name)).unwrap();
        parse_bytes(&bytes, name).unwrap()
    };
    let parsed = read("retrieval.yaml");
    let inputs: Vec<Input> = parsed.spec.sources().map(|(input, _)| input).collect();
    assert_eq!(inputs, [Input::Model, Input::Dataset, Input::Embedder, Input::Reranker]);
    assert_eq!(parsed.spec.clone().sources_mut().count(), inputs.len());
    assert_eq!(parsed.spec.waits_for().collect::<Vec<_>>(), ["reranker"]);
    assert!(parsed.spec.needs().contains("source:huggingface"));
    let retrieval = parsed.spec.retrieval.unwrap();
    assert_eq!((retrieval.mode, retrieval.top_k, retrieval.candidates), (RetrievalMode::Dense, 80, 80));
    assert_eq!((retrieval.chunk_tokens, retrieval.chunk_overlap), (128, 16));
    assert_eq!((retrieval.score_floor_milli, retrieval.watch_ms), (Some(350), Some(60_000)));
    let notes: Vec<_> = parsed.notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"15:12: spec.retrieval.watch: has no effect: documents that are not `local` are pulled once, as they are then");

    let defaults = Retrieval {
        embedder: Location::Local { path: "models/embedder".into() },
        reranker: None,
        mode: RetrievalMode::Hybrid,
        top_k: 5,
        candidates: 50,
        chunk_tokens: 256,
        chunk_overlap: 32,
        score_floor_milli: None,
        watch_ms: None,
    };
    assert_eq!(read("rag_inference.yaml").spec.retrieval, Some(defaults));
}

#[test]
fn an_agents_section_is_kept_as_it_is() {
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/agent.yaml")).unwrap();
    let agent = parse_bytes(&bytes, "agent.yaml").unwrap().spec.agent.unwrap();
    assert_eq!(agent["system"], "You answer from the handbook.\n");
    let budgets = serde_json::json!({ "steps": 8, "tokens": 20_000, "answer_tokens": null });
    assert_eq!((&agent["budgets"], &agent["allow"]), (&budgets, &serde_json::json!(["*"])));
    assert_eq!(agent["tools"][0]["headers_from_env"]["Authorization"], "MESH_TOKEN");

    let head = "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {name: x}\nspec:\n  taskType: agent\n  \
                model: {source: {type: local, path: models/tiny}}\n";
    let of = |bytes: usize| format!("{head}  agent: {{system: {}}}\n", "x".repeat(bytes - r#"{"system":""}"#.len()));
    assert!(parse(&of(64 << 10), "task.yaml").is_ok());
    insta::assert_snapshot!(parse(&of((64 << 10) + 1), "task.yaml").unwrap_err().to_string(), @"
    task.yaml:7:3: spec.agent: found 65537 bytes, expected at most 65536 bytes as JSON
      hint: what an agent is to know it finds with its tools
    ");
}

#[test]
fn a_served_adapter_is_a_place_and_a_name() {
    use spec::{Adapter, Input, Location};
    let read = |name: &str| {
        let bytes = fs::read(repository().join("tests/fixtures/tasks/good").join(name)).unwrap();
        parse_bytes(&bytes, name).unwrap().spec
    };
    let spec = read("inference.yaml");
    let adapter = spec.model.as_ref().unwrap().adapter.as_ref().unwrap();
    let source = Some(Location::Task { identifier: "sft".into(), path: None });
    assert_eq!(*adapter, Adapter { source, name: Some("pirate".into()), ..Adapter::default() });
    assert_eq!(spec.sources().map(|(input, _)| input).collect::<Vec<_>>(), [Input::Model, Input::Adapter]);
    assert_eq!(spec.waits_for().collect::<Vec<_>>(), ["sft"]);
    // Any node with the module takes it, whether it trains adapters or not.
    assert_eq!(spec.needs().into_iter().collect::<Vec<_>>(), ["inference", "source:huggingface", "source:task"]);

    let spec = read("rag_inference.yaml");
    assert_eq!(spec.model.unwrap().adapter.unwrap().name.as_deref(), Some(Adapter::NAME));
}

#[test]
fn settings_that_steer_a_run_are_typed() {
    use settings::{Best, Curve, EarlyStopping, Evaluation, Interval, Optimizer, Schedule, Span, Training};
    let bytes = fs::read(repository().join("tests/fixtures/tasks/good/steering.yaml")).unwrap();
    let training = Training::of(&parse_bytes(&bytes, "steering.yaml").unwrap().spec);
    assert_eq!(training.optimizer, Optimizer::AdamW8bit);
    let falls = Schedule::WarmupStableDecay {
        num_decay_steps: 20,
        num_stable_steps: None,
        warmup_type: Curve::Linear,
        decay_type: Curve::OneMinusSqrt,
        min_lr_ratio: 0.1,
        num_cycles: 0.5,
    };
    assert_eq!(training.lr_scheduler, falls);
    assert_eq!((training.neftune_noise_alpha, training.label_smoothing_factor), (Some(5.0), 0.1));
    let evaluation = Evaluation { interval: Interval::Steps(Span::Steps(20)), delay: 40.0, on_start: true };
    assert_eq!(training.evaluation, evaluation);
    let best = Best { metric: "mean_token_accuracy".into(), greater_is_better: true };
    assert_eq!((training.best, training.load_best_model_at_end), (Some(best), true));
    assert_eq!(training.early_stopping, Some(EarlyStopping { patience: 3, threshold: 0.001 }));
    assert!(training.logging_first_step);
    let due = |step| training.logging.is_due(step, 50, 200);
    assert_eq!((1..=20).filter(|step| due(*step)).collect::<Vec<u64>>(), [10, 20]);
    let epochs = |step| Interval::Epoch.is_due(step, 50, 120);
    assert_eq!((1..=120).filter(|step| epochs(*step)).collect::<Vec<u64>>(), [50, 100, 120]);
}

#[test]
fn the_node_example_is_yaml_without_a_second_thought() {
    // Its shape is the binary's, which tests it; here only that no key stands twice and every value is plain.
    let bytes = fs::read(repository().join("configs/node.yaml")).unwrap();
    let mut problems = Problems::none("node.yaml");
    assert!(yaml::tree(yaml::text_of(&bytes, "node.yaml").unwrap(), &mut problems).is_some());
    assert!(problems.problems.is_empty(), "{problems}");
    assert!(yaml::read::<serde_json::Value>(std::str::from_utf8(&bytes).unwrap()).is_ok());
}

/// Patterns that make parsers quadratic or deep, at the largest size that is read: each ends, without an overflow of the
/// stack, and with a refusal. How long that takes is not measured here.
#[test]
fn files_made_to_be_slow_or_deep_are_refused() {
    let many_keys = |i: usize| format!("key{i}: 1\n");
    let head = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: x}\nspec:\n  taskType: sft\n";
    let hyper: String = (0..9_000).map(|i| format!("    learning_ratf_{i}: 1\n")).collect();
    let list = ["x"; 9_000].join(",");
    let mut cases = vec![
        (0..9_000).map(many_keys).collect(),
        format!("{head}  hyperparameters:\n{hyper}"),
        format!("{head}  output: {{artifacts: [{list}]}}\n  dependsOn: [{list}]\n"),
        (0..60_000).map(|i| format!("&a{i} ")).collect(),
    ];
    for unit in [
        "[", "{", "- ", "? ", "a: ", "! ", "&a [", "# \n", "%a\n", "\"", "'", "|\n", "\n", "---\n", "[a,", "{a: ",
        "\u{2028}", "a\n\n", "- a\n", ", ",
    ] {
        cases.push(unit.repeat((yaml::SIZE_MAX - 8) / unit.len()));
    }
    for case in cases {
        let start = case.chars().take(24).collect::<String>();
        assert!(parse(&case, "slow").is_err(), "{start} was taken");
    }
}
