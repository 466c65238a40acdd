//! Speed and memory of LoRA SFT on SmolLM2-135M-Instruct: rank 16 on q_proj and v_proj, batches of 4 conversations of at
//! most 256 tokens, in the order of `tests/fixtures/data/mloc_qa.jsonl`, f32 on the CPU.
//!
//! ```text
//! MLOC_SMOLLM2_GGUF=$(tests/fetch_smollm2.sh) cargo bench -p mloc-burn --bench sft_smollm2 [-- STEPS]
//! ```
//! Beside the seconds, and where they go, it prints how many floating-point operations a step needs
//! ([`mloc_burn::operations`] has the formula) and what share of this machine's matrix product that is: the product is timed
//! in the same run, since other work on the machine slows both. Ratios are against the reference trainer on the machine named at [`REFERENCE`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use mloc_burn::batch::Batch;
use mloc_burn::formats::dataset::{self, LoadOptions, TokenizeOptions, TokenizedExample};
use mloc_burn::formats::gguf::GgufModel;
use mloc_burn::lora::{self, LoraConfig};
use mloc_burn::model::parameter::host_values;
use mloc_burn::model::{Decoder, DecoderConfig};
use mloc_burn::operations;
use mloc_burn::optim::OptimizerSettings;
use mloc_burn::schedule::{Schedule, ScheduleKind};
use mloc_burn::spent;
use mloc_burn::train::{TrainSettings, Trainer};

/// TRL in f32 on 2 threads of a quiet machine, same model, data and settings: real tokens a second, peak memory in bytes,
/// and GFLOP/s of that machine's matrix product.
const REFERENCE: (f64, f64, f64) = (212.0, 2.3 * (1u64 << 30) as f64, 268.0);
const BATCH: usize = 4;
const MAX_LENGTH: usize = 256;
const RANK: usize = 16;
const TARGETS: [&str; 2] = ["q_proj", "v_proj"];
/// Steps without an argument; the first one is not counted, it warms the allocator and starts the threads.
const STEPS: usize = 20;

fn main() {
    let Some(file) = std::env::var_os("MLOC_SMOLLM2_GGUF").map(PathBuf::from) else {
        let why = "MLOC_SMOLLM2_GGUF names no file; tests/fetch_smollm2.sh fetches one";
        assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "sft_smollm2 must not be skipped: {why}");
        writeln!(std::io::stderr(), "SKIP sft_smollm2: {why}").ok();
        return;
    };
    let steps = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(STEPS).max(2);
    // As a task's process does.
    mloc_burn::allocator::keep_freed_memory();
    let device = Device::flex();
    let mut peak = matmul_gflops(&device);

    let gguf = GgufModel::open(&file).expect("model");
    let config = DecoderConfig::from_json(gguf.config().to_hf_config()).expect("config");
    let mut model = Decoder::load(config, &gguf, &device).expect("weights");
    let tokenizer = gguf.tokenizer().expect("tokenizer");
    let adapter = LoraConfig { r: RANK, lora_alpha: 32.0, target_modules: TARGETS.into(), ..LoraConfig::default() };
    lora::attach(&mut model, &adapter, 2).expect("adapter");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/mloc_qa.jsonl");
    let rows = dataset::load(&data, &LoadOptions::default(), &|| false).expect("data");
    let options = TokenizeOptions { max_length: Some(MAX_LENGTH), ..TokenizeOptions::default() };
    let rows = dataset::tokenize_all(&rows, &tokenizer, options, &|| false).expect("tokens").examples;
    let schedule = Schedule { kind: ScheduleKind::Linear, peak: 2e-4, warmup_steps: 0, total_steps: steps as u64 };
    let settings = TrainSettings {
        schedule,
        optimizer: OptimizerSettings::default(),
        max_grad_norm: Some(1.0),
        seed: 3,
        neftune_noise_alpha: None,
    };
    let mut trainer = Trainer::new(model, settings);

    let (mut tokens, mut padded, mut flops, mut seconds) = (0, 0, 0.0, 0.0);
    for (step, rows) in rows.chunks(BATCH).cycle().take(steps).enumerate() {
        let rows: Vec<_> = rows.iter().map(TokenizedExample::row).collect();
        let batch = Batch::collate(&rows, 0);
        let start = Instant::now();
        let report = trainer.step(std::slice::from_ref(&batch)).expect("step");
        let took = start.elapsed().as_secs_f64();
        let work = operations::of_step(trainer.model(), &lengths(&batch), batch.num_targets());
        let real = batch.num_tokens();
        println!(
            "step {:3}  {real:4} tokens  {took:.3} s  {:.0} tokens/s  {:.0} GFLOP/s  loss {:.4}",
            report.step,
            real as f64 / took,
            work / took / 1e9,
            report.loss
        );
        if step == 0 {
            spent::begin();
        } else {
            tokens += real;
            padded += batch.input_ids.len() * batch.input_ids[0].len();
            flops += work;
            seconds += took;
        }
    }
    let spent = spent::end();
    peak = peak.max(matmul_gflops(&device));
    let counted = (steps - 1) as f64;
    let (rate, reached, memory) = (tokens as f64 / seconds, flops / seconds / 1e9, peak_memory_bytes());
    let (reference_rate, reference_memory, reference_peak) = REFERENCE;
    println!("real tokens a second   {rate:.1}   ({:.2} × the reference's {reference_rate})", rate / reference_rate);
    println!("peak resident bytes    {memory}   ({:.2} × the reference's)", memory as f64 / reference_memory);
    println!("seconds a step         {:.3}   over {counted} steps", seconds / counted);
    println!(
        "real tokens a step     {:.1}   ({:.1} with padding, which is not computed)",
        tokens as f64 / counted,
        padded as f64 / counted
    );
    println!("GFLOP a step           {:.1}", flops / counted / 1e9);
    println!("GFLOP/s reached        {reached:.1}");
    println!("GFLOP/s of matmul      {peak:.1}   ({:.2} × the reference's machine)", peak / reference_peak);
    // The reference computes the same, and padding and the logits of every position besides, which are not counted.
    let reference_share = reference_rate * flops / tokens as f64 / 1e9 / reference_peak;
    println!("share of matmul        {:.3}   (the reference's of its machine: {reference_share:.3})", reached / peak);
    let all = seconds;
    let known: f64 = spent.iter().map(|(_, time)| time.as_secs_f64()).sum();
    let of_step = |seconds: f64, on: &str| {
        println!("seconds a step         {:.3}   {:4.1} %: {on}", seconds / counted, 100.0 * seconds / all);
    };
    spent.iter().for_each(|(work, time)| of_step(time.as_secs_f64(), work.words()));
    of_step(all - known, "everything else");
}

/// Real tokens of each row.
fn lengths(batch: &Batch) -> Vec<usize> {
    batch.attention_mask.iter().map(|row| row.iter().filter(|m| **m != 0).count()).collect()
}

/// The best of a few products of two 1024×1024 matrices.
fn matmul_gflops(device: &Device) -> f64 {
    const SIZE: usize = 1024;
    let matrix = || Tensor::<2>::random([SIZE, SIZE], Distribution::Uniform(-1.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    let time = |_| {
        let start = Instant::now();
        // Reading an element ends the computation.
        host_values(a.clone().matmul(b.clone()).narrow(0, 0, 1));
        start.elapsed().as_secs_f64()
    };
    let best = (0..10).map(time).fold(f64::INFINITY, f64::min);
    2.0 * (SIZE as f64).powi(3) / best / 1e9
}

/// The high-water mark that Linux keeps for this process; 0 elsewhere.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
