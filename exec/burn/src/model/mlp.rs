//! The gated feed-forward block, forward and backward.

use std::cell::LazyCell;

use burn::tensor::Tensor;

use super::activation::Activation;
use super::linear::Linear;
use super::packed::Packed;
use super::parameter::Gradients;
#[cfg(feature = "kernels")]
use crate::kernels;
use crate::processor::{self, sum};
use crate::spent::{self, Work};

/// `down(f(gate(x)) · up(x))`: SwiGLU, or GeGLU, by what `f` is.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear,
    /// `f`.
    pub activation: Activation,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct MlpTape {
    gate: Tensor<2>,
    up: Tensor<2>,
}

impl Mlp {
    /// `[n, hidden]` to the same.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed) -> (Tensor<2>, MlpTape) {
        let tape = MlpTape { gate: self.gate_proj.forward(x, packed), up: self.up_proj.forward(x, packed) };
        let gated = spent::on(Work::Gates, || self.gated(&tape));
        (self.down_proj.forward(&gated, packed), tape)
    }

    /// The gradient at `x`, given that at the output. `x` recomputes the input.
    pub fn backward(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: Tensor<2>,
        tape: MlpTape,
        packed: &Packed,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let gated = || spent::on(Work::Gates, || self.gated(&tape));
        let d_gated = self.down_proj.backward(gated, dy, packed, gradients);
        let (d_gate, d_up) = spent::on(Work::Gates, || self.gated_backward(tape, d_gated));
        let x = LazyCell::new(x);
        let through_gate = self.gate_proj.backward(|| x.clone(), d_gate, packed, gradients);
        sum(through_gate, self.up_proj.backward(|| x.clone(), d_up, packed, gradients))
    }

    fn gated(&self, tape: &MlpTape) -> Tensor<2> {
        if self.activation == Activation::Silu && processor::take([&tape.gate, &tape.up]) {
            return processor::gate::swiglu(&tape.gate, &tape.up);
        }
        #[cfg(feature = "kernels")]
        if self.activation == Activation::Silu && kernels::take([&tape.gate, &tape.up]) {
            return kernels::swiglu(&tape.gate, &tape.up);
        }
        self.activation.apply(tape.gate.clone()) * tape.up.clone()
    }

    /// The gradients at gate and up, given that at what [`Self::gated`] gave.
    fn gated_backward(&self, MlpTape { gate, up }: MlpTape, d_gated: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        if self.activation == Activation::Silu && processor::take([&gate, &up, &d_gated]) {
            return processor::gate::swiglu_backward(gate, up, d_gated);
        }
        #[cfg(feature = "kernels")]
        if self.activation == Activation::Silu && kernels::take([&gate, &up, &d_gated]) {
            return kernels::swiglu_backward(gate, up, d_gated);
        }
        let (opened, slope) = self.activation.with_slope(gate);
        let d_up = d_gated.clone() * opened;
        let d_gate = d_gated * up * slope;
        (d_gate, d_up)
    }

    /// The three linear layers, in the checkpoint's order.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }

    /// The three linear layers, to be changed.
    pub fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj]
    }
}
