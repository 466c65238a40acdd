//! The loss that embedders are trained by: of all positives in the batch each anchor is to find its own.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::model::parameter::host_values;

/// Cross-entropy over `scale · cosine(anchor, positive)` with the positive of the same row as the target, the mean over
/// rows (sentence-transformers' `MultipleNegativesRankingLoss`), and the gradients at both sides. Rows have length 1; the
/// gradients count them as free.
pub fn in_batch_contrastive(anchors: &Tensor<2>, positives: &Tensor<2>, scale: f64) -> (f64, [Tensor<2>; 2]) {
    let [rows, _] = anchors.dims();
    let scores = anchors.clone().matmul(positives.clone().transpose()).mul_scalar(scale);
    let probabilities = softmax(scores, 1);
    let own = Tensor::eye(rows, &anchors.device());
    let of_own = host_values((probabilities.clone() * own.clone()).sum_dim(1));
    let loss = of_own.iter().map(|p| -f64::from(*p).ln()).sum::<f64>() / rows as f64;
    let d_scores = (probabilities - own).mul_scalar(scale / rows as f64);
    let d_anchors = d_scores.clone().matmul(positives.clone());
    let d_positives = d_scores.transpose().matmul(anchors.clone());
    (loss, [d_anchors, d_positives])
}
