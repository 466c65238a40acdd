//! A step on several devices is the step of one, to the bit. The processor stands for each of them: what is proven here is
//! who computes what, in which order it is added up and what a failure leaves behind.

mod golden;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use golden::{Expected, fixture, settings};
use mloc_burn::batch::Batch;
use mloc_burn::lora::{self, LoraConfig, Modules};
use mloc_burn::loss_scale::LossScale;
use mloc_burn::model::{Decoder, DecoderConfig, Held, Parameters};
use mloc_burn::objective::{BatchReport, CrossEntropy, Objective, Pass};
use mloc_burn::quant::{FourBitSettings, QuantType};
use mloc_burn::train::{STATE_FILES, StepReport, TrainError, TrainSettings, Trainer};
use mloc_burn::weights::SafetensorsSource;

const FOUR_BIT: Held =
    Held::FourBit(FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: true });

fn base(family: &str, held: Held) -> Decoder {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load_held(config, &source, held, &Device::flex()).expect("model")
}

fn with_adapter(mut model: Decoder, use_dora: bool) -> Decoder {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.2,
        target_modules: Modules::AllLinear,
        use_dora,
        ..LoraConfig::default()
    };
    lora::attach(&mut model, &config, 7).expect("attach");
    model
}

fn lora() -> Decoder {
    with_adapter(base("llama", Held::F32), false)
}

fn qlora() -> Decoder {
    with_adapter(base("llama", FOUR_BIT), true)
}

/// With a head that is the embedding: its gradient comes in two parts from each micro-batch.
fn full_and_tied() -> Decoder {
    let mut model = base("qwen2", Held::F32);
    assert!(model.lm_head.is_none(), "tied");
    model.train_all();
    model
}

/// Noise on embeddings, so that it matters which micro-batch has which seed.
fn train_settings() -> TrainSettings {
    let expected = Expected::open(&fixture("lora/llama/expected.json"));
    TrainSettings { neftune_noise_alpha: Some(5.0), ..settings(&expected) }
}

/// Micro-batches of unlike length; the third has nothing to learn.
fn batches(from: i64, count: i64) -> Vec<Batch> {
    let row = |index: i64| -> (Vec<i64>, Vec<i64>) {
        let ids: Vec<i64> = (0..5 + index % 4).map(|at| 3 + (7 * index + 3 * at * at) % 200).collect();
        (ids.clone(), ids)
    };
    let batch = |index: i64| match index {
        2 => Batch::single(&[1, 2, 3]),
        _ => Batch::collate(&[row(2 * index), row(2 * index + 1)], 0),
    };
    (from..from + count).map(batch).collect()
}

fn trainer(model: Decoder, devices: usize) -> Trainer {
    let replicas = (1..devices).map(|_| model.on_device(&Device::flex())).collect();
    let mut trainer = Trainer::new(model, train_settings());
    trainer.share_among(replicas);
    assert_eq!(trainer.devices(), devices);
    trainer
}

fn state<M: Parameters>(trainer: &Trainer<M>) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    trainer.save_state(folder.path()).expect("save");
    STATE_FILES.map(|name| std::fs::read(folder.path().join(name)).expect("file")).into()
}

/// Three steps, the last one of fewer micro-batches than there are devices.
fn train(trainer: &mut Trainer) -> Vec<StepReport> {
    [batches(0, 6), batches(6, 6), batches(12, 2)].iter().map(|step| trainer.step(step).expect("step")).collect()
}

#[test]
fn the_result_is_that_of_one_device() {
    for (what, model) in [("lora", lora as fn() -> Decoder), ("qlora", qlora), ("full", full_and_tied)] {
        let mut one = trainer(model(), 1);
        let wanted = train(&mut one);
        assert!(wanted.iter().all(|report| report.grad_norm > 0.0), "{what}");
        for devices in [2, 3, 4] {
            let mut several = trainer(model(), devices);
            assert_eq!(train(&mut several), wanted, "{what} on {devices}");
            assert!(state(&several) == state(&one), "{what} on {devices}: the states differ");
        }
    }
}

