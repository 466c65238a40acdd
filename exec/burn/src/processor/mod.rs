//! Operations of the model as single passes over memory, where tensors lie in the host's.
//!
//! ```text
//! lanes          loops compiled for each instruction set; exponentials, sums in a fixed order
//! norm           root-mean-square norms, forward and backward, with the residual beside them
//! product        matrix products
//! rotation       rotary positions
//! gate           SwiGLU
//! attention      the softmax over what a query sees, and its backward
//! cross_entropy  figures of rows of logits, and the gradient at them
//! sums           sums of tensors, of rows into a table, of squares
//! ```
//!
//! As plain tensors each of these is three to ten passes, most of them by one thread. The plain form stays with the code that
//! asks here with [`take`]: it is what the loops are compared with, and the path of formats other than f32. A row belongs to
//! one thread and its sums have one order, so results are the same to the bit whatever the threads.

pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod gate;
mod lanes;
pub(crate) mod norm;
mod product;
pub(crate) mod rotation;
pub(crate) mod sums;

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::spent::{self, Work};

/// Whether an operation on these tensors runs here: all in the host's memory, in f32.
pub(crate) fn take<const D: usize, const N: usize>(tensors: [&Tensor<D>; N]) -> bool {
    let here = |tensor: &Tensor<D>| tensor.device() == Device::flex() && tensor.dtype() == DType::F32;
    tensors.into_iter().all(here)
}

/// A tensor's values where they lie: shared with it until they are written to.
pub(crate) struct Values(FloatTensor<Flex>);

impl Values {
    /// Of a tensor that [`take`] takes. They are copied only where they do not lie side by side.
    pub fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        match tensor.try_into_primitive::<Flex>() {
            Ok(values) => Self(values.to_contiguous()),
            Err(error) => unreachable!("`take` was asked: {error:?}"),
        }
    }

    /// Of a tensor that [`take`] takes, however they lie.
    fn view<const D: usize>(tensor: Tensor<D>) -> Self {
        match tensor.try_into_primitive::<Flex>() {
            Ok(values) => Self(values),
            Err(error) => unreachable!("`take` was asked: {error:?}"),
        }
    }

    /// How far it is from an index to the next, of each dimension.
    fn strides<const D: usize>(&self) -> [isize; D] {
        let strides = self.0.layout().strides();
        std::array::from_fn(|dim| strides[dim])
    }

    /// From the first element of the view on.
    fn starting(&self) -> &[f32] {
        let all: &[f32] = self.0.storage();
        &all[self.0.layout().start_offset()..]
    }

    /// All of them, row-major.
    pub fn slice(&self) -> &[f32] {
        self.0.storage()
    }

    /// To be changed in place, or in a copy where another tensor has them too.
    pub fn slice_mut(&mut self) -> &mut [f32] {
        self.0.storage_mut()
    }

    /// Whether nobody else has them.
    pub fn are_alone(&self) -> bool {
        self.0.is_unique()
    }

    /// As a tensor of the shape they had.
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<Flex>(self.0)
    }
}

/// Values in a tensor, which has their memory from then on.
pub(crate) fn made<const D: usize>(values: Vec<f32>, dims: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, dims), &Device::flex())
}

/// Elements below which threads cost more than they save.
const ALONE: usize = 16 << 10;
/// Elements that a thread takes at a time: 64 KiB.
const TOGETHER: usize = 16 << 10;

/// Gives `work` all rows of `out`, some at a time: the first one's index, and them.
fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < ALONE {
        return work(0, out);
    }
    let rows = (TOGETHER / width.max(1)).max(1);
    out.par_chunks_mut(rows * width).enumerate().for_each(|(index, part)| work(index * rows, part));
}

/// As [`for_rows`], and as many elements of `beside` as there are rows.
fn for_rows_beside(
    out: &mut [f32],
    width: usize,
    beside: &mut [f32],
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if out.len() < ALONE {
        return work(0, out, beside);
    }
    let rows = (TOGETHER / width.max(1)).max(1);
    let parts = out.par_chunks_mut(rows * width).zip(beside.par_chunks_mut(rows));
    parts.enumerate().for_each(|(index, (part, beside))| work(index * rows, part, beside));
}

/// The elements of rows `first..` of a table that belong to `rows` rows.
fn rows_of(table: &[f32], width: usize, first: usize, rows: usize) -> &[f32] {
    &table[first * width..(first + rows) * width]
}

/// `a · b`; by the library where they lie elsewhere, or batches are not of the same dimensions.
pub(crate) fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    match take([&a, &b]) && a.dims()[..D - 2] == b.dims()[..D - 2] {
        true => product::product(a, b),
        false => a.matmul(b),
    }
}

/// `a + b` of equal shapes, in the memory of one of them if nobody else has it; as plain tensors where they lie elsewhere.
pub(crate) fn sum(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    spent::on(Work::Sums, || match take([&a, &b]) {
        true => sums::add(a, b),
        false => a + b,
    })
}

#[cfg(test)]
mod tests;
