//! Mixtral: Mistral's layers with experts in place of each feed-forward block.

use super::{Architecture, windows};
use crate::model::config::{ConfigError, ExpertNames, ExpertsConfig, Keys};

pub(super) const MIXTRAL: Architecture = Architecture {
    class: "MixtralForCausalLM",
    classifier: "MixtralForSequenceClassification",
    model_type: "mixtral",
    read: |config, keys| {
        let noise = keys.number("router_jitter_noise")?.unwrap_or(0.0);
        if noise != 0.0 {
            let problem = format!("{noise}; routers are not disturbed in this build, set it to 0");
            return Err(ConfigError::Key { key: "router_jitter_noise", problem });
        }
        config.windows = windows::everywhere(config.num_layers, keys)?;
        config.experts = Some(ExpertsConfig {
            count: keys.size("num_local_experts")?,
            per_token: keys.optional_size("num_experts_per_tok")?.unwrap_or(2),
            intermediate_size: config.intermediate_size,
            normalised: true,
            sparse: vec![true; config.num_layers],
            balance: balance(keys)?,
            names: ExpertNames { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
        });
        Ok(())
    },
};

/// The load-balancing loss is trained with where the routers' logits are put out, as in the reference library.
pub(super) fn balance(keys: Keys<'_>) -> Result<Option<f64>, ConfigError> {
    let coefficient = keys.number("router_aux_loss_coef")?.unwrap_or(0.001);
    Ok(keys.flag("output_router_logits").then_some(coefficient))
}
