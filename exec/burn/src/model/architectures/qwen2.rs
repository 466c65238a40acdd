//! Qwen 2 and 2.5: biases on q, k and v, whatever `attention_bias` says, and a window where it is switched on.

use super::{Architecture, windows};

pub(super) const QWEN2: Architecture = Architecture {
    class: "Qwen2ForCausalLM",
    classifier: "Qwen2ForSequenceClassification",
    model_type: "qwen2",
    read: |config, keys| {
        (config.qkv_bias, config.o_bias) = (true, false);
        config.windows = windows::switched(config.num_layers, keys)?;
        Ok(())
    },
};
