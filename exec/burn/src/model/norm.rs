//! Root-mean-square normalisation of rows.

use burn::tensor::Tensor;

use super::parameter::{Gradients, Parameter};

/// `y = x / sqrt(mean(x²) + eps) · weight`, row by row.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Parameter,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// The reciprocal root mean square of each row, `[n, 1]`: all that the backward pass keeps beside `x`.
    pub fn reciprocal(&self, x: &Tensor<2>) -> Tensor<2> {
        x.clone().square().mean_dim(1).add_scalar(self.eps).sqrt().recip()
    }

    /// The normalised rows, given [`Self::reciprocal`].
    pub fn apply(&self, x: &Tensor<2>, reciprocal: &Tensor<2>) -> Tensor<2> {
        x.clone() * reciprocal.clone() * self.weight.value.clone()
    }

    /// The gradient at `x`; adds that of the weight if it is trainable.
    pub fn backward(
        &self,
        x: &Tensor<2>,
        reciprocal: &Tensor<2>,
        dy: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let normal = x.clone() * reciprocal.clone();
        if self.weight.trainable {
            gradients.add(&self.weight.name, (dy.clone() * normal.clone()).sum_dim(0));
        }
        // With n = x·r: dx = r · (g − n · mean(g·n)), g = dy·weight.
        let g = dy * self.weight.value.clone();
        let along = (g.clone() * normal.clone()).mean_dim(1);
        (g - normal * along) * reciprocal.clone()
    }
}
