//! Ten steps of training against the reference trainer, resume, and the files that come out.

mod golden;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use golden::{Close, Expected, FAMILIES, fixture, settings, tensors};
use mloc_burn::batch::Batch;
use mloc_burn::export::{Storage, write_model};
use mloc_burn::lora::{self, LoraConfig, Modules};
use mloc_burn::model::parameter::host_values;
use mloc_burn::model::{Decoder, DecoderConfig, Packed};
use mloc_burn::objective::Figures;
use mloc_burn::train::{STATE_FILES, TrainError, Trainer};
use mloc_burn::weights::SafetensorsSource;

fn base(family: &str) -> Decoder {
    open(&fixture(&format!("models/{family}")))
}

fn open(folder: &Path) -> Decoder {
    let config = DecoderConfig::from_folder(folder).expect("config");
    let source = SafetensorsSource::open_folder(folder).expect("weights");
    Decoder::load(config, &source, &Device::flex()).expect("model")
}

/// The micro-batches of each step.
fn steps(expected: &Expected) -> Vec<Vec<Batch>> {
    let batches: Vec<Batch> = serde_json::from_value(expected.value("/batches").clone()).expect("batches");
    let per_step = expected.number("/hyperparameters/gradient_accumulation_steps") as usize;
    batches.chunks(per_step).map(<[_]>::to_vec).collect()
}

fn follow(what: &str, trainer: &mut Trainer, expected: &Expected) {
    for (index, micro_batches) in steps(expected).iter().enumerate() {
        let report = trainer.step(micro_batches).expect("step");
        let check = |key: &str, close: Close, found: f64| {
            let wanted = expected.number(&format!("/logs/{index}/{key}"));
            let what = format!("{what} step {} {key}", index + 1);
            close.check(&what, &[found as f32], &[wanted as f32]);
        };
        check("loss", Close::absolute(2e-3), report.loss);
        check("grad_norm", Close::relative(1e-2), report.grad_norm);
        check("learning_rate", Close::relative(1e-6), report.learning_rate);
        check("num_tokens", Close::absolute(0.0), report.num_tokens as f64);
        check("mean_token_accuracy", Close::absolute(1e-6), report.figures["mean_token_accuracy"]);
        check("entropy", Close::absolute(2e-3), report.figures["entropy"]);
    }
}

fn logits(model: &Decoder, ids: &[i64]) -> Vec<f32> {
    let packed = Packed::new(&Batch::single(ids), &model.config, model.device());
    host_values(model.logits(model.hidden(&packed)))
}

#[test]
fn lora_follows_the_reference_in_four_families() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let folder = fixture(&format!("lora/{family}"));
        let expected = Expected::open(&folder.join("expected.json"));
        let mut model = base(family);
        lora::load(&mut model, &folder.join("adapter_init")).expect("adapter");
        let mut trainer = Trainer::new(model, settings(&expected));
        follow(family, &mut trainer, &expected);

        let out = tempfile::tempdir().expect("folder");
        assert!(lora::save(trainer.model(), out.path(), "models/x").expect("save"));
        let found = tensors(&out.path().join("adapter_model.safetensors"));
        let wanted = tensors(&folder.join("adapter_final/adapter_model.safetensors"));
        assert!(found.keys().eq(wanted.keys()), "{family}: names");
        for (name, values) in &found {
            Close::absolute(1e-3).check(&format!("{family} {name}"), values, &wanted[name]);
        }
        let written = LoraConfig::from_folder(out.path()).expect("written config");
        let reference = LoraConfig::from_folder(&folder.join("adapter_init")).expect("config");
        assert_eq!(written, reference);
    }
}

#[test]
fn a_loaded_adapter_and_its_merge_give_the_reference_logits() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let folder = fixture(&format!("lora/{family}"));
        let expected = Expected::open(&folder.join("expected.json"));
        let wanted = tensors(&folder.join("tensors.safetensors"));
        let ids = expected.ids("/forward_input_ids");
        let mut model = base(family);
        lora::load(&mut model, &folder.join("adapter_final")).expect("adapter");
        let close = Close::default;
        close().check(&format!("{family} adapter"), &logits(&model, &ids), &wanted["adapter_logits"]);
        lora::merge(&mut model);
        close().check(&format!("{family} merged"), &logits(&model, &ids), &wanted["merged_logits"]);
    }
}

#[test]
fn full_training_follows_the_reference() {
    let folder = fixture("sft_full");
    let expected = Expected::open(&folder.join("expected.json"));
    let mut model = base("llama");
    model.train_all();
    let mut trainer = Trainer::new(model, settings(&expected));
    follow("full", &mut trainer, &expected);
    let model = trainer.into_model();
    for parameter in model.parameters() {
        let norm = parameter.to_vec().iter().map(|v| v * v).sum::<f32>().sqrt();
        let wanted = expected.number(&format!("/param_norms_after/{}", parameter.name));
        Close::relative(1e-3).check(&parameter.name, &[norm], &[wanted as f32]);
    }
    let wanted = tensors(&folder.join("tensors.safetensors"));
    let ids = expected.ids("/forward_input_ids");
    Close::absolute(1e-2).check("logits after", &logits(&model, &ids), &wanted["logits_after"]);

    let out = tempfile::tempdir().expect("folder");
    write_model(&model, out.path(), Storage::F32, &|| false).expect("export");
    let again = open(out.path());
    assert_eq!(logits(&again, &ids), logits(&model, &ids));
}

