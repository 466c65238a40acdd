//! Speed and memory of LoRA SFT on a model of SmolLM2-135M's shape, with random weights.
//!
//! `cargo bench -p mloc-burn` prints real tokens a second and the peak of resident memory. Texts are as long as chats
//! of a question and an answer are (24 to 104 tokens); `-- full` makes each row 256 tokens.

use std::time::Instant;

use burn::tensor::Device;
use mloc_burn::batch::Batch;
use mloc_burn::lora::{self, LoraConfig};
use mloc_burn::model::{Decoder, DecoderConfig};
use mloc_burn::optim::AdamWSettings;
use mloc_burn::random::Random;
use mloc_burn::schedule::{Schedule, ScheduleKind};
use mloc_burn::train::{TrainSettings, Trainer};

fn main() {
    let full = std::env::args().any(|a| a == "full");
    let config = DecoderConfig::from_json(serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": true
    }));
    let mut model = Decoder::random(config.expect("config"), 1, &Device::flex());
    let adapter = LoraConfig {
        r: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: vec!["q_proj".into(), "v_proj".into()],
    };
    lora::attach(&mut model, &adapter, 2).expect("adapter");
    let schedule = Schedule { kind: ScheduleKind::Constant, peak: 1e-4, warmup_steps: 0, total_steps: 100 };
    let settings = TrainSettings { schedule, adamw: AdamWSettings::default(), max_grad_norm: Some(1.0), seed: 3 };
    let mut trainer = Trainer::new(model, settings);
    let mut random = Random::new(4);
    let mut tokens = 0;
    let mut seconds = 0.0;
    for step in 0..if full { 4 } else { 12 } {
        let rows: Vec<(Vec<i64>, Vec<i64>)> = (0..4)
            .map(|_| {
                let length = if full { 256 } else { 24 + random.below(81) };
                let ids: Vec<i64> = (0..length).map(|_| random.below(49152) as i64).collect();
                (ids.clone(), ids)
            })
            .collect();
        let batch = Batch::collate(&rows, 0);
        let start = Instant::now();
        let report = trainer.step(std::slice::from_ref(&batch)).expect("step");
        let took = start.elapsed().as_secs_f64();
        let rate = batch.num_tokens() as f64 / took;
        println!(
            "step {step:2}  {:4} tokens  {took:.3} s  {rate:.0} tokens/s  loss {:.4}",
            batch.num_tokens(),
            report.loss
        );
        // The first step warms the allocator and the thread pool.
        if step > 0 {
            tokens += batch.num_tokens();
            seconds += took;
        }
    }
    println!("mean {:.0} real tokens/s, peak resident memory {}", tokens as f64 / seconds, peak_memory());
}

/// The high-water mark that Linux keeps for this process.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.map_or("unknown".into(), |l| l.trim().to_owned())
}
