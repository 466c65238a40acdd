//! Schedules, optimizers, label smoothing and noise: against numbers of the reference
//! (tests/fixtures/reference/steering.json, which steering.py beside it made), and by what they promise.

mod golden;

use std::path::Path;

use burn::tensor::Device;
use golden::{Close, Expected, fixture};
use mloc_burn::batch::{Batch, IGNORED};
use mloc_burn::loss::{self, Targets};
use mloc_burn::model::packed::EmbeddingNoise;
use mloc_burn::model::parameter::{host_values, matrix};
use mloc_burn::model::{Decoder, DecoderConfig, Gradients, Head, Packed, Parameter};
use mloc_burn::objective::CrossEntropy;
use mloc_burn::optim::blocks::Levels;
use mloc_burn::optim::{AdamWSettings, Optimizer, OptimizerSettings, SgdSettings};
use mloc_burn::schedule::{Curve, Plateau, PlateauSettings, Schedule, ScheduleKind};
use mloc_burn::train::{STATE_FILES, TrainSettings, Trainer};
use mloc_burn::weights::SafetensorsSource;
use serde_json::Value;

fn reference() -> Expected {
    Expected::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/reference/steering.json"))
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).expect("numbers")
}

/// The schedule of a name with transformers' arguments.
fn kind(name: &str, arguments: &Value, peak: f64) -> ScheduleKind {
    let number = |name: &str| arguments[name].as_f64();
    let curve = |name: &str, default| match arguments[name].as_str() {
        Some("linear") => Curve::Linear,
        Some("cosine") => Curve::Cosine,
        Some("1-sqrt") => Curve::OneMinusSqrt,
        _ => default,
    };
    let num_cycles = number("num_cycles").unwrap_or(0.5);
    let min_lr_rate = || number("min_lr_rate").or(number("min_lr").map(|rate| rate / peak)).expect("a least rate");
    match name {
        "linear" => ScheduleKind::Linear,
        "cosine" => ScheduleKind::Cosine { num_cycles },
        "cosine_with_restarts" => ScheduleKind::CosineWithRestarts { num_cycles: number("num_cycles").unwrap_or(1.0) },
        "polynomial" => {
            ScheduleKind::Polynomial { lr_end: number("lr_end").unwrap_or(1e-7), power: number("power").unwrap_or(1.0) }
        }
        "constant" => ScheduleKind::Constant,
        "constant_with_warmup" => ScheduleKind::ConstantWithWarmup,
        "inverse_sqrt" => ScheduleKind::InverseSqrt { timescale: number("timescale") },
        "cosine_with_min_lr" => ScheduleKind::CosineWithMinLr { num_cycles, min_lr_rate: min_lr_rate() },
        "cosine_warmup_with_min_lr" => ScheduleKind::CosineWarmupWithMinLr {
            num_cycles,
            min_lr_rate: min_lr_rate(),
            warmup_lr_rate: number("warmup_lr_rate"),
        },
        "warmup_stable_decay" => ScheduleKind::WarmupStableDecay {
            num_decay_steps: arguments["num_decay_steps"].as_u64().expect("steps"),
            num_stable_steps: arguments["num_stable_steps"].as_u64(),
            warmup_type: curve("warmup_type", Curve::Linear),
            decay_type: curve("decay_type", Curve::Cosine),
            min_lr_ratio: number("min_lr_ratio").unwrap_or(0.0),
            num_cycles,
        },
        other => panic!("{other}"),
    }
}

#[test]
fn schedules_give_the_references_rates() {
    let expected = reference();
    let peak = expected.number("/peak");
    let cases = expected.value("/schedules").as_array().expect("cases");
    for case in cases {
        let (name, arguments) = (case["name"].as_str().expect("name"), &case["arguments"]);
        let schedule = Schedule {
            kind: kind(name, arguments, peak),
            peak,
            warmup_steps: expected.number("/warmup_steps") as u64,
            total_steps: expected.number("/total_steps") as u64,
        };
        for (step, wanted) in case["rates"].as_array().expect("rates").iter().enumerate() {
            let (found, wanted) = (schedule.rate(step as u64), wanted.as_f64().expect("rate"));
            assert!((found - wanted).abs() <= 1e-12, "{name} {arguments}, step {step}: {found}, expected {wanted}");
        }
    }
    assert_eq!(cases.len(), 19);
}

