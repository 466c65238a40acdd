//! Root-mean-square norms: [`crate::model::norm`] has what they are.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::lanes::{dot, dot_3, wide};
use super::{Values, for_rows, for_rows_beside, made, rows_of};

/// Columns whose sums over all rows a thread takes together.
const COLUMNS: usize = 64;

/// The normalised rows, and the reciprocal root mean square of each.
pub(crate) fn rms_norm(x: &Tensor<2>, gain: Tensor<2>, eps: f64) -> (Tensor<2>, Tensor<2>) {
    let [rows, width] = x.dims();
    let (x, gain) = (Values::of(x.clone()), Values::of(gain));
    let (x, gain) = (x.slice(), gain.slice());
    let (mut y, mut reciprocal) = (vec![0.0; rows * width], vec![0.0; rows]);
    for_rows_beside(&mut y, width, &mut reciprocal, |first, y, reciprocal| {
        normalise(rows_of(x, width, first, reciprocal.len()), gain, y, reciprocal, eps as f32);
    });
    (made(y, [rows, width]), made(reciprocal, [rows, 1]))
}

/// The normalised rows, given the reciprocals.
pub(crate) fn again(x: &Tensor<2>, gain: Tensor<2>, reciprocal: &Tensor<2>) -> Tensor<2> {
    let [rows, width] = x.dims();
    let [x, gain, reciprocal] = [x.clone(), gain, reciprocal.clone()].map(Values::of);
    let (x, gain, reciprocal) = (x.slice(), gain.slice(), reciprocal.slice());
    let mut y = vec![0.0; rows * width];
    for_rows(&mut y, width, |first, y| {
        let rows = y.len() / width;
        scale(rows_of(x, width, first, rows), gain, rows_of(reciprocal, 1, first, rows), y);
    });
    made(y, [rows, width])
}

/// The gradient at the rows, in the memory of `dy`; `beside` is added to it.
pub(crate) fn rms_norm_backward(
    x: Tensor<2>,
    gain: Tensor<2>,
    reciprocal: Tensor<2>,
    dy: Tensor<2>,
    beside: Option<Tensor<2>>,
) -> Tensor<2> {
    let [_, width] = x.dims();
    let [x, gain, reciprocal] = [x, gain, reciprocal].map(Values::of);
    let (x, gain, reciprocal) = (x.slice(), gain.slice(), reciprocal.slice());
    let beside = beside.map(Values::of);
    let beside = beside.as_ref().map(Values::slice);
    let mut d = Values::of(dy);
    for_rows(d.slice_mut(), width, |first, d| {
        let rows = d.len() / width;
        let beside = beside.map(|all| rows_of(all, width, first, rows));
        back(rows_of(x, width, first, rows), gain, rows_of(reciprocal, 1, first, rows), beside, d);
    });
    d.tensor()
}

/// The gradient at the weight, one row.
pub(crate) fn rms_norm_backward_weight(x: &Tensor<2>, reciprocal: &Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
    let [_, width] = x.dims();
    let [x, reciprocal, dy] = [x, reciprocal, dy].map(|tensor| Values::of(tensor.clone()));
    let (x, reciprocal, dy) = (x.slice(), reciprocal.slice(), dy.slice());
    let mut sums = vec![0.0; width];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sums)| {
        columns(x, reciprocal, dy, index * COLUMNS, width, sums);
    });
    made(sums, [1, width])
}

wide! {
    fn normalise<'a>(x: &'a [f32], gain: &'a [f32], y: &'a mut [f32], reciprocal: &'a mut [f32], eps: f32) {
        let width = gain.len();
        for ((x, y), reciprocal) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(reciprocal) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            *reciprocal = r;
            for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * r * gain;
            }
        }
    }
}

wide! {
    fn scale<'a>(x: &'a [f32], gain: &'a [f32], reciprocal: &'a [f32], y: &'a mut [f32]) {
        let width = gain.len();
        for ((x, y), r) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(reciprocal) {
            for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * r * gain;
            }
        }
    }
}

wide! {
    /// With n = x·r: dx = r · (g − n · mean(g·n)), g = dy·gain.
    fn back<'a>(
        x: &'a [f32],
        gain: &'a [f32],
        reciprocal: &'a [f32],
        beside: Option<&'a [f32]>,
        d: &'a mut [f32],
    ) {
        let width = gain.len();
        let mut beside = beside.map(|all| all.chunks_exact(width));
        for ((x, d), r) in x.chunks_exact(width).zip(d.chunks_exact_mut(width)).zip(reciprocal) {
            let along = r * dot_3(d, gain, x) / width as f32;
            for ((d, x), gain) in d.iter_mut().zip(x).zip(gain) {
                *d = (*d * gain - x * r * along) * r;
            }
            if let Some(beside) = beside.as_mut().and_then(Iterator::next) {
                for (d, beside) in d.iter_mut().zip(beside) {
                    *d += beside;
                }
            }
        }
    }
}

wide! {
    /// Σ dy·x·r over rows, of the columns from `from` on.
    fn columns<'a>(
        x: &'a [f32],
        reciprocal: &'a [f32],
        dy: &'a [f32],
        from: usize,
        width: usize,
        sums: &'a mut [f32],
    ) {
        for ((x, dy), r) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(reciprocal) {
            let (x, dy) = (&x[from..from + sums.len()], &dy[from..from + sums.len()]);
            for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                *sum += dy * (x * r);
            }
        }
    }
}
