//! Adapters of every kind on a whole model: what they promise whatever their settings.

mod golden;

use burn::tensor::{Device, Tensor};
use golden::{Close, Expected, fixture, tensors};
use mloc_burn::batch::Batch;
use mloc_burn::export::{Storage, write_model};
use mloc_burn::lora::{self, Bias, Init, LoraConfig, Modules};
use mloc_burn::loss::{self, Targets};
use mloc_burn::loss_scale::LossScale;
use mloc_burn::model::parameter::{host_values, matrix};
use mloc_burn::model::{Compute, Decoder, DecoderConfig, Gradients, Held, Packed, Parameter};
use mloc_burn::optim::{AdamWSettings, OptimizerSettings};
use mloc_burn::quant::{FourBitSettings, QuantType};
use mloc_burn::random::Random;
use mloc_burn::schedule::{Schedule, ScheduleKind};
use mloc_burn::train::{STATE_FILES, TrainSettings, Trainer};
use mloc_burn::weights::SafetensorsSource;

const NF4: Held = Held::FourBit(FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: true });
const FP4: Held = Held::FourBit(FourBitSettings { quant_type: QuantType::Fp4, block_size: 32, double_quant: false });

fn base(family: &str, held: Held) -> Decoder {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load_held(config, &source, held, &Device::flex()).expect("model")
}

/// Every kind of adapter that there is, by name, with what its base is held in.
fn kinds() -> Vec<(&'static str, Held, LoraConfig)> {
    let lora = || LoraConfig {
        r: 4,
        lora_alpha: 16.0,
        target_modules: ["q_proj", "v_proj", "down_proj"].into(),
        ..LoraConfig::default()
    };
    let dora = || LoraConfig { use_dora: true, ..lora() };
    vec![
        ("lora", Held::F32, lora()),
        ("rslora, gaussian", Held::F32, LoraConfig { use_rslora: true, init_lora_weights: Init::Gaussian, ..lora() }),
        ("dora", Held::F32, dora()),
        ("lora on nf4", NF4, lora()),
        ("lora on bf16", Held::Bf16, lora()),
        ("dora on fp4", FP4, LoraConfig { target_modules: Modules::AllLinear, ..dora() }),
        (
            "patterns",
            Held::F32,
            LoraConfig {
                target_modules: Modules::Matching(r".*\.layers\.(0|1)\..*_proj".into()),
                exclude_modules: Some(["k_proj"].into()),
                rank_pattern: [("0.self_attn.v_proj".to_owned(), 2)].into(),
                alpha_pattern: [("q_proj".to_owned(), 2.0)].into(),
                ..lora()
            },
        ),
        ("biases of its layers", Held::F32, LoraConfig { bias: Bias::LoraOnly, ..lora() }),
        ("all biases", NF4, LoraConfig { bias: Bias::All, ..dora() }),
        (
            "a head, a norm and an MLP beside it",
            Held::F32,
            LoraConfig {
                modules_to_save: vec!["lm_head".into(), "embed_tokens".into(), "1.mlp".into(), "model.norm".into()],
                ..lora()
            },
        ),
        ("a head beside 4 bits", NF4, LoraConfig { modules_to_save: vec!["lm_head".into()], ..lora() }),
    ]
}

const FAMILIES: [&str; 4] = ["llama", "qwen2", "gemma3", "qwen3_moe"];

/// Moves everything that is trained away from where it began, so that nothing is zero.
fn disturb(model: &mut Decoder) {
    for parameter in model.parameters_mut().filter(|p| p.trainable) {
        let mut random = Random::stream(5, &parameter.name);
        let noise = (0..parameter.shape.iter().product()).map(|_| 0.05 * random.normal()).collect();
        let device = parameter.value.device();
        parameter.value = parameter.value.clone() + matrix(noise, &parameter.shape, &device);
    }
}

fn attached(family: &str, held: Held, config: &LoraConfig) -> Decoder {
    let mut model = base(family, held);
    lora::attach(&mut model, config, 3).unwrap_or_else(|e| panic!("{e}"));
    model
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids: Vec<i64> = (3..23).collect();
    let packed = Packed::new(&Batch::single(&ids), &model.config, model.device());
    host_values(model.logits(model.hidden(&packed)))
}