#[test]
fn plateaus_lower_the_rate_where_the_reference_does() {
    let expected = reference();
    let peak = expected.number("/peak");
    let metrics = expected.value("/metrics").as_array().expect("metrics");
    for case in expected.value("/plateaus").as_array().expect("cases") {
        let arguments = &case["arguments"];
        let default = PlateauSettings::default();
        let (number, count) = (|name: &str| arguments[name].as_f64(), |name: &str| arguments[name].as_u64());
        let settings = PlateauSettings {
            greater_is_better: arguments["mode"] == "max",
            factor: number("factor").unwrap_or(default.factor),
            patience: count("patience").unwrap_or(default.patience),
            threshold: number("threshold").unwrap_or(default.threshold),
            relative: arguments["threshold_mode"] != "abs",
            cooldown: count("cooldown").unwrap_or(default.cooldown),
            min_lr: number("min_lr").unwrap_or(default.min_lr),
            eps: number("eps").unwrap_or(default.eps),
        };
        let mut plateau = Plateau::new(peak);
        for (metric, wanted) in metrics.iter().zip(case["rates"].as_array().expect("rates")) {
            plateau.observe(metric.as_f64().expect("metric"), &settings);
            let wanted = wanted.as_f64().expect("rate");
            assert!((plateau.rate - wanted).abs() <= 1e-15, "{arguments} at {metric}: {}, not {wanted}", plateau.rate);
        }
    }
}

/// As steering.py has it: step 0 is the parameter, later ones its gradients.
fn formula(count: usize, step: u32) -> Vec<f32> {
    let value = |i: usize| (0.37 * i as f64 + 1.9 * f64::from(step)).sin() * 10f64.powi(-((i % 5) as i32));
    (0..count).map(|i| value(i) as f32).collect()
}

/// Moves parameters of these names and shapes for so many steps; looks at them after each.
fn run(
    settings: OptimizerSettings,
    shapes: &[(&str, &[usize])],
    steps: u32,
    rate: f64,
    mut look: impl FnMut(&[Parameter], &Optimizer),
) {
    let device = Device::flex();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let parameter = |(name, shape): &(&str, &[usize])| Parameter {
        trainable: true,
        ..Parameter::new((*name).into(), shape, formula(size(shape), 0), &device)
    };
    let mut parameters: Vec<Parameter> = shapes.iter().map(parameter).collect();
    let mut optimizer = Optimizer::new(settings);
    for step in 1..=steps {
        let mut gradients = Gradients::default();
        for (name, shape) in shapes {
            gradients.add(name, matrix(formula(size(shape), step), shape, &device));
        }
        optimizer.update(parameters.iter_mut(), &mut gradients, 1.0, rate);
        look(&parameters, &optimizer);
    }
}

const ADAMW: AdamWSettings = AdamWSettings { adam_beta1: 0.8, adam_beta2: 0.95, adam_epsilon: 1e-6, weight_decay: 0.1 };

#[test]
fn optimizers_move_parameters_as_the_reference_does() {
    let expected = reference();
    let shapes: [(&str, &[usize]); 2] = [("proj.weight", &[12, 10]), ("proj.bias", &[10])];
    for case in expected.value("/optimizers").as_array().expect("cases") {
        let (name, arguments) = (case["name"].as_str().expect("name"), &case["arguments"]);
        let settings = match name {
            "adamw_torch" => OptimizerSettings::AdamW(ADAMW),
            "adafactor" => OptimizerSettings::Adafactor { weight_decay: 0.1 },
            "sgd" => OptimizerSettings::Sgd(SgdSettings {
                momentum: arguments["momentum"].as_f64().unwrap_or(0.0),
                dampening: arguments["dampening"].as_f64().unwrap_or(0.0),
                nesterov: arguments["nesterov"] == true,
                weight_decay: 0.1,
            }),
            other => panic!("{other}"),
        };
        let mut last = Vec::new();
        run(settings, &shapes, 5, 1e-2, |parameters, _| last = parameters.iter().map(Parameter::to_vec).collect());
        for (index, found) in last.iter().enumerate() {
            let wanted = floats(&case["parameters"][index]);
            Close { relative: 1e-5, absolute: 1e-6 }.check(&format!("{name} {arguments} {index}"), found, &wanted);
        }
    }
}

