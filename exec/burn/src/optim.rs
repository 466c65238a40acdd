//! AdamW over named parameters, and clipping by the global norm.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::model::{Gradients, Parameter};

/// AdamW's constants, with the reference trainer's names and defaults.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Decoupled weight decay; norms and biases (all vectors) are left out of it.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimizer and its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    settings: AdamWSettings,
    /// Updates done so far.
    pub updates: u64,
    /// First and second moment of each parameter's gradient.
    pub moments: BTreeMap<String, (Tensor<2>, Tensor<2>)>,
}

impl AdamW {
    /// An optimizer that has done nothing yet.
    pub fn new(settings: AdamWSettings) -> Self {
        Self { settings, updates: 0, moments: BTreeMap::new() }
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
        let AdamWSettings { adam_beta1: beta1, adam_beta2: beta2, adam_epsilon: epsilon, weight_decay } = self.settings;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = 1.0 - beta2.powf(self.updates as f64);
        for parameter in parameters {
            let Some(gradient) = gradients.take(&parameter.name) else {
                continue;
            };
            let gradient = gradient.mul_scalar(gradient_scale);
            let (m, v) = self.moments.remove(&parameter.name).unwrap_or_else(|| {
                let zeros = Tensor::zeros(gradient.dims(), &gradient.device());
                (zeros.clone(), zeros)
            });
            let m = m.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
            let v = v.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);
            let root = v.clone().sqrt().div_scalar(correction2.sqrt()).add_scalar(epsilon);
            let change = (m.clone() / root).mul_scalar(learning_rate / correction1);
            let decayed = match parameter.shape.len() > 1 && weight_decay != 0.0 {
                true => parameter.value.clone().mul_scalar(1.0 - learning_rate * weight_decay),
                false => parameter.value.clone(),
            };
            parameter.value = decayed - change;
            self.moments.insert(parameter.name.clone(), (m, v));
        }
    }
}

/// The L2 norm over all gradients together, and the factor that brings it down to `max_norm` (1 if it is below, or
/// if `max_norm` is `None`).
pub fn global_norm(gradients: &Gradients, max_norm: Option<f64>) -> (f64, f64) {
    // Folded from 0: std's sum of nothing is −0.
    let norm = gradients.norms().iter().fold(0.0, |sum, (_, n)| sum + n * n).sqrt();
    // The reference adds the same 1e-6.
    let scale = max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
    (norm, scale)
}
