//! What a `config.json` means: the sizes and switches of a decoder, whatever family it belongs to.
//!
//! Families differ by data ([`Family`]), never by code: one more decoder-only model is one more row in [`FAMILIES`].

use std::path::Path;

use serde_json::{Value, json};

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

/// How a family departs from the plain Llama layer.
#[derive(Debug, Clone, Copy)]
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    /// Biases on q, k and v whatever `attention_bias` says.
    qkv_bias: bool,
    /// RMS norms on each head of q and k.
    qk_norm: bool,
    /// When `sliding_window` counts.
    window: WindowRule,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum WindowRule {
    Never,
    /// In every layer, if the key is a number.
    Always,
    /// In layers from `max_window_layers` on, if `use_sliding_window` is set.
    Switched,
}

const FAMILIES: &[Family] = &[
    Family {
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        qkv_bias: false,
        qk_norm: false,
        window: WindowRule::Never,
    },
    Family {
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        qkv_bias: false,
        qk_norm: false,
        window: WindowRule::Always,
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        qkv_bias: true,
        qk_norm: false,
        window: WindowRule::Switched,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qkv_bias: false,
        qk_norm: true,
        window: WindowRule::Switched,
    },
];

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_length / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_length / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of the first training, in tokens.
        original_length: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): frequencies that turn less than `beta_slow` times in the first training's
    /// length are divided, those that turn more than `beta_fast` times kept, a ramp over the dimensions between.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// See above.
        beta_fast: f64,
        /// See above.
        beta_slow: f64,
        /// The context length of the first training, in tokens.
        original_length: f64,
        /// What cosines and sines are multiplied by, so that attention stays as sharp over more tokens.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
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
        let path = folder.join("config.json");
        let text =
            std::fs::read(&path).map_err(|source| ConfigError::Io { path: path.display().to_string(), source })?;
        Self::from_json(serde_json::from_slice(&text)?)
    }

    /// Reads a parsed config.json, of the older style (`rope_theta`, `rope_scaling`) or the newer (`rope_parameters`).
    pub fn from_json(raw: Value) -> Result<Self, ConfigError> {
        let family = family(&raw)?;
        let keys = Keys(&raw);
        let hidden_size = keys.size("hidden_size")?;
        let num_layers = keys.size("num_hidden_layers")?;
        let num_heads = keys.size("num_attention_heads")?;
        let num_kv_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(num_heads);
        let head_dim = keys.optional_size("head_dim")?.unwrap_or(hidden_size / num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ConfigError::Key {
                key: "num_key_value_heads",
                problem: format!("{num_kv_heads} does not divide num_attention_heads {num_heads}"),
            });
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Key {
                key: "head_dim",
                problem: format!("{head_dim} is not a positive even number"),
            });
        }
        if let Some(act) = raw.get("hidden_act").and_then(Value::as_str)
            && act != "silu"
        {
            return Err(ConfigError::Key {
                key: "hidden_act",
                problem: format!("{act:?}; only \"silu\" is supported"),
            });
        }
        let attention_bias = keys.flag("attention_bias");
        let (rope_theta, rope_scaling) = rope(&raw)?;
        let num_labels = match is_classifier(&raw) {
            true => Some(num_labels(&raw)?),
            false => None,
        };
        let architecture = match num_labels {
            Some(_) => classifier_of(family.architecture),
            None => family.architecture.to_owned(),
        };
        Ok(Self {
            architecture,
            num_labels,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings"),
            qkv_bias: family.qkv_bias || attention_bias,
            o_bias: !family.qkv_bias && attention_bias,
            mlp_bias: keys.flag("mlp_bias"),
            qk_norm: family.qk_norm,
            windows: windows(&raw, family, num_layers)?,
            max_position_embeddings: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            eos_token_ids: eos_token_ids(&raw),
            raw,
        })
    }

    /// The config of this model with a score head of `labels` outputs in place of the vocabulary's.
    #[must_use]
    pub fn with_labels(mut self, labels: usize) -> Self {
        if self.num_labels.is_none() {
            self.architecture = classifier_of(&self.architecture);
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

fn family(raw: &Value) -> Result<&'static Family, ConfigError> {
    let architecture = raw.pointer("/architectures/0").and_then(Value::as_str);
    let model_type = raw.get("model_type").and_then(Value::as_str);
    FAMILIES
        .iter()
        .find(|f| match architecture {
            Some(name) => f.architecture == name || classifier_of(f.architecture) == name,
            None => Some(f.model_type) == model_type,
        })
        .ok_or_else(|| ConfigError::Architecture {
            found: architecture.or(model_type).unwrap_or("(no such key)").to_owned(),
            known: FAMILIES.iter().map(|f| f.architecture).collect::<Vec<_>>().join(", "),
        })
}

const LANGUAGE_MODEL: &str = "ForCausalLM";
const CLASSIFIER: &str = "ForSequenceClassification";

/// The name of a family's model with a score head.
fn classifier_of(architecture: &str) -> String {
    format!("{}{CLASSIFIER}", architecture.trim_end_matches(LANGUAGE_MODEL))
}

fn is_classifier(raw: &Value) -> bool {
    raw.pointer("/architectures/0").and_then(Value::as_str).is_some_and(|name| name.ends_with(CLASSIFIER))
}

/// As the reference library counts: the labels that have names, else `num_labels`, else two.
fn num_labels(raw: &Value) -> Result<usize, ConfigError> {
    match raw.get("id2label").and_then(Value::as_object).filter(|names| !names.is_empty()) {
        Some(names) => Ok(names.len()),
        None => Ok(Keys(raw).optional_size("num_labels")?.unwrap_or(2)),
    }
}

/// Typed reads of one JSON object; `null` counts as absent.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| ConfigError::Key { key, problem: format!("expected a number, found {value}") }),
        }
    }

    fn optional_size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                // A bound, so that products of two sizes cannot overflow.
                Some(n) if (1..=1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(ConfigError::Key { key, problem: format!("expected a positive whole number, found {value}") }),
            },
        }
    }

    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Key { key, problem: "is missing".into() })
    }

    fn flag(&self, key: &'static str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

fn rope(raw: &Value) -> Result<(f64, RopeScaling), ConfigError> {
    let parameters = raw.get("rope_parameters").filter(|v| v.is_object());
    let scaling = parameters.or_else(|| raw.get("rope_scaling").filter(|v| v.is_object()));
    let theta = parameters
        .and_then(|p| p.get("rope_theta"))
        .or_else(|| raw.get("rope_theta"))
        .and_then(Value::as_f64)
        .unwrap_or(10_000.0);
    let Some(scaling) = scaling else {
        return Ok((theta, RopeScaling::None));
    };
    let number = |key: &'static str| {
        Keys(scaling).number(key)?.ok_or(ConfigError::Key { key, problem: "is missing beside rope_type".into() })
    };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_length: number("original_max_position_embeddings")?,
        },
        "yarn" => yarn(raw, &Keys(scaling))?,
        other => {
            return Err(ConfigError::Key {
                key: "rope_type",
                problem: format!("{other:?}; known are default, linear, llama3, yarn"),
            });
        }
    };
    Ok((theta, scaling))
}