#[test]
fn moments_in_blocks_are_the_references() {
    let expected = reference();
    for (levels, name) in [(Levels::Signed, "signed"), (Levels::Unsigned, "unsigned")] {
        let wanted = floats(&expected.value("/eight_bits")[name]);
        Close { relative: 1e-6, absolute: 0.0 }.check(name, levels.values(), &wanted);
    }
    let every = expected.number("/eight_bits/every") as usize;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("optimizer.safetensors");
    let shapes: [(&str, &[usize]); 1] = [("proj.weight", &[16, 262])];
    let mut step = 0;
    run(OptimizerSettings::AdamW8bit(ADAMW), &shapes, 4, 1e-2, |parameters, optimizer| {
        let wanted = &expected.value("/eight_bits/steps")[step];
        step += 1;
        optimizer.save(&file, parameters.iter()).expect("save");
        let source = SafetensorsSource::open_file(&file).expect("state");
        let moment = |part: &str, levels: Levels| -> Vec<f32> {
            use mloc_burn::weights::TensorSource;
            let codes = source.read_u8(&format!("{part}.proj.weight")).expect("codes");
            let scales = source.read_f32(&format!("{part}_scales.proj.weight")).expect("scales");
            let value = |(i, code): (usize, &u8)| levels.values()[usize::from(*code)] * scales[i / 256];
            codes.iter().enumerate().map(value).step_by(every).collect()
        };
        let what = |part: &str| format!("{part} after step {step}");
        let parameter: Vec<f32> = parameters[0].to_vec().into_iter().step_by(every).collect();
        Close { relative: 1e-5, absolute: 1e-6 }.check(&what("parameter"), &parameter, &floats(&wanted["parameter"]));
        Close { relative: 1e-5, absolute: 1e-7 }.check(
            &what("exp_avg"),
            &moment("exp_avg", Levels::Signed),
            &floats(&wanted["exp_avg"]),
        );
        Close { relative: 1e-5, absolute: 1e-7 }.check(
            &what("exp_avg_sq"),
            &moment("exp_avg_sq", Levels::Unsigned),
            &floats(&wanted["exp_avg_sq"]),
        );
    });
    assert_eq!(step, 4);
}

#[test]
fn what_an_optimizer_remembers_takes_the_memory_it_says() {
    let shapes: [(&str, &[usize]); 3] =
        [("proj.weight", &[64, 128]), ("proj.bias", &[128]), ("model.embed_tokens.weight", &[64, 128])];
    let bytes = |settings| {
        let mut bytes = 0;
        run(settings, &shapes, 1, 1e-3, |_, optimizer| bytes = optimizer.state_bytes());
        bytes
    };
    let (matrix, vector) = (64 * 128, 128);
    assert_eq!(bytes(OptimizerSettings::AdamW(ADAMW)), 8 * (2 * matrix + vector));
    // A byte a moment, and four a block of 256; embeddings and small tensors keep 32 bits.
    let in_blocks = 2 * (matrix + 4 * matrix / 256);
    assert_eq!(bytes(OptimizerSettings::AdamW8bit(ADAMW)), in_blocks + 8 * (matrix + vector));
    assert_eq!(bytes(OptimizerSettings::Adafactor { weight_decay: 0.0 }), 4 * (2 * (64 + 128) + vector));
    assert_eq!(bytes(OptimizerSettings::Sgd(SgdSettings::default())), 0);
    let momentum = SgdSettings { momentum: 0.9, ..SgdSettings::default() };
    assert_eq!(bytes(OptimizerSettings::Sgd(momentum)), 4 * (2 * matrix + vector));
}

/// Hidden states and a head whose logits are these hidden states: the head is the identity.
fn head(size: usize, device: &Device) -> Parameter {
    let mut identity = vec![0.0; size * size];
    identity.iter_mut().step_by(size + 1).for_each(|value| *value = 1.0);
    Parameter::new("lm_head.weight".into(), &[size, size], identity, device)
}

