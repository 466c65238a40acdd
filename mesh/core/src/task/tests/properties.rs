//! What holds for every input: no panic, a spec or a reason, and a canonical form that means the same.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    capability::{GpuRequest, Request},
    task::{
        kind::Kind,
        reward::{Judge, LengthUnit, Reward, RewardFunc},
        spec::{
            Adapter, AdapterBias, AdapterInit, AdapterKind, Checkpointing, Code, Command, Dataset, FourBit, Health,
            HubRepo, Location, Metadata, Model, Modules, Output, Placement, QuantType, Retrieval, RetrievalMode, Retry,
            Scale, Service, TestSize, Timeouts, Update,
        },
    },
};

/// A spec or at least one problem, each of which can be shown; and a spec means the same after its canonical form.
fn holds(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse_bytes(bytes, "f") {
        Ok(parsed) => {
            let canonical = canonical::write(&parsed.spec).map_err(TestCaseError::fail)?;
            match parse(&canonical, "canonical") {
                Ok(again) => prop_assert_eq!(again.spec, parsed.spec),
                Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
            }
        }
        Err(problems) => {
            prop_assert!(!problems.problems.is_empty());
            prop_assert!(problems.to_string().lines().count() <= 2 * Problems::LIMIT + 1, "{problems}");
            prop_assert!(problems.problems.iter().all(|p| p.at.line > 0 && p.at.column > 0));
        }
    }
    Ok(())
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Change {
    Cut(usize, usize),
    Put(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let bits = [
        ":", "- ", "\n", "\t", "{", "}", "[", "]", "&a ", "*a", "!", "!!str ", "|\n", ">\n", "'", "\"", "#", "? ",
        "<<: ", "---\n", "\0", "\u{feff}", "\u{2028}", "null", "1e999", "../", "-1", "\\x00", "é",
    ];
    prop_oneof![
        (any::<usize>(), 0..40usize).prop_map(|(at, length)| Change::Cut(at, length)),
        (any::<usize>(), prop::sample::select(bits.to_vec())).prop_map(|(at, b)| Change::Put(at, b.into())),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..4)).prop_map(|(at, b)| Change::Put(at, b)),
        (any::<usize>(), 1..80usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let (Change::Cut(at, _) | Change::Put(at, _) | Change::Repeat(at, _)) = change;
        let at = at % (bytes.len() + 1);
        match change {
            Change::Cut(_, length) => drop(bytes.drain(at..(at + length).min(bytes.len()))),
            Change::Put(_, new) => drop(bytes.splice(at..at, new.iter().copied())),
            Change::Repeat(_, length) => {
                let again = bytes[at..(at + length).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, again));
            }
        }
    }
    bytes
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9]([a-z0-9_-]{0,8}[a-z0-9])?"
}

fn location(source_of: Option<HubRepo>) -> BoxedStrategy<Location> {
    let path = || "[a-z0-9_.-]{0,3}[a-z0-9](/[a-z0-9]{1,5}){0,2}".prop_filter("tricks", |p| !p.contains(".."));
    let local = path().prop_map(|path| Location::Local { path });
    let s3 = (
        "[a-z][a-z0-9]{2,9}",
        path(),
        prop::option::of(Just("http://[::1]:9000".to_owned())),
        prop::option::of(name()),
    )
        .prop_map(|(bucket, path, endpoint, region)| Location::S3 { bucket, path, endpoint, region });
    let hub = (name(), name(), "[0-9]{1,3}(\\.[0-9]{1,2})?|main|refs/pr/1").prop_map(move |(a, b, revision)| {
        Location::HuggingFace {
            identifier: format!("{a}/{b}"),
            revision,
            repo: source_of.unwrap_or(HubRepo::Model),
            path: None,
            config: None,
            split: None,
        }
    });
    let gcs = path().prop_map(|path| Location::Gcs { bucket: "bucket".into(), path, endpoint: None });
    let azblob = path().prop_map(|path| Location::Azblob {
        container: "box".into(),
        path,
        account: Some("lab1".into()),
        endpoint: None,
    });
    if source_of.is_none() {
        return prop_oneof![local, s3, hub, gcs, azblob].boxed();
    }
    let task = (name(), prop::option::of(path())).prop_map(|(identifier, path)| Location::Task { identifier, path });
    let http = (path(), any::<bool>()).prop_map(|(path, known)| Location::Http {
        url: format!("https://example.org/{path}"),
        sha256: known.then(|| "0a".repeat(32)),
    });
    let git = (path(), prop::option::of(name()), prop::option::of(path())).prop_map(|(repo, revision, path)| {
        Location::Git { url: format!("https://example.org/{repo}"), revision, path }
    });
    prop_oneof![local, s3, hub, gcs, azblob, task, http, git].boxed()
}

