//! A GGUF model in Hugging Face's terms: names, shapes, row order, `config.json`.
//!
//! What the file does not carry is not guessed silently: [`GgufConfig`] says what was taken from where, and a kind of
//! model that is laid out otherwise is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::reader::GgufFile;
use super::{GgufError, vocabulary};
use crate::formats::tokenizer::TextTokenizer;
use crate::weights::{TensorSource, WeightsError};

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

/// How q and k rows are ordered for rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RotaryRows {
    /// As Hugging Face has them: a head's first half turns with its second half.
    Halves,
    /// Converted: neighbours turn together, so rows must be put back.
    Pairs,
}

/// One tensor under its Hugging Face name.
#[derive(Debug)]
struct Mapped {
    source: String,
    /// Head count, when the rows must be put back in Hugging Face's order.
    unpermute: Option<usize>,
}

/// A GGUF file opened as a model.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: GgufConfig,
    tensors: BTreeMap<String, Mapped>,
}

impl GgufModel {
    /// Opens a file and works out its configuration and names. Weights are read when asked for.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, by key or tensor.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::from_file(GgufFile::open(path)?)
    }

    /// The same from a file that is already open.
    ///
    /// # Errors
    /// See [`GgufModel::open`].
    pub fn from_file(file: GgufFile) -> Result<Self, GgufError> {
        let architecture = required(file.text("general.architecture")?, "general.architecture")?.to_owned();
        let rows = match architecture.as_str() {
            "llama" => RotaryRows::Pairs,
            "qwen2" | "qwen3" => RotaryRows::Halves,
            other => {
                let text = format!("architecture `{other}`; known are llama (with mistral), qwen2, qwen3");
                return Err(GgufError::Unsupported(text));
            }
        };
        let config = read_config(&file, &architecture)?;
        let tensors = map_names(&file, &config, rows)?;
        Ok(Self { file, config, tensors })
    }

    /// The model's dimensions and constants.
    pub fn config(&self) -> &GgufConfig {
        &self.config
    }

    /// The file underneath, for its metadata.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The tokenizer and chat template in the metadata.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] for a kind of tokenizer that is not known here.
    pub fn tokenizer(&self) -> Result<TextTokenizer, GgufError> {
        vocabulary::build(&self.file)
    }

    /// All tensors, by Hugging Face's names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let mapped = self.tensors.get(name)?;
        Some(self.file.tensors.get(&mapped.source)?.shape.clone())
    }

    /// All elements of a tensor, rows in Hugging Face's order.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] when there is none of that name.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let Some(mapped) = self.tensors.get(name) else {
            return Err(tensor_error(name, "not in the file".into()));
        };
        let values = self.file.read_f32(&mapped.source)?;
        Ok(match mapped.unpermute {
            Some(heads) => rows_in_halves(&values, heads, self.config.head_dim),
            None => values,
        })
    }
}

impl TensorSource for GgufModel {
    fn names(&self) -> Vec<String> {
        self.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shape(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        // Everything else was checked when the file was opened.
        self.read_f32(name).map_err(|_| WeightsError::Missing(name.to_owned()))
    }
}

/// Undoes what llama.cpp's converter does to q and k: it puts the rows that turn together side by side (2i, 2i+1), where
/// Hugging Face keeps them half a head apart (i, i + d/2).
fn rows_in_halves(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..heads * head_dim {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let source = head * head_dim + 2 * pair + half;
        out.extend_from_slice(&values[source * columns..(source + 1) * columns]);
    }
    out
}

fn required<T>(value: Option<T>, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::Metadata { key: key.to_owned(), problem: "is missing".into() })
}

fn tensor_error(name: &str, problem: String) -> GgufError {
    GgufError::Tensor { name: name.to_owned(), problem }
}

fn read_config(file: &GgufFile, architecture: &str) -> Result<GgufConfig, GgufError> {
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

fn map_names(file: &GgufFile, config: &GgufConfig, rows: RotaryRows) -> Result<BTreeMap<String, Mapped>, GgufError> {
    let mut mapped = BTreeMap::new();
    for (source, info) in &file.tensors {
        if source == "rope_freqs.weight" {
            continue;
        }
        let Some(name) = hf_name(source) else {
            return Err(tensor_error(source, "has no place in this kind of model".into()));
        };
        let heads = match (rows, source.rsplit('.').nth(1)) {
            (RotaryRows::Pairs, Some("attn_q")) => Some(config.num_attention_heads),
            (RotaryRows::Pairs, Some("attn_k")) => Some(config.num_key_value_heads),
            _ => None,
        };
        if let Some(want) = heads.map(|h| h * config.head_dim).filter(|want| info.shape.first() != Some(want)) {
            return Err(tensor_error(source, format!("has shape {:?}, expected {want} rows", info.shape)));
        }
        mapped.insert(name, Mapped { source: source.clone(), unpermute: heads });
    }
    Ok(mapped)
}

/// Parts of a layer: GGUF's name and Hugging Face's.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Tensors outside the layers, the same.
const AROUND: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

fn hf_name(source: &str) -> Option<String> {
    renamed(source, "blk.", "model.layers.", |(theirs, ours)| (theirs, ours))
}

/// GGUF's name of a tensor.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    renamed(name, "model.layers.", "blk.", |(theirs, ours)| (ours, theirs))
}

