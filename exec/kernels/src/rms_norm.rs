//! Root-mean-square normalisation of rows (Zhang and Sennrich, arXiv 1910.07467), forward and backward.
//!
//! Forward, row by row: `r = 1 / √(mean(x²) + eps)`, `y = x · r · weight`. Backward, with `n = x · r` and
//! `g = dy · weight`: `dx = r · (g − n · mean(g · n))`, and over all rows `d_weight = Σ dy · n`.
//!
//! A cube has a row. Memory traffic of `[rows, width]` with elements of b bytes: forward reads x and writes y once, 2·b
//! bytes an element, the minimum (the second look at x comes out of the cache: a row is a few KiB); the backward to x
//! reads x and dy and writes dx, 3·b, the minimum; that to the weight reads x and dy again, 2·b: one more pass than a
//! kernel with atomics would need, for a sum whose order is fixed. As separate operations it was 9·b and 17·b.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::buffer::{Buffer, Team, cubes, cubes_of_units, vector_size};
use crate::reduce::{cube_sum, lane_sum};

/// The rows that are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub rows: usize,
    /// Elements of each.
    pub width: usize,
    /// The type of the elements of x, y, the weight and their gradients; f32, f16 or bf16.
    pub dtype: ElemType,
}

/// Writes the normalised rows to `y` and the reciprocal root mean square of each row to `reciprocal`, f32, `[rows]`.
pub fn forward(client: &Client, x: &Buffer, weight: &Buffer, y: &Buffer, reciprocal: &Buffer, eps: f32, shape: Rows) {
    let vector = vector_size(shape.width, shape.dtype);
    let team = Team::new(client, shape.width / vector);
    forward_kernel::launch(
        client,
        cubes(shape.rows),
        team.dim(),
        vector,
        x.argument(),
        weight.argument(),
        y.argument(),
        reciprocal.argument(),
        eps,
        shape.rows,
        shape.width / vector,
        team.units,
        team.planes,
        shape.dtype,
    );
}

/// Writes the gradient at x to `dx`, given that at y and what [`forward`] wrote to `reciprocal`.
pub fn backward(
    client: &Client,
    x: &Buffer,
    weight: &Buffer,
    reciprocal: &Buffer,
    dy: &Buffer,
    dx: &Buffer,
    shape: Rows,
) {
    let vector = vector_size(shape.width, shape.dtype);
    let team = Team::new(client, shape.width / vector);
    backward_kernel::launch(
        client,
        cubes(shape.rows),
        team.dim(),
        vector,
        x.argument(),
        weight.argument(),
        reciprocal.argument(),
        dy.argument(),
        dx.argument(),
        shape.rows,
        shape.width / vector,
        team.units,
        team.planes,
        shape.dtype,
    );
}

/// Writes the gradient at the weight to `d_weight`, f32, `[width]`.
pub fn backward_weight(client: &Client, x: &Buffer, reciprocal: &Buffer, dy: &Buffer, d_weight: &Buffer, shape: Rows) {
    let vector = vector_size(shape.width, shape.dtype);
    let vectors = shape.width / vector;
    // Enough parts to fill a device; each has a row of sums, which are summed in turn.
    let parts = shape.rows.div_ceil(32).clamp(1, 256);
    let sums = Buffer::new(client.empty(4 * parts * shape.width), parts * shape.width);
    let across = vectors.div_ceil(PART_UNITS as usize) as u32;
    weight_parts_kernel::launch(
        client,
        CubeCount::Static(across, parts as u32, 1),
        CubeDim::new_1d(PART_UNITS),
        vector,
        x.argument(),
        reciprocal.argument(),
        dy.argument(),
        sums.argument(),
        shape.rows,
        vectors,
        shape.rows.div_ceil(parts),
        shape.dtype,
    );
    column_sums_kernel::launch(
        client,
        cubes_of_units(shape.width),
        CubeDim::new_1d(crate::buffer::UNITS),
        sums.argument(),
        d_weight.argument(),
        parts,
        shape.width,
    );
}

/// Units across the columns of a part.
const PART_UNITS: u32 = 64;

#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    reciprocal: &mut [f32],
    eps: f32,
    rows: usize,
    vectors: usize,
    #[comptime] units: u32,
    #[comptime] planes: bool,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * vectors;
        let mut squares = Vector::<f32, N>::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let value = Vector::<f32, N>::cast_from(x[start + i]);
            squares += value * value;
            i += units as usize;
        }
        let sum = cube_sum(lane_sum(squares), units, planes);
        let mean = sum / f32::cast_from(vectors * N::value());
        let r = 1.0 / (mean + eps).sqrt();
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let value = Vector::<f32, N>::cast_from(x[start + i]);
            let factor = Vector::<f32, N>::cast_from(weight[i]);
            y[start + i] = Vector::cast_from(value * Vector::new(r) * factor);
            i += units as usize;
        }
        if UNIT_POS == 0 {
            reciprocal[row] = r;
        }
    }
}

#[cube(launch)]
fn backward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    reciprocal: &[f32],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: usize,
    vectors: usize,
    #[comptime] units: u32,
    #[comptime] planes: bool,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * vectors;
        let r = Vector::<f32, N>::new(reciprocal[row]);
        let mut products = Vector::<f32, N>::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let normal = Vector::<f32, N>::cast_from(x[start + i]) * r;
            let g = Vector::<f32, N>::cast_from(dy[start + i]) * Vector::<f32, N>::cast_from(weight[i]);
            products += g * normal;
            i += units as usize;
        }
        let sum = cube_sum(lane_sum(products), units, planes);
        let along = Vector::<f32, N>::new(sum / f32::cast_from(vectors * N::value()));
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let normal = Vector::<f32, N>::cast_from(x[start + i]) * r;
            let g = Vector::<f32, N>::cast_from(dy[start + i]) * Vector::<f32, N>::cast_from(weight[i]);
            dx[start + i] = Vector::cast_from((g - normal * along) * r);
            i += units as usize;
        }
    }
}

/// A cube has some columns of one part of the rows.
#[cube(launch)]
fn weight_parts_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    reciprocal: &[f32],
    dy: &[Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    vectors: usize,
    rows_of_part: usize,
    #[define(F)] _dtype: ElemType,
) {
    let column = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let part = CUBE_POS_Y as usize;
    if column < vectors {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut row = part * rows_of_part;
        let end = min(row + rows_of_part, rows);
        while row < end {
            let at = row * vectors + column;
            let normal = Vector::<f32, N>::cast_from(x[at]) * Vector::new(reciprocal[row]);
            sum += Vector::<f32, N>::cast_from(dy[at]) * normal;
            row += 1;
        }
        sums[part * vectors + column] = sum;
    }
}

#[cube(launch)]
fn column_sums_kernel(values: &[f32], sums: &mut [f32], rows: usize, width: usize) {
    let column = ABSOLUTE_POS;
    if column < width {
        let mut sum = 0.0f32;
        for row in 0..rows {
            sum += values[row * width + column];
        }
        sums[column] = sum;
    }
}
