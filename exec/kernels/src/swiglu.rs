//! The gate of a feed-forward block (Shazeer, arXiv 2002.05202), forward and backward.
//!
//! `y = silu(gate) · up` with `silu(g) = g · σ(g)` and `silu' = σ + silu · (1 − σ)`. Memory traffic of elements of b bytes:
//! forward 3·b bytes an element, backward 5·b, both the minimum; as separate operations it was 8·b and some 24·b.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::buffer::{Buffer, UNITS, cubes_of_units, vector_size};

/// Writes `silu(gate) · up` to `y`. All have as many elements, of type `dtype`; `y` may be one of the others.
pub fn forward(client: &Client, gate: &Buffer, up: &Buffer, y: &Buffer, dtype: ElemType) {
    let vector = vector_size(y.elements, dtype);
    let units = y.elements / vector;
    forward_kernel::launch(
        client,
        cubes_of_units(units),
        CubeDim::new_1d(UNITS),
        vector,
        gate.argument(),
        up.argument(),
        y.argument(),
        units,
        dtype,
    );
}

/// Writes the gradients at gate and up, given that at y.
pub fn backward(
    client: &Client,
    gate: &Buffer,
    up: &Buffer,
    dy: &Buffer,
    d_gate: &Buffer,
    d_up: &Buffer,
    dtype: ElemType,
) {
    let vector = vector_size(dy.elements, dtype);
    let units = dy.elements / vector;
    backward_kernel::launch(
        client,
        cubes_of_units(units),
        CubeDim::new_1d(UNITS),
        vector,
        gate.argument(),
        up.argument(),
        dy.argument(),
        d_gate.argument(),
        d_up.argument(),
        units,
        dtype,
    );
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0f32) / (Vector::new(1.0f32) + (-x).exp())
}

#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS;
    if unit < units {
        let g = Vector::<f32, N>::cast_from(gate[unit]);
        let u = Vector::<f32, N>::cast_from(up[unit]);
        y[unit] = Vector::cast_from(g * sigmoid(g) * u);
    }
}

#[cube(launch)]
fn backward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    d_gate: &mut [Vector<F, N>],
    d_up: &mut [Vector<F, N>],
    units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS;
    if unit < units {
        let g = Vector::<f32, N>::cast_from(gate[unit]);
        let u = Vector::<f32, N>::cast_from(up[unit]);
        let d = Vector::<f32, N>::cast_from(dy[unit]);
        let s = sigmoid(g);
        let silu = g * s;
        d_up[unit] = Vector::cast_from(d * silu);
        d_gate[unit] = Vector::cast_from(d * u * (s + silu * (Vector::new(1.0f32) - s)));
    }
}
