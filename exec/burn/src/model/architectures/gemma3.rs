//! Gemma 3, its text: no caps, RMS norms on each head of q and k, a window in five layers of six, and rotary positions of
//! their own in these.

use super::{Architecture, gemma2, windows};
use crate::model::config::{ConfigError, Keys, Rope, RopeScaling, rope, rope_of_kind};

pub(super) const GEMMA3: Architecture = Architecture {
    class: "Gemma3ForCausalLM",
    classifier: "Gemma3TextForSequenceClassification",
    model_type: "gemma3_text",
    read: |config, keys| {
        gemma2::gemma(config, keys)?;
        config.qk_norm = true;
        config.logit_softcap = keys.positive_or("final_logit_softcapping", None)?;
        let Rope { theta, scaling } = of_layers_without_window(keys)?;
        (config.rope_theta, config.rope_scaling) = (theta, scaling);
        config.windowed_rope = Some(of_layers_with_window(keys)?);
        let pattern = keys.optional_size("sliding_window_pattern")?.unwrap_or(6);
        config.windows =
            windows::of_kinds(config.num_layers, keys, gemma2::window(keys)?, |layer| (layer + 1) % pattern != 0)?;
        Ok(())
    },
};

const GLOBAL: f64 = 1_000_000.0;
const LOCAL: f64 = 10_000.0;

fn of_layers_without_window(keys: Keys<'_>) -> Result<Rope, ConfigError> {
    match rope_of_kind(keys, "full_attention", GLOBAL)? {
        Some(own) => Ok(own),
        None => rope(keys, GLOBAL),
    }
}

/// What the older style says in `rope_scaling` is not for them.
fn of_layers_with_window(keys: Keys<'_>) -> Result<Rope, ConfigError> {
    match rope_of_kind(keys, "sliding_attention", LOCAL)? {
        Some(own) => Ok(own),
        None => {
            let theta = keys.positive_or("rope_local_base_freq", Some(LOCAL))?.unwrap_or(LOCAL);
            Ok(Rope { theta, scaling: RopeScaling::None })
        }
    }
}