#[test]
fn greedy_generation_with_a_cache_gives_the_reference_tokens() {
    use mloc_burn::generate::{Limits, Sampling, generate};
    for family in FAMILIES {
        let model = base(family);
        let expected = Expected::open(&fixture(&format!("models/{family}")).join("expected.json"));
        let wanted = expected.ids("/greedy/new_ids");
        let limits = Limits { max_new_tokens: wanted.len(), stop_ids: vec![] };
        let prompt = expected.ids("/greedy/prompt_ids");
        let found = generate(&model, &prompt, Sampling::Greedy, &limits, |_| true);
        assert_eq!(found, wanted, "{family}");
    }
}

#[test]
fn spreading_tokens_over_experts_is_trained_where_the_config_asks_for_it() {
    for family in ["mixtral", "qwen3_moe"] {
        let folder = fixture(&format!("models/{family}"));
        let expected = Expected::open(&folder.join("expected.json"));
        let batch = Batch {
            input_ids: expected.rows("/sft/input_ids"),
            attention_mask: expected.rows("/sft/attention_mask"),
            labels: expected.rows("/sft/all_tokens/labels"),
        };
        let step = |balanced: bool| {
            let mut raw = DecoderConfig::from_folder(&folder).expect("config").raw;
            raw["output_router_logits"] = balanced.into();
            let source = SafetensorsSource::open_folder(&folder).expect("weights");
            let config = DecoderConfig::from_json(raw).expect("config");
            let mut model = Decoder::load(config, &source, &Device::flex()).expect("model");
            model.train_all();
            let settings = settings(&Expected::open(&fixture("sft_full/expected.json")));
            Trainer::new(model, settings).step(std::slice::from_ref(&batch)).expect("step")
        };
        for (balanced, at) in [(false, "/sft/all_tokens"), (true, "/sft/all_tokens/balanced")] {
            let report = step(balanced);
            let wanted = |key: &str| expected.number(&format!("{at}/{key}")) as f32;
            let what = format!("{family} {balanced}");
            Close::default().check(&what, &[report.loss as f32], &[wanted("loss")]);
            Close::relative(1e-3).check(&what, &[report.grad_norm as f32], &[wanted("grad_norm_total")]);
            let aux_loss = report.figures.get("aux_loss").map(|loss| *loss as f32);
            assert_eq!(aux_loss.is_some(), balanced);
            if let Some(aux_loss) = aux_loss {
                Close::default().check(&what, &[aux_loss], &[wanted("aux_loss")]);
            }
        }
    }
}

/// Reads every file of a saved state.
fn state_bytes(trainer: &Trainer) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    trainer.save_state(folder.path()).expect("save");
    STATE_FILES.iter().map(|file| std::fs::read(folder.path().join(file)).expect("state file")).collect()
}

#[test]
fn a_resumed_run_equals_the_unbroken_run_bit_for_bit() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let steps = steps(&expected);
    for full in [false, true] {
        let fresh = || {
            let mut model = base("llama");
            match full {
                true => model.train_all(),
                false => {
                    let config = LoraConfig {
                        r: 4,
                        lora_alpha: 8.0,
                        // Dropout, so that the random state matters.
                        lora_dropout: 0.2,
                        target_modules: ["q_proj", "down_proj"].into(),
                        ..LoraConfig::default()
                    };
                    lora::attach(&mut model, &config, 7).expect("attach");
                }
            }
            Trainer::new(model, settings(&expected))
        };
        let mut unbroken = fresh();
        let mut reports = Vec::new();
        for step in &steps {
            reports.push(unbroken.step(step).expect("step"));
        }
        let mut first = fresh();
        for step in &steps[..4] {
            first.step(step).expect("step");
        }
        first.data_position = 4;
        let folder = tempfile::tempdir().expect("folder");
        first.save_state(folder.path()).expect("save");
        drop(first);
        let mut second = fresh();
        second.load_state(folder.path()).expect("load");
        assert_eq!((second.steps_done(), second.data_position), (4, 4));
        for (step, wanted) in steps.iter().zip(&reports).skip(4) {
            assert_eq!(second.step(step).expect("step"), *wanted);
        }
        second.data_position = 0;
        assert_eq!(state_bytes(&second), state_bytes(&unbroken), "full = {full}");
    }
}

