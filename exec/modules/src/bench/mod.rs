//! How fast and in how much memory this machine trains: some steps of supervised fine-tuning, timed, beside the machine's
//! own matrix products. For `mloc bench train`.
//!
//! | file | holds |
//! |---|---|
//! | `model` | what is trained: files, or random weights of a known shape |
//! | `rows` | what it is trained on: a data set, or lengths drawn |

mod model;
mod rows;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use burn::tensor::{Device, FloatDType};
use mloc_burn::{
    allocator,
    batch::Batch,
    device,
    lora::{self, LoraConfig, Modules},
    memory::{self, Method as Trains, Rows, Setup, Trained},
    model::{Compute, Decoder, Held},
    operations,
    optim::OptimizerSettings,
    quant::{FourBitSettings, QuantType},
    schedule::{Schedule, ScheduleKind},
    spent::{self, Work},
    train::{TrainSettings, Trainer},
};
use serde::Serialize;

use crate::{measure, training_log::peak_memory_bytes};

/// Shapes whose weights are made up.
pub const ARCHITECTURES: [&str; 2] = ["smollm2-135m", "tiny"];
/// Rows and columns of the matrices that are multiplied for comparison.
const SIZES: [usize; 3] = [512, 1024, 2048];
const SEED: u64 = 3;

/// What is trained.
#[derive(Clone, Debug)]
pub enum Model {
    /// A model's folder, or a GGUF file.
    Files(PathBuf),
    /// One of [`ARCHITECTURES`].
    Architecture(String),
}

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Adapters on weights as they are.
    Lora,
    /// All weights.
    Full,
    /// Adapters on weights in 4 bits.
    Qlora,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct TrainBench {
    /// The model.
    pub model: Model,
    /// What of it is trained.
    pub method: Method,
    /// Data to train on, in its order; lengths are drawn where there is none.
    pub data: Option<PathBuf>,
    /// Samples in a step.
    pub batch: usize,
    /// Tokens after which a sample is cut.
    pub max_length: usize,
    /// Rank of adapters.
    pub rank: usize,
    /// Layers that have one, as in a task.
    pub targets: Vec<String>,
    /// Whether layers are computed anew in the backward pass.
    pub checkpointing: bool,
    /// Steps that count; one more comes first, which starts threads and fills the allocator.
    pub steps: usize,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// The model, for people.
    pub model: String,
    /// What of it was trained.
    pub method: Method,
    /// What it was trained on, for people.
    pub data: String,
    /// Elements of all weights.
    pub parameters: u64,
    /// Elements of what is trained.
    pub trainable: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Steps that count.
    pub steps: usize,
    /// Real tokens of those: padding is no work, and not counted.
    pub tokens: u64,
    /// What they took.
    pub seconds: f64,
    /// Real tokens a second.
    pub tokens_per_second: f64,
    /// Largest resident size of the process, loading included, in bytes.
    pub peak_memory_bytes: u64,
    /// What had been said to be needed, in bytes; 0 where nothing was.
    pub planned_memory_bytes: u64,
    /// Floating-point operations that the steps needed, in all, as [`operations`] counts them.
    pub operations: f64,
    /// The same a second, in GFLOP/s.
    pub gflops: f64,
    /// Rates of matrix products in f32 before and after the steps, in GFLOP/s: the better of each size.
    pub matmul: Vec<MatmulRate>,
    /// The best of them.
    pub matmul_gflops: f64,
    /// `gflops` of that.
    pub share_of_matmul: f64,
    /// Where the seconds went, the most first.
    pub spent: Vec<Spent>,
    /// Loss of the first step and of the last.
    pub loss: [f64; 2],
}

/// Time of one kind of work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spent {
    /// The work, for people.
    pub on: String,
    /// All steps together.
    pub seconds: f64,
}

/// Of one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MatmulRate {
    /// Rows and columns.
    pub size: usize,
    /// In GFLOP/s.
    pub gflops: f64,
}

