//! One transformer layer: attention and feed-forward, each behind a norm (in some families also before one) and beside a
//! residual.

use burn::tensor::Tensor;

use super::attention::{Attention, AttentionTape};
use super::cache::Past;
use super::experts::Routing;
use super::feed_forward::{FeedForward, FeedForwardTape};
use super::linear::Linear;
use super::norm::{NormTape, RmsNorm};
use super::packed::Packed;
use super::parameter::{Gradients, Parameter};
use crate::processor::sum;

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
    pub mlp: FeedForward,
    /// Of what attention gives and of what the feed-forward block gives, in the families that have them.
    pub output_norms: Option<[RmsNorm; 2]>,
}

/// What a layer's backward needs of its forward. Everything cheap to recompute is left out.
#[derive(Debug)]
pub struct LayerTape {
    input_norm: NormTape,
    attention: AttentionTape,
    post_norm: NormTape,
    mlp: FeedForwardTape,
    output_norms: Option<[NormTape; 2]>,
}

impl Layer {
    /// `[tokens, hidden]` to the same.
    pub fn forward(&self, x: Tensor<2>, packed: &Packed, past: Past<'_>) -> (Tensor<2>, LayerTape) {
        let (normal, input_norm) = self.input_norm.forward(x.clone());
        let (mut attended, attention) = self.attention.forward(&normal, packed, past);
        drop(normal);
        let attended_norm = self.output_norms.as_ref().map(|[norm, _]| through(norm, &mut attended));
        let middle = sum(attended, x);
        let (normal, post_norm) = self.post_norm.forward(middle.clone());
        let (mut out, mlp) = self.mlp.forward(&normal, packed);
        drop(normal);
        let out_norm = self.output_norms.as_ref().map(|[_, norm]| through(norm, &mut out));
        let output_norms = attended_norm.zip(out_norm).map(|(attended, out)| [attended, out]);
        (sum(out, middle), LayerTape { input_norm, attention, post_norm, mlp, output_norms })
    }

    /// The gradient at the layer's input, or `None` if it is not needed. `balance` is for routers: [`FeedForward::backward`].
    pub fn backward(
        &self,
        dy: Tensor<2>,
        tape: LayerTape,
        packed: &Packed,
        input_needed: bool,
        balance: Option<&Tensor<2>>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let LayerTape { input_norm, attention, post_norm, mlp, output_norms } = tape;
        let (attended_norm, out_norm) = match (&self.output_norms, output_norms) {
            (Some([of_attended, of_out]), Some([attended, out])) => {
                (Some((of_attended, attended)), Some((of_out, out)))
            }
            _ => (None, None),
        };
        let d_out = back_through(out_norm, dy.clone(), gradients);
        let d_normal = self.mlp.backward(|| self.post_norm.again(&post_norm), d_out, mlp, packed, balance, gradients);
        let d_middle = self.post_norm.backward_beside(post_norm, d_normal, dy, gradients);
        let d_attended = back_through(attended_norm, d_middle.clone(), gradients);
        let input_norm_trains = self.input_norm.weight.trainable;
        let d_normal = self.attention.backward(
            || self.input_norm.again(&input_norm),
            d_attended,
            attention,
            packed,
            input_needed || input_norm_trains,
            gradients,
        )?;
        Some(self.input_norm.backward_beside(input_norm, d_normal, d_middle, gradients))
    }

    /// The linear layers, in the checkpoint's order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears())
    }

    /// As [`Self::linears`], to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.parts_mut().1)
    }

    /// All parameters of the layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.linears()
            .flat_map(Linear::parameters)
            .chain(self.attention.norm_weights())
            .chain([&self.input_norm.weight, &self.post_norm.weight])
            .chain(self.mlp.router())
            .chain(self.output_norms.iter().flatten().map(|norm| &norm.weight))
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { input_norm, attention, post_norm, mlp, output_norms } = self;
        let Attention { q_proj, k_proj, v_proj, o_proj, qk_norm, .. } = attention;
        let (router, of_mlp) = mlp.parts_mut();
        let linears = [q_proj, k_proj, v_proj, o_proj].into_iter().chain(of_mlp);
        linears
            .flat_map(Linear::parameters_mut)
            .chain(qk_norm.iter_mut().flat_map(|(q, k)| [&mut q.weight, &mut k.weight]))
            .chain([&mut input_norm.weight, &mut post_norm.weight])
            .chain(router)
            .chain(output_norms.iter_mut().flatten().map(|norm| &mut norm.weight))
            .collect()
    }
}

impl LayerTape {
    /// How tokens were spread over experts, where there are any.
    pub fn routing(&self) -> Option<Routing> {
        self.mlp.routing()
    }
}

/// Normalises `x` in place.
fn through(norm: &RmsNorm, x: &mut Tensor<2>) -> NormTape {
    let (normal, tape) = norm.forward(x.clone());
    *x = normal;
    tape
}

/// The gradient before a norm, where there is one.
fn back_through(norm: Option<(&RmsNorm, NormTape)>, d: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
    match norm {
        Some((norm, tape)) => norm.backward(tape, d, gradients),
        None => d,
    }
}
