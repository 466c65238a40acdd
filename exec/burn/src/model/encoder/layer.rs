//! One layer of an encoder.

use std::cell::LazyCell;

use burn::tensor::Tensor;

use crate::model::activation::Activation;
use crate::model::dot_product::{DotProduct, DotProductTape, Slopes};
use crate::model::layer_norm::{LayerNorm, LayerNormTape};
use crate::model::linear::Linear;
use crate::model::packed::Packed;
use crate::model::parameter::{Gradients, Parameter};
use crate::model::weight::Compute;

/// `m = norm(attention(x) + x)`, `y = norm(feed-forward(m) + m)`.
#[derive(Debug, Clone)]
pub struct EncoderLayer {
    /// Query, key and value, `[hidden, hidden]`.
    pub qkv: [Linear; 3],
    /// `[hidden, hidden]`.
    pub attention_out: Linear,
    /// After attention.
    pub attention_norm: LayerNorm,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`.
    pub down: Linear,
    /// After the feed-forward block.
    pub norm: LayerNorm,
    pub(super) heads: DotProduct,
    pub(super) activation: Activation,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct EncoderLayerTape {
    x: Tensor<2>,
    heads: DotProductTape,
    attention_norm: LayerNormTape,
    up: Tensor<2>,
    norm: LayerNormTape,
}

impl EncoderLayer {
    /// `[tokens, hidden]` to the same.
    pub fn forward(&self, x: Tensor<2>, packed: &Packed) -> (Tensor<2>, EncoderLayerTape) {
        let qkv = self.qkv.each_ref().map(|linear| linear.forward(&x, packed));
        // Rows are of equal length within a group, so nothing needs to be hidden.
        let (mixed, heads) = self.heads.forward(qkv, &packed.groups, |_| None, Compute::F32, |_, k, v| (k, v));
        let attended = self.attention_out.forward(&mixed, packed) + x.clone();
        let (middle, attention_norm) = self.attention_norm.forward(attended);
        let up = self.up.forward(&middle, packed);
        let out = self.down.forward(&self.activation.apply(up.clone()), packed) + middle;
        let (out, norm) = self.norm.forward(out);
        (out, EncoderLayerTape { x, heads, attention_norm, up, norm })
    }

    /// The gradient at the layer's input, given that at its output.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        tape: EncoderLayerTape,
        packed: &Packed,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let EncoderLayerTape { x, heads, attention_norm, up, norm } = tape;
        let d_out = self.norm.backward(norm, dy, gradients);
        let (opened, slope) = self.activation.with_slope(up);
        let d_up = self.down.backward(|| opened.clone(), d_out.clone(), packed, gradients) * slope;
        let middle = LazyCell::new(|| self.attention_norm.again(&attention_norm));
        let d_middle = self.up.backward(|| middle.clone(), d_up, packed, gradients) + d_out;
        drop(middle);
        let d_attended = self.attention_norm.backward(attention_norm, d_middle, gradients);
        let d_mixed = self.attention_out.backward(|| heads.mixed.clone(), d_attended.clone(), packed, gradients);
        let Slopes { q, k, v } = self.heads.backward(d_mixed, heads, &packed.groups, Compute::F32);
        let through = |sum, (linear, d): (&Linear, _)| sum + linear.backward(|| x.clone(), d, packed, gradients);
        self.qkv.iter().zip([q, k, v]).fold(d_attended, through)
    }

    /// All parameters of the layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let linears = self.qkv.iter().chain([&self.attention_out, &self.up, &self.down]);
        let norms = self.attention_norm.parameters().into_iter().chain(self.norm.parameters());
        linears.flat_map(Linear::parameters).chain(norms)
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let linears = self.qkv.iter_mut().chain([&mut self.attention_out, &mut self.up, &mut self.down]);
        let norms = self.attention_norm.parameters_mut().into_iter().chain(self.norm.parameters_mut());
        linears.flat_map(Linear::parameters_mut).chain(norms)
    }
}
