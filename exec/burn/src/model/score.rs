//! A head of few outputs in place of the vocabulary: a reward, a value, a class.

use burn::tensor::Tensor;

use super::parameter::{Gradients, Parameter};

/// `scores = hidden · weightᵀ`, without a bias: the `score` of Hugging Face's `…ForSequenceClassification`.
#[derive(Debug, Clone)]
pub struct ScoreHead {
    /// `[labels, hidden]`.
    pub weight: Parameter,
}

impl ScoreHead {
    /// `[n, hidden]` to `[n, labels]`.
    pub fn forward(&self, hidden: &Tensor<2>) -> Tensor<2> {
        hidden.clone().matmul(self.weight.value.clone().transpose())
    }

    /// The gradient at the hidden states, given that at the scores; adds the weight's if it is trainable.
    pub fn backward(&self, hidden: &Tensor<2>, d_scores: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        if self.weight.trainable {
            gradients.add(&self.weight.name, d_scores.clone().transpose().matmul(hidden.clone()));
        }
        d_scores.matmul(self.weight.value.clone())
    }
}
