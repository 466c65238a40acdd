//! Qwen 3: RMS norms on each head of q and k, and a window where it is switched on.

use super::{Architecture, windows};

pub(super) const QWEN3: Architecture = Architecture {
    class: "Qwen3ForCausalLM",
    classifier: "Qwen3ForSequenceClassification",
    model_type: "qwen3",
    read: |config, keys| {
        config.qk_norm = true;
        config.windows = windows::switched(config.num_layers, keys)?;
        Ok(())
    },
};
