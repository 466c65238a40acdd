//! One transformer layer: attention and feed-forward, each behind a norm and beside a residual.

use std::cell::LazyCell;

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::attention::{Attention, AttentionTape};
use super::cache::LayerCache;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::packed::Packed;
use super::parameter::{Gradients, Parameter};

/// A layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// The attention block.
    pub attention: Attention,
    /// Before the feed-forward block.
    pub post_norm: RmsNorm,
    /// The feed-forward block.
    pub mlp: Mlp,
}

/// SwiGLU: `down(silu(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear,
}

/// What a layer's backward needs of its forward. Everything cheap to recompute is left out.
#[derive(Debug)]
pub struct LayerTape {
    x: Tensor<2>,
    x_reciprocal: Tensor<2>,
    attention: AttentionTape,
    middle: Tensor<2>,
    middle_reciprocal: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
}

impl Layer {
    /// `[tokens, hidden]` to the same.
    pub fn forward(&self, x: Tensor<2>, packed: &Packed, caches: Option<&mut [LayerCache]>) -> (Tensor<2>, LayerTape) {
        let x_reciprocal = self.input_norm.reciprocal(&x);
        let normal = self.input_norm.apply(&x, &x_reciprocal);
        let (attended, attention) = self.attention.forward(&normal, packed, caches);
        drop(normal);
        let middle = attended + x.clone();
        let middle_reciprocal = self.post_norm.reciprocal(&middle);
        let normal = self.post_norm.apply(&middle, &middle_reciprocal);
        let gate = self.mlp.gate_proj.forward(&normal, packed);
        let up = self.mlp.up_proj.forward(&normal, packed);
        drop(normal);
        let out = self.mlp.down_proj.forward(&gated(&gate, &up), packed) + middle.clone();
        let tape = LayerTape { x, x_reciprocal, attention, middle, middle_reciprocal, gate, up };
        (out, tape)
    }

    /// The gradient at the layer's input, or `None` if it is not needed.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        tape: LayerTape,
        packed: &Packed,
        input_needed: bool,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let LayerTape { x, x_reciprocal, attention, middle, middle_reciprocal, gate, up } = tape;
        let d_gated = self.mlp.down_proj.backward(|| gated(&gate, &up), dy.clone(), packed, gradients);
        let (d_gate, d_up) = gated_backward(gate, up, d_gated);
        let normal = LazyCell::new(|| self.post_norm.apply(&middle, &middle_reciprocal));
        let d_normal = self.mlp.gate_proj.backward(|| normal.clone(), d_gate, packed, gradients)
            + self.mlp.up_proj.backward(|| normal.clone(), d_up, packed, gradients);
        let d_middle = self.post_norm.backward(&middle, &middle_reciprocal, d_normal, gradients) + dy;
        drop(normal);
        let input_norm_trains = self.input_norm.weight.trainable;
        let d_normal = self.attention.backward(
            || self.input_norm.apply(&x, &x_reciprocal),
            d_middle.clone(),
            attention,
            packed,
            input_needed || input_norm_trains,
            gradients,
        )?;
        let dx = self.input_norm.backward(&x, &x_reciprocal, d_normal, gradients) + d_middle;
        Some(dx)
    }

    /// The linear layers with their names within the layer, in the checkpoint's order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().into_iter().chain([&self.mlp.gate_proj, &self.mlp.up_proj, &self.mlp.down_proj])
    }

    /// As [`Self::linears`], to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.attention.linears_mut().into_iter().chain([
            &mut self.mlp.gate_proj,
            &mut self.mlp.up_proj,
            &mut self.mlp.down_proj,
        ])
    }

    /// All parameters of the layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.linears()
            .flat_map(Linear::parameters)
            .chain(self.attention.norm_weights())
            .chain([&self.input_norm.weight, &self.post_norm.weight])
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { input_norm, attention, post_norm, mlp } = self;
        let Attention { q_proj, k_proj, v_proj, o_proj, qk_norm, .. } = attention;
        let linears = [q_proj, k_proj, v_proj, o_proj, &mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.down_proj];
        linears
            .into_iter()
            .flat_map(Linear::parameters_mut)
            .chain(qk_norm.iter_mut().flat_map(|(q, k)| [&mut q.weight, &mut k.weight]))
            .chain([&mut input_norm.weight, &mut post_norm.weight])
            .collect()
    }
}

fn gated(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    sigmoid(gate.clone()) * gate.clone() * up.clone()
}

/// The gradients at gate and up of `silu(gate) · up`.
fn gated_backward(gate: Tensor<2>, up: Tensor<2>, d: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let s = sigmoid(gate.clone());
    let silu = s.clone() * gate.clone();
    let d_up = d.clone() * silu.clone();
    // silu' = s + silu·(1 − s)
    let slope = s.clone() + silu.clone() - silu * s;
    (d * up * slope, d_up)
}
