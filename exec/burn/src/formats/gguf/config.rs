//! What a GGUF file says of its model, in the terms of `config.json`.

use serde_json::{Value, json};

use super::GgufError;
use super::model::tensor_error;
use super::reader::GgufFile;

/// Position scaling beyond the length a model was trained for first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: slow frequencies divided, fast ones kept, a ramp between.
    Llama3 {
        /// The divisor of the slow frequencies.
        factor: f64,
        /// Below this many turns over the original length a frequency is slow.
        low_freq_factor: f64,
        /// Above this many turns over the original length a frequency is kept.
        high_freq_factor: f64,
        /// The context length of the first training, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// The model's dimensions and constants, from the metadata and the tensors' shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`, as in `config.json`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added under the root of RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Position scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Context length in tokens.
    pub max_position_embeddings: usize,
    /// How far back attention sees, in tokens, where limited.
    pub sliding_window: Option<usize>,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Token that begins a text.
    pub bos_token_id: Option<usize>,
    /// Token that ends a text.
    pub eos_token_id: Option<usize>,
}

impl GgufConfig {
    /// The same as the content of a `config.json`, in the older style (`rope_theta`, `rope_scaling`).
    pub fn to_hf_config(&self) -> Value {
        let class = match self.model_type.as_str() {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let rope_scaling = match self.rope_scaling {
            None => Value::Null,
            Some(RopeScaling::Linear { factor }) => {
                json!({ "rope_type": "linear", "factor": factor })
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        };
        json!({
            "architectures": [class],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": rope_scaling,
            "max_position_embeddings": self.max_position_embeddings,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "torch_dtype": "float32",
        })
    }
}

pub(super) fn required<T>(value: Option<T>, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::Metadata { key: key.to_owned(), problem: "is missing".into() })
}

pub(super) fn read_config(file: &GgufFile, architecture: &str) -> Result<GgufConfig, GgufError> {
    let key = |rest: &str| format!("{architecture}.{rest}");
    let positive = |rest: &str| match required(file.uint(&key(rest))?, &key(rest))? {
        0 => Err(GgufError::Metadata { key: key(rest), problem: "is zero".into() }),
        n => Ok(n),
    };
    let hidden_size = positive("embedding_length")?;
    let heads = positive("attention.head_count")?;
    let kv_heads = file.uint(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = match file.uint(&key("attention.key_length"))? {
        Some(n) => n,
        None => hidden_size / heads,
    };
    if kv_heads == 0 || heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
        let problem = format!("{heads} heads, {kv_heads} key heads and a width of {head_dim} do not fit together");
        return Err(GgufError::Metadata { key: key("attention.head_count"), problem });
    }
    if let Some(n) = file.uint(&key("rope.dimension_count"))?.filter(|n| *n != head_dim) {
        let text = format!("rotary embedding over {n} of a head's {head_dim} elements");
        return Err(GgufError::Unsupported(text));
    }
    if file.uint(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return Err(GgufError::Unsupported("a mixture of experts".into()));
    }
    let embedding = file.tensors.get("token_embd.weight");
    let embedding = embedding.ok_or_else(|| tensor_error("token_embd.weight", "is missing".into()))?;
    let [vocab_size, _] = embedding.shape[..] else {
        return Err(tensor_error(
            "token_embd.weight",
            format!("has shape {:?}, expected two dimensions", embedding.shape),
        ));
    };
    let sliding_window = file.uint(&key("attention.sliding_window"))?;
    let model_type = match (architecture, sliding_window) {
        ("llama", Some(_)) => "mistral",
        (other, _) => other,
    };
    let rope_theta = file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let max_position_embeddings = positive("context_length")?;
    Ok(GgufConfig {
        model_type: model_type.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: positive("feed_forward_length")?,
        num_hidden_layers: positive("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        rms_norm_eps: round_from_f32(required(
            file.float(&key("attention.layer_norm_rms_epsilon"))?,
            &key("attention.layer_norm_rms_epsilon"),
        )?),
        rope_theta: round_from_f32(rope_theta),
        rope_scaling: read_rope_scaling(file, &key, head_dim, rope_theta)?,
        max_position_embeddings,
        sliding_window,
        tie_word_embeddings: !file.tensors.contains_key("output.weight"),
        attention_bias: file.tensors.contains_key("blk.0.attn_q.bias"),
        bos_token_id: file.uint("tokenizer.ggml.bos_token_id")?,
        eos_token_id: file.uint("tokenizer.ggml.eos_token_id")?,
    })
}

/// Floats are stored in 32 bits: 1e-5 comes back as 9.999999747378752e-6. The shortest decimal that gives the same
/// 32 bits is what its author wrote.
fn round_from_f32(x: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, reason = "that is the point")]
    let short = x as f32;
    if f64::from(short) == x { short.to_string().parse().unwrap_or(x) } else { x }
}

fn read_rope_scaling(
    file: &GgufFile,
    key: &impl Fn(&str) -> String,
    head_dim: usize,
    theta: f64,
) -> Result<Option<RopeScaling>, GgufError> {
    if file.tensors.contains_key("rope_freqs.weight") {
        let factors = file.read_f32("rope_freqs.weight")?;
        // Ours say it; llama.cpp's converter does not.
        let length = file.uint(&key("rope.scaling.original_context_length"))?.unwrap_or(8192);
        return llama3_scaling(&factors, length, head_dim, theta).map(Some);
    }
    match file.text(&key("rope.scaling.type"))? {
        None | Some("none") => Ok(None),
        Some("linear") => {
            let name = key("rope.scaling.factor");
            Ok(Some(RopeScaling::Linear { factor: required(file.float(&name)?, &name)? }))
        }
        Some(other) => Err(GgufError::Unsupported(format!("rope scaling `{other}`; known are linear and llama3"))),
    }
}

/// The file holds a divisor per frequency and not the four numbers they were computed from. All Llama 3.x models share
/// two of them and, unless it says so, the length; the fourth is the largest divisor. The result must give the file's
/// divisors again.
fn llama3_scaling(factors: &[f32], length: usize, head_dim: usize, theta: f64) -> Result<RopeScaling, GgufError> {
    let (low, high) = (1.0, 4.0);
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let matches = factors.len() == head_dim / 2
        && factors.iter().enumerate().all(|(i, found)| {
            let turns = length as f64 / (std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64));
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            let want = 1.0 / ((1.0 - smooth) / factor + smooth);
            (f64::from(*found) / want - 1.0).abs() < 1e-3
        });
    if !matches {
        let text =
            format!("rope_freqs.weight holds divisors that are not Llama 3's (factors 1 and 4 over {length} tokens)");
        return Err(GgufError::Unsupported(text));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_divisors_become_its_parameters() {
        let (head_dim, theta, factor) = (64usize, 500_000f64, 32f64);
        // The reference's own words: wavelengths, not turns.
        let divisor = |i: usize| -> f32 {
            let wavelength = 2.0 * std::f64::consts::PI * theta.powf((2 * i) as f64 / head_dim as f64);
            if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 / 1.0 {
                factor as f32
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        };
        let factors: Vec<f32> = (0..32).map(divisor).collect();
        let scaling = llama3_scaling(&factors, 8192, head_dim, theta).unwrap();
        let want = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(scaling, want);
        assert!(llama3_scaling(&[2.0; 32], 8192, head_dim, theta).is_err());
    }
}
