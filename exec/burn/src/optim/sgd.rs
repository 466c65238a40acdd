//! Stochastic gradient descent, as torch has it.

use burn::tensor::Tensor;

use super::state::State;
use super::{Update, decays};
use crate::model::Parameter;

/// Its constants, with torch's names; the defaults are all 0.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct SgdSettings {
    /// What is kept of the former direction; 0 remembers nothing.
    pub momentum: f64,
    /// What is left out of each gradient but the first.
    pub dampening: f64,
    /// Whether the gradient is looked at from where the momentum leads; needs a momentum and no dampening.
    pub nesterov: bool,
    /// Added to the gradient, times the value: a penalty on the squared norm.
    pub weight_decay: f64,
}

/// Returns nothing to remember without a momentum.
pub(super) fn step(
    settings: &SgdSettings,
    parameter: &mut Parameter,
    gradient: Tensor<2>,
    before: Option<State>,
    update: Update,
) -> Option<State> {
    let SgdSettings { momentum, dampening, nesterov, weight_decay } = *settings;
    let value = parameter.value.clone();
    let gradient = gradient.mul_scalar(update.gradient_scale);
    let gradient = match weight_decay != 0.0 && decays(&parameter.name) {
        true => gradient + value.clone().mul_scalar(weight_decay),
        false => gradient,
    };
    if momentum == 0.0 {
        parameter.value = value - gradient.mul_scalar(update.learning_rate);
        return None;
    }
    let buffer = match before {
        Some(State::Momentum(buffer)) => buffer.mul_scalar(momentum) + gradient.clone().mul_scalar(1.0 - dampening),
        _ => gradient.clone(),
    };
    let direction = match nesterov {
        true => gradient + buffer.clone().mul_scalar(momentum),
        false => buffer.clone(),
    };
    parameter.value = value - direction.mul_scalar(update.learning_rate);
    Some(State::Momentum(buffer))
}
