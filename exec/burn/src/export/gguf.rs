//! A model as one GGUF file, as llama.cpp and what is built on it read it.
//!
//! Matrices are stored as asked, vectors (norms, biases) as 32-bit floats. Names, the order of q's and k's rows, and the
//! divisors of Llama 3's rotary frequencies are those of llama.cpp's converter.

use std::path::Path;

use super::Stored;
use crate::formats::gguf::{GgufError, GgufModel, GgufWriter, OutTensor, TensorType, gguf_name, write_tokenizer};
use crate::formats::tokenizer::TextTokenizer;
use crate::model::{Activation, Decoder, DecoderConfig, RopeScaling};

/// How matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufStorage {
    /// Two bytes a weight.
    F16,
    /// A byte a weight, and two for 32 of them.
    Q8_0,
    /// Half a byte a weight, and two bytes for 32 of them; the embedding and the head as `Q8_0`.
    Q4_0,
}

impl GgufStorage {
    /// Its name in a file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// `general.file_type`.
    fn code(self) -> usize {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
        }
    }

    /// How a tensor is stored. A row that is no whole number of blocks keeps 16 bits a weight.
    fn of(self, name: &str, shape: &[usize]) -> TensorType {
        let kind = match self {
            Self::F16 => TensorType::F16,
            Self::Q8_0 => TensorType::Q8_0,
            // Every token's logit and first state comes from these: 4 bits would be felt most here.
            Self::Q4_0 if ["token_embd.weight", "output.weight"].contains(&name) => TensorType::Q8_0,
            Self::Q4_0 => TensorType::Q4_0,
        };
        match shape {
            [_, columns] if columns.is_multiple_of(kind.block_len()) => kind,
            [_, _] => TensorType::F16,
            _ => TensorType::F32,
        }
    }
}

/// Writes a model, its adapters in its weights, and its tokenizer to `path`, and reads it back: a
/// file that our own reader would not take, or whose tokenizer gives other tokens, is an error. Between tensors `stop` is
/// asked whether to leave it half done.
///
/// # Errors
/// A model or a tokenizer that the format has no words for; weights that 16 bits cannot hold; those of the disk.
pub fn write_gguf(
    model: &Decoder,
    tokenizer: &TextTokenizer,
    path: &Path,
    storage: GgufStorage,
    stop: &dyn Fn() -> bool,
) -> Result<(), GgufError> {
    let config = &model.config;
    let architecture = architecture(config)?;
    let mut file = GgufWriter::default();
    describe(&mut file, config, architecture, storage);
    write_tokenizer(&mut file, tokenizer, config.vocab_size)?;
    let mut tensors = Vec::new();
    for stored in super::tensors(model) {
        tensors.push(tensor(stored, config, architecture, storage)?);
    }
    if let Some(divisors) = divisors(config) {
        let values = move || divisors.clone();
        let shape = vec![config.head_dim / 2];
        tensors.push(OutTensor {
            name: "rope_freqs.weight".into(),
            shape,
            kind: TensorType::F32,
            values: Box::new(values),
        });
    }
    file.write(path, &tensors, stop)?;
    drop(tensors);
    let read = GgufModel::open(path)?;
    same_tokens(tokenizer, &read.tokenizer()?)
}

/// Whether a model and its tokenizer can be written as GGUF: to be asked before hours of training and not after.
///
/// # Errors
/// As [`write_gguf`], of what is known without weights.
pub fn check_gguf(model: &Decoder, tokenizer: &TextTokenizer) -> Result<(), GgufError> {
    architecture(&model.config)?;
    write_tokenizer(&mut GgufWriter::default(), tokenizer, model.config.vocab_size)
}

/// llama.cpp's name for what the model is.
fn architecture(config: &DecoderConfig) -> Result<&'static str, GgufError> {
    let refused = |what: String| Err(GgufError::Unsupported(format!("{what} cannot be written as GGUF in this build")));
    let name = match config.architecture.as_str() {
        "LlamaForCausalLM" | "MistralForCausalLM" => "llama",
        "Qwen2ForCausalLM" => "qwen2",
        "Qwen3ForCausalLM" => "qwen3",
        other => return refused(other.to_owned()),
    };
    if matches!(config.rope_scaling, RopeScaling::Yarn { .. }) {
        return refused("YaRN's positions".to_owned());
    }
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = config.rope_scaling
        && (low_freq_factor, high_freq_factor) != (1.0, 4.0)
    {
        // The reading back takes no others: better said before training than after.
        return refused(format!("llama3 rope scaling with factors {low_freq_factor} and {high_freq_factor}"));
    }
    if config.activation != Activation::Silu {
        // Readers of the format take SiLU for granted in these architectures.
        return refused(format!("hidden_act {:?}", config.activation));
    }
    let first = config.windows.first().copied().flatten();
    if config.windows.iter().any(|window| *window != first) || (first.is_some() && name != "llama") {
        return refused(format!("a window of attention in some layers of {}", config.architecture));
    }
    Ok(name)
}