#[test]
fn a_step_that_was_interrupted_is_as_if_it_had_not_begun() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let batches: Vec<Batch> = steps(&expected).into_iter().flatten().collect();
    let fresh = || {
        let mut model = base("llama");
        let config = LoraConfig {
            r: 4,
            lora_alpha: 8.0,
            // Dropout, so that the random state matters.
            lora_dropout: 0.2,
            target_modules: ["q_proj"].into(),
            ..LoraConfig::default()
        };
        lora::attach(&mut model, &config, 7).expect("attach");
        Trainer::new(model, settings(&expected))
    };
    let (mut unbroken, mut broken) = (fresh(), fresh());
    let micro_batches = &batches[..2];
    unbroken.step(micro_batches).expect("step");
    // Asked before each layer, forward and backward, of two micro-batches: each time it goes one layer further.
    let asks = 2 * 2 * broken.model().layers.len();
    for last in 1..=asks {
        let asked = AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) + 1 == last;
        let error = broken.step_unless(micro_batches, &stop).expect_err("stopped");
        assert!(matches!(error, TrainError::Interrupted), "{error}");
        assert_eq!((asked.into_inner(), broken.steps_done()), (last, 0));
    }
    broken.step(micro_batches).expect("step");
    assert_eq!(state_bytes(&broken), state_bytes(&unbroken));
    assert_eq!(broken.step(&batches[2..5]).expect("step"), unbroken.step(&batches[2..5]).expect("step"));
}

#[test]
fn a_step_without_a_target_has_plain_zeros_and_moves_nothing() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let mut model = base("llama");
    model.train_all();
    let before: Vec<Vec<f32>> = model.parameters().map(|p| p.to_vec()).collect();
    let mut trainer = Trainer::new(model, settings(&expected));
    let report = trainer.step(&[Batch::single(&[1, 2, 3])]).expect("step");
    assert_eq!((report.weight, report.num_tokens, &report.figures), (0.0, 3, &Figures::new()));
    for figure in [report.loss, report.grad_norm, report.weight] {
        assert!(figure == 0.0 && figure.is_sign_positive(), "{report:?}");
    }
    assert!(trainer.model().parameters().map(|p| p.to_vec()).eq(before));
}

#[test]
fn a_damaged_state_is_an_error_that_names_the_file() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let fresh = || {
        let mut model = base("llama");
        lora::load(&mut model, &fixture("lora/llama/adapter_init")).expect("adapter");
        Trainer::new(model, settings(&expected))
    };
    let mut trainer = fresh();
    trainer.step(&steps(&expected)[0]).expect("step");
    for file in STATE_FILES {
        let folder = tempfile::tempdir().expect("folder");
        trainer.save_state(folder.path()).expect("save");
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).expect("file");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("truncate");
        let error = fresh().load_state(folder.path()).expect_err("truncated").to_string();
        assert!(error.contains(file), "{error}");
        std::fs::remove_file(&path).expect("remove");
        let error = fresh().load_state(folder.path()).expect_err("missing").to_string();
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let mut trainer = Trainer::new(base("llama"), settings(&expected));
    let error = trainer.step(&[Batch::single(&[1, 512])]).expect_err("too large").to_string();
    assert_eq!(error, "batch row 0: token id 512, the vocabulary has 512");
}

#[test]
fn adapter_targets_are_checked_and_all_linear_is_spelled_out() {
    let config = |targets: &[&str]| LoraConfig {
        r: 2,
        lora_alpha: 2.0,
        target_modules: Modules::from_names(targets.iter().map(|t| t.to_string()).collect()),
        ..LoraConfig::default()
    };
    let mut model = base("llama");
    lora::attach(&mut model, &config(&["all-linear"]), 1).expect("attach");
    assert_eq!(model.parameters().filter(|p| p.trainable).count(), 3 * 7 * 2);
    let written = model.adapter.expect("adapter").target_modules;
    assert_eq!(written, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].into());
    let error = lora::attach(&mut base("llama"), &config(&["q_proj", "query"]), 1).expect_err("no such layer");
    assert_eq!(
        error.to_string(),
        "adapter_config.json: target_modules: [\"query\"] match no layer; known are \
         q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and all-linear"
    );
}

#[test]
fn weights_that_do_not_fit_are_listed_with_their_shapes() {
    let folder = fixture("models/llama");
    let mut raw = DecoderConfig::from_folder(&folder).expect("config").raw;
    raw["intermediate_size"] = 100.into();
    raw["num_hidden_layers"] = 2.into();
    raw["tie_word_embeddings"] = false.into();
    let config = DecoderConfig::from_json(raw).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    let error = Decoder::load(config, &source, &Device::flex()).expect_err("does not fit").to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "the weights do not fit the model:");
    assert_eq!(lines[1], "  lm_head.weight: missing; expected shape [512, 64]");
    assert_eq!(lines[2], "  model.layers.0.mlp.down_proj.weight: found shape [64, 176], expected [64, 100]");
    let unknown = "  model.layers.2.input_layernorm.weight: unknown to this architecture; its shape is [64]";
    assert!(lines.contains(&unknown), "{error}");
}
