//! Adafactor (Shazeer and Stern, arXiv 1804.04235) with the arguments that the reference trainer gives it: an outer
//! learning rate, no first moment, no relative step.

use burn::tensor::Tensor;

use super::state::State;
use super::{Update, decays};
use crate::model::Parameter;

/// Added to squared gradients.
const EPSILON: f64 = 1e-30;
/// Root mean square above which an update is scaled down.
const CLIP_THRESHOLD: f64 = 1.0;
/// The second moment's decay at update t is 1 − t to this power.
const DECAY_RATE: f64 = -0.8;

pub(super) fn step(
    weight_decay: f64,
    parameter: &mut Parameter,
    gradient: Tensor<2>,
    before: Option<State>,
    update: Update,
) -> State {
    let Update { number, learning_rate, gradient_scale } = update;
    let gradient = gradient.mul_scalar(gradient_scale);
    let beta2 = 1.0 - (number as f64).powf(DECAY_RATE);
    let squares = gradient.clone().square().add_scalar(EPSILON);
    let mean = |before: Tensor<2>, now: Tensor<2>| before.mul_scalar(beta2) + now.mul_scalar(1.0 - beta2);
    let (direction, after) = if parameter.shape.len() < 2 {
        let second = match before {
            Some(State::Second(second)) => mean(second, squares),
            _ => mean(Tensor::zeros(gradient.dims(), &gradient.device()), squares),
        };
        (gradient * second.clone().sqrt().recip(), State::Second(second))
    } else {
        let (rows, columns) = match before {
            Some(State::Factored { rows, columns }) => (rows, columns),
            _ => {
                let ([r, c], device) = (gradient.dims(), gradient.device());
                (Tensor::zeros([r, 1], &device), Tensor::zeros([1, c], &device))
            }
        };
        let rows = mean(rows, squares.clone().mean_dim(1));
        let columns = mean(columns, squares.mean_dim(0));
        // The second moment is near rows · columns / mean(rows), the best product of two vectors (equation 4 there).
        let by_row = (rows.clone() / rows.clone().mean_dim(0)).sqrt().recip();
        let direction = by_row * columns.clone().sqrt().recip() * gradient;
        (direction, State::Factored { rows, columns })
    };
    // A row at a time, for the same bits whatever the threads: see `Gradients::norms`.
    let count = parameter.shape.iter().product::<usize>() as f64;
    let mean_square = direction.clone().square().sum_dim(1).sum_dim(0).div_scalar(count);
    let too_large_by = mean_square.sqrt().div_scalar(CLIP_THRESHOLD).clamp_min(1.0);
    let change = (direction / too_large_by).mul_scalar(learning_rate);
    let value = parameter.value.clone();
    let kept = match weight_decay != 0.0 && decays(&parameter.name) {
        true => value.mul_scalar(1.0 - weight_decay * learning_rate),
        false => value,
    };
    parameter.value = kept - change;
    after
}
