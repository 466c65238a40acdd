//! Optimizers over named parameters, and clipping by the global norm.
//!
//! | settings | rule | remembered of a matrix `[r, c]` |
//! |---|---|---|
//! | [`OptimizerSettings::AdamW`] | Loshchilov and Hutter, arXiv 1711.05101 | two moments, 8·r·c bytes |
//! | [`OptimizerSettings::AdamW8bit`] | the same | two moments in blocks of 8-bit codes, 2·r·c bytes and 1/32 of scales ([`blocks`]) |
//! | [`OptimizerSettings::Adafactor`] | Shazeer and Stern, arXiv 1804.04235 | row and column means, 4·(r + c) bytes |
//! | [`OptimizerSettings::Sgd`] | with momentum if asked for | nothing, or 4·r·c bytes |
//!
//! Each rule is one pure function of a parameter, its gradient and what is remembered of it. Weight decay leaves out
//! norms and biases, whatever the rule: [`decays`].

mod adafactor;
mod adamw;
pub mod blocks;
mod sgd;
mod state;

use std::collections::BTreeMap;

pub use self::adamw::AdamWSettings;
pub use self::sgd::SgdSettings;
use self::state::State;
use crate::model::{Gradients, Parameter};
use crate::spent::{self, Work};

/// Which rule, and its constants; names and defaults are the reference trainer's.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "optim", rename_all = "snake_case")]
pub enum OptimizerSettings {
    /// AdamW.
    #[serde(rename = "adamw")]
    AdamW(AdamWSettings),
    /// AdamW whose moments are kept in 8 bits, as bitsandbytes does: in the host's memory, so that on a GPU each
    /// parameter passes over the bus once a step. Embeddings and what has fewer than [`blocks::ELEMENTS_MIN`]
    /// elements keep 32 bits.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit(AdamWSettings),
    /// Adafactor with the reference trainer's arguments: neither relative steps nor scaling by the parameter.
    Adafactor {
        /// Decoupled weight decay, times the learning rate.
        weight_decay: f64,
    },
    /// Stochastic gradient descent.
    Sgd(SgdSettings),
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self::AdamW(AdamWSettings::default())
    }
}

/// An optimizer with what it remembers.
#[derive(Debug, Clone)]
pub struct Optimizer {
    settings: OptimizerSettings,
    updates: u64,
    states: BTreeMap<String, State>,
}

/// What a rule needs to know of the update at hand.
#[derive(Debug, Clone, Copy)]
struct Update {
    /// Its number, from 1.
    number: u64,
    learning_rate: f64,
    /// What gradients are multiplied by first.
    gradient_scale: f64,
}

impl Optimizer {
    /// An optimizer that has done nothing yet.
    pub fn new(settings: OptimizerSettings) -> Self {
        Self { settings, updates: 0, states: BTreeMap::new() }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Moves every parameter that has a gradient, consuming the gradients. Gradients are multiplied by
    /// `gradient_scale` first (the clipping factor).
    pub fn update<'a>(
        &mut self,
        parameters: impl Iterator<Item = &'a mut Parameter>,
        gradients: &mut Gradients,
        gradient_scale: f64,
        learning_rate: f64,
    ) {
        self.updates += 1;
        let update = Update { number: self.updates, learning_rate, gradient_scale };
        for parameter in parameters {
            let Some(gradient) = gradients.take(&parameter.name) else {
                continue;
            };
            let before = self.states.remove(&parameter.name);
            let after = spent::on(Work::Optimizer, || match &self.settings {
                OptimizerSettings::AdamW8bit(settings) if blocks::fit(&parameter.name, &parameter.shape) => {
                    Some(adamw::step_in_blocks(settings, parameter, gradient, before, update))
                }
                OptimizerSettings::AdamW(settings) | OptimizerSettings::AdamW8bit(settings) => {
                    Some(adamw::step(settings, parameter, gradient, before, update))
                }
                OptimizerSettings::Adafactor { weight_decay } => {
                    Some(adafactor::step(*weight_decay, parameter, gradient, before, update))
                }
                OptimizerSettings::Sgd(settings) => sgd::step(settings, parameter, gradient, before, update),
            });
            if let Some(after) = after {
                self.states.insert(parameter.name.clone(), after);
            }
        }
    }

    /// Bytes of what it remembers.
    pub fn state_bytes(&self) -> usize {
        self.states.values().map(State::bytes).sum()
    }
}

impl OptimizerSettings {
    /// Bytes that it remembers of a parameter of this name and shape, from its first update on.
    pub fn state_bytes_of(&self, name: &str, shape: &[usize]) -> usize {
        let count = shape.iter().product::<usize>();
        match self {
            Self::AdamW8bit(_) if blocks::fit(name, shape) => 2 * (count + 4 * count.div_ceil(blocks::BLOCK)),
            Self::AdamW(_) | Self::AdamW8bit(_) => 8 * count,
            Self::Adafactor { .. } if shape.len() < 2 => 4 * count,
            Self::Adafactor { .. } => 4 * shape.iter().sum::<usize>(),
            Self::Sgd(settings) if settings.momentum == 0.0 => 0,
            Self::Sgd(_) => 4 * count,
        }
    }
}

/// Whether weight decay pulls on a parameter: the reference trainer leaves out what its name calls a bias or a norm.
pub fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_norm = |part: &str| part == "norm" || part.ends_with("_norm");
    !["bias", "layernorm", "rmsnorm"].iter().any(|word| name.contains(word)) && !name.split('.').any(is_norm)
}

/// The L2 norm over all gradients together, and the factor that brings it down to `max_norm` (1 if it is below, or
/// if `max_norm` is `None`).
pub fn global_norm(gradients: &Gradients, max_norm: Option<f64>) -> (f64, f64) {
    // Folded from 0: std's sum of nothing is −0.
    let norms = spent::on(Work::Clipping, || gradients.norms());
    let norm = norms.iter().fold(0.0, |sum, (_, n)| sum + n * n).sqrt();
    // The reference adds the same 1e-6.
    let scale = max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
    (norm, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_do_not_decay() {
        for name in [
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "bert.encoder.layer.0.output.LayerNorm.weight",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "score.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
            "model.normal.weight",
        ] {
            assert!(decays(name), "{name}");
        }
    }
}
