//! What a `config.json` means: the sizes and switches of a decoder, whatever family it belongs to.
//!
//! ```text
//! keys     typed reads of the file
//! rope     rotary positions, in both styles
//! experts  mixtures of experts
//! ```
//!
//! What a family reads otherwise is its row in [`super::architectures`].

mod experts;
mod keys;
mod rope;

use std::path::Path;

use serde_json::{Value, json};

pub use self::experts::{ExpertNames, ExpertsConfig};
pub use self::keys::Keys;
pub use self::rope::{Rope, RopeScaling, rope, rope_of_kind};
use super::activation::Activation;
use super::architectures;

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// config.json could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file concerned.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// config.json is not JSON.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is absent or has an impossible value.
    #[error("config.json: {key}: {problem}")]
    Key {
        /// The key concerned.
        key: &'static str,
        /// What was found and what was expected.
        problem: String,
    },
    /// The architecture is not one of ours.
    #[error("config.json: architectures: {found} is not supported; known are {known}")]
    Architecture {
        /// The name found.
        found: String,
        /// The names that would work.
        known: String,
    },
}

/// A decoder-only transformer with RMS norms, rotary positions, grouped-query attention and SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The class name in `architectures`.
    pub architecture: String,
    /// Outputs of the score head; `None` = a language model, with a head over the vocabulary.
    pub num_labels: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Both for layers with a window, where these turn otherwise than those without.
    pub windowed_rope: Option<Rope>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases on gate, up, down.
    pub mlp_bias: bool,
    /// RMS norms on each head of q and k.
    pub qk_norm: bool,
    /// What the feed-forward layer's gate goes through.
    pub activation: Activation,
    /// What products of queries and keys are multiplied by: 1/√head_dim in most families.
    pub attention_scale: f64,
    /// What they are kept between, this and its negative, by a tanh.
    pub attention_softcap: Option<f64>,
    /// The same for logits.
    pub logit_softcap: Option<f64>,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What is added to the weights of RMS norms, which files hold as differences from it.
    pub norm_offset: f64,
    /// RMS norms also of what attention and feed-forward give, before it is added to the residual stream.
    pub output_norms: bool,
    /// What stands in place of the feed-forward block of some layers.
    pub experts: Option<ExpertsConfig>,
    /// Per layer: how many tokens, itself included, a token sees; `None` = all before it.
    pub windows: Vec<Option<usize>>,
    /// The longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Token ids that end a text (config.json gives one or a list).
    pub eos_token_ids: Vec<i64>,
    /// The file as it was read, so that exporting keeps keys this crate does not know.
    pub raw: Value,
}

impl DecoderConfig {
    /// Reads `config.json` in `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self, ConfigError> {
        Self::from_json(read_json(folder)?)
    }

    /// Reads a parsed config.json, of the older style (`rope_theta`, `rope_scaling`) or the newer (`rope_parameters`).
    pub fn from_json(raw: Value) -> Result<Self, ConfigError> {
        let architecture = architectures::of(&raw)?;
        let keys = Keys(&raw);
        let mut config = Self::plain(keys)?;
        (architecture.read)(&mut config, keys)?;
        config.check()?;
        let classifier = keys.class().is_some_and(|class| class != architecture.class);
        config.num_labels = if classifier { Some(num_labels(keys)?) } else { None };
        config.architecture = if classifier { architecture.classifier } else { architecture.class }.to_owned();
        config.raw = raw;
        Ok(config)
    }

    /// What the keys that all families share mean: a plain Llama's layers.
    fn plain(keys: Keys<'_>) -> Result<Self, ConfigError> {
        let hidden_size = keys.size("hidden_size")?;
        let num_layers = keys.size("num_hidden_layers")?;
        let num_heads = keys.size("num_attention_heads")?;
        let head_dim = keys.optional_size("head_dim")?.unwrap_or(hidden_size / num_heads);
        let Rope { theta, scaling } = rope(keys, 10_000.0)?;
        Ok(Self {
            architecture: String::new(),
            num_labels: None,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads: keys.optional_size("num_key_value_heads")?.unwrap_or(num_heads),
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: theta,
            rope_scaling: scaling,
            windowed_rope: None,
            tie_word_embeddings: keys.flag("tie_word_embeddings"),
            qkv_bias: keys.flag("attention_bias"),
            o_bias: keys.flag("attention_bias"),
            mlp_bias: keys.flag("mlp_bias"),
            qk_norm: false,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
            embedding_scale: 1.0,
            norm_offset: 0.0,
            output_norms: false,
            activation: keys.one_of("hidden_act", &Activation::WORDS)?.unwrap_or_default(),
            experts: None,
            windows: vec![None; num_layers],
            max_position_embeddings: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            eos_token_ids: eos_token_ids(keys),
            raw: Value::Null,
        })
    }

    /// What must hold whatever the family.
    fn check(&self) -> Result<(), ConfigError> {
        let Self { num_heads, num_kv_heads, head_dim, .. } = self;
        if !num_heads.is_multiple_of(*num_kv_heads) {
            return Err(ConfigError::Key {
                key: "num_key_value_heads",
                problem: format!("{num_kv_heads} does not divide num_attention_heads {num_heads}"),
            });
        }
        if *head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Key {
                key: "head_dim",
                problem: format!("{head_dim} is not a positive even number"),
            });
        }
        self.experts.as_ref().map_or(Ok(()), ExpertsConfig::check)
    }

    /// The config of this model with a score head of `labels` outputs in place of the vocabulary's.
    #[must_use]
    pub fn with_labels(mut self, labels: usize) -> Self {
        if self.num_labels.is_none() {
            self.architecture = architectures::classifier_of(&self.architecture).to_owned();
        }
        self.num_labels = Some(labels);
        if let Some(map) = self.raw.as_object_mut() {
            let names: Vec<String> = (0..labels).map(|label| format!("LABEL_{label}")).collect();
            let to_name = names.iter().enumerate().map(|(label, name)| (label.to_string(), json!(name)));
            map.insert("architectures".into(), json!([self.architecture]));
            // Readers count the labels in this map; none look at a number.
            map.insert("id2label".into(), Value::Object(to_name.collect()));
            let to_label = names.iter().enumerate().map(|(label, name)| (name.clone(), json!(label)));
            map.insert("label2id".into(), Value::Object(to_label.collect()));
        }
        self
    }

    /// The config.json of a model like this one whose weights are stored as `dtype` (`float32`, `bfloat16`).
    pub fn to_json(&self, dtype: &str) -> Value {
        let mut out = self.raw.clone();
        if let Some(map) = out.as_object_mut() {
            // Both spellings: older and newer readers each look for their own.
            map.insert("torch_dtype".into(), json!(dtype));
            map.insert("dtype".into(), json!(dtype));
        }
        out
    }
}

