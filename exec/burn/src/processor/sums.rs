//! Sums: of two tensors, of rows into a table, of a row's squares.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::lanes::{dot, wide};
use super::{ALONE, TOGETHER, Values, for_rows};

/// `a + b`, in the memory of one of them if nobody else has it.
pub(crate) fn add(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let (a, b) = (Values::of(a), Values::of(b));
    let (mut a, b) = if !a.are_alone() && b.are_alone() { (b, a) } else { (a, b) };
    let b = b.slice();
    for_rows(a.slice_mut(), 1, |first, a| onto(a, &b[first..first + a.len()]));
    a.tensor()
}

/// Adds each of `rows` to the row of `table` that its id names, in the table's memory. Rows of one id are added up first, in
/// their order, so that a table of zeros that had them would give the same bits.
pub(crate) fn add_rows(table: Tensor<2>, ids: &[i64], rows: Tensor<2>) -> Tensor<2> {
    let [_, width] = table.dims();
    let (mut table, mut rows) = (Values::of(table), Values::of(rows));
    let mut first_of: BTreeMap<i64, usize> = BTreeMap::new();
    let rows = rows.slice_mut();
    for (row, id) in ids.iter().enumerate() {
        let first = *first_of.entry(*id).or_insert(row);
        if first < row {
            let (before, from) = rows.split_at_mut(row * width);
            onto(&mut before[first * width..(first + 1) * width], &from[..width]);
        }
    }
    let values = table.slice_mut();
    for (id, row) in first_of {
        let at = id as usize * width;
        onto(&mut values[at..at + width], &rows[row * width..(row + 1) * width]);
    }
    table.tensor()
}

/// Σ of the squares of each row.
pub(crate) fn squares_of_rows(x: &Tensor<2>) -> Vec<f32> {
    let [rows, width] = x.dims();
    let x = Values::of(x.clone());
    let of = |row: &[f32]| {
        let mut sum = 0.0;
        square_sum(row, &mut sum);
        sum
    };
    match rows * width < ALONE {
        true => x.slice().chunks(width).map(of).collect(),
        false => x.slice().par_chunks(width).with_min_len((TOGETHER / width).max(1)).map(of).collect(),
    }
}

wide! {
    fn onto<'a>(a: &'a mut [f32], b: &'a [f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

wide! {
    fn square_sum<'a>(row: &'a [f32], sum: &'a mut f32) {
        *sum = dot(row, row);
    }
}