fn batch() -> Batch {
    let rows: Vec<(Vec<i64>, Vec<i64>)> = [5..25, 40..52]
        .map(|ids: std::ops::Range<i64>| {
            let ids: Vec<i64> = ids.collect();
            (ids.clone(), ids)
        })
        .into();
    Batch::collate(&rows, 0)
}

/// The mean loss of the batch and all gradients.
fn backward(model: &Decoder, batch: &Batch) -> (f64, Gradients) {
    let packed = Packed::new(batch, &model.config, model.device());
    let targets = Targets::of(batch, &packed);
    let weight = 1.0 / targets.ids.len() as f64;
    let (hidden, tape) = model.forward(&packed);
    let mut gradients = Gradients::default();
    let (sums, d_hidden) = loss::backward(&hidden, model.head(), &targets, 0.0, weight, &mut gradients);
    model.backward(&packed, tape, d_hidden, &mut gradients);
    (sums.loss * weight, gradients)
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for family in FAMILIES {
        for (kind, held, config) in kinds() {
            let wanted = logits(&base(family, held));
            let found = logits(&attached(family, held, &config));
            Close::default().check(&format!("{family} {kind}"), &found, &wanted);
        }
    }
}

#[test]
fn merged_and_written_models_do_what_the_adapter_does() {
    for family in FAMILIES {
        for (kind, held, config) in kinds() {
            let what = format!("{family} {kind}");
            let mut model = attached(family, held, &config);
            let before = logits(&model);
            disturb(&mut model);
            let wanted = logits(&model);
            assert!(before.iter().zip(&wanted).any(|(a, b)| (a - b).abs() > 1e-2), "{what}: nothing was moved");

            let folder = tempfile::tempdir().expect("folder");
            write_model(&model, folder.path(), Storage::F32, &|| false).expect("written");
            let config = DecoderConfig::from_folder(folder.path()).expect("config");
            let source = SafetensorsSource::open_folder(folder.path()).expect("weights");
            let written = Decoder::load(config, &source, &Device::flex()).expect("a whole model");
            Close::default().check(&format!("{what}, written"), &logits(&written), &wanted);

            lora::merge(&mut model);
            assert!(model.parameters().all(|p| !lora::is_adapter(&p.name)));
            Close::default().check(&format!("{what}, merged"), &logits(&model), &wanted);
        }
    }
}

