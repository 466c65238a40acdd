//! Figures of logits and the gradient at them as plain tensors: for what neither the processor's loops nor a kernel takes, and
//! what both are compared with.

use burn::tensor::activation::softmax;
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::Figures;
use crate::model::packed::int_tensor;
use crate::model::parameter::{host_values, matrix};
use crate::processor::cross_entropy::Loss;

/// The figures of each row of logits, `[rows, vocabulary]`.
pub fn figures(logits: &Tensor<2>, targets: &[i64]) -> Vec<Figures> {
    let ids = int_tensor(targets.to_vec(), &logits.device()).reshape([targets.len(), 1]);
    let probabilities = softmax(logits.clone(), 1);
    let columns = vec![
        logits.clone().gather(1, ids),
        logits.clone().max_dim(1),
        probabilities.clone().max_dim(1),
        (logits.clone() * probabilities).sum_dim(1),
        logits.clone().mean_dim(1),
    ];
    let of = |row: &[f32]| {
        let [target, highest, highest_probability, expected, mean] =
            std::array::from_fn(|index| row.get(index).map_or(0.0, |value| f64::from(*value)));
        // The highest probability is at least 1/vocabulary, so its logarithm is exact, which the target's would not be.
        Figures { target, log_partition: highest - highest_probability.ln(), highest, expected, mean }
    };
    host_values(Tensor::cat(columns, 1)).chunks(5).map(of).collect()
}

/// The gradient at the logits.
pub fn gradient(logits: &Tensor<2>, targets: &[i64], Loss { weights, smoothing }: Loss<'_>) -> Tensor<2> {
    let ([count, vocabulary], device) = (logits.dims(), logits.device());
    let ids = int_tensor(targets.to_vec(), &device).reshape([count, 1]);
    // d/dlogits of −log softmax = softmax − one-hot.
    let minus = Tensor::full([count, 1], smoothing - 1.0, &device);
    let d_logits = softmax(logits.clone(), 1).scatter(1, ids, minus, IndexingUpdateOp::Add);
    d_logits.sub_scalar(smoothing / vocabulary as f64) * matrix(weights.to_vec(), &[count, 1], &device)
}
