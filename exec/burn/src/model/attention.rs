//! Grouped-query attention with rotary positions, forward and backward.
//!
//! The query heads that share a key head are stacked along the rows of one matrix, so that keys and values are never
//! repeated and their gradients sum over the sharing heads inside the matrix product.

use std::cell::LazyCell;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::cache::LayerCache;
use super::config::DecoderConfig;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::packed::{Group, Packed};
use super::parameter::{Gradients, Parameter};
use super::weight::Compute;

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
    heads: Heads,
    /// How many tokens, itself included, a token sees.
    window: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Heads {
    kv: usize,
    /// Query heads for each key head.
    shared: usize,
    dim: usize,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct AttentionTape {
    /// q and k before their norms, with the reciprocals, where there are norms.
    before_norm: Option<[(Tensor<2>, Tensor<2>); 2]>,
    groups: Vec<GroupTape>,
    /// The heads' outputs, `[tokens, heads · head_dim]`.
    mixed: Tensor<2>,
}

#[derive(Debug)]
struct GroupTape {
    /// Scaled by 1/√head_dim.
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    probabilities: Tensor<4>,
}

impl Attention {
    /// The block of layer `layer` from its parts.
    pub fn new(
        config: &DecoderConfig,
        layer: usize,
        [q_proj, k_proj, v_proj, o_proj]: [Linear; 4],
        qk_norm: Option<(RmsNorm, RmsNorm)>,
    ) -> Self {
        Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            qk_norm,
            compute: Compute::F32,
            heads: Heads {
                kv: config.num_kv_heads,
                shared: config.num_heads / config.num_kv_heads,
                dim: config.head_dim,
            },
            window: config.windows[layer],
        }
    }

    /// `x` is the normalised input, `[tokens, hidden]`. With caches, one for each group, `packed` is a continuation and
    /// its keys and values join the past ones; such a forward cannot be followed by a backward.
    pub fn forward(
        &self,
        x: &Tensor<2>,
        packed: &Packed,
        mut caches: Option<&mut [LayerCache]>,
    ) -> (Tensor<2>, AttentionTape) {
        let mut q = self.q_proj.forward(x, packed);
        let mut k = self.k_proj.forward(x, packed);
        let v = self.v_proj.forward(x, packed);
        let mut before_norm = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_in, k_in) = (self.per_head(q), self.per_head(k));
            let (q_r, k_r) = (q_norm.reciprocal(&q_in), k_norm.reciprocal(&k_in));
            q = self.joined(q_norm.apply(&q_in, &q_r), packed.tokens());
            k = self.joined(k_norm.apply(&k_in, &k_r), packed.tokens());
            before_norm = Some([(q_in, q_r), (k_in, k_r)]);
        }
        let q = packed.rotation.apply(q).mul_scalar(self.heads.scale());
        let k = packed.rotation.apply(k);
        let mut outputs = Vec::with_capacity(packed.groups.len());
        let mut groups = Vec::with_capacity(packed.groups.len());
        for (index, group) in packed.groups.iter().enumerate() {
            let q = self.heads.split_queries(rows(&q, group), group);
            let mut k = self.heads.split_keys(rows(&k, group), group);
            let mut v = self.heads.split_keys(rows(&v, group), group);
            if let Some(caches) = caches.as_deref_mut() {
                (k, v) = caches[index].extend(k, v);
            }
            let mut scores = self.compute.product(q.clone(), k.clone().swap_dims(2, 3));
            if let Some(mask) = packed.mask(group, self.window) {
                scores = scores + mask.clone();
            }
            let probabilities = softmax(scores, 3);
            let mixed = self.compute.product(probabilities.clone(), v.clone());
            outputs.push(self.heads.join_queries(mixed, group));
            groups.push(GroupTape { q, k, v, probabilities });
        }
        let mixed = joined_rows(outputs);
        let out = self.o_proj.forward(&mixed, packed);
        let tape = AttentionTape { before_norm, groups, mixed };
        (out, tape)
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
        let AttentionTape { before_norm, groups, mixed } = tape;
        let d_mixed = self.o_proj.backward(|| mixed.clone(), dy, packed, gradients);
        // Σ dO·O per query: what the softmax's backward subtracts, without a pass over the probabilities.
        let inner = self.inner_products(&d_mixed, &mixed);
        drop(mixed);
        let mut dq = Vec::with_capacity(groups.len());
        let mut dk = Vec::with_capacity(groups.len());
        let mut dv = Vec::with_capacity(groups.len());
        for (group, kept) in packed.groups.iter().zip(groups) {
            let GroupTape { q, k, v, probabilities } = kept;
            let d_out = self.heads.split_queries(rows(&d_mixed, group), group);
            let inner = self.heads.split_inner(rows(&inner, group), group);
            let product = |a, b| self.compute.product(a, b);
            dv.push(self.heads.join_keys(product(probabilities.clone().swap_dims(2, 3), d_out.clone()), group));
            let d_scores = (product(d_out, v.swap_dims(2, 3)) - inner) * probabilities;
            dk.push(self.heads.join_keys(product(d_scores.clone().swap_dims(2, 3), q), group));
            dq.push(self.heads.join_queries(product(d_scores, k), group));
        }
        let dq = joined_rows(dq).mul_scalar(self.heads.scale());
        let mut dq = packed.rotation.backward(dq);
        let mut dk = packed.rotation.backward(joined_rows(dk));
        let dv = joined_rows(dv);
        if let (Some((q_norm, k_norm)), Some([(q_in, q_r), (k_in, k_r)])) = (&self.qk_norm, before_norm) {
            let through = |norm: &RmsNorm, x_in: &Tensor<2>, r: &Tensor<2>, d, g: &mut _| {
                self.joined(norm.backward(x_in, r, self.per_head(d), g), packed.tokens())
            };
            dq = through(q_norm, &q_in, &q_r, dq, gradients);
            dk = through(k_norm, &k_in, &k_r, dk, gradients);
        }
        let x = LazyCell::new(x);
        let parts = [(&self.q_proj, dq), (&self.k_proj, dk), (&self.v_proj, dv)];
        let mut dx = None;
        for (linear, d) in parts {
            if input_needed {
                let part = linear.backward(|| x.clone(), d, packed, gradients);
                dx = Some(match dx {
                    Some(sum) => part + sum,
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

    fn joined(&self, x: Tensor<2>, tokens: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        x.reshape([tokens, rows * width / tokens])
    }

    /// Σ a·b over each head, `[tokens, heads]`.
    fn inner_products(&self, a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
        let [tokens, width] = a.dims();
        (a.clone() * b.clone())
            .reshape([tokens, width / self.heads.dim, self.heads.dim])
            .sum_dim(2)
            .reshape([tokens, width / self.heads.dim])
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

impl Heads {
    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// `[tokens, heads · dim]` to `[rows, kv, shared · length, dim]`.
    fn split_queries(self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.shared, self.dim]).permute([0, 2, 3, 1, 4]).reshape([
            group.rows,
            self.kv,
            self.shared * group.length,
            self.dim,
        ])
    }

    fn join_queries(self, x: Tensor<4>, group: &Group) -> Tensor<2> {
        x.reshape([group.rows, self.kv, self.shared, group.length, self.dim])
            .permute([0, 3, 1, 2, 4])
            .reshape([group.tokens(), self.kv * self.shared * self.dim])
    }

    /// `[tokens, heads]` to `[rows, kv, shared · length, 1]`.
    fn split_inner(self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.shared]).permute([0, 2, 3, 1]).reshape([
            group.rows,
            self.kv,
            self.shared * group.length,
            1,
        ])
    }

    /// `[tokens, kv · dim]` to `[rows, kv, length, dim]`.
    fn split_keys(self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.dim]).permute([0, 2, 1, 3])
    }

    fn join_keys(self, x: Tensor<4>, group: &Group) -> Tensor<2> {
        x.permute([0, 2, 1, 3]).reshape([group.tokens(), self.kv * self.dim])
    }
}

fn rows(x: &Tensor<2>, group: &Group) -> Tensor<2> {
    x.clone().narrow(0, group.start, group.tokens())
}

fn joined_rows(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}