/// Defaults are the reference's, and the paper's.
fn yarn(raw: &Value, keys: &Keys<'_>) -> Result<RopeScaling, ConfigError> {
    // What the model was made for may stand beside the scaling or, in older files, as the length itself.
    let original = keys.number("original_max_position_embeddings")?;
    let longest = Keys(raw).number("max_position_embeddings")?;
    let missing = |key: &'static str| ConfigError::Key { key, problem: "is missing beside rope_type".into() };
    let original_length =
        original.or(longest).filter(|length| *length > 0.0).ok_or(missing("original_max_position_embeddings"))?;
    let factor = match keys.number("factor")? {
        Some(factor) => factor,
        None => original.and_then(|original| Some(longest? / original)).ok_or(missing("factor"))?,
    };
    let sharpness = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let set =
        |key: &'static str| -> Result<Option<f64>, ConfigError> { Ok(keys.number(key)?.filter(|value| *value != 0.0)) };
    let attention_factor = match (keys.number("attention_factor")?, set("mscale")?, set("mscale_all_dim")?) {
        (Some(factor), ..) => factor,
        (None, Some(scale), Some(all)) => sharpness(scale) / sharpness(all),
        (None, ..) => sharpness(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: set("beta_fast")?.unwrap_or(32.0),
        beta_slow: set("beta_slow")?.unwrap_or(1.0),
        original_length,
        attention_factor,
        truncate: keys.0.get("truncate").and_then(Value::as_bool).unwrap_or(true),
    })
}

fn windows(raw: &Value, family: &Family, num_layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let keys = Keys(raw);
    let window = keys.optional_size("sliding_window")?;
    let first = match family.window {
        WindowRule::Never => num_layers,
        WindowRule::Always => 0,
        WindowRule::Switched if keys.flag("use_sliding_window") => {
            keys.optional_size("max_window_layers")?.unwrap_or(0)
        }
        WindowRule::Switched => num_layers,
    };
    Ok((0..num_layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn eos_token_ids(raw: &Value) -> Vec<i64> {
    match raw.get("eos_token_id") {
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
             LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
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
