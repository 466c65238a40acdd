//! A linear layer, possibly with a low-rank adapter beside its weight.
//!
//! `y = x·Wᵀ + bias`, and what [`super::adapter`] adds. The gradient of `W` is formed only when `W` itself is trained;
//! a weight that is held in fewer bits is unpacked in forward and again in backward.

use burn::tensor::{Device, Tensor};

use super::adapter::{Base, LoraPair};
use super::packed::Packed;
use super::parameter::{Gradients, Parameter, on_device};
use super::weight::{Compute, Weight};

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// The adapter, if one is attached.
    pub lora: Option<LoraPair>,
    /// What its products are computed in.
    pub compute: Compute,
}

impl Linear {
    /// A layer without an adapter that computes in f32.
    pub fn new(weight: Weight, bias: Option<Parameter>) -> Self {
        Self { weight, bias, lora: None, compute: Compute::F32 }
    }

    /// The name of its weight without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub fn module(&self) -> &str {
        let name = self.weight.name();
        name.strip_suffix(".weight").unwrap_or(name)
    }

    /// `[n, in]` to `[n, out]`.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed) -> Tensor<2> {
        let y = match &self.lora {
            Some(lora) => lora.forward(self.base(), x, packed),
            None => self.base().forward(x.clone()),
        };
        let y = match &self.bias {
            Some(bias) => y + bias.value.clone(),
            None => y,
        };
        packed.beside.iter().fold(y, |y, beside| beside.add(self.module(), x, y, self.compute))
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
        let through = match &self.lora {
            Some(lora) => lora.backward(self.base(), x(), dy.clone(), packed, true, gradients),
            None => None,
        };
        through.unwrap_or_else(|| self.base().backward(dy))
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
            lora.backward(self.base(), x(), dy.clone(), packed, false, gradients);
        }
    }

    /// The weight with the adapter in it, if there is one, in f32.
    pub fn merged(&self) -> Tensor<2> {
        match &self.lora {
            Some(lora) => lora.merged(&self.weight),
            None => self.weight.matrix_f32(),
        }
    }

    /// Moves what it holds besides [`Self::parameters`] to a device.
    pub(super) fn move_the_rest(&mut self, device: &Device) {
        if let Weight::FourBit { matrix, .. } = &mut self.weight {
            *matrix = matrix.on_device(device);
        }
        if let Some(dora) = self.lora.as_mut().and_then(|lora| lora.dora.as_mut()) {
            dora.squares = on_device(&dora.squares, device);
        }
    }

    fn base(&self) -> Base<'_> {
        Base { weight: &self.weight, compute: self.compute }
    }

    fn parameter_gradients(&self, x: impl Fn() -> Tensor<2>, dy: &Tensor<2>, gradients: &mut Gradients) {
        if self.weight.trainable() {
            gradients.add(self.weight.name(), self.compute.product(dy.clone().transpose(), x()));
        }
        if let Some(bias) = &self.bias
            && bias.trainable
        {
            gradients.add(&bias.name, dy.clone().sum_dim(0));
        }
    }

    /// All parameters, adapter included; a weight in 4 bits is none.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let own = self.weight.parameter().into_iter().chain(&self.bias);
        own.chain(self.lora.iter().flat_map(LoraPair::parameters))
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let own = self.weight.parameter_mut().into_iter().chain(&mut self.bias);
        own.chain(self.lora.iter_mut().flat_map(LoraPair::parameters_mut))
    }
}
