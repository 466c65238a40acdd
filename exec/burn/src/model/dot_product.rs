//! Scaled dot products of queries and keys over heads, and the mixture of values they give, forward and backward.
//!
//! The query heads that share a key head are stacked along the rows of one matrix, so that keys and values are never
//! repeated and their gradients sum over the sharing heads inside the matrix product.
//!
//! `by_kernel` has the same without probabilities in memory, for what a kernel can do.

#[cfg(feature = "kernels")]
mod by_kernel;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::packed::Group;
use super::weight::Compute;
use crate::processor;
use crate::spent::{self, Work};

/// How heads are laid out in a row of queries and of keys, and how their products become probabilities.
#[derive(Debug, Clone, Copy)]
pub struct DotProduct {
    /// Heads of keys and values.
    pub kv: usize,
    /// Query heads for each of them.
    pub shared: usize,
    /// Width of a head.
    pub dim: usize,
    /// What products are multiplied by: 1/√dim in most families.
    pub scale: f64,
    /// `c`, where scores are kept between −c and c by `c·tanh(x/c)`.
    pub softcap: Option<f64>,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct DotProductTape {
    groups: Vec<GroupTape>,
    /// In place of groups, where a kernel did it.
    #[cfg(feature = "kernels")]
    kernel: Option<by_kernel::KernelTape>,
    /// What it gave, `[tokens, heads · dim]`.
    pub mixed: Tensor<2>,
}

#[derive(Debug)]
struct GroupTape {
    /// Scaled.
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    /// The scores divided by the cap, where there is one.
    capped: Option<Tensor<4>>,
    probabilities: Tensor<4>,
}

/// Gradients, each `[tokens, its heads · dim]`.
#[derive(Debug)]
pub struct Slopes {
    /// At the queries.
    pub q: Tensor<2>,
    /// At the keys.
    pub k: Tensor<2>,
    /// At the values.
    pub v: Tensor<2>,
}

impl DotProductTape {
    /// Of a forward that no backward will follow.
    pub(super) fn without_backward(mixed: Tensor<2>) -> Self {
        Self {
            groups: Vec::new(),
            #[cfg(feature = "kernels")]
            kernel: None,
            mixed,
        }
    }
}

impl DotProduct {
    /// `q` is `[tokens, heads · dim]`, `k` and `v` `[tokens, kv · dim]`; the result is as `q`. `mask` is what is added to
    /// the scores of a group, by its index. `joined` makes of a group's own keys and values, `[rows, kv, length, dim]`, all
    /// that it sees; where that is more than its own the forward cannot be followed by a backward.
    pub fn forward<'a>(
        &self,
        [q, k, v]: [Tensor<2>; 3],
        groups: &[Group],
        mask: impl Fn(usize) -> Option<&'a Tensor<4>>,
        compute: Compute,
        mut joined: impl FnMut(usize, Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>),
    ) -> (Tensor<2>, DotProductTape) {
        let q = q.mul_scalar(self.scale as f32);
        let mut outputs = Vec::with_capacity(groups.len());
        let mut kept = Vec::with_capacity(groups.len());
        for (index, group) in groups.iter().enumerate() {
            let q = self.split_queries(rows(&q, group), group);
            let [k, v] = [&k, &v].map(|x| self.split_keys(rows(x, group), group));
            let (k, v) = joined(index, k, v);
            let mut scores = compute.product(q.clone(), k.clone().swap_dims(2, 3));
            let mut capped = None;
            if let Some(cap) = self.softcap {
                let between = scores.div_scalar(cap).tanh();
                capped = Some(between.clone());
                scores = between.mul_scalar(cap);
            }
            let probabilities = spent::on(Work::Attention, || probabilities(scores, mask(index)));
            let mixed = compute.product(probabilities.clone(), v.clone());
            outputs.push(self.join_queries(mixed, group));
            kept.push(GroupTape { q, k, v, capped, probabilities });
        }
        let mixed = joined_rows(outputs);
        let tape = DotProductTape {
            groups: kept,
            #[cfg(feature = "kernels")]
            kernel: None,
            mixed,
        };
        (tape.mixed.clone(), tape)
    }