impl TrainBench {
    /// Measures. Takes seconds to minutes; `tell` is given each step's line.
    ///
    /// # Errors
    /// For people: a model or data that is none, settings that do not fit.
    pub fn run(&self, tell: &mut dyn FnMut(String)) -> Result<TrainReport, String> {
        // As a task's process does.
        allocator::keep_freed_memory();
        let on = Device::flex();
        let before = rates(&on)?;
        // What matrices took is not what training takes.
        let forgotten = forget_peak();
        let held = match self.method {
            Method::Qlora => {
                Held::FourBit(FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: true })
            }
            Method::Lora | Method::Full => Held::F32,
        };
        let model::Loaded { mut model, tokenizer, name } = model::load(&self.model, held, &on)?;
        let adapter = LoraConfig {
            r: self.rank,
            lora_alpha: 2.0 * self.rank as f64,
            target_modules: Modules::from_names(self.targets.clone()),
            ..LoraConfig::default()
        };
        match self.method {
            Method::Full => model.train_all(),
            Method::Lora | Method::Qlora => lora::attach(&mut model, &adapter, SEED).map_err(|e| e.to_string())?,
        }
        model.checkpointing = self.checkpointing;
        let vocabulary = model.config.vocab_size;
        let given = rows::Rows::of(self.data.as_deref(), tokenizer.as_ref(), vocabulary, self.max_length)?;
        let steps = self.steps.max(1) + 1;
        let batches: Vec<Batch> = given.batches(self.batch.max(1)).take(steps).collect();
        let planned = self.planned(&model, held, &adapter, &batches);
        let (parameters, trainable) = (model.count() as u64, model.trainable_count() as u64);
        let settings = TrainSettings {
            schedule: Schedule {
                kind: ScheduleKind::Linear,
                peak: if self.method == Method::Full { 2e-5 } else { 2e-4 },
                warmup_steps: 0,
                total_steps: steps as u64,
            },
            optimizer: OptimizerSettings::default(),
            max_grad_norm: Some(1.0),
            seed: SEED,
            neftune_noise_alpha: None,
        };
        let mut trainer = Trainer::new(model, settings);
        let (mut tokens, mut counted, mut seconds, mut loss) = (0, 0.0, 0.0, [0.0; 2]);
        for (step, batch) in batches.iter().enumerate() {
            let began = Instant::now();
            let report = trainer.step(std::slice::from_ref(batch)).map_err(|e| e.to_string())?;
            let took = began.elapsed().as_secs_f64();
            let real = batch.num_tokens();
            tell(format!(
                "step {step:3}   {real:5} tokens   {took:7.3} s   {:7.1} tokens/s   loss {:.4}{}",
                real as f64 / took,
                report.loss,
                if step == 0 { "   (not counted)" } else { "" }
            ));
            if step == 0 {
                loss[0] = report.loss;
                spent::begin();
                continue;
            }
            loss[1] = report.loss;
            tokens += real as u64;
            seconds += took;
            counted += operations::of_step(trainer.model(), &lengths(batch), batch.num_targets());
        }
        let spent = spent_on(seconds, &spent::end());
        let peak_memory_bytes = if forgotten { peak_memory_bytes() } else { 0 };
        drop(trainer);
        let after = rates(&on)?;
        let matmul: Vec<MatmulRate> = before
            .into_iter()
            .zip(after)
            .map(|(before, after)| MatmulRate { gflops: before.gflops.max(after.gflops), ..before })
            .collect();
        let matmul_gflops = matmul.iter().fold(0.0, |best: f64, rate| best.max(rate.gflops));
        let gflops = counted / seconds / 1e9;
        Ok(TrainReport {
            model: name,
            method: self.method,
            data: given.name,
            parameters,
            trainable,
            threads: device::threads(),
            steps: self.steps.max(1),
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            peak_memory_bytes,
            planned_memory_bytes: planned,
            operations: counted,
            gflops,
            matmul,
            matmul_gflops,
            share_of_matmul: gflops / matmul_gflops,
            spent,
            loss,
        })
    }

    /// What a task would have said that it needs.
    fn planned(&self, model: &Decoder, held: Held, adapter: &LoraConfig, batches: &[Batch]) -> u64 {
        let rows = batches.iter().map(|batch| Rows::lengths(lengths(batch))).fold(Rows::default(), Rows::max);
        let setup = Setup {
            model: &model.config,
            trained: if self.method == Method::Full { Trained::All } else { Trained::Adapter(adapter) },
            held,
            compute: Compute::F32,
            optimizer: OptimizerSettings::default(),
            checkpointing: self.checkpointing,
            rows,
            micro_batches: 1,
            measured: Rows::default(),
            method: Trains::CrossEntropy,
            on_gpu: false,
        };
        memory::plan(&setup).map_or(0, |plan| plan.peak() + crate::memory::PROCESS_BYTES)
    }
}