#[test]
fn an_adapter_survives_pefts_files() {
    for family in FAMILIES {
        for (kind, held, config) in kinds() {
            let what = format!("{family} {kind}");
            let mut model = attached(family, held, &config);
            disturb(&mut model);
            let folder = tempfile::tempdir().expect("folder");
            assert!(lora::save(&model, folder.path(), "base").expect("saved"));
            let mut again = base(family, held);
            lora::load(&mut again, folder.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(logits(&again), logits(&model), "{what}");
            // As files have them: lists of names have no order there.
            let settings = |model: &Decoder| model.adapter.as_ref().map(|adapter| adapter.to_json(""));
            assert_eq!(settings(&again), settings(&model), "{what}");
            assert_eq!(trained(&again), trained(&model), "{what}");
        }
    }
}

fn trained(model: &Decoder) -> Vec<&str> {
    model.parameters().filter(|p| p.trainable).map(|p| p.name.as_str()).collect()
}

/// PEFT 0.21's own: `_get_adapter_state_dict`, `_get_learnable_bias_state_dict`, `ModulesToSaveWrapper`.
#[test]
fn names_in_files_are_pefts() {
    let names = |config: &LoraConfig| -> Vec<String> {
        let folder = tempfile::tempdir().expect("folder");
        lora::save(&attached("qwen2", Held::F32, config), folder.path(), "base").expect("saved");
        tensors(&folder.path().join("adapter_model.safetensors")).into_keys().collect()
    };
    let one = LoraConfig { target_modules: ["0.self_attn.q_proj"].into(), ..LoraConfig::default() };
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{q}.lora_A.weight"), format!("{q}.lora_B.weight"));
    assert_eq!(names(&one), [a.clone(), b.clone()]);
    let dora = LoraConfig { use_dora: true, ..one.clone() };
    assert_eq!(names(&dora), [a.clone(), b.clone(), format!("{q}.lora_magnitude_vector")]);
    let own_bias = LoraConfig { bias: Bias::LoraOnly, ..one.clone() };
    assert_eq!(names(&own_bias), [format!("{q}.base_layer.bias"), a.clone(), b.clone()]);
    let biases = names(&LoraConfig { bias: Bias::All, ..one.clone() });
    assert_eq!(biases.len(), 2 + 6);
    assert!(biases.contains(&"base_model.model.model.layers.1.self_attn.v_proj.bias".to_owned()), "{biases:?}");
    let saved = LoraConfig { modules_to_save: vec!["lm_head".into(), "embed_tokens".into()], ..one };
    let embedding = "base_model.model.model.embed_tokens.weight".to_owned();
    assert_eq!(names(&saved), ["base_model.model.lm_head.weight".to_owned(), embedding, a, b]);
}

/// Experts are layers like others; a router is none, as in transformers 5, where it is no `nn.Linear`.
#[test]
fn experts_are_among_all_linear_layers_and_routers_are_not() {
    let all = LoraConfig { r: 2, target_modules: Modules::AllLinear, ..LoraConfig::default() };
    let model = attached("mixtral", NF4, &all);
    // Two layers of q, k, v, o and four experts, each with two factors.
    assert_eq!(trained(&model).len(), 2 * (4 + 4 * 3) * 2);
    let expert = "base_model.model.model.layers.1.block_sparse_moe.experts.3.w2.lora_A.weight";
    assert!(trained(&model).contains(&expert), "{:?}", trained(&model));
    assert_eq!(model.four_bit().count(), 2 * (4 + 4 * 3));
    let written = model.adapter.expect("adapter").target_modules;
    assert_eq!(written, ["q_proj", "k_proj", "v_proj", "o_proj", "w1", "w3", "w2"].into());
    let router = LoraConfig { target_modules: ["gate"].into(), ..LoraConfig::default() };
    let error = lora::attach(&mut base("mixtral", Held::F32), &router, 1).expect_err("no such layer").to_string();
    assert_eq!(
        error,
        "adapter_config.json: target_modules: [\"gate\"] match no layer; known are q_proj, k_proj, v_proj, o_proj, w1, w3, w2 \
         and all-linear"
    );
    let saved = LoraConfig { modules_to_save: vec!["gate".into()], ..all };
    let model = attached("mixtral", NF4, &saved);
    assert!(trained(&model).contains(&"model.layers.0.block_sparse_moe.gate.weight"));
}

#[test]
fn dropout_counts_in_training_only() {
    for (kind, held, config) in kinds() {
        let with = |lora_dropout| {
            let mut model = attached("llama", held, &LoraConfig { lora_dropout, ..config.clone() });
            disturb(&mut model);
            model
        };
        let (without, dropping) = (with(0.0), with(0.5));
        assert_eq!(logits(&dropping), logits(&without), "{kind}");
        let batch = batch();
        let mut packed = Packed::new(&batch, &dropping.config, dropping.device());
        packed.dropout_seed = Some(1);
        let training = host_values(dropping.hidden(&packed));
        assert!(training != host_values(without.hidden(&packed)), "{kind}: nothing was dropped");
    }
}

/// The gradients on packed weights are those on the weights that they unpack to, to the bit.
#[test]
fn training_on_packed_weights_is_training_on_what_they_unpack_to() {
    for (kind, held, config) in kinds().into_iter().filter(|(_, held, _)| *held != Held::F32) {
        let mut packed = attached("qwen2", held, &config);
        let mut unpacked = base("qwen2", held);
        unpacked.train_all();
        assert_eq!(unpacked.four_bit().count(), 0);
        lora::attach(&mut unpacked, &config, 3).expect("adapter");
        disturb(&mut packed);
        disturb(&mut unpacked);
        let batch = batch();
        let ((loss, found), (wanted_loss, wanted)) = (backward(&packed, &batch), backward(&unpacked, &batch));
        assert_eq!(loss, wanted_loss, "{kind}");
        let names = |gradients: &Gradients| gradients.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&wanted), "{kind}");
        assert_eq!(found.iter().count(), trained(&packed).len(), "{kind}: something got no gradient");
        for (name, gradient) in found.iter() {
            assert_eq!(
                host_values(gradient.clone()),
                host_values(wanted.get(name).expect(name).clone()),
                "{kind} {name}"
            );
        }
    }
}

