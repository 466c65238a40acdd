//! Llama 2 and 3, SmolLM2, and what else has their layers.

use super::Architecture;

pub(super) const LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    classifier: "LlamaForSequenceClassification",
    model_type: "llama",
    read: |_, _| Ok(()),
};
