//! Root-mean-square normalisation of rows.

use burn::tensor::Tensor;

use super::parameter::{Gradients, Parameter};
#[cfg(feature = "kernels")]
use crate::kernels;
use crate::processor;
use crate::spent::{self, Work};

/// `y = x / sqrt(mean(x²) + eps) · (offset + weight)`, row by row.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Parameter,
    /// Added to the mean square.
    pub eps: f64,
    /// What the stored weight is counted from: 0, or 1 in Gemma.
    pub offset: f64,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct NormTape {
    x: Tensor<2>,
    /// The reciprocal root mean square of each row, `[n, 1]`.
    reciprocal: Tensor<2>,
}

impl RmsNorm {
    /// The normalised rows, `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, NormTape) {
        spent::on(Work::Norms, || self.normal(x))
    }

    fn normal(&self, x: Tensor<2>) -> (Tensor<2>, NormTape) {
        if processor::take([&x, &self.weight.value]) {
            let (normal, reciprocal) = processor::norm::rms_norm(&x, self.gain(), self.eps);
            return (normal, NormTape { x, reciprocal });
        }
        #[cfg(feature = "kernels")]
        if kernels::take([&x, &self.weight.value]) {
            let (normal, reciprocal) = kernels::rms_norm(&x, &self.gain(), self.eps);
            return (normal, NormTape { x, reciprocal });
        }
        let reciprocal = x.clone().square().mean_dim(1).add_scalar(self.eps).sqrt().recip();
        let tape = NormTape { x, reciprocal };
        (self.scaled(&tape), tape)
    }

    /// What [`Self::forward`] gave, computed anew.
    pub fn again(&self, tape: &NormTape) -> Tensor<2> {
        spent::on(Work::Norms, || match processor::take([&tape.x, &self.weight.value]) {
            true => processor::norm::again(&tape.x, self.gain(), &tape.reciprocal),
            false => self.scaled(tape),
        })
    }

    fn scaled(&self, NormTape { x, reciprocal }: &NormTape) -> Tensor<2> {
        x.clone() * reciprocal.clone() * self.gain()
    }

    /// The gradient at the input; adds that of the weight if it is trainable.
    pub fn backward(&self, tape: NormTape, dy: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        spent::on(Work::Norms, || self.slopes(tape, dy, None, gradients))
    }

    /// As [`Self::backward`], and `beside`, the gradient that passes the norm by, is added to what it gives.
    pub fn backward_beside(
        &self,
        tape: NormTape,
        dy: Tensor<2>,
        beside: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        spent::on(Work::Norms, || match processor::take([&tape.x, &dy, &beside]) {
            true => self.slopes(tape, dy, Some(beside), gradients),
            false => self.slopes(tape, dy, None, gradients) + beside,
        })
    }

    /// `beside` is for tensors on the processor only.
    fn slopes(&self, tape: NormTape, dy: Tensor<2>, beside: Option<Tensor<2>>, gradients: &mut Gradients) -> Tensor<2> {
        let NormTape { x, reciprocal } = tape;
        if processor::take([&x, &self.weight.value, &reciprocal, &dy]) {
            if self.weight.trainable {
                gradients.add(&self.weight.name, processor::norm::rms_norm_backward_weight(&x, &reciprocal, &dy));
            }
            return processor::norm::rms_norm_backward(x, self.gain(), reciprocal, dy, beside);
        }
        #[cfg(feature = "kernels")]
        if kernels::take([&x, &self.weight.value, &reciprocal, &dy]) {
            if self.weight.trainable {
                gradients.add(&self.weight.name, kernels::rms_norm_backward_weight(&x, &reciprocal, &dy));
            }
            return kernels::rms_norm_backward(&x, &self.gain(), &reciprocal, &dy);
        }
        let normal = x * reciprocal.clone();
        if self.weight.trainable {
            gradients.add(&self.weight.name, (dy.clone() * normal.clone()).sum_dim(0));
        }
        // With n = x·r: dx = r · (g − n · mean(g·n)), g = dy·gain.
        let g = dy * self.gain();
        let along = (g.clone() * normal.clone()).mean_dim(1);
        (g - normal * along) * reciprocal
    }

    /// `[1, width]`.
    fn gain(&self) -> Tensor<2> {
        let weight = self.weight.value.clone();
        if self.offset == 0.0 { weight } else { weight.add_scalar(self.offset) }
    }
}
