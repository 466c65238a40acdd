//! Rotary positions: [`crate::model::rope`] has what they are.

use burn::tensor::Tensor;

use super::lanes::wide;
use super::{Values, for_rows, rows_of};

/// The heads turned by their tokens' rows of the tables, `[tokens, 1, dim / 2]`, or back; in the memory of `x`.
pub(crate) fn rotate(x: Tensor<2>, cos: &Tensor<3>, sin: &Tensor<3>, back: bool) -> Tensor<2> {
    let ([_, width], [_, _, half]) = (x.dims(), cos.dims());
    let (cos, sin) = (Values::of(cos.clone()), Values::of(sin.clone()));
    let (cos, sin) = (cos.slice(), sin.slice());
    let mut x = Values::of(x);
    let sign = if back { -1.0 } else { 1.0 };
    for_rows(x.slice_mut(), width, |first, x| {
        let tokens = x.len() / width;
        turn(x, rows_of(cos, half, first, tokens), rows_of(sin, half, first, tokens), width, half, sign);
    });
    x.tensor()
}

wide! {
    fn turn<'a>(x: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], width: usize, half: usize, sign: f32) {
        let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (token, (cos, sin)) in x.chunks_exact_mut(width).zip(tables) {
            for head in token.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let sin = sin * sign;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