/// By kind of work, and the rest: what batches are made ready with, memory that is asked for and given back, copies.
fn spent_on(seconds: f64, counted: &[(Work, Duration)]) -> Vec<Spent> {
    let mut spent: Vec<Spent> =
        counted.iter().map(|(work, time)| Spent { on: work.words().to_owned(), seconds: time.as_secs_f64() }).collect();
    let rest = seconds - spent.iter().map(|spent| spent.seconds).sum::<f64>();
    spent.push(Spent { on: "everything else".to_owned(), seconds: rest.max(0.0) });
    spent.retain(|spent| spent.seconds > 0.0);
    spent.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    spent
}

/// Real tokens of each row.
fn lengths(batch: &Batch) -> Vec<usize> {
    batch.attention_mask.iter().map(|row| row.iter().filter(|m| **m != 0).count()).collect()
}

fn rates(device: &Device) -> Result<Vec<MatmulRate>, String> {
    let rate = |size| Ok(MatmulRate { size, gflops: measure::rate(device, size, FloatDType::F32)? });
    SIZES.into_iter().map(rate).collect()
}

/// Begins the system's count of this process's largest resident size anew. Whether it did: where it can't, that count has
/// what came before in it too, and is of no use.
fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(method: Method, data: Option<PathBuf>) -> TrainBench {
        TrainBench {
            model: Model::Architecture("tiny".into()),
            method,
            data,
            batch: 2,
            max_length: 32,
            rank: 4,
            targets: vec!["q_proj".into(), "v_proj".into()],
            checkpointing: false,
            steps: 2,
        }
    }

    #[test]
    fn figures_hold_together() {
        for method in [Method::Lora, Method::Full, Method::Qlora] {
            let mut lines = Vec::new();
            let report = bench(method, None).run(&mut |line| lines.push(line)).expect("report");
            assert_eq!((lines.len(), report.steps), (3, 2), "one step is not counted");
            assert!(report.tokens > 0 && report.tokens <= 2 * 2 * 32, "{report:?}");
            assert!((report.tokens_per_second * report.seconds / report.tokens as f64 - 1.0).abs() < 1e-9);
            assert!((report.share_of_matmul * report.matmul_gflops / report.gflops - 1.0).abs() < 1e-9);
            assert_eq!(report.trainable == report.parameters, method == Method::Full);
            assert!(report.loss[0].is_finite() && report.planned_memory_bytes > 0);
            let spent: f64 = report.spent.iter().map(|spent| spent.seconds).sum();
            assert!((spent / report.seconds - 1.0).abs() < 1e-6, "{:?} in {} s", report.spent, report.seconds);
            let products = report.spent.iter().find(|spent| spent.on == Work::Products.words()).expect("products");
            assert!(products.seconds < report.seconds);
        }
    }

    #[test]
    fn rows_are_those_of_the_data() {
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("rows.jsonl");
        std::fs::write(&data, "{\"text\": \"what is a lease?\"}\n{\"text\": \"a promise with an end\"}\n")
            .expect("write");
        let report = bench(Method::Lora, Some(data)).run(&mut |_| {}).expect("report");
        // 16 and 21 bytes, four of them a token, in each of two steps.
        assert_eq!(report.tokens, 2 * (4 + 6));
        assert!(report.data.contains("4 bytes a token"), "{}", report.data);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let unknown = TrainBench { model: Model::Architecture("gpt-5".into()), ..bench(Method::Lora, None) };
        assert!(unknown.run(&mut |_| {}).expect_err("unknown").contains("smollm2-135m"));
        let targets = TrainBench { targets: vec!["q_prj".into()], ..bench(Method::Lora, None) };
        assert!(targets.run(&mut |_| {}).expect_err("mistyped").contains("q_proj"));
    }
}
