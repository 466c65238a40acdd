//! Grouped-query attention with rotary positions, forward and backward.

use std::cell::LazyCell;

use burn::tensor::Tensor;

use super::cache::Past;
use super::config::DecoderConfig;
use super::dot_product::{DotProduct, DotProductTape, Slopes};
use super::linear::Linear;
use super::norm::{NormTape, RmsNorm};
use super::packed::Packed;
use super::parameter::{Gradients, Parameter};
use super::weight::Compute;
use crate::processor::sum;

/// The attention block of a layer.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[heads · head_dim, hidden]`.
    pub q_proj: Linear,
    /// `[kv heads · head_dim, hidden]`.
    pub k_proj: Linear,
    /// `[kv heads · head_dim, hidden]`.
    pub v_proj: Linear,
    /// `[hidden, heads · head_dim]`.
    pub o_proj: Linear,
    /// Norms on each head of q and k.
    pub qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// What its products are computed in; the softmax is in f32.
    pub compute: Compute,
    heads: DotProduct,
    /// How many tokens, itself included, a token sees.
    window: Option<usize>,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct AttentionTape {
    /// Of q and k, where there are norms.
    norms: Option<[NormTape; 2]>,
    heads: DotProductTape,
}

impl Attention {
    /// The block of layer `layer` from its parts.
    pub fn new(
        config: &DecoderConfig,
        layer: usize,
        [q_proj, k_proj, v_proj, o_proj]: [Linear; 4],
        qk_norm: Option<(RmsNorm, RmsNorm)>,
    ) -> Self {
        let heads = DotProduct {
            kv: config.num_kv_heads,
            shared: config.num_heads / config.num_kv_heads,
            dim: config.head_dim,
            scale: config.attention_scale,
            softcap: config.attention_softcap,
        };
        Self { q_proj, k_proj, v_proj, o_proj, qk_norm, compute: Compute::F32, heads, window: config.windows[layer] }
    }

    /// `x` is the normalised input, `[tokens, hidden]`. With a past, `packed` is a continuation and its keys and values join
    /// the past ones; such a forward cannot be followed by a backward.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed, past: Past<'_>) -> (Tensor<2>, AttentionTape) {
        let mut q = self.q_proj.forward(x, packed);
        let mut k = self.k_proj.forward(x, packed);
        let v = self.v_proj.forward(x, packed);
        let mut norms = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normal, q_tape) = q_norm.forward(self.per_head(q));
            let (k_normal, k_tape) = k_norm.forward(self.per_head(k));
            (q, k) = (joined(q_normal, packed.tokens()), joined(k_normal, packed.tokens()));
            norms = Some([q_tape, k_tape]);
        }
        if let Some(rotation) = packed.rotation(self.window.is_some()) {
            (q, k) = (rotation.apply(q), rotation.apply(k));
        }
        #[cfg(feature = "kernels")]
        if matches!(past, Past::None)
            && let Some((mixed, heads)) = self.heads.forward_by_kernel([&q, &k, &v], packed, self.window, self.compute)
        {
            return (self.o_proj.forward(&mixed, packed), AttentionTape { norms, heads });
        }
        let (mixed, heads) = match past {
            Past::Paged(layer) => {
                let mixed = layer.attend(&self.heads, [q, k, v], packed, self.window, self.compute);
                (mixed.clone(), DotProductTape::without_backward(mixed))
            }
            Past::Groups(caches) => {
                let joined = |index: usize, k, v| caches[index].extend(k, v);
                let mask = |index: usize| packed.mask(&packed.groups[index], self.window);
                self.heads.forward([q, k, v], &packed.groups, mask, self.compute, joined)
            }
            Past::None => {
                let mask = |index: usize| packed.mask(&packed.groups[index], self.window);
                self.heads.forward([q, k, v], &packed.groups, mask, self.compute, |_, k, v| (k, v))
            }
        };
        (self.o_proj.forward(&mixed, packed), AttentionTape { norms, heads })
    }

    /// The gradient at `x`, given that at the output. `x` recomputes the input. With `input_needed` false the result
    /// is `None` and only the parameters' gradients are computed.
    pub fn backward(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: Tensor<2>,
        tape: AttentionTape,
        packed: &Packed,
        input_needed: bool,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let AttentionTape { norms, heads } = tape;
        let d_mixed = self.o_proj.backward(|| heads.mixed.clone(), dy, packed, gradients);
        let Slopes { q: mut dq, k: mut dk, v: dv } = self.heads.backward(d_mixed, heads, &packed.groups, self.compute);
        if let Some(rotation) = packed.rotation(self.window.is_some()) {
            (dq, dk) = (rotation.backward(dq), rotation.backward(dk));
        }
        if let (Some((q_norm, k_norm)), Some([q_tape, k_tape])) = (&self.qk_norm, norms) {
            let through = |norm: &RmsNorm, tape, d, gradients: &mut _| {
                joined(norm.backward(tape, self.per_head(d), gradients), packed.tokens())
            };
            dq = through(q_norm, q_tape, dq, gradients);
            dk = through(k_norm, k_tape, dk, gradients);
        }
        let x = LazyCell::new(x);
        let parts = [(&self.q_proj, dq), (&self.k_proj, dk), (&self.v_proj, dv)];
        let mut dx = None;
        for (linear, d) in parts {
            if input_needed {
                let part = linear.backward(|| x.clone(), d, packed, gradients);
                dx = Some(match dx {
                    Some(others) => sum(others, part),
                    None => part,
                });
            } else {
                linear.backward_parameters_only(|| x.clone(), &d, packed, gradients);
            }
        }
        dx
    }

    /// One row for each head of each token.
    fn per_head(&self, x: Tensor<2>) -> Tensor<2> {
        let [tokens, width] = x.dims();
        x.reshape([tokens * width / self.heads.dim, self.heads.dim])
    }

    /// The four linear layers.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
    }

    /// The four linear layers, to be changed.
    pub fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj]
    }

    /// The weights of the norms on q and k.
    pub fn norm_weights(&self) -> impl Iterator<Item = &Parameter> {
        self.qk_norm.iter().flat_map(|(q, k)| [&q.weight, &k.weight])
    }
}

/// One row for each token.
fn joined(x: Tensor<2>, tokens: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    x.reshape([tokens, rows * width / tokens])
}
