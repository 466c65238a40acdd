//! SwiGLU: `silu(gate) · up`, `silu(x) = x·σ(x)`.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::lanes::{sigmoid, wide};
use super::{TOGETHER, Values, for_rows, made};

/// `silu(gate) · up`.
pub(crate) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let dims = gate.dims();
    let (gate, up) = (Values::of(gate.clone()), Values::of(up.clone()));
    let (gate, up) = (gate.slice(), up.slice());
    let mut y = vec![0.0; gate.len()];
    for_rows(&mut y, 1, |first, y| through(&gate[first..first + y.len()], &up[first..first + y.len()], y));
    made(y, dims)
}

/// The gradients at gate and up, in the memory of these.
pub(crate) fn swiglu_backward(gate: Tensor<2>, up: Tensor<2>, dy: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let [mut gate, mut up, dy] = [gate, up, dy].map(Values::of);
    let parts = gate.slice_mut().par_chunks_mut(TOGETHER).zip(up.slice_mut().par_chunks_mut(TOGETHER));
    parts.zip(dy.slice().par_chunks(TOGETHER)).for_each(|((gate, up), dy)| back(gate, up, dy));
    (gate.tensor(), up.tensor())
}

wide! {
    fn through<'a>(gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(*gate) * up;
        }
    }
}

wide! {
    fn back<'a>(gate: &'a mut [f32], up: &'a mut [f32], dy: &'a [f32]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let s = sigmoid(*gate);
            let silu = *gate * s;
            // silu' = s + silu·(1 − s)
            let slope = s + silu * (1.0 - s);
            (*gate, *up) = (dy * *up * slope, dy * silu);
        }
    }
}