fn texts() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    // Any text but NUL, which no environment can hold.
    let text = any::<String>().prop_map(|text| text.replace('\0', ""));
    prop::collection::btree_map("[a-z]{1,6}", text, 0..3)
}

fn spec() -> impl Strategy<Value = TaskSpec> {
    let modules = || {
        let named = prop::collection::btree_set("[a-z]{1,4}_proj", 1..3).prop_map(|names| names.into_iter().collect());
        prop_oneof![
            named.prop_map(Modules::Named),
            Just(Modules::Named(vec!["all-linear".into()])),
            "[a-z]{0,3}\\.\\*[a-z]{1,4}\\[0-9\\]\\(a\\|b\\)".prop_map(Modules::Matching),
        ]
    };
    let numbers = (1..1025u32, 1..10_000_000u64, 0..1_000_000u32);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3usize, any::<bool>(), 0..8usize);
    let patterns = ("[a-z.|]{0,8}x", prop::collection::btree_set(0..100u32, 0..3), 1..9u32);
    let adapter = (numbers, switches, patterns, modules(), prop::option::of(modules())).prop_map(
        |((r, lora_alpha_milli, lora_dropout_micro), switches, (pattern, layers, rank), target_modules, excluded)| {
            let (quantised, use_rslora, use_dora, bias, double_quant, block) = switches;
            let four_bit = FourBit { quant_type: QuantType::Fp4, block_size: 32 << block, double_quant };
            let by_names = matches!(&target_modules, Modules::Named(names) if names[0] != "all-linear");
            Adapter {
                kind: if quantised { AdapterKind::Qlora } else { AdapterKind::Lora },
                r,
                lora_alpha_milli,
                lora_dropout_micro,
                use_rslora,
                // Among what is taken out the word is a name like any other, and no name has a dash.
                exclude_modules: excluded.filter(|m| *m != Modules::Named(vec!["all-linear".into()])),
                rank_pattern: [(pattern.clone(), rank)].into(),
                alpha_pattern_milli: [(pattern, lora_alpha_milli)].into(),
                layers_pattern: if by_names && !layers.is_empty() { vec!["layers".into()] } else { vec![] },
                layers_to_transform: if by_names { layers.into_iter().collect() } else { vec![] },
                target_modules,
                modules_to_save: vec!["lm_head".into()],
                bias: [AdapterBias::None, AdapterBias::All, AdapterBias::LoraOnly][bias],
                use_dora,
                init: if use_dora { AdapterInit::Gaussian } else { AdapterInit::Kaiming },
                four_bit: if quantised { four_bit } else { FourBit::default() },
                source: None,
                name: None,
            }
        },
    );
    let hyperparameters = (any::<u32>(), 0.0..1.0f64, prop::collection::vec("\\PC{0,12}", 0..3)).prop_map(
        |(seed, learning_rate, prompts)| {
            std::collections::BTreeMap::from([
                ("seed".to_owned(), json!(seed)),
                ("learning_rate".to_owned(), json!(learning_rate)),
                ("generation_prompts".to_owned(), json!(prompts)),
                ("max_length".to_owned(), json!(null)),
            ])
        },
    );
    let gpu = prop::option::of((1..1025u32, any::<u64>()).prop_map(|(count, memory_bytes)| GpuRequest {
        kind: "any".into(),
        count,
        memory_bytes,
    }));
    let request = (1..1_000_000u64, any::<u64>(), any::<u64>(), gpu)
        .prop_map(|(cpu_millis, memory_bytes, disk_bytes, gpu)| Request { cpu_millis, memory_bytes, disk_bytes, gpu });
    let data = || location(Some(HubRepo::Dataset));
    let test_size = prop::option::of(prop_oneof![
        (1..1_000_000u32).prop_map(TestSize::Millionths),
        (1..1_000_000_000_000u64).prop_map(TestSize::Rows),
    ]);
    let dataset =
        (data(), prop::option::of(data()), test_size, any::<bool>()).prop_map(|(source, eval, test_size, template)| {
            Dataset {
                source,
                test_size: test_size.filter(|_| eval.is_none()),
                eval,
                prompt_template: template.then(|| "{a}: {{}}\n".into()),
                chat_template: (!template)
                    .then(|| "{% for m in messages %}\n  {{ m.content }}: # {% endfor %}\n".into()),
                columns: if template { Default::default() } else { [("prompt".into(), "a question".into())].into() },
                max_seq_length: None,
            }
        });
    let places = (location(Some(HubRepo::Model)), prop::option::of(adapter), dataset);
    let checkpoints = || location(None).prop_filter("no checkpoints in a hub", |at| at.scheme() != "huggingface");
    let ends = (prop::option::of(location(None)), prop::option::of(checkpoints()));
    let rest = (texts(), texts(), texts(), -1_000_000..1_000_000i32, 0..1_000u32, 1..1_000_000_000u64);
    (name(), request, places, ends, hyperparameters, rest).prop_map(
        |(name, request, (model, adapter, dataset), (out, checkpoint), hyperparameters, rest)| {
            let (labels, annotations, env, priority, limit, ms) = rest;
            TaskSpec {
                kind: Kind::TrainingTask,
                metadata: Metadata { name, owner: "a@b".into(), project: "p".into(), labels, annotations },
                task_type: TaskType::Sft,
                replicas: 1,
                request,
                model: Some(Model { source: model, adapter, reference: None, value: None }),
                dataset: Some(dataset),
                command: None,
                reward: None,
                retrieval: None,
                agent: None,
                service: None,
                hyperparameters,
                output: Output {
                    keep_ms: out.is_none().then_some(ms),
                    destination: out,
                    artifacts: vec!["training_logs".into(), "files:a/*".into()],
                },
                priority,
                depends_on: vec![],
                retry: Retry { limit, backoff_ms: ms, backoff_max_ms: 2 * ms },
                timeouts: Timeouts { run_ms: Some(ms), ..Timeouts::default() },
                placement: Placement { offline_for_ms: Some(ms), ..Placement::default() },
                checkpoint: Checkpointing { destination: checkpoint },
                env,
                secrets_from: vec!["s".into()],
            }
        },
    )
}