/// The loss of a whole model moves along a parameter as its gradient says. DoRA's does not where it moves the norm, which
/// counts as a constant: the layer's own test looks at that.
#[test]
fn gradients_through_packed_weights_are_differences_of_the_loss() {
    let batch = batch();
    for (kind, held, config) in kinds().into_iter().filter(|(_, _, config)| !config.use_dora) {
        let mut model = attached("qwen2", held, &config);
        disturb(&mut model);
        let (_, gradients) = backward(&model, &batch);
        for name in trained(&model).into_iter().map(str::to_owned).collect::<Vec<_>>() {
            let gradient = gradients.get(&name).expect(&name).clone();
            let norm = host_values(gradient.clone().square().sum()).first().copied().unwrap_or_default().sqrt();
            // Along the gradient the loss rises by its norm.
            let at = |step: f32| {
                let mut moved = model.clone();
                let parameter = moved.parameters_mut().find(|p| p.name == name).expect("it is there");
                parameter.value = parameter.value.clone() + gradient.clone().mul_scalar(step / norm);
                backward(&moved, &batch).0
            };
            const STEP: f32 = 1e-2;
            let slope = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            let what = format!("{kind} {name}");
            Close { relative: 2e-2, absolute: 2e-3 }.check(&what, &[slope as f32], &[norm]);
        }
    }
}

/// Checkpointing trades time for memory and changes no bit, dropout included.
#[test]
fn layers_that_are_computed_anew_give_the_same_gradients() {
    let cases = FAMILIES.into_iter().flat_map(|family| kinds().into_iter().map(move |kind| (family, kind)));
    for (family, (kind, held, config)) in cases {
        let mut model = attached(family, held, &LoraConfig { lora_dropout: 0.3, ..config });
        disturb(&mut model);
        let batch = batch();
        let mut gradients_of = |checkpointing| {
            model.checkpointing = checkpointing;
            let mut packed = Packed::new(&batch, &model.config, model.device());
            packed.dropout_seed = Some(9);
            let (hidden, tape) = model.forward(&packed);
            let mut gradients = Gradients::default();
            model.backward(&packed, tape, hidden.clone(), &mut gradients);
            let all = gradients.iter().map(|(name, g)| (name.to_owned(), host_values(g.clone())));
            (host_values(hidden), all.collect::<Vec<_>>())
        };
        let (kept, anew) = (gradients_of(false), gradients_of(true));
        assert!(!kept.1.is_empty() && kept == anew, "{family} {kind}");
    }
}

fn settings() -> TrainSettings {
    TrainSettings {
        schedule: Schedule { kind: ScheduleKind::Constant, peak: 1e-2, warmup_steps: 0, total_steps: 6 },
        optimizer: OptimizerSettings::AdamW(AdamWSettings::default()),
        max_grad_norm: Some(1.0),
        seed: 42,
        neftune_noise_alpha: None,
    }
}

#[test]
fn a_resumed_run_equals_the_unbroken_one_with_each_kind() {
    let batch = [batch()];
    for (kind, held, config) in kinds() {
        let config = LoraConfig { lora_dropout: 0.2, ..config };
        let fresh = || Trainer::new(attached("qwen2", held, &config), settings());
        let mut unbroken = fresh();
        let reports: Vec<_> = (0..4).map(|_| unbroken.step(&batch).expect("step")).collect();
        assert!(reports[3].loss < reports[0].loss - 0.05, "{kind}: it does not learn: {reports:?}");
        let mut first = fresh();
        for _ in 0..2 {
            first.step(&batch).expect("step");
        }
        let folder = tempfile::tempdir().expect("folder");
        first.save_state(folder.path()).expect("save");
        let mut second = fresh();
        second.load_state(folder.path()).expect("load");
        for wanted in &reports[2..] {
            assert_eq!(second.step(&batch).expect("step"), *wanted, "{kind}");
        }
        let bytes = |trainer: &Trainer| {
            let folder = tempfile::tempdir().expect("folder");
            trainer.save_state(folder.path()).expect("save");
            STATE_FILES.map(|file| std::fs::read(folder.path().join(file)).expect("file"))
        };
        assert!(bytes(&second) == bytes(&unbroken), "{kind}");
    }
}

