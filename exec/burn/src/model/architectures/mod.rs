//! The decoders that are known, one row each: the names of the class and how its config.json is read.
//!
//! A family departs from the plain Llama layer by what it sets in [`DecoderConfig`], never by code elsewhere. One more is
//! one more file here and one more row in [`ARCHITECTURES`]; a feature that no family had yet is a field of the config
//! and a branch in the one layer that has it.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;
mod qwen3_moe;
#[cfg(test)]
mod tests;
mod windows;

use serde_json::Value;

use super::config::{ConfigError, DecoderConfig, Keys};

/// A family.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// The language model in `architectures`.
    pub class: &'static str,
    /// The same with a score head in place of the vocabulary's.
    pub classifier: &'static str,
    /// What config.json calls it where `architectures` is absent.
    pub model_type: &'static str,
    /// Makes of a plain Llama's config what this family's keys say.
    pub read: fn(&mut DecoderConfig, Keys<'_>) -> Result<(), ConfigError>,
}

/// All of them.
pub const ARCHITECTURES: &[Architecture] = &[
    llama::LLAMA,
    mistral::MISTRAL,
    qwen2::QWEN2,
    qwen3::QWEN3,
    gemma2::GEMMA2,
    gemma3::GEMMA3,
    mixtral::MIXTRAL,
    qwen3_moe::QWEN3_MOE,
];

/// The row that a config.json means.
pub(super) fn of(raw: &Value) -> Result<&'static Architecture, ConfigError> {
    let keys = Keys(raw);
    let (class, model_type) = (keys.class(), keys.text("model_type"));
    let meant = |row: &&Architecture| match class {
        Some(class) => [row.class, row.classifier].contains(&class),
        None => Some(row.model_type) == model_type,
    };
    ARCHITECTURES.iter().find(meant).ok_or_else(|| ConfigError::Architecture {
        found: class.or(model_type).unwrap_or("(no such key)").to_owned(),
        known: known(),
    })
}

/// The names of the language models, for messages.
pub fn known() -> String {
    ARCHITECTURES.iter().map(|row| row.class).collect::<Vec<_>>().join(", ")
}

/// The class of a family's model with a score head, by that of its language model.
pub(super) fn classifier_of(class: &str) -> &str {
    ARCHITECTURES.iter().find(|row| row.class == class).map_or(class, |row| row.classifier)
}