#[test]
fn a_state_goes_on_on_another_number_of_devices() {
    let mut unbroken = trainer(lora(), 1);
    train(&mut unbroken);
    for (first, second) in [(3, 1), (1, 3), (4, 2)] {
        let mut begun = trainer(lora(), first);
        begun.step(&batches(0, 6)).expect("step");
        let folder = tempfile::tempdir().expect("folder");
        begun.save_state(folder.path()).expect("save");
        let mut resumed = trainer(lora(), second);
        resumed.load_state(folder.path()).expect("load");
        for step in [batches(6, 6), batches(12, 2)] {
            resumed.step(&step).expect("step");
        }
        assert!(state(&resumed) == state(&unbroken), "from {first} to {second}");
    }
}

/// Cross-entropy that fails, or panics, at one micro-batch.
struct FailsAt {
    tokens: usize,
    panics: bool,
}

impl Objective for FailsAt {
    type Model = Decoder;
    type Batch = Batch;

    fn check(&self, model: &Decoder, batch: &Batch) -> Result<(), TrainError> {
        CrossEntropy::default().check(model, batch)
    }

    fn weight(&self, batch: &Batch) -> f64 {
        CrossEntropy::default().weight(batch)
    }

    fn tokens(&self, batch: &Batch) -> usize {
        CrossEntropy::default().tokens(batch)
    }

    fn accumulate(&self, model: &Decoder, batch: &Batch, pass: &mut Pass<'_>) -> Result<BatchReport, TrainError> {
        let found = batch.num_tokens() == self.tokens;
        assert!(!(found && self.panics), "a bug at {} tokens", self.tokens);
        match found {
            true => Err(TrainError::Batch { row: 0, problem: "broken".into() }),
            false => CrossEntropy::default().accumulate(model, batch, pass),
        }
    }
}

/// Micro-batches that are told apart by their tokens.
fn told_apart() -> Vec<Batch> {
    (0..6).map(|index| Batch::collate(&[(vec![5; 4 + index], vec![5; 4 + index])], 0)).collect()
}

#[test]
fn a_failure_on_any_device_leaves_the_trainer_as_it_was() {
    let mut several = trainer(lora(), 3);
    let before = state(&several);
    for at in 0..6 {
        let failing = FailsAt { tokens: 4 + at, panics: false };
        let error = several.step_on(&failing, &told_apart(), &|| false).expect_err("it fails");
        assert_eq!(error.to_string(), "batch row 0: broken", "at {at}");
        assert!(state(&several) == before, "at {at}");
    }
    let mut one = trainer(lora(), 1);
    assert_eq!(train(&mut several), train(&mut one));
}

#[test]
fn a_panic_on_another_device_goes_on_with_its_own_words() {
    let mut several = trainer(lora(), 3);
    let failing = FailsAt { tokens: 5, panics: true };
    let panicked = catch_unwind(AssertUnwindSafe(|| several.step_on(&failing, &told_apart(), &|| false)));
    let words = panicked.expect_err("it panics");
    assert_eq!(words.downcast_ref::<String>().map(String::as_str), Some("a bug at 5 tokens"));
}

#[test]
fn an_interruption_at_any_time_is_as_if_the_step_had_not_begun() {
    let (mut unbroken, mut broken) = (trainer(lora(), 1), trainer(lora(), 3));
    let step = batches(3, 6);
    // Asked before each layer, forward and backward, of six micro-batches.
    let asks = 6 * 2 * broken.model().layers.len();
    for last in (1..=asks).step_by(3) {
        let asked = AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) + 1 >= last;
        let error = broken.step_unless(&step, &stop).expect_err("stopped");
        assert!(matches!(error, TrainError::Interrupted), "{error}");
        assert_eq!(broken.steps_done(), 0);
    }
    assert_eq!(broken.step(&step).expect("step"), unbroken.step(&step).expect("step"));
    assert!(state(&broken) == state(&unbroken));
}

#[test]
fn a_step_that_left_the_range_of_f16_is_tried_again_on_all_devices() {
    let scaled = |devices| {
        let mut trainer = trainer(lora(), devices);
        // Twice too high: gradients in f32 overflow.
        trainer.scale_loss(LossScale::from(2f64.powi(126)));
        train(&mut trainer);
        state(&trainer)
    };
    assert!(scaled(3) == scaled(1));
}
