//! Qwen 3 with experts in place of the feed-forward block of most layers.

use serde_json::Value;

use super::{Architecture, mixtral, windows};
use crate::model::config::{ConfigError, ExpertNames, ExpertsConfig, Keys};

pub(super) const QWEN3_MOE: Architecture = Architecture {
    class: "Qwen3MoeForCausalLM",
    classifier: "Qwen3MoeForSequenceClassification",
    model_type: "qwen3_moe",
    read: |config, keys| {
        config.qk_norm = true;
        if keys.flag("use_sliding_window") {
            config.windows = windows::everywhere(config.num_layers, keys)?;
        }
        // The newer style has Mixtral's word.
        let count = match keys.optional_size("num_experts")? {
            Some(count) => count,
            None => keys.optional_size("num_local_experts")?.unwrap_or(128),
        };
        config.experts = Some(ExpertsConfig {
            count,
            per_token: keys.optional_size("num_experts_per_tok")?.unwrap_or(8),
            intermediate_size: keys.optional_size("moe_intermediate_size")?.unwrap_or(768),
            normalised: keys.flag("norm_topk_prob"),
            sparse: sparse(config.num_layers, keys)?,
            balance: mixtral::balance(keys)?,
            names: ExpertNames { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
        });
        Ok(())
    },
};

/// Every `decoder_sparse_step`-th layer, but those of `mlp_only_layers`.
fn sparse(layers: usize, keys: Keys<'_>) -> Result<Vec<bool>, ConfigError> {
    let step = keys.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense: Vec<u64> = match keys.get("mlp_only_layers") {
        None => Vec::new(),
        Some(listed) => {
            let wrong = || ConfigError::Key {
                key: "mlp_only_layers",
                problem: format!("expected a list of numbers of layers, found {listed}"),
            };
            let numbers = listed.as_array().ok_or_else(wrong)?.iter().map(Value::as_u64);
            numbers.collect::<Option<_>>().ok_or_else(wrong)?
        }
    };
    Ok((0..layers).map(|layer| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step)).collect())
}