fn renamed(
    name: &str,
    layers: &str,
    new_layers: &str,
    way: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Option<String> {
    let find = |table: &[(&'static str, &'static str)], part: &str| {
        table.iter().map(|names| way(*names)).find(|(old, _)| *old == part).map(|(_, new)| new)
    };
    if let Some(new) = find(&AROUND, name) {
        return Some(new.to_owned());
    }
    let (layer, rest) = name.strip_prefix(layers)?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, suffix) = rest.rsplit_once('.')?;
    let part = find(&PARTS, part)?;
    matches!(suffix, "weight" | "bias").then(|| format!("{new_layers}{layer}.{part}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::GgufWriter;
    use super::*;

    /// A model of one layer, 2 heads (1 for keys) of 4, hidden size 8, with every value its own number.
    fn tiny(architecture: &str) -> GgufWriter {
        let mut file = GgufWriter::new();
        let key = |rest: &str| format!("{architecture}.{rest}");
        file.text("general.architecture", architecture);
        for (rest, value) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 8),
            ("feed_forward_length", 16),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 4),
        ] {
            file.uint(&key(rest), value);
        }
        file.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
        file.float(&key("rope.freq_base"), 100_000.0);
        let mut add = |name: &str, shape: &[u64]| {
            let n = shape.iter().product::<u64>();
            file.f32_tensor(name, shape, &(0..n).map(|i| i as f32).collect::<Vec<_>>());
        };
        add("token_embd.weight", &[32, 8]);
        add("output_norm.weight", &[8]);
        add("blk.0.attn_q.weight", &[8, 8]);
        add("blk.0.attn_k.weight", &[4, 8]);
        add("blk.0.attn_v.weight", &[4, 8]);
        add("blk.0.ffn_down.weight", &[8, 16]);
        file
    }

    fn open(file: &GgufWriter) -> Result<GgufModel, GgufError> {
        GgufModel::from_file(GgufFile::from_bytes(file.bytes(3))?)
    }

    #[test]
    fn names_shapes_and_constants_are_hugging_faces() {
        let model = open(&tiny("llama")).unwrap();
        let names = [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.norm.weight",
        ];
        assert_eq!(model.names(), names);
        assert_eq!(model.shape("model.layers.0.mlp.down_proj.weight"), Some(vec![8, 16]));
        assert_eq!(model.shape("lm_head.weight"), None);
        let config = model.config().to_hf_config();
        assert_eq!(config["rms_norm_eps"], json!(1e-5));
        assert_eq!(config["rope_theta"], json!(100_000.0));
        assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
        assert_eq!(config["head_dim"], json!(4));
        assert_eq!(config["vocab_size"], json!(32));
        assert_eq!(config["tie_word_embeddings"], json!(true));
    }

    #[test]
    fn query_and_key_rows_are_put_back() {
        // The converter's own formula: reshape to (heads, 2, d/2, columns), swap the middle two.
        let convert = |rows: &[usize], heads: usize| -> Vec<usize> {
            let d = rows.len() / heads;
            (0..rows.len()).map(|r| rows[r / d * d + r % d % 2 * (d / 2) + r % d / 2]).collect()
        };
        let original: Vec<usize> = (0..8).collect();
        assert_eq!(convert(&original, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
        let converted: Vec<f32> = convert(&original, 2).iter().map(|r| *r as f32).collect();
        assert_eq!(rows_in_halves(&converted, 2, 4), (0..8).map(|r| r as f32).collect::<Vec<_>>());

        let rows = |model: &GgufModel, name: &str| -> Vec<f32> {
            model.read_f32(name).unwrap().iter().step_by(8).map(|x| x / 8.0).collect()
        };
        let llama = open(&tiny("llama")).unwrap();
        assert_eq!(rows(&llama, "model.layers.0.self_attn.q_proj.weight"), [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert_eq!(rows(&llama, "model.layers.0.self_attn.k_proj.weight"), [0., 2., 1., 3.]);
        assert_eq!(rows(&llama, "model.layers.0.self_attn.v_proj.weight"), [0., 1., 2., 3.]);
        let qwen = open(&tiny("qwen2")).unwrap();
        assert_eq!(rows(&qwen, "model.layers.0.self_attn.k_proj.weight"), [0., 1., 2., 3.]);
    }

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

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |file: &GgufWriter| open(file).unwrap_err().to_string();
        assert!(error(&tiny("gemma")).contains("architecture `gemma`; known are llama"));
        let mut extra = tiny("llama");
        extra.f32_tensor("blk.0.ffn_gate_exps.weight", &[1], &[1.0]);
        let text = "GGUF tensor `blk.0.ffn_gate_exps.weight`: has no place in this kind of model";
        assert_eq!(error(&extra), text);
        let mut short = tiny("llama");
        short.f32_tensor("blk.1.attn_q.weight", &[6, 8], &[0.0; 48]);
        assert!(error(&short).contains("has shape [6, 8], expected 8 rows"));
        let mut empty = GgufWriter::new();
        empty.text("general.architecture", "llama");
        assert_eq!(error(&empty), "GGUF metadata `llama.embedding_length`: is missing");
    }
}
