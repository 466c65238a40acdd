//! Mixtures of experts.

use super::ConfigError;

/// A router and its experts, in place of a layer's feed-forward block.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    /// How many experts a layer has.
    pub count: usize,
    /// How many of them compute a token.
    pub per_token: usize,
    /// Width of an expert's feed-forward block.
    pub intermediate_size: usize,
    /// Whether the weights of those that compute a token are divided by their sum.
    pub normalised: bool,
    /// Per layer: whether it has them.
    pub sparse: Vec<bool>,
    /// What the load-balancing loss is multiplied by where a model is trained with it; `None` = it is not.
    pub balance: Option<f64>,
    /// What the tensors are called.
    pub names: ExpertNames,
}

/// `BLOCK.gate.weight` of the router, `BLOCK.experts.N.GATE.weight` and so on of the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The block within a layer.
    pub block: &'static str,
    /// An expert's gate.
    pub gate: &'static str,
    /// What the gate opens.
    pub up: &'static str,
    /// Back to the hidden size.
    pub down: &'static str,
}

impl ExpertsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Self { count, per_token, .. } = self;
        match per_token <= count {
            true => Ok(()),
            false => {
                Err(ConfigError::Key { key: "num_experts_per_tok", problem: format!("{per_token} of {count} experts") })
            }
        }
    }
}
