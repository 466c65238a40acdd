//! What an encoder's config.json means.

use std::path::Path;

use serde_json::Value;

use crate::model::activation::Activation;
use crate::model::config::{ConfigError, Keys, num_labels, read_json};

const MODEL: &str = "BertModel";
const CLASSIFIER: &str = "BertForSequenceClassification";

/// The sizes of a BERT.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The class name in `architectures`.
    pub architecture: String,
    /// Outputs of the score head; `None` = there is no head.
    pub num_labels: Option<usize>,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_heads: usize,
    /// The longest row, in tokens.
    pub max_position_embeddings: usize,
    /// How many texts a row may be made of.
    pub type_vocab_size: usize,
    /// Added to variances in norms.
    pub layer_norm_eps: f64,
    /// Between the two matrices of the feed-forward layer.
    pub activation: Activation,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The file as it was read.
    pub raw: Value,
}

impl EncoderConfig {
    /// Whether a config.json is an encoder's and no decoder's.
    pub fn is_meant(raw: &Value) -> bool {
        let keys = Keys(raw);
        match keys.class() {
            Some(class) => [MODEL, CLASSIFIER].contains(&class),
            None => keys.text("model_type") == Some("bert"),
        }
    }

    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, another architecture, a key that is missing or impossible.
    pub fn from_folder(folder: &Path) -> Result<Self, ConfigError> {
        Self::from_json(read_json(folder)?)
    }

    /// Reads a parsed config.json.
    ///
    /// # Errors
    /// Another architecture, a key that is missing or impossible.
    pub fn from_json(raw: Value) -> Result<Self, ConfigError> {
        let keys = Keys(&raw);
        if !Self::is_meant(&raw) {
            let found = keys.class().or(keys.text("model_type")).unwrap_or("(no such key)").to_owned();
            return Err(ConfigError::Architecture { found, known: format!("{MODEL}, {CLASSIFIER}") });
        }
        keys.one_of("position_embedding_type", &[("absolute", ())])?;
        keys.must_not_be_set("is_decoder", "an encoder sees all of a text")?;
        let hidden_size = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        if !hidden_size.is_multiple_of(num_heads) {
            let problem = format!("{num_heads} does not divide hidden_size {hidden_size}");
            return Err(ConfigError::Key { key: "num_attention_heads", problem });
        }
        let classifier = keys.class() == Some(CLASSIFIER);
        Ok(Self {
            architecture: if classifier { CLASSIFIER } else { MODEL }.to_owned(),
            num_labels: if classifier { Some(num_labels(keys)?) } else { None },
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_layers: keys.size("num_hidden_layers")?,
            num_heads,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            type_vocab_size: keys.optional_size("type_vocab_size")?.unwrap_or(2),
            layer_norm_eps: keys.number("layer_norm_eps")?.unwrap_or(1e-12),
            activation: keys.one_of("hidden_act", &Activation::WORDS)?.unwrap_or(Activation::Gelu),
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            raw,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_name_the_key_and_what_would_work() {
        let message = |extra: Value| {
            let mut raw = json!({
                "architectures": ["BertModel"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
            });
            raw.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            EncoderConfig::from_json(raw).map_or_else(|error| error.to_string(), |config| config.architecture)
        };
        assert_eq!(message(json!({})), "BertModel");
        assert_eq!(
            message(json!({"architectures": ["RobertaModel"]})),
            "config.json: architectures: RobertaModel is not supported; known are BertModel, BertForSequenceClassification"
        );
        assert_eq!(
            message(json!({"position_embedding_type": "relative_key"})),
            "config.json: position_embedding_type: \"relative_key\"; known are absolute"
        );
        assert_eq!(
            message(json!({"hidden_act": "relu"})),
            "config.json: hidden_act: \"relu\"; known are silu, gelu, gelu_pytorch_tanh"
        );
        assert_eq!(
            message(json!({"num_attention_heads": 3})),
            "config.json: num_attention_heads: 3 does not divide hidden_size 8"
        );
    }
}