/// The content of `config.json` in `folder`.
pub(super) fn read_json(folder: &Path) -> Result<Value, ConfigError> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(|source| ConfigError::Io { path: path.display().to_string(), source })?;
    Ok(serde_json::from_slice(&text)?)
}

/// As the reference library counts: the labels that have names, else `num_labels`, else two.
pub(super) fn num_labels(keys: Keys<'_>) -> Result<usize, ConfigError> {
    match keys.get("id2label").and_then(Value::as_object).filter(|names| !names.is_empty()) {
        Some(names) => Ok(names.len()),
        None => Ok(keys.optional_size("num_labels")?.unwrap_or(2)),
    }
}

fn eos_token_ids(keys: Keys<'_>) -> Vec<i64> {
    match keys.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
        Some(id) => id.as_i64().into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(extra: Value) -> Result<DecoderConfig, ConfigError> {
        let mut raw = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            raw[key] = value.clone();
        }
        DecoderConfig::from_json(raw)
    }

    #[test]
    fn both_styles_of_rope_mean_the_same() {
        let old = small(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}));
        let new = small(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}));
        let (old, new) = (old.unwrap(), new.unwrap());
        assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
    }

    #[test]
    fn a_score_head_is_told_by_the_architecture_and_counted_by_its_labels() {
        let labels = |extra: Value| {
            let mut raw = json!({"architectures": ["LlamaForSequenceClassification"]});
            for (key, value) in extra.as_object().into_iter().flatten() {
                raw[key] = value.clone();
            }
            small(raw).unwrap().num_labels
        };
        assert_eq!(small(json!({"id2label": {"0": "LABEL_0"}})).unwrap().num_labels, None);
        assert_eq!(labels(json!({})), Some(2));
        assert_eq!(labels(json!({"num_labels": 1})), Some(1));
        assert_eq!(labels(json!({"id2label": {"0": "a", "1": "b", "2": "c"}})), Some(3));
        let reward = small(json!({"architectures": ["Qwen3ForCausalLM"]})).unwrap().with_labels(1);
        assert_eq!(reward.architecture, "Qwen3ForSequenceClassification");
        let again = DecoderConfig::from_json(reward.to_json("float32")).unwrap();
        assert_eq!((again.num_labels, &again.architecture, again.qk_norm), (Some(1), &reward.architecture, true));
    }

    #[test]
    fn problems_name_the_key_and_what_would_work() {
        let message = |extra| small(extra).unwrap_err().to_string();
        assert_eq!(
            message(json!({"architectures": ["GPT2LMHeadModel"]})),
            "config.json: architectures: GPT2LMHeadModel is not supported; known are \
             LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma2ForCausalLM, \
             Gemma3ForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM"
        );
        assert_eq!(message(json!({"vocab_size": null})), "config.json: vocab_size: is missing");
        assert_eq!(
            message(json!({"num_key_value_heads": 3})),
            "config.json: num_key_value_heads: 3 does not divide num_attention_heads 2"
        );
        assert_eq!(
            message(json!({"rope_scaling": {"rope_type": "longrope"}})),
            "config.json: rope_type: \"longrope\"; known are default, linear, llama3, yarn"
        );
        assert_eq!(
            message(json!({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": "8k"}})),
            "config.json: original_max_position_embeddings: expected a number, found \"8k\""
        );
    }
}