#[test]
fn smoothed_losses_are_the_references() {
    let expected = reference();
    let labels: Vec<Vec<i64>> =
        serde_json::from_value(expected.value("/label_smoothing/labels").clone()).expect("labels");
    let smoothing = expected.number("/label_smoothing/epsilon");
    let device = Device::flex();
    let logits: Vec<f32> = formula(2 * 6 * 11, 3).into_iter().map(|value| value * 4.0).collect();
    let hidden = matrix(logits, &[12, 11], &device);
    let mut targets = Targets::default();
    for (row, labels) in labels.iter().enumerate() {
        for (column, label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORED) {
            targets.rows.push((row * 6 + column - 1) as i64);
            targets.ids.push(*label);
        }
    }
    let weight = 1.0 / targets.ids.len() as f64;
    let mut gradients = Gradients::default();
    let (sums, gradient) =
        loss::backward(&hidden, Head::plain(&head(11, &device)), &targets, smoothing, weight, &mut gradients);
    let wanted = expected.number("/label_smoothing/loss");
    Close::relative(1e-5).check("loss", &[(sums.loss * weight) as f32], &[wanted as f32]);
    let wanted = floats(expected.value("/label_smoothing/gradient"));
    Close { relative: 1e-4, absolute: 1e-7 }.check("gradient", &host_values(gradient), &wanted);
    assert_eq!(loss::evaluate(&hidden, Head::plain(&head(11, &device)), &targets, smoothing), sums);
}

