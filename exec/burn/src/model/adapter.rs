//! The low-rank adapter of a linear layer: plain, or with a magnitude for each output (DoRA).
//!
//! With `s` the scale, `x̃` the input after dropout and `W` the frozen weight the layer gives, without its bias,
//!
//! ```text
//! LoRA   x·Wᵀ + s·(x̃·Aᵀ)·Bᵀ
//! DoRA   x·Wᵀ + (g − 1)∘(x̃·Wᵀ) + g∘s·(x̃·Aᵀ)·Bᵀ,   g = m / ‖W + s·B·A‖ of each row
//! ```
//!
//! which without dropout is `g∘(x·Wᵀ + s·(x·Aᵀ)·Bᵀ)`. The norm counts as a constant in the gradient (Liu et al. 2024,
//! DoRA, section 4.3), as PEFT has it. The dense `B·A` is formed in neither.

use burn::tensor::{Device, Tensor};

use super::packed::Packed;
use super::parameter::{Gradients, Parameter, matrix};
use super::weight::{Compute, Weight};
use crate::processor::sum;
use crate::random::Random;

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
    /// With DoRA.
    pub dora: Option<Dora>,
}

/// The magnitudes of DoRA.
#[derive(Debug, Clone)]
pub struct Dora {
    /// `m`: `[out]`.
    pub magnitude: Parameter,
    /// Σ of the squares of each row of the frozen weight, `[1, out]`.
    pub squares: Tensor<2>,
}

/// The frozen side of the layer that an adapter belongs to.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub weight: &'a Weight,
    pub compute: Compute,
}

impl Base<'_> {
    /// `x · Wᵀ`.
    pub fn forward(self, x: Tensor<2>) -> Tensor<2> {
        // In f32 whatever else is computed in: nothing is unpacked for the few rows of generation.
        #[cfg(feature = "kernels")]
        if let Weight::FourBit { matrix, .. } = self.weight
            && let Some(y) = matrix.product(&x)
        {
            return y;
        }
        self.compute.product(x, self.matrix().transpose())
    }

    /// `dy · W`.
    pub fn backward(self, dy: Tensor<2>) -> Tensor<2> {
        self.compute.product(dy, self.matrix())
    }

    /// The weight in what is computed in, whatever it is held in.
    fn matrix(self) -> Tensor<2> {
        self.weight.matrix().cast(self.compute.format())
    }
}

impl Dora {
    /// Magnitudes for a weight under an adapter that gives nothing yet: the norms of its rows, so that nothing changes.
    pub fn new(name: String, weight: &Weight) -> Self {
        let squares = weight.matrix_f32().square().sum_dim(1).transpose();
        let [_, out] = squares.dims();
        let magnitude = Parameter { name, shape: vec![out], value: squares.clone().sqrt(), trainable: true };
        Self { magnitude, squares }
    }
}

impl LoraPair {
    /// What the layer gives, without its bias.
    pub(super) fn forward(&self, base: Base<'_>, x: &Tensor<2>, packed: &Packed) -> Tensor<2> {
        let mask = self.mask(x, packed);
        let dropped = drop_by(x.clone(), &mask);
        let low = self.low(base, dropped.clone());
        let delta = base.compute.product(low.mul_scalar(self.scale), self.b.value.clone().transpose());
        let plain = base.forward(x.clone());
        match (&self.dora, mask) {
            (None, _) => sum(plain, delta),
            (Some(dora), None) => (plain + delta) * self.gain(dora, base),
            (Some(dora), Some(_)) => {
                let gain = self.gain(dora, base);
                plain + base.forward(dropped) * gain.clone().sub_scalar(1.0) + delta * gain
            }
        }
    }

    /// The gradient at the input, given that at the output, where it is needed; adds those of the factors and magnitudes.
    pub(super) fn backward(
        &self,
        base: Base<'_>,
        x: Tensor<2>,
        dy: Tensor<2>,
        packed: &Packed,
        input_needed: bool,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let mask = self.mask(&x, packed);
        let x = drop_by(x, &mask);
        let Some(dora) = &self.dora else {
            let through = self.through_factors(base, x, &dy, input_needed, gradients);
            return through.map(|dx| sum(base.backward(dy), drop_by(dx, &mask)));
        };
        let norms = self.norms(dora, base);
        let gain = dora.magnitude.value.clone() / norms.clone();
        if dora.magnitude.trainable {
            // Recomputed, as everything is: what the magnitudes multiply.
            let low = self.low(base, x.clone()).mul_scalar(self.scale);
            let scaled = base.forward(x.clone()) + base.compute.product(low, self.b.value.clone().transpose());
            gradients.add(&dora.magnitude.name, (dy.clone() * scaled).sum_dim(0) / norms);
        }
        let d_delta = dy.clone() * gain.clone();
        let through = self.through_factors(base, x, &d_delta, input_needed, gradients)?;
        Some(match mask {
            None => base.backward(d_delta) + through,
            Some(mask) => {
                let dropped = base.backward(dy.clone() * gain.sub_scalar(1.0)) + through;
                base.backward(dy) + dropped * mask
            }
        })
    }

