//! The head over the vocabulary: what makes logits of hidden states.

use burn::tensor::{FloatDType, Tensor};

use super::parameter::Parameter;
use crate::processor;

/// `logits = cap(hidden · weightᵀ)`, where `cap(x) = c·tanh(x/c)` keeps them between −c and c in the families that have it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[vocab, hidden]`.
    pub weight: &'a Parameter,
    /// `c`.
    pub softcap: Option<f64>,
}

impl<'a> Head<'a> {
    /// A head without a cap.
    pub fn plain(weight: &'a Parameter) -> Self {
        Self { weight, softcap: None }
    }

    /// This head for hidden states that are divided by `temperature`: its logits are then those of the states themselves,
    /// divided by it.
    #[must_use]
    pub fn tempered(self, temperature: f64) -> Self {
        Self { softcap: self.softcap.map(|cap| cap / temperature), ..self }
    }

    /// `[n, hidden]` to `[n, vocab]`.
    pub fn logits(self, hidden: Tensor<2>) -> Tensor<2> {
        self.capped(self.before_cap(hidden))
    }

    /// The logits without their cap.
    pub fn before_cap(self, hidden: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.value.clone().transpose();
        // What serves may hold it in half of f32.
        match FloatDType::from(weight.dtype()) {
            FloatDType::F32 => processor::product(hidden, weight),
            half => hidden.cast(half).matmul(weight).cast(FloatDType::F32),
        }
    }

    /// Caps logits, in the families that do.
    pub fn capped(self, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }

    /// The gradient before the cap, given that at the logits.
    pub fn through_cap(self, logits: &Tensor<2>, d_logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            // tanh' = 1 − tanh²
            Some(cap) => d_logits * logits.clone().div_scalar(cap).square().neg().add_scalar(1.0),
            None => d_logits,
        }
    }
}