    /// The gradients at what [`Self::forward`] was given, given that at its result.
    pub fn backward(&self, d_mixed: Tensor<2>, tape: DotProductTape, groups: &[Group], compute: Compute) -> Slopes {
        #[cfg(feature = "kernels")]
        if let Some(kernel) = &tape.kernel {
            return self.backward_by_kernel(kernel, &tape.mixed, &d_mixed);
        }
        let DotProductTape { groups: kept, mixed, .. } = tape;
        // Σ dO·O per query: what the softmax's backward subtracts, without a pass over the probabilities.
        let inner = spent::on(Work::Attention, || self.inner_products(&d_mixed, mixed));
        let mut dq = Vec::with_capacity(kept.len());
        let mut dk = Vec::with_capacity(kept.len());
        let mut dv = Vec::with_capacity(kept.len());
        for (group, kept) in groups.iter().zip(kept) {
            let GroupTape { q, k, v, capped, probabilities } = kept;
            let d_out = self.split_queries(rows(&d_mixed, group), group);
            let inner = self.split_inner(rows(&inner, group), group);
            let product = |a, b| compute.product(a, b);
            dv.push(self.join_keys(product(probabilities.clone().swap_dims(2, 3), d_out.clone()), group));
            let d_probabilities = product(d_out, v.swap_dims(2, 3));
            let slopes = || at_scores(d_probabilities, probabilities, inner);
            let mut d_scores = spent::on(Work::Attention, slopes);
            if let Some(between) = capped {
                // tanh' = 1 − tanh²
                d_scores = d_scores * between.square().neg().add_scalar(1.0);
            }
            dk.push(self.join_keys(product(d_scores.clone().swap_dims(2, 3), q), group));
            dq.push(self.join_queries(product(d_scores, k), group));
        }
        Slopes { q: joined_rows(dq).mul_scalar(self.scale as f32), k: joined_rows(dk), v: joined_rows(dv) }
    }

    /// Σ a·b over each head, `[tokens, heads]`.
    fn inner_products(&self, a: &Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        if processor::take([a, &b]) {
            return processor::attention::inner_products(a, &b, self.dim);
        }
        let [tokens, width] = a.dims();
        let heads = width / self.dim;
        (a.clone() * b).reshape([tokens, heads, self.dim]).sum_dim(2).reshape([tokens, heads])
    }

    /// `[tokens, heads · dim]` to `[rows, kv, shared · length, dim]`.
    fn split_queries(&self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.shared, self.dim]).permute([0, 2, 3, 1, 4]).reshape([
            group.rows,
            self.kv,
            self.shared * group.length,
            self.dim,
        ])
    }

    fn join_queries(&self, x: Tensor<4>, group: &Group) -> Tensor<2> {
        x.reshape([group.rows, self.kv, self.shared, group.length, self.dim])
            .permute([0, 3, 1, 2, 4])
            .reshape([group.tokens(), self.kv * self.shared * self.dim])
    }

    /// `[tokens, heads]` to `[rows, kv, shared · length, 1]`.
    fn split_inner(&self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.shared]).permute([0, 2, 3, 1]).reshape([
            group.rows,
            self.kv,
            self.shared * group.length,
            1,
        ])
    }

    /// `[tokens, kv · dim]` to `[rows, kv, length, dim]`.
    fn split_keys(&self, x: Tensor<2>, group: &Group) -> Tensor<4> {
        x.reshape([group.rows, group.length, self.kv, self.dim]).permute([0, 2, 1, 3])
    }

    fn join_keys(&self, x: Tensor<4>, group: &Group) -> Tensor<2> {
        x.permute([0, 2, 1, 3]).reshape([group.tokens(), self.kv * self.dim])
    }
}

/// The softmax of scores to which a mask was added.
fn probabilities(scores: Tensor<4>, mask: Option<&Tensor<4>>) -> Tensor<4> {
    if processor::take([&scores]) {
        return processor::attention::softmax(scores, mask);
    }
    match mask {
        Some(mask) => softmax(scores + mask.clone(), 3),
        None => softmax(scores, 3),
    }
}

/// The gradient at the scores, given that at their probabilities and Σ dO·O of each query.
fn at_scores(d: Tensor<4>, probabilities: Tensor<4>, inner: Tensor<4>) -> Tensor<4> {
    match processor::take([&d, &probabilities, &inner]) {
        true => processor::attention::softmax_backward(d, &probabilities, inner),
        false => (d - inner) * probabilities,
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
