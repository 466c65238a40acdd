//! AdamW: moments in 32 bits as tensors, or in blocks of 8-bit codes.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::blocks::{BLOCK, Blocks, Levels};
use super::state::State;
use super::{Update, decays};
use crate::model::Parameter;
use crate::model::parameter::into_values;
use crate::processor::{self, Values};

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
    /// Of the gradient.
    scale: f64,
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
            scale: update.gradient_scale,
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
    if processor::take([&gradient]) {
        return step_in_place(&by, parameter, gradient, before);
    }
    let gradient = gradient.mul_scalar(by.scale);
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

/// The same on the processor: one pass over the value, its gradient and the moments, each in its own memory. As tensors they
/// would be read and written ten times over by a single thread, with four more of the parameter's size there meanwhile.
fn step_in_place(by: &Factors, parameter: &mut Parameter, gradient: Tensor<2>, before: Option<State>) -> State {
    let (dims, device) = (gradient.dims(), gradient.device());
    let [beta1, rest1, beta2, rest2, correction2, epsilon, rate, kept] =
        [by.beta1, 1.0 - by.beta1, by.beta2, 1.0 - by.beta2, by.correction2, by.epsilon, by.rate, by.kept]
            .map(|factor| factor as f32);
    let scale = by.scale as f32;
    // Taken out, so that its memory is nobody else's.
    let value = std::mem::replace(&mut parameter.value, Tensor::empty([1, 1], &device));
    let (mut values, gradient) = (Values::of(value), Values::of(gradient));
    let zeros = || processor::made(vec![0.0; dims[0] * dims[1]], dims);
    let (mut m, mut v) = match before {
        Some(State::Moments(m, v)) => (Values::of(m), Values::of(v)),
        _ => (Values::of(zeros()), Values::of(zeros())),
    };
    let parts = values.slice_mut().par_chunks_mut(CHUNK).zip(gradient.slice().par_chunks(CHUNK));
    let moments = m.slice_mut().par_chunks_mut(CHUNK).zip(v.slice_mut().par_chunks_mut(CHUNK));
    // An element knows nothing of others, so the bits do not depend on the threads.
    parts.zip(moments).for_each(|((values, gradient), (m, v))| {
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *value = kept * *value - rate * (*m / (v.sqrt() / correction2 + epsilon));
        }
    });
    parameter.value = values.tensor();
    State::Moments(m.tensor(), v.tensor())
}

/// Elements that a thread takes at a time: 64 KiB of each list.
const CHUNK: usize = 16 << 10;

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
    let [beta1, beta2, correction2, epsilon, rate, kept, scale] =
        [by.beta1, by.beta2, by.correction2, by.epsilon, by.rate, by.kept, by.scale].map(|factor| factor as f32);
    // Copied only where it lies elsewhere.
    let gradient = match processor::take([&gradient]) {
        true => gradient,
        false => processor::made(into_values(gradient), dims),
    };
    let gradient = Values::of(gradient);
    let value = std::mem::replace(&mut parameter.value, Tensor::empty([1, 1], &device));
    let mut values = into_values(value);
    let parts = values.par_chunks_mut(BLOCK).zip(gradient.slice().par_chunks(BLOCK));
    // Blocks know nothing of one another, so the bits do not depend on the threads.
    parts.zip(m.par_blocks().zip(v.par_blocks())).for_each(|((values, gradient), (mut m, mut v))| {
        let (mut first, mut second) = (m.decode(), v.decode());
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(&mut first).zip(&mut second) {
            let g = g * scale;
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::parameter::{host_values, matrix};
    use crate::random::Random;

    /// The rule as its paper has it, in f64.
    fn expected(value: f64, gradients: &[f64], settings: &AdamWSettings, rate: f64) -> f64 {
        let (mut value, mut m, mut v) = (value, 0.0, 0.0);
        for (number, g) in (1..).zip(gradients) {
            m = settings.adam_beta1 * m + (1.0 - settings.adam_beta1) * g;
            v = settings.adam_beta2 * v + (1.0 - settings.adam_beta2) * g * g;
            let corrected = m / (1.0 - settings.adam_beta1.powi(number));
            let root = (v / (1.0 - settings.adam_beta2.powi(number))).sqrt();
            value = value * (1.0 - rate * settings.weight_decay) - rate * corrected / (root + settings.adam_epsilon);
        }
        value
    }

    #[test]
    fn in_place_it_is_the_papers_rule_whatever_shares_the_value() {
        // More than one chunk, the last one short.
        const DIMS: [usize; 2] = [3, CHUNK / 2 + 7];
        let device = Device::flex();
        let settings = AdamWSettings { weight_decay: 0.1, ..AdamWSettings::default() };
        let mut random = Random::new(5);
        let mut drawn = || (0..DIMS[0] * DIMS[1]).map(|_| random.normal()).collect::<Vec<f32>>();
        let values = drawn();
        let gradients: [Vec<f32>; 3] = std::array::from_fn(|_| drawn());
        let mut parameter = Parameter::new("w.weight".into(), &DIMS, values.clone(), &device);
        let shared = parameter.value.clone();
        let mut state = None;
        for (number, gradient) in (1..).zip(&gradients) {
            let update = Update { number, learning_rate: 1e-2, gradient_scale: 0.5 };
            let gradient = matrix(gradient.clone(), &DIMS, &device);
            state = Some(step(&settings, &mut parameter, gradient, state, update));
        }
        assert_eq!(host_values(shared), values, "another's values stay as they are");
        let found = parameter.to_vec();
        for (at, (found, value)) in found.iter().zip(&values).enumerate() {
            let gradients = gradients.each_ref().map(|gradient| 0.5 * f64::from(gradient[at]));
            let wanted = expected(f64::from(*value), &gradients, &settings, 1e-2);
            assert!((f64::from(*found) - wanted).abs() < 1e-6, "element {at}: {found}, expected {wanted}");
        }
    }
}