    /// Adds the factors' gradients; the gradient that reaches the dropped input through them, where it is needed.
    fn through_factors(
        &self,
        base: Base<'_>,
        x: Tensor<2>,
        d_delta: &Tensor<2>,
        input_needed: bool,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let product = |a, b| base.compute.product(a, b);
        // The scale goes onto the [n, r] factors: the cheapest place.
        if self.b.trainable {
            let low = self.low(base, x.clone()).mul_scalar(self.scale);
            gradients.add(&self.b.name, product(d_delta.clone().transpose(), low));
        }
        let d_low = product(d_delta.clone(), self.b.value.clone()).mul_scalar(self.scale);
        if self.a.trainable {
            gradients.add(&self.a.name, product(d_low.clone().transpose(), x));
        }
        input_needed.then(|| product(d_low, self.a.value.clone()))
    }

    fn low(&self, base: Base<'_>, x: Tensor<2>) -> Tensor<2> {
        base.compute.product(x, self.a.value.clone().transpose())
    }

    /// `g`, `[1, out]`.
    fn gain(&self, dora: &Dora, base: Base<'_>) -> Tensor<2> {
        dora.magnitude.value.clone() / self.norms(dora, base)
    }

    /// The norm of each row of `W + s·B·A`, `[1, out]`: ‖w‖² + 2s·b·(W·Aᵀ) + s²·b·(A·Aᵀ)·bᵀ, in f32.
    fn norms(&self, dora: &Dora, base: Base<'_>) -> Tensor<2> {
        let (a, b) = (self.a.value.clone(), self.b.value.clone());
        let mixed = base.weight.matrix_f32().matmul(a.clone().transpose()) * b.clone();
        let own = b.clone().matmul(a.clone().matmul(a.transpose())) * b;
        let added = mixed.mul_scalar(2.0 * self.scale) + own.mul_scalar(self.scale * self.scale);
        // Rounding may take a row that the adapter cancels below 0.
        (dora.squares.clone() + added.sum_dim(1).transpose()).clamp_min(f32::MIN_POSITIVE).sqrt()
    }

    /// The weight with the adapter in it, in f32. Here, and only here, the delta is dense.
    pub(super) fn merged(&self, weight: &Weight) -> Tensor<2> {
        let delta = self.b.value.clone().matmul(self.a.value.clone()).mul_scalar(self.scale);
        let sum = weight.matrix_f32() + delta;
        match &self.dora {
            None => sum,
            Some(dora) => {
                // As in `norms`: a row of zeros stays one.
                let norms = sum.clone().square().sum_dim(1).clamp_min(f32::MIN_POSITIVE).sqrt();
                sum * (dora.magnitude.value.clone().transpose() / norms)
            }
        }
    }

    /// What zeroes elements in training and scales the others up; the same in forward and backward, since it depends only
    /// on the batch's seed and the layer's name.
    fn mask(&self, x: &Tensor<2>, packed: &Packed) -> Option<Tensor<2>> {
        let seed = packed.dropout_seed.filter(|_| self.dropout > 0.0)?;
        let [rows, columns] = x.dims();
        let mut random = Random::stream(seed, &self.a.name);
        let kept = 1.0 / (1.0 - self.dropout);
        let values = (0..rows * columns).map(|_| if random.uniform() < self.dropout { 0.0 } else { kept }).collect();
        let device: Device = x.device();
        Some(matrix(values, &[rows, columns], &device))
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.a, &self.b].into_iter().chain(self.dora.iter().map(|dora| &dora.magnitude))
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.a, &mut self.b].into_iter().chain(self.dora.iter_mut().map(|dora| &mut dora.magnitude))
    }
}

fn drop_by(x: Tensor<2>, mask: &Option<Tensor<2>>) -> Tensor<2> {
    match mask {
        Some(mask) => x * mask.clone(),
        None => x,
    }
}

#[cfg(test)]
mod tests;
