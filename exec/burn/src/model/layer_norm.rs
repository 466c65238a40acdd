//! Layer normalisation of rows, as encoders have it.

use burn::tensor::Tensor;

use super::parameter::{Gradients, Parameter};

/// `y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias`, row by row (Ba et al., arXiv 1607.06450).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Parameter,
    /// `[width]`.
    pub bias: Parameter,
    /// Added to the variance.
    pub eps: f64,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct LayerNormTape {
    /// The rows with mean 0 and variance 1.
    normal: Tensor<2>,
    /// The reciprocal deviation of each row, `[n, 1]`.
    reciprocal: Tensor<2>,
}

impl LayerNorm {
    /// The normalised rows, `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, LayerNormTape) {
        let centred = x.clone() - x.mean_dim(1);
        let reciprocal = centred.clone().square().mean_dim(1).add_scalar(self.eps).sqrt().recip();
        let normal = centred * reciprocal.clone();
        let tape = LayerNormTape { normal, reciprocal };
        (self.again(&tape), tape)
    }

    /// What [`Self::forward`] gave, computed anew.
    pub fn again(&self, tape: &LayerNormTape) -> Tensor<2> {
        tape.normal.clone() * self.weight.value.clone() + self.bias.value.clone()
    }

    /// The gradient at the input; adds those of weight and bias if they are trainable.
    pub fn backward(&self, tape: LayerNormTape, dy: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        let LayerNormTape { normal, reciprocal } = tape;
        if self.bias.trainable {
            gradients.add(&self.bias.name, dy.clone().sum_dim(0));
        }
        if self.weight.trainable {
            gradients.add(&self.weight.name, (dy.clone() * normal.clone()).sum_dim(0));
        }
        // With n = (x − mean)·r: dx = r · (g − mean(g) − n · mean(g·n)), g = dy·weight.
        let g = dy * self.weight.value.clone();
        let along = (g.clone() * normal.clone()).mean_dim(1);
        (g.clone() - g.mean_dim(1) - normal * along) * reciprocal
    }

    /// Weight and bias.
    pub fn parameters(&self) -> [&Parameter; 2] {
        [&self.weight, &self.bias]
    }

    /// Weight and bias, to be changed.
    pub fn parameters_mut(&mut self) -> [&mut Parameter; 2] {
        [&mut self.weight, &mut self.bias]
    }
}
