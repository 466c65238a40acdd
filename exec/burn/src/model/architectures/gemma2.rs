//! Gemma 2: everything of Gemma's, and caps on scores and logits; every other layer has a window.

use super::{Architecture, windows};
use crate::model::activation::Activation;
use crate::model::config::{ConfigError, DecoderConfig, Keys};

pub(super) const GEMMA2: Architecture = Architecture {
    class: "Gemma2ForCausalLM",
    classifier: "Gemma2ForSequenceClassification",
    model_type: "gemma2",
    read: |config, keys| {
        gemma(config, keys)?;
        config.attention_softcap = keys.positive_or("attn_logit_softcapping", Some(50.0))?;
        config.logit_softcap = keys.positive_or("final_logit_softcapping", Some(30.0))?;
        config.windows = windows::of_kinds(config.num_layers, keys, window(keys)?, |layer| (layer + 1) % 2 != 0)?;
        Ok(())
    },
};

/// What Gemma 2 and 3 share. Their files leave out what the classes have as defaults.
pub(super) fn gemma(config: &mut DecoderConfig, keys: Keys<'_>) -> Result<(), ConfigError> {
    keys.must_not_be_set("use_bidirectional_attention", "only text that is read from left to right is supported")?;
    config.head_dim = keys.optional_size("head_dim")?.unwrap_or(256);
    config.tie_word_embeddings = keys.flag_or("tie_word_embeddings", true);
    config.activation = keys.one_of("hidden_activation", &Activation::WORDS)?.unwrap_or(Activation::GeluTanh);
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    config.norm_offset = 1.0;
    config.output_norms = true;
    let scalar = keys.positive_or("query_pre_attn_scalar", Some(256.0))?.unwrap_or(config.head_dim as f64);
    config.attention_scale = 1.0 / scalar.sqrt();
    Ok(())
}

/// Of the layers that have one; `null` = none has.
pub(super) fn window(keys: Keys<'_>) -> Result<Option<usize>, ConfigError> {
    match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window"),
        false => Ok(Some(4096)),
    }
}