fn judge() -> impl Strategy<Value = Judge> {
    let word = || "[^\u{0}]{1,24}";
    let bound = || prop::option::of(1..1000u32);
    prop_oneof![
        "[a-z.]{1,8}".prop_map(|pattern| Judge::Regex { pattern }),
        "[a-z ]{0,6}[a-z]".prop_map(|column| Judge::ExactMatch { column }),
        prop::collection::vec(word(), 0..3).prop_map(|keys| Judge::Json { keys }),
        (bound(), 1..1000u32, any::<bool>()).prop_map(|(less, max, tokens)| Judge::Length {
            min: less.map(|less| less.min(max)),
            max: Some(max),
            unit: if tokens { LengthUnit::Tokens } else { LengthUnit::Characters },
        }),
        prop::collection::vec(word(), 1..4).prop_map(|argv| Judge::Command { argv }),
    ]
}

/// A reward of functions, with the reward model among them where there is one.
fn reward() -> impl Strategy<Value = Reward> {
    let model = prop::option::of(location(Some(HubRepo::Model)));
    let code = prop::option::of((location(Some(HubRepo::Model)), prop::option::of(name())));
    (model, prop::collection::vec(judge(), 1..5), code).prop_map(|(model, mut judges, code)| {
        judges.extend(model.is_some().then_some(Judge::Model));
        let named = |(place, judge)| RewardFunc { name: format!("f{place}"), judge };
        let reward = Reward { model, funcs: judges.into_iter().enumerate().map(named).collect(), code: None };
        let code = code.filter(|_| reward.runs_programs()).map(|(source, workdir)| Code { source, workdir });
        Reward { code, ..reward }
    })
}

