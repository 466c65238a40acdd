//! The golden models written as GGUF files as llama.cpp's converter would, and read back into a decoder: it must give the
//! reference library's logits.

use std::path::PathBuf;

use burn::tensor::Device;
use serde_json::Value;

use super::testing::GgufWriter;
use super::{GgufFile, GgufModel};
use crate::batch::Batch;
use crate::model::parameter::host_values;
use crate::model::{Decoder, DecoderConfig, Packed};
use crate::weights::{SafetensorsSource, TensorSource};

fn golden(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/models").join(family)
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The converter's names.
fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (theirs, ours) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}

/// What the converter does to q and k of the llama architecture: rows (heads, 2, d/2) become (heads, d/2, 2).
fn in_pairs(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = head * head_dim + half * (head_dim / 2) + pair;
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

fn written(family: &str, architecture: &str, window: Option<u32>) -> Vec<u8> {
    let config = DecoderConfig::from_folder(&golden(family)).unwrap();
    let source = SafetensorsSource::open_folder(&golden(family)).unwrap();
    let mut file = GgufWriter::new();
    let key = |rest: &str| format!("{architecture}.{rest}");
    file.text("general.architecture", architecture);
    for (rest, value) in [
        ("block_count", config.num_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        file.uint(&key(rest), value.try_into().unwrap());
    }
    if let Some(window) = window {
        file.uint(&key("attention.sliding_window"), window);
    }
    file.float(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    file.float(&key("rope.freq_base"), config.rope_theta as f32);
    for name in source.names() {
        if config.tie_word_embeddings && name == "lm_head.weight" {
            continue;
        }
        let mut values = source.read_f32(&name).unwrap();
        let heads = match name.rsplit('.').nth(1) {
            Some("q_proj") => Some(config.num_heads),
            Some("k_proj") => Some(config.num_kv_heads),
            _ => None,
        };
        if let Some(heads) = heads.filter(|_| architecture == "llama") {
            values = in_pairs(&values, heads, config.head_dim);
        }
        let shape: Vec<u64> = source.shape(&name).unwrap().iter().map(|d| *d as u64).collect();
        file.f32_tensor(&gguf_name(&name), &shape, &values);
    }
    file.bytes(3)
}

#[test]
fn a_gguf_file_gives_the_reference_logits() {
    for (family, architecture, window) in [("mistral", "llama", Some(8)), ("qwen2", "qwen2", None)] {
        let gguf = GgufFile::from_bytes(written(family, architecture, window)).unwrap();
        let gguf = GgufModel::from_file(gguf).unwrap();
        let config = DecoderConfig::from_json(gguf.config().to_hf_config()).unwrap();
        assert_eq!(config.windows, vec![window.map(|w| w as usize); config.num_layers], "{family}");
        let model = Decoder::load(config, &gguf, &Device::flex()).unwrap();

        let expected = read_json(golden(family).join("expected.json"));
        let ids: Vec<i64> = serde_json::from_value(expected["forward"]["input_ids"].clone()).unwrap();
        assert!(ids.len() > 8, "{family}: a text longer than the window");
        let packed = Packed::new(&Batch::single(&ids), &model.config, model.device());
        let found = host_values(model.logits(model.hidden(&packed)));
        let wanted = SafetensorsSource::open_file(&golden(family).join("tensors.safetensors")).unwrap();
        let wanted = wanted.read_f32("logits").unwrap();
        assert_eq!(found.len(), wanted.len());
        for (index, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let close = (found - wanted).abs() <= 1e-4 + 1e-4 * wanted.abs();
            assert!(close, "{family}: logit {index}: found {found}, expected {wanted}");
        }
    }
}
