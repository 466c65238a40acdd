//! A linear layer, possibly with a low-rank adapter beside its weight.
//!
//! `y = x·Wᵀ + bias + s·(drop(x)·Aᵀ)·Bᵀ`. The dense delta `B·A` is never formed, and the gradient of `W` only when
//! `W` itself is trained.

use burn::tensor::{Device, Tensor};

use super::packed::Packed;
use super::parameter::{Gradients, Parameter, matrix};
use crate::random::Random;

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// The adapter, if one is attached.
    pub lora: Option<LoraPair>,
}

/// The two factors of a low-rank adapter.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `[r, in]`.
    pub a: Parameter,
    /// `[out, r]`.
    pub b: Parameter,
    /// What their product is multiplied by.
    pub scale: f32,
    /// The probability that an input element is left out in training.
    pub dropout: f32,
}

impl Linear {
    /// `[n, in]` to `[n, out]`.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed) -> Tensor<2> {
        let mut y = x.clone().matmul(self.weight.value.clone().transpose());
        if let Some(bias) = &self.bias {
            y = y + bias.value.clone();
        }
        if let Some(lora) = &self.lora {
            let low = lora.drop(x.clone(), packed).matmul(lora.a.value.clone().transpose());
            y = y + low.mul_scalar(lora.scale).matmul(lora.b.value.clone().transpose());
        }
        y
    }

    /// The gradient at the input, given that at the output; adds those of the trainable parameters to `gradients`.
    /// `x` recomputes the layer's input and is called only if a gradient needs it.
    pub fn backward(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: Tensor<2>,
        packed: &Packed,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        self.parameter_gradients(&x, &dy, gradients);
        let lora = self.lora.as_ref().map(|lora| lora.backward(x(), &dy, packed, gradients));
        let dx = dy.matmul(self.weight.value.clone());
        match lora {
            Some(d) => dx + d,
            None => dx,
        }
    }

    /// As [`Self::backward`] for a layer whose input needs no gradient.
    pub fn backward_parameters_only(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: &Tensor<2>,
        packed: &Packed,
        gradients: &mut Gradients,
    ) {
        self.parameter_gradients(&x, dy, gradients);
        if let Some(lora) = &self.lora {
            lora.backward(x(), dy, packed, gradients);
        }
    }

    fn parameter_gradients(&self, x: impl Fn() -> Tensor<2>, dy: &Tensor<2>, gradients: &mut Gradients) {
        if self.weight.trainable {
            gradients.add(&self.weight.name, dy.clone().transpose().matmul(x()));
        }
        if let Some(bias) = &self.bias
            && bias.trainable
        {
            gradients.add(&bias.name, dy.clone().sum_dim(0));
        }
    }

    /// All parameters, adapter included.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.weight).chain(&self.bias).chain(self.lora.iter().flat_map(|l| [&l.a, &l.b]))
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.weight)
            .chain(&mut self.bias)
            .chain(self.lora.iter_mut().flat_map(|l| [&mut l.a, &mut l.b]))
    }
}

impl LoraPair {
    /// Zeroes elements in training and scales the others up; the same mask in forward and backward, since it depends
    /// only on the batch's seed and the layer's name.
    fn drop(&self, x: Tensor<2>, packed: &Packed) -> Tensor<2> {
        match self.mask(&x, packed) {
            Some(mask) => x * mask,
            None => x,
        }
    }

    fn mask(&self, x: &Tensor<2>, packed: &Packed) -> Option<Tensor<2>> {
        let seed = packed.dropout_seed.filter(|_| self.dropout > 0.0)?;
        let [rows, columns] = x.dims();
        let mut random = Random::stream(seed, &self.a.name);
        let kept = 1.0 / (1.0 - self.dropout);
        let values = (0..rows * columns).map(|_| if random.uniform() < self.dropout { 0.0 } else { kept }).collect();
        let device: Device = x.device();
        Some(matrix(values, &[rows, columns], &device))
    }

    fn backward(&self, x: Tensor<2>, dy: &Tensor<2>, packed: &Packed, gradients: &mut Gradients) -> Tensor<2> {
        let mask = self.mask(&x, packed);
        let x = match &mask {
            Some(mask) => x * mask.clone(),
            None => x,
        };
        let low = x.clone().matmul(self.a.value.clone().transpose());
        // The scale goes onto the [n, r] factors: the cheapest place.
        if self.b.trainable {
            let db = dy.clone().transpose().matmul(low.mul_scalar(self.scale));
            gradients.add(&self.b.name, db);
        }
        let d_low = dy.clone().matmul(self.b.value.clone()).mul_scalar(self.scale);
        if self.a.trainable {
            gradients.add(&self.a.name, d_low.clone().transpose().matmul(x));
        }
        let dx = d_low.matmul(self.a.value.clone());
        match mask {
            Some(mask) => dx * mask,
            None => dx,
        }
    }
}
