//! Mistral: a window of attention in every layer, where `sliding_window` is a number.

use super::{Architecture, windows};

pub(super) const MISTRAL: Architecture = Architecture {
    class: "MistralForCausalLM",
    classifier: "MistralForSequenceClassification",
    model_type: "mistral",
    read: |config, keys| {
        config.windows = windows::everywhere(config.num_layers, keys)?;
        Ok(())
    },
};