#[test]
fn the_optimizer_remembers_only_what_is_trained() {
    let config = LoraConfig { use_dora: true, ..LoraConfig::default() };
    let mut trainer = Trainer::new(attached("llama", NF4, &config), settings());
    trainer.step(&[batch()]).expect("step");
    let folder = tempfile::tempdir().expect("folder");
    trainer.save_state(folder.path()).expect("save");
    let moments = tensors(&folder.path().join("optimizer.safetensors"));
    let model = trainer.model();
    assert_eq!(moments.values().map(Vec::len).sum::<usize>(), 2 * model.trainable_count());
    assert!(moments.keys().all(|name| name.contains(".lora_")), "{:?}", moments.keys());
    assert_eq!(model.count() - model.trainable_count(), base("llama", Held::F32).count());
}

#[test]
fn products_in_half_precision_train_alike_with_master_weights_in_f32() {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    let reference = expected.number("/logs/0/loss");
    let micro: Batch = serde_json::from_value(expected.value("/batches/0").clone()).expect("batch");
    let run = |compute: Compute, held: Held, full: bool| {
        let mut model = base("llama", held);
        match full {
            true => model.train_all(),
            false => lora::load(&mut model, &fixture("lora/llama/adapter_init")).expect("adapter"),
        }
        model.set_compute(compute);
        assert_eq!(model.compute(), compute);
        let mut trainer = Trainer::new(model, settings());
        if compute == Compute::F16 {
            // Far too large for f16: it is lowered until a step fits.
            trainer.scale_loss(LossScale::from(2f64.powi(40)));
        }
        let losses: Vec<f64> = (0..4).map(|_| trainer.step(std::slice::from_ref(&micro)).expect("step").loss).collect();
        let f32_alone = |p: &Parameter| p.value.dtype() == burn::tensor::DType::F32;
        assert!(trainer.model().parameters().filter(|p| p.trainable).all(f32_alone));
        losses
    };
    for full in [false, true] {
        let exact = run(Compute::F32, Held::F32, full);
        assert!((exact[0] - reference).abs() < 2e-3 || full, "{exact:?}, expected {reference}");
        for (compute, held) in [(Compute::Bf16, Held::Bf16), (Compute::F16, Held::F16), (Compute::F32, Held::Bf16)] {
            let half = run(compute, held, full);
            assert!(half != exact, "{compute:?} {held:?}: nothing was rounded");
            for (found, wanted) in half.iter().zip(&exact) {
                assert!((found - wanted).abs() < 0.05, "{compute:?}, full {full}: {half:?}, in f32 {exact:?}");
            }
        }
    }
}

#[test]
fn packed_weights_are_not_trained_whole_and_another_base_is_refused() {
    let config = LoraConfig { modules_to_save: vec!["down_proj".into()], ..LoraConfig::default() };
    let error = lora::attach(&mut base("llama", NF4), &config, 1).expect_err("held in 4 bits").to_string();
    assert_eq!(
        error,
        "adapter_config.json: modules_to_save: \"down_proj\" names model.layers.0.mlp.down_proj.weight, which is held in 4 \
         bits; what is trained whole must be in f32"
    );
    let adapter = fixture("lora/llama/adapter_final");
    let error = lora::load(&mut base("mistral", NF4), &adapter).expect_err("another base").to_string();
    let first = "the weights do not fit the model:\n  base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight: found \
                 shape [64, 4], expected [128, 4]";
    assert!(error.starts_with(first), "{error}");
}

/// What training packs it also unpacks: what all of it is trained has its master copy in f32.
#[test]
fn training_everything_unpacks_it() {
    let mut model = base("llama", NF4);
    let values: Vec<Vec<f32>> = model.four_bit().map(|(_, matrix)| matrix.to_vec()).collect();
    model.train_all();
    let names: Vec<Tensor<2>> = model.linears().map(|l| l.weight.matrix()).collect();
    assert_eq!(names.into_iter().map(host_values).collect::<Vec<_>>(), values);
    assert!(model.linears().all(|l| l.weight.trainable()));
}
