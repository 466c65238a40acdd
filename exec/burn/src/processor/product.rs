//! Matrix products into memory of their own: a fresh tensor of Burn's processor backend is filled with zeros by one thread,
//! and then copied for its alignment.

#![expect(unsafe_code, reason = "products read and write by address; what each may touch is said beside it")]

use std::mem::MaybeUninit;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{Values, made};

/// Products of fewer multiplications are one thread's, and so are all of a batch that has fewer: as Burn has it.
const ALONE: usize = 192 * 192 * 192;
const BATCH_ALONE: usize = 128 * 128 * 128;
/// Products from which each has a thread of its own.
const BATCH: usize = 4;

/// A factor: its values from the first element on, and how far it is from one index to the next.
struct Factor<'a, const D: usize> {
    from: &'a [f32],
    dims: [usize; D],
    strides: [isize; D],
}

impl<const D: usize> Factor<'_, D> {
    /// The elements of a batch's matrix from its first on; all are there.
    fn matrix(&self, index: usize) -> &[f32] {
        let mut rest = index;
        let mut at = 0;
        for dim in (0..D - 2).rev() {
            at += (rest % self.dims[dim]) * self.strides[dim].unsigned_abs();
            rest /= self.dims[dim];
        }
        let (rows, columns) = (self.dims[D - 2], self.dims[D - 1]);
        if rows > 0 && columns > 0 {
            let [down, across] = [self.strides[D - 2], self.strides[D - 1]];
            assert!(down >= 0 && across >= 0, "no tensor here is flipped");
            let last = (rows - 1) * down.unsigned_abs() + (columns - 1) * across.unsigned_abs();
            assert!(at + last < self.from.len(), "a view beyond its values");
        }
        &self.from[at..]
    }
}

/// `a · b` of matrices, or of batches of them of the same dimensions; rows may lie one after another, or columns.
pub(super) fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (a_dims, b_dims) = (a.dims(), b.dims());
    let (m, k, n) = (a_dims[D - 2], a_dims[D - 1], b_dims[D - 1]);
    assert!(a_dims[..D - 2] == b_dims[..D - 2] && k == b_dims[D - 2], "{a_dims:?} times {b_dims:?}");
    let (a, b) = (Values::view(a), Values::view(b));
    let a = Factor { from: a.starting(), dims: a_dims, strides: a.strides() };
    let b = Factor { from: b.starting(), dims: b_dims, strides: b.strides() };
    let batch: usize = a_dims[..D - 2].iter().product();
    let (each, all) = (m * n * k, batch * m * n * k);
    let mut values: Vec<f32> = Vec::with_capacity(batch * m * n);
    let room = &mut values.spare_capacity_mut()[..batch * m * n];
    if m * n == 0 {
        // Nothing is there to be written.
    } else if batch > 1 && all >= BATCH_ALONE && (batch >= BATCH || each < ALONE) {
        let parts = room.par_chunks_mut(m * n).enumerate();
        parts.for_each(|(index, room)| one(&a, &b, index, room, gemm::Parallelism::None));
    } else {
        let threads = if each < ALONE { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
        room.chunks_mut(m * n).enumerate().for_each(|(index, room)| one(&a, &b, index, room, threads));
    }
    // SAFETY: each of the matrices was written by `one`, all of it.
    unsafe { values.set_len(batch * m * n) };
    let mut dims = a_dims;
    dims[D - 1] = n;
    made(values, dims)
}

/// The product of the factors' matrices of this index, `[m, n]` of `room`.
fn one<const D: usize>(
    a: &Factor<'_, D>,
    b: &Factor<'_, D>,
    index: usize,
    room: &mut [MaybeUninit<f32>],
    threads: gemm::Parallelism,
) {
    let (m, k, n) = (a.dims[D - 2], a.dims[D - 1], b.dims[D - 1]);
    assert_eq!(room.len(), m * n);
    let (from_a, from_b) = (a.matrix(index), b.matrix(index));
    // SAFETY: `matrix` has looked that all elements of the factors lie within their slices. All m · n elements of `room` are
    // written, in rows of n, and none of them is read, for `read_dst` is false.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            room.as_mut_ptr().cast::<f32>(),
            1,
            n as isize,
            false,
            from_a.as_ptr(),
            a.strides[D - 1],
            a.strides[D - 2],
            from_b.as_ptr(),
            b.strides[D - 1],
            b.strides[D - 2],
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::parameter::{host_values, matrix};
    use crate::random::Random;

    #[test]
    fn products_are_the_librarys_whatever_lies_how() {
        let device = Device::flex();
        let mut random = Random::new(8);
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (17, 64, 40), (70, 130, 99), (200, 210, 190), (4, 0, 3), (0, 4, 3)] {
            let mut drawn = |rows: usize, columns: usize| {
                matrix((0..rows * columns).map(|_| random.normal()).collect(), &[rows, columns], &device)
            };
            let (a, b, a_t, b_t) = (drawn(m, k), drawn(k, n), drawn(k, m), drawn(n, k));
            let check = |a: Tensor<2>, b: Tensor<2>| {
                let found = product(a.clone(), b.clone());
                assert_eq!(found.dims(), [m, n]);
                assert_eq!(host_values(found), host_values(a.matmul(b)), "{m} × {k} × {n}");
            };
            check(a.clone(), b.clone());
            check(a_t.clone().transpose(), b.clone());
            check(a, b_t.clone().transpose());
            check(a_t.transpose(), b_t.transpose());
            if m * k == 0 {
                continue;
            }
            // Rows of a larger matrix.
            let (tall, wide) = (drawn(m + 3, k), drawn(k, n + 2));
            check(tall.narrow(0, 2, m), wide.narrow(1, 1, n));
        }
    }

    #[test]
    fn batches_are_the_librarys_too() {
        let device = Device::flex();
        let mut random = Random::new(9);
        for (texts, heads, m, k, n) in [(1, 1, 2, 3, 4), (2, 3, 40, 16, 9), (1, 3, 200, 64, 200), (2, 3, 150, 64, 150)]
        {
            let mut drawn = |heads: usize, rows: usize, columns: usize| {
                let values: Vec<f32> = (0..texts * heads * rows * columns).map(|_| random.normal()).collect();
                matrix(values, &[texts * heads * rows, columns], &device).reshape([texts, heads, rows, columns])
            };
            let check = |a: Tensor<4>, b: Tensor<4>| {
                let found = product(a.clone(), b.clone());
                assert_eq!(found.dims(), [texts, heads, m, n]);
                assert_eq!(host_values(found), host_values(a.matmul(b)), "{texts} · {heads}: {m} × {k} × {n}");
            };
            let (a, b) = (drawn(heads, m, k), drawn(heads, k, n));
            check(a.clone(), b.clone());
            check(drawn(heads, k, m).swap_dims(2, 3), drawn(heads, n, k).swap_dims(2, 3));
            // Heads beside one another in the rows of tokens, as keys are.
            check(a, drawn(k, heads, n).swap_dims(1, 2));
        }
    }
}
