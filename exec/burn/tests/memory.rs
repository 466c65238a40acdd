//! What weights in fewer bits save, in bytes of a process of its own: the largest resident size from its start, through
//! loading from a file, to the end of a training step.

use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use mloc_burn::batch::Batch;
use mloc_burn::export::{Storage, write_model};
use mloc_burn::lora::{self, LoraConfig, Modules};
use mloc_burn::loss::{self, Targets};
use mloc_burn::model::{Decoder, DecoderConfig, Gradients, Held, Packed};
use mloc_burn::quant::{FourBitSettings, QuantType};
use mloc_burn::weights::SafetensorsSource;
use serde_json::json;

/// The folder of the model, for the child.
const MODEL: &str = "MLOC_MEMORY_MODEL";
/// How the child is to hold it.
const HELD: &str = "MLOC_MEMORY_HELD";
/// How many tokens it trains on, and whether it computes layers anew.
const TOKENS: &str = "MLOC_MEMORY_TOKENS";
const CHECKPOINTING: &str = "MLOC_MEMORY_CHECKPOINTING";

/// 65 million weights, nearly all of them in linear layers.
fn config() -> DecoderConfig {
    let raw = json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9,
        "num_attention_heads": 12, "tie_word_embeddings": true,
    });
    DecoderConfig::from_json(raw).expect("config")
}

/// What the child does: loads the model, adds an adapter to each layer, trains on a few tokens and says its peak.
#[test]
#[ignore = "is started by the other case"]
fn child() {
    let (Ok(folder), Ok(held)) = (std::env::var(MODEL), std::env::var(HELD)) else { return };
    let double = FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: true };
    let held = match held.as_str() {
        "f32" => Held::F32,
        "bf16" => Held::Bf16,
        _ => Held::FourBit(double),
    };
    let source = SafetensorsSource::open_folder(Path::new(&folder)).expect("weights");
    let mut model = Decoder::load_held(config(), &source, held, &Device::flex()).expect("model");
    drop(source);
    let adapter = LoraConfig { r: 4, target_modules: Modules::AllLinear, ..LoraConfig::default() };
    lora::attach(&mut model, &adapter, 1).expect("adapter");
    let tokens = std::env::var(TOKENS).ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    model.checkpointing = std::env::var_os(CHECKPOINTING).is_some();
    let batch = Batch::single(&(0..tokens).map(|i| i % 200).collect::<Vec<i64>>());
    let batch = Batch { labels: batch.input_ids.clone(), ..batch };
    let packed = Packed::new(&batch, &model.config, model.device());
    let (hidden, tape) = model.forward(&packed);
    let mut gradients = Gradients::default();
    let (_, d_hidden) = loss::backward(&hidden, model.head(), &Targets::of(&batch, &packed), 0.0, 0.1, &mut gradients);
    model.backward(&packed, tape, d_hidden, &mut gradients);
    assert_eq!(gradients.iter().count(), 9 * 7 * 2);
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    println!("peak:{}", peak.trim().trim_end_matches(" kB"));
}

/// The child's peak, in MiB.
fn peak(folder: &Path, held: &str, more: &[(&str, &str)]) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this binary"));
    child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"]);
    let output = child.env(MODEL, folder).env(HELD, held).envs(more.iter().copied()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{held}: {said}\n{error}");
    let kib = said.lines().find_map(|line| line.split("peak:").nth(1)).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{held}: no peak in {said}")) / 1024
}

#[test]
#[cfg(target_os = "linux")]
fn weights_in_fewer_bits_are_less_memory() {
    let folder = tempfile::tempdir().expect("folder");
    let model = Decoder::random(config(), 3, &Device::flex());
    let in_f32 = 4 * model.count() as u64 / (1 << 20);
    assert!(in_f32 > 240, "{in_f32} MiB");
    write_model(&model, folder.path(), Storage::Bf16, &|| false).expect("written");
    drop(model);
    let [f32, bf16, nf4] = ["f32", "bf16", "nf4"].map(|held| peak(folder.path(), held, &[]));
    eprintln!("{in_f32} MiB of f32 weights; peak {f32} MiB with f32, {bf16} MiB with bf16, {nf4} MiB with nf4");
    // That of f32 is its weights and little else, or the ratios would show nothing.
    assert!(f32 > in_f32 && f32 < in_f32 + in_f32 / 2, "f32 took {f32} MiB");
    assert!(100 * bf16 < 75 * f32, "bf16 took {bf16} MiB, f32 {f32} MiB");
    // An eighth of the weights, one layer unpacked, and the process itself.
    assert!(100 * nf4 < 45 * f32, "nf4 took {nf4} MiB, f32 {f32} MiB");

    // 400 tokens keep 17 MiB a layer, or 1 MiB where only its input is kept.
    let long = peak(folder.path(), "nf4", &[(TOKENS, "400")]);
    let anew = peak(folder.path(), "nf4", &[(TOKENS, "400"), (CHECKPOINTING, "1")]);
    eprintln!("400 tokens on nf4: peak {long} MiB, {anew} MiB where layers are computed anew");
    assert!(anew + 80 < long, "{anew} MiB where layers are computed anew, {long} MiB where they are kept");
}
