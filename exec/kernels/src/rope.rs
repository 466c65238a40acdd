//! Rotary positions (Su et al., arXiv 2104.09864), in the half-split form of Hugging Face's checkpoints.
//!
//! With a head's first half a and second half b: `a' = scale · (a·cos − b·sin)`, `b' = scale · (b·cos + a·sin)`. The
//! gradient is the rotation backwards, by the same scale. Memory traffic of elements of b bytes: 2·b bytes an element,
//! the minimum, and the tables once; as separate operations it was some 11·b.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::buffer::{Buffer, UNITS, cubes_of_units, vector_size};

/// What is turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Rows.
    pub tokens: usize,
    /// Heads in a row.
    pub heads: usize,
    /// Elements of a head; even.
    pub dim: usize,
    /// The type of the elements; f32, f16 or bf16.
    pub dtype: ElemType,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As a forward pass does.
    Forward,
    /// As the gradient needs it.
    Backward,
}

/// Turns every head of `x`, `[tokens, heads · dim]`, by its token's row of `cos` and `sin`, f32, `[tokens, dim / 2]`, and
/// multiplies it by `scale`. `y` may be `x`.
#[expect(clippy::too_many_arguments, reason = "four tensors and how to join them")]
pub fn rotate(
    client: &Client,
    x: &Buffer,
    cos: &Buffer,
    sin: &Buffer,
    y: &Buffer,
    direction: Direction,
    scale: f32,
    shape: Heads,
) {
    let half = shape.dim / 2;
    // The tables are f32, and are read in vectors of as many elements.
    let vector = vector_size(half, shape.dtype).min(4);
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    let units = shape.tokens * shape.heads * (half / vector);
    rotate_kernel::launch(
        client,
        cubes_of_units(units),
        CubeDim::new_1d(UNITS),
        vector,
        x.argument(),
        cos.argument(),
        sin.argument(),
        y.argument(),
        scale,
        scale * sign,
        units,
        shape.heads,
        half / vector,
        shape.dtype,
    );
}

/// A unit has a vector of a first half and its counterpart.
#[cube(launch)]
fn rotate_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    cos_scale: f32,
    sin_scale: f32,
    units: usize,
    heads: usize,
    half: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS;
    if unit < units {
        let head = unit / half;
        let column = unit % half;
        let at = head * 2 * half + column;
        let table = (head / heads) * half + column;
        let c = cos[table] * Vector::new(cos_scale);
        let s = sin[table] * Vector::new(sin_scale);
        let first = Vector::<f32, N>::cast_from(x[at]);
        let second = Vector::<f32, N>::cast_from(x[at + half]);
        y[at] = Vector::cast_from(first * c - second * s);
        y[at + half] = Vector::cast_from(second * c + first * s);
    }
}
