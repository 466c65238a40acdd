//! AdamW: moments in 32 bits as tensors, or in blocks of 8-bit codes.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::blocks::{BLOCK, Blocks, Levels};
use super::state::State;
use super::{Update, decays};
use crate::model::Parameter;
use crate::model::parameter::host_values;

/// AdamW's constants, with the reference trainer's names and defaults.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// What an update multiplies with, the same for every element of a parameter.
struct Factors {
    beta1: f64,
    beta2: f64,
    /// Of the root of the second moment.
    correction2: f64,
    epsilon: f64,
    /// Learning rate over the first moment's correction.
    rate: f64,
    /// What weight decay leaves of a value.
    kept: f64,
}

impl Factors {
    fn new(settings: &AdamWSettings, parameter: &Parameter, update: Update) -> Self {
        let AdamWSettings { adam_beta1: beta1, adam_beta2: beta2, adam_epsilon: epsilon, weight_decay } = *settings;
        let correction = |beta: f64| 1.0 - beta.powf(update.number as f64);
        let weight_decay = if decays(&parameter.name) { weight_decay } else { 0.0 };
        Self {
            beta1,
            beta2,
            correction2: correction(beta2).sqrt(),
            epsilon,
            rate: update.learning_rate / correction(beta1),
            kept: 1.0 - update.learning_rate * weight_decay,
        }
    }
}

pub(super) fn step(
    settings: &AdamWSettings,
    parameter: &mut Parameter,
    gradient: Tensor<2>,
    before: Option<State>,
    update: Update,
) -> State {
    let by = Factors::new(settings, parameter, update);
    let (m, v) = match before {
        Some(State::Moments(m, v)) => (m, v),
        _ => {
            let zeros = Tensor::zeros(gradient.dims(), &gradient.device());
            (zeros.clone(), zeros)
        }
    };
    let m = m.mul_scalar(by.beta1) + gradient.clone().mul_scalar(1.0 - by.beta1);
    let v = v.mul_scalar(by.beta2) + gradient.square().mul_scalar(1.0 - by.beta2);
    let root = v.clone().sqrt().div_scalar(by.correction2).add_scalar(by.epsilon);
    let change = (m.clone() / root).mul_scalar(by.rate);
    let kept = match by.kept == 1.0 {
        true => parameter.value.clone(),
        false => parameter.value.clone().mul_scalar(by.kept),
    };
    parameter.value = kept - change;
    State::Moments(m, v)
}

/// The same with moments that are decoded, moved and coded again a block at a time.
pub(super) fn step_in_blocks(
    settings: &AdamWSettings,
    parameter: &mut Parameter,
    gradient: Tensor<2>,
    before: Option<State>,
    update: Update,
) -> State {
    let by = Factors::new(settings, parameter, update);
    let (dims, device) = (gradient.dims(), gradient.device());
    let count = dims[0] * dims[1];
    let (mut m, mut v) = match before {
        Some(State::Blocks(m, v)) => (m, v),
        _ => (Blocks::zeros(count, Levels::Signed), Blocks::zeros(count, Levels::Unsigned)),
    };
    let [beta1, beta2, correction2, epsilon, rate, kept] =
        [by.beta1, by.beta2, by.correction2, by.epsilon, by.rate, by.kept].map(|factor| factor as f32);
    let gradient = host_values(gradient);
    let mut values = host_values(parameter.value.clone());
    let parts = values.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK));
    // Blocks know nothing of one another, so the bits do not depend on the threads.
    parts.zip(m.par_blocks().zip(v.par_blocks())).for_each(|((values, gradient), (mut m, mut v))| {
        let (mut first, mut second) = (m.decode(), v.decode());
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(&mut first).zip(&mut second) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *value = kept * *value - rate * *m / (v.sqrt() / correction2 + epsilon);
        }
        m.encode(&first);
        v.encode(&second);
    });
    parameter.value = Tensor::from_data(TensorData::new(values, dims), &device);
    State::Blocks(m, v)
}