fn describe(file: &mut GgufWriter, config: &DecoderConfig, architecture: &str, storage: GgufStorage) {
    let key = |rest: &str| format!("{architecture}.{rest}");
    file.text("general.architecture", architecture);
    file.text("general.type", "model");
    file.uint("general.file_type", storage.code());
    file.uint("general.quantization_version", 2);
    for (rest, value) in [
        ("block_count", config.num_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        file.uint(&key(rest), value);
    }
    if let Some(window) = config.windows.first().copied().flatten() {
        file.uint(&key("attention.sliding_window"), window);
    }
    file.float(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    file.float(&key("rope.freq_base"), config.rope_theta);
    match config.rope_scaling {
        RopeScaling::Linear { factor } => {
            file.text(&key("rope.scaling.type"), "linear");
            file.float(&key("rope.scaling.factor"), factor);
        }
        // The divisors are a tensor of their own; the length tells our reader which ones they are.
        RopeScaling::Llama3 { original_length, .. } => {
            file.uint(&key("rope.scaling.original_context_length"), original_length as usize);
        }
        // [`architecture`] refuses it: readers of the format choose the ramp themselves.
        RopeScaling::Yarn { .. } | RopeScaling::None => {}
    }
}

fn tensor<'a>(
    stored: Stored<'a>,
    config: &DecoderConfig,
    architecture: &str,
    storage: GgufStorage,
) -> Result<OutTensor<'a>, GgufError> {
    let Stored { name: of, shape, values } = stored;
    let unknown = || GgufError::Tensor { name: of.clone(), problem: "has no name in GGUF".to_owned() };
    let name = gguf_name(&of).ok_or_else(unknown)?;
    let heads = match of.rsplit('.').nth(1) {
        Some("q_proj") if architecture == "llama" => Some(config.num_heads),
        Some("k_proj") if architecture == "llama" => Some(config.num_kv_heads),
        _ => None,
    };
    let head_dim = config.head_dim;
    let values: Box<dyn Fn() -> Vec<f32> + 'a> = match heads {
        Some(heads) => Box::new(move || in_pairs(&values(), heads, head_dim)),
        None => values,
    };
    Ok(OutTensor { kind: storage.of(&name, &shape), name, shape, values })
}

/// Rows of q and k so that those that turn together lie side by side, where Hugging Face keeps them half a head apart.
fn in_pairs(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..heads * head_dim {
        let (head, within) = (row / head_dim, row % head_dim);
        let (pair, half) = (within / 2, within % 2);
        let source = head * head_dim + half * (head_dim / 2) + pair;
        out.extend_from_slice(&values[source * columns..(source + 1) * columns]);
    }
    out
}

/// What each rotary frequency is divided by, where they are not all divided alike (Llama 3).
fn divisors(config: &DecoderConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_length } = config.rope_scaling else {
        return None;
    };
    let divisor = |i: usize| {
        let turns =
            original_length / (std::f64::consts::TAU * config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64));
        let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Some((0..config.head_dim / 2).map(divisor).collect())
}

/// Texts with all that splits are about.
const PROBES: [&str; 4] = [
    "The lease of node-2 ended at 12:34:56, didn't it?  So be it.\n\n\tif x >= 1000: return 'ok'",
    "Überraschung: naïve café, 東京 и Москва, 🚀🚀 – “quoted” …",
    " leading and trailing ",
    "aaaa 0 00 000 0000 !!!! \r\n end",
];

fn same_tokens(tokenizer: &TextTokenizer, read: &TextTokenizer) -> Result<(), GgufError> {
    for text in PROBES {
        let (want, found) = (tokenizer.encode(text, true)?, read.encode(text, true)?);
        if want != found {
            let what = format!("a tokenizer that has other tokens for {text:?} than its GGUF form");
            return Err(GgufError::Unsupported(what));
        }
    }
    Ok(())
}