/// A task of a service with an engine in it.
fn served(task_type: TaskType, mut spec: TaskSpec) -> TaskSpec {
    spec.request.gpu = spec.request.gpu.map(|gpu| GpuRequest { count: 1, ..gpu });
    spec.model.as_mut().expect("a model").adapter = None;
    TaskSpec {
        kind: Kind::ServiceTask,
        task_type,
        dataset: None,
        service: Some(Service {
            served_name: "org/served".into(),
            health: Health::default(),
            scale: Scale::fixed(1),
            update: Update::default(),
        }),
        hyperparameters: [("dtype".to_owned(), json!("float32"))].into(),
        output: Output::default(),
        timeouts: Timeouts { stop_ms: Some(1), ready_ms: Some(2), ..Timeouts::default() },
        checkpoint: Checkpointing::default(),
        ..spec
    }
}

fn retrieval() -> impl Strategy<Value = Retrieval> {
    let models = (location(Some(HubRepo::Model)), prop::option::of(location(Some(HubRepo::Model))));
    let modes = [RetrievalMode::Hybrid, RetrievalMode::Dense, RetrievalMode::Bm25];
    let numbers = (1..101u32, 0..900u32, 16..8193u32, 0..8192u32);
    let rest = (prop::option::of(0..1001u32), prop::option::of(1_000..1_000_000_000u64));
    (models, prop::sample::select(modes.to_vec()), numbers, rest).prop_map(
        |((embedder, reranker), mode, (top_k, more, chunk_tokens, overlap), (score_floor_milli, watch_ms))| Retrieval {
            embedder,
            reranker,
            mode,
            top_k,
            candidates: top_k + more,
            chunk_tokens,
            chunk_overlap: overlap % chunk_tokens,
            score_floor_milli,
            watch_ms,
        },
    )
}

