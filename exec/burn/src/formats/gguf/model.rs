//! A GGUF model in Hugging Face's terms: names, shapes, row order.
//!
//! What the file does not carry is not guessed silently: [`GgufConfig`] says what was taken from where, and a kind of
//! model that is laid out otherwise is refused.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::{GgufConfig, read_config, required};
use super::reader::GgufFile;
use super::{GgufError, TensorType, vocabulary};
use crate::formats::tokenizer::TextTokenizer;
use crate::weights::{TensorSource, WeightsError};

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
        self.read(name, |kind, bytes| kind.dequantise(bytes))
    }

    /// All blocks of a tensor, rows in Hugging Face's order: a row is a whole number of blocks, so whole rows move.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] when there is none of that name.
    pub fn read_blocks(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        self.read(name, |_, bytes| bytes.to_vec())
    }

    fn read<T: Copy>(&self, name: &str, take: impl Fn(TensorType, &[u8]) -> Vec<T>) -> Result<Vec<T>, GgufError> {
        let Some(mapped) = self.tensors.get(name) else {
            return Err(tensor_error(name, "not in the file".into()));
        };
        let values = self.file.read(&mapped.source, take)?;
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

    fn stored(&self, name: &str) -> Option<TensorType> {
        Some(self.file.tensors.get(&self.tensors.get(name)?.source)?.kind)
    }

    fn read_stored(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        self.read_blocks(name).map_err(|_| WeightsError::Missing(name.to_owned()))
    }
}

/// Undoes what llama.cpp's converter does to q and k: it puts the rows that turn together side by side (2i, 2i+1), where
/// Hugging Face keeps them half a head apart (i, i + d/2).
fn rows_in_halves<T: Copy>(values: &[T], heads: usize, head_dim: usize) -> Vec<T> {
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

pub(super) fn tensor_error(name: &str, problem: String) -> GgufError {
    GgufError::Tensor { name: name.to_owned(), problem }
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
    use serde_json::json;

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
    fn blocks_are_put_back_as_rows_are() {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::F16] {
            let mut file = tiny("llama");
            let values: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
            // Layer 1's, 32 wide: nothing asks whether that fits the others.
            for (name, rows) in [("blk.1.attn_q.weight", 8), ("blk.1.attn_k.weight", 4)] {
                let bytes = kind.quantise(&values[..rows * 32]).unwrap();
                file.tensor(name, &[rows as u64, 32], kind.code(), bytes);
            }
            let model = open(&file).unwrap();
            for part in ["q_proj", "k_proj"] {
                let full = format!("model.layers.1.self_attn.{part}.weight");
                assert_eq!(model.stored(&full), Some(kind));
                let stored = bits(kind.dequantise(&model.read_stored(&full).unwrap()));
                assert_eq!(stored, bits(model.read_f32(&full).unwrap()), "{kind:?} {part}");
                let as_written = model.file().read_f32(&model.tensors[&full].source).unwrap();
                assert_ne!(stored, bits(as_written), "{kind:?} {part}: rows were moved");
            }
        }
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
