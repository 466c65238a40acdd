//! The softmax over what a query sees, and its backward: [`crate::model::dot_product`] has the rest.

use burn::tensor::Tensor;

use super::lanes::{dot, exp_and_sum, highest, wide};
use super::{Values, for_rows, made, rows_of};
use crate::model::packed::HIDDEN;

/// Scores, `[rows, kv, queries, keys]`, become probabilities in their own memory. `mask` is added to them first: 0 where a
/// query may look and [`HIDDEN`] elsewhere, `[rows or 1, 1, queries, keys]`.
pub(crate) fn softmax(scores: Tensor<4>, mask: Option<&Tensor<4>>) -> Tensor<4> {
    let [_, heads, queries, keys] = scores.dims();
    let of_each_text = mask.is_some_and(|mask| mask.dims()[0] > 1);
    let mask = mask.map(|mask| Values::of(mask.clone()));
    let mask = mask.as_ref().map(Values::slice);
    let mut scores = Values::of(scores);
    for_rows(scores.slice_mut(), keys, |first, scores| {
        for (index, row) in scores.chunks_exact_mut(keys).enumerate() {
            let (text, query) = ((first + index) / (heads * queries), (first + index) % queries);
            let at = if of_each_text { text * queries + query } else { query };
            spread(row, mask.map(|mask| rows_of(mask, keys, at, 1)));
        }
    });
    scores.tensor()
}

/// The gradients at scores, in the memory of those at their probabilities; `inner` has Σ dO·O of each query.
pub(crate) fn softmax_backward(d: Tensor<4>, probabilities: &Tensor<4>, inner: Tensor<4>) -> Tensor<4> {
    let [_, _, _, keys] = d.dims();
    let (probabilities, inner) = (Values::of(probabilities.clone()), Values::of(inner));
    let (probabilities, inner) = (probabilities.slice(), inner.slice());
    let mut d = Values::of(d);
    for_rows(d.slice_mut(), keys, |first, d| {
        let rows = d.len() / keys;
        back(d, rows_of(probabilities, keys, first, rows), rows_of(inner, 1, first, rows), keys);
    });
    d.tensor()
}

/// Σ a·b over each head of `dim` elements, `[tokens, heads]`.
pub(crate) fn inner_products(a: &Tensor<2>, b: &Tensor<2>, dim: usize) -> Tensor<2> {
    let [tokens, width] = a.dims();
    let heads = width / dim;
    let (a, b) = (Values::of(a.clone()), Values::of(b.clone()));
    let (a, b) = (a.slice(), b.slice());
    let mut sums = vec![0.0; tokens * heads];
    for_rows(&mut sums, heads, |first, sums| {
        let tokens = sums.len() / heads;
        products(rows_of(a, width, first, tokens), rows_of(b, width, first, tokens), dim, sums);
    });
    made(sums, [tokens, heads])
}

wide! {
    fn spread<'a>(row: &'a mut [f32], mask: Option<&'a [f32]>) {
        // What is hidden is mostly what comes after a query: neither end has to be looked at.
        let (mut from, mut to) = (0, row.len());
        if let Some(mask) = mask {
            from = mask.iter().position(|m| *m > HIDDEN).unwrap_or(to);
            to = mask.iter().rposition(|m| *m > HIDDEN).map_or(from, |last| last + 1);
            for (score, mask) in row[from..to].iter_mut().zip(&mask[from..to]) {
                *score += mask;
            }
        }
        row[..from].fill(0.0);
        row[to..].fill(0.0);
        let seen = &mut row[from..to];
        let sum = exp_and_sum(seen, highest(seen));
        let share = 1.0 / sum;
        for value in seen {
            *value *= share;
        }
    }
}

wide! {
    fn back<'a>(d: &'a mut [f32], probabilities: &'a [f32], inner: &'a [f32], keys: usize) {
        let rows = d.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys));
        for ((d, probabilities), inner) in rows.zip(inner) {
            for (d, probability) in d.iter_mut().zip(probabilities) {
                *d = (*d - inner) * probability;
            }
        }
    }
}

wide! {
    fn products<'a>(a: &'a [f32], b: &'a [f32], dim: usize, sums: &'a mut [f32]) {
        for ((a, b), sum) in a.chunks_exact(dim).zip(b.chunks_exact(dim)).zip(sums) {
            *sum = dot(a, b);
        }
    }
}