/// A value of JSON.
fn plain() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|truth| json!(truth)),
        any::<i64>().prop_map(|number| json!(number)),
        (-1e9..1e9f64).prop_map(|number| json!(number)),
        "[^\u{0}]{0,12}".prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(4, 24, 4, |below| {
        prop_oneof![
            prop::collection::vec(below.clone(), 0..4).prop_map(|list| json!(list)),
            prop::collection::btree_map("[a-j0-9]{1,6}", below, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        holds(&bytes)?;
    }

    #[test]
    fn any_text_is_taken_or_refused(text in "[ \\-\\n:{}\\[\\]&*!|>'\"#%@a-e0-2\t?,~.]{0,120}") {
        holds(text.as_bytes())?;
    }

    #[test]
    fn mutated_files_are_taken_or_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let files = [files("configs"), files("tests/fixtures/tasks/good"), files("tests/fixtures/tasks/bad")].concat();
        let (_, bytes) = which.get(&files).clone();
        holds(&changed(bytes, &changes))?;
    }

    #[test]
    fn a_program_means_the_same_after_its_canonical_form(
        spec in spec(),
        argv in prop::collection::vec("[^\u{0}]{1,24}", 1..4),
        code in prop::option::of((location(Some(HubRepo::Model)), prop::option::of(name()))),
    ) {
        let code = code.map(|(source, workdir)| Code { source, workdir });
        let command = Some(Command { argv, code });
        let hyperparameters = [("any_name".to_owned(), json!({"nested": [1, 0.5, "x", null]}))].into();
        let spec = TaskSpec { task_type: TaskType::Command, command, hyperparameters, ..spec };
        let canonical = canonical::write(&spec).map_err(TestCaseError::fail)?;
        match parse(&canonical, "canonical") {
            Ok(again) => prop_assert_eq!(again.spec, spec),
            Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
        }
    }

    #[test]
    fn models_beside_and_rewards_mean_the_same_after_the_canonical_form(
        spec in spec(),
        reward in reward(),
        beside in [0; 3].map(|_| prop::option::of(location(Some(HubRepo::Model)))),
        value in location(Some(HubRepo::Model)),
    ) {
        let [reference, given, adapter] = beside;
        let mut spec = TaskSpec { hyperparameters: [("seed".to_owned(), json!(7))].into(), ..spec };
        // What is generated is generated on one GPU.
        spec.request.gpu = spec.request.gpu.map(|gpu| GpuRequest { count: 1, ..gpu });
        let model = spec.model.as_mut().expect("a model");
        model.reference = reference;
        if let Some(trained) = &mut model.adapter {
            trained.source = adapter;
        }
        for task_type in [TaskType::Dpo, TaskType::Grpo, TaskType::Ppo] {
            let mut spec = TaskSpec { task_type, ..spec.clone() };
            spec.reward = (task_type != TaskType::Dpo).then(|| reward.clone());
            if task_type == TaskType::Ppo {
                // Values start from the reward model, or from one of their own.
                let value = given.clone().or_else(|| reward.model.is_none().then(|| value.clone()));
                spec.model.as_mut().expect("a model").value = value;
            }
            let canonical = canonical::write(&spec).map_err(TestCaseError::fail)?;
            match parse(&canonical, "canonical") {
                Ok(again) => prop_assert_eq!(again.spec, spec),
                Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
            }
        }
    }

    #[test]
    fn a_served_model_means_the_same_after_the_canonical_form(
        spec in spec(),
        adapter in prop::option::of((location(Some(HubRepo::Model)), name())),
        (sequences, tokens, template) in (1..512u32, 512..4096u32, prop::option::of("\\PC{0,12}\\{\\{ m \\}\\}")),
    ) {
        let mut spec = TaskSpec {
            hyperparameters: [
                ("max_num_seqs".to_owned(), json!(sequences)),
                ("max_num_batched_tokens".to_owned(), json!(tokens)),
                ("chat_template".to_owned(), json!(template)),
                ("dtype".to_owned(), json!("float32")),
            ]
            .into(),
            ..served(TaskType::Inference, spec)
        };
        spec.model.as_mut().expect("a model").adapter =
            adapter.map(|(source, name)| Adapter { source: Some(source), name: Some(name), ..Adapter::default() });
        let canonical = canonical::write(&spec).map_err(TestCaseError::fail)?;
        match parse(&canonical, "canonical") {
            Ok(again) => prop_assert_eq!(again.spec, spec),
            Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
        }
    }

    #[test]
    fn retrieval_and_agents_mean_the_same_after_the_canonical_form(
        spec in spec(),
        retrieval in retrieval(),
        documents in prop::option::of(location(Some(HubRepo::Dataset))),
        agent in prop::collection::btree_map("[a-j0-9]{1,6}", plain(), 0..4),
    ) {
        let documents = documents.map(|source| Dataset {
            source,
            eval: None,
            test_size: None,
            prompt_template: None,
            chat_template: None,
            columns: Default::default(),
            max_seq_length: None,
        });
        let rag = TaskSpec {
            retrieval: Some(retrieval),
            dataset: documents,
            ..served(TaskType::RagInference, spec.clone())
        };
        let agent = TaskSpec { agent: Some(agent.into_iter().collect()), ..served(TaskType::Agent, spec) };
        for spec in [rag, agent] {
            let canonical = canonical::write(&spec).map_err(TestCaseError::fail)?;
            match parse(&canonical, "canonical") {
                Ok(again) => prop_assert_eq!(again.spec, spec),
                Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
            }
        }
    }

    #[test]
    fn a_spec_means_the_same_after_its_canonical_form(spec in spec()) {
        let canonical = canonical::write(&spec).map_err(TestCaseError::fail)?;
        match parse(&canonical, "canonical") {
            Ok(again) => prop_assert_eq!(again.spec, spec),
            Err(problems) => return Err(TestCaseError::fail(format!("{problems}\n{canonical}"))),
        }
    }
}