#[test]
fn a_smoothed_loss_falls_along_its_gradient() {
    let device = Device::flex();
    let (tokens, width, vocabulary) = (4, 6, 9);
    let values = formula(vocabulary * width, 2).into_iter().map(|value| value * 2.0).collect();
    let head = Parameter { trainable: true, ..Parameter::new("h".into(), &[vocabulary, width], values, &device) };
    let targets = Targets { rows: vec![0, 1, 3], ids: vec![4, 0, 8] };
    let at = |hidden: &[f32], head: &Parameter| {
        let hidden = matrix(hidden.to_vec(), &[tokens, width], &device);
        loss::evaluate(&hidden, Head::plain(head), &targets, 0.3).loss / 3.0
    };
    let hidden = formula(tokens * width, 1);
    let mut gradients = Gradients::default();
    let states = matrix(hidden.clone(), &[tokens, width], &device);
    let (_, d_hidden) = loss::backward(&states, Head::plain(&head), &targets, 0.3, 1.0 / 3.0, &mut gradients);
    // Central differences in f32, over a step that its rounding does not drown.
    let step = 1e-2_f32;
    for (index, gradient) in host_values(d_hidden).into_iter().enumerate() {
        let moved = |by: f32| {
            let mut hidden = hidden.clone();
            hidden[index] += by;
            at(&hidden, &head)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        assert!((slope - f64::from(gradient)).abs() < 1e-4, "hidden {index}: {gradient}, by differences {slope}");
    }
    for (index, gradient) in host_values(gradients.take("h").expect("a gradient")).into_iter().enumerate() {
        let moved = |by: f32| {
            let mut values = head.to_vec();
            values[index] += by;
            at(&hidden, &Parameter::new("h".into(), &[vocabulary, width], values, &device))
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        assert!((slope - f64::from(gradient)).abs() < 1e-4, "head {index}: {gradient}, by differences {slope}");
    }
}

fn model() -> Decoder {
    let folder = fixture("models/llama");
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load(config, &source, &Device::flex()).expect("model")
}

#[test]
fn noise_is_on_embeddings_and_in_training_only() {
    let model = model();
    let batch = Batch::collate(&[((1..30).collect(), vec![IGNORED; 29]), ((5..14).collect(), vec![IGNORED; 9])], 0);
    let mut packed = Packed::new(&batch, &model.config, model.device());
    let quiet = host_values(model.hidden(&packed));
    let width = model.config.hidden_size;
    let noise = EmbeddingNoise::new(5.0, 29, width, 7);
    assert!((noise.magnitude - 5.0 / (29.0 * width as f64).sqrt()).abs() < 1e-12);
    packed.embedding_noise = Some(noise);
    let noisy = host_values(model.hidden(&packed));
    assert!(noisy.iter().zip(&quiet).all(|(a, b)| a != b), "each state is moved");
    assert_eq!(host_values(model.hidden(&packed)), noisy, "the same seed is the same noise");
    assert_ne!(host_values(model.forward(&packed).0), quiet, "the pass that training takes has it too");
    packed.embedding_noise = Some(EmbeddingNoise { seed: 8, ..noise });
    assert_ne!(host_values(model.hidden(&packed)), noisy);

    let drawn = host_values(noise.values([500, width], model.device()));
    let most = noise.magnitude as f32;
    assert!(drawn.iter().all(|value| value.abs() <= most));
    let mean = drawn.iter().sum::<f32>() / drawn.len() as f32;
    let square = drawn.iter().map(|value| value * value).sum::<f32>() / drawn.len() as f32;
    // A uniform variable in ±m has variance m²/3.
    assert!(mean.abs() < 0.02 * most && (square * 3.0 / (most * most) - 1.0).abs() < 0.02, "{mean} {square}");
}

fn settings(optimizer: OptimizerSettings, kind: ScheduleKind) -> TrainSettings {
    TrainSettings {
        schedule: Schedule { kind, peak: 1e-2, warmup_steps: 2, total_steps: 6 },
        optimizer,
        max_grad_norm: Some(1.0),
        seed: 3,
        neftune_noise_alpha: Some(5.0),
    }
}

fn state(trainer: &Trainer) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    trainer.save_state(folder.path()).expect("save");
    STATE_FILES.iter().map(|file| std::fs::read(folder.path().join(file)).expect("state file")).collect()
}

#[test]
fn every_optimizer_goes_on_bit_for_bit() {
    let batches: Vec<Batch> = (0..6)
        .map(|i| {
            let ids: Vec<i64> = (1..20).map(|j| (i * 31 + j * 7) % 500).collect();
            Batch::collate(&[(ids.clone(), ids)], 0)
        })
        .collect();
    let plateau = ScheduleKind::ReduceLrOnPlateau(PlateauSettings { patience: 0, factor: 0.5, ..Default::default() });
    let momentum = SgdSettings { momentum: 0.9, nesterov: true, weight_decay: 0.1, ..Default::default() };
    for (optimizer, kind) in [
        (OptimizerSettings::AdamW(ADAMW), plateau),
        (OptimizerSettings::AdamW8bit(ADAMW), ScheduleKind::Linear),
        (OptimizerSettings::Adafactor { weight_decay: 0.1 }, ScheduleKind::InverseSqrt { timescale: None }),
        (OptimizerSettings::Sgd(momentum), ScheduleKind::Cosine { num_cycles: 0.5 }),
        (OptimizerSettings::Sgd(SgdSettings::default()), ScheduleKind::Constant),
    ] {
        let fresh = || {
            let mut model = model();
            model.train_all();
            Trainer::new(model, settings(optimizer, kind))
        };
        // A metric that does not get better after each step, for the schedule that cares.
        let step = |trainer: &mut Trainer, batch: &Batch| {
            let objective = CrossEntropy { label_smoothing: 0.1 };
            let report = trainer.step_on(&objective, std::slice::from_ref(batch), &|| false).expect("step");
            trainer.observe(1.0);
            report
        };
        let mut unbroken = fresh();
        let reports: Vec<_> = batches.iter().map(|batch| step(&mut unbroken, batch)).collect();
        if kind == plateau {
            assert!(reports[5].learning_rate < reports[0].learning_rate / 8.0, "{reports:?}");
        }
        let mut broken = fresh();
        for (index, batch) in batches.iter().enumerate() {
            assert_eq!(step(&mut broken, batch), reports[index], "{optimizer:?}");
            let folder = tempfile::tempdir().expect("folder");
            broken.save_state(folder.path()).expect("save");
            broken = fresh();
            broken.load_state(folder.path()).expect("load");
        }
        assert_eq!(state(&broken), state(&unbroken), "{optimizer:?}");
        assert_eq!(broken.optimizer_bytes(), unbroken.optimizer_bytes());
    }
}

#[test]
fn a_state_of_another_optimizer_is_refused() {
    let trainer = |optimizer| {
        let mut model = model();
        model.train_all();
        Trainer::new(model, settings(optimizer, ScheduleKind::Linear))
    };
    let mut first = trainer(OptimizerSettings::AdamW(ADAMW));
    first.step(&[Batch::collate(&[((1..9).collect(), (1..9).collect())], 0)]).expect("step");
    let folder = tempfile::tempdir().expect("folder");
    first.save_state(folder.path()).expect("save");
    let mut second = trainer(OptimizerSettings::AdamW8bit(ADAMW));
    let said = second.load_state(folder.path()).expect_err("another optimizer").to_string();
    assert!(said.ends_with("made with other settings: optimizer.optim was \"adamw\", is now \"adamw_8bit\""), "{said}");
}
