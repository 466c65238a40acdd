//! The backward pass. Probabilities are computed anew from the logs of the sums that the forward pass left.
//!
//! With `P = exp(scale · q·kᵀ − log_sum)` and `δ = Σ d_out · out` of a query and head: `dv = Pᵀ · d_out`,
//! `dS = P ∘ (d_out · vᵀ − δ)`, `dq = scale · dS · k`, `dk = scale · dSᵀ · q` (Dao et al., arXiv 2205.14135, appendix B).
//! Three kernels: δ; dq, a tile of queries a cube; dk and dv, a tile of keys a cube, summing over the heads that share
//! it. Scores are computed twice instead of adding to dq atomically: results do not depend on the order of execution.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::tile::{Tiles, accumulate, keep, load, scores, span, store};
use super::{Inputs, MOST_DIM, Shape};
use crate::buffer::{Buffer, Team, cubes, vector_size};
use crate::reduce::{cube_sum, lane_sum};

/// The gradients at q, k and v.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// As q.
    pub dq: Buffer,
    /// As k.
    pub dk: Buffer,
    /// As v.
    pub dv: Buffer,
}

/// Writes the gradients, given what [`super::forward()`] wrote to `out` and `log_sums` and the gradient at `out`.
///
/// # Panics
///
/// With heads wider than [`MOST_DIM`].
pub fn backward(
    client: &Client,
    inputs: &Inputs,
    out: &Buffer,
    log_sums: &Buffer,
    d_out: &Buffer,
    gradients: &Gradients,
    shape: Shape,
) {
    assert!(shape.dim <= MOST_DIM, "heads of {} elements; at most {MOST_DIM} will do", shape.dim);
    let vector = vector_size(shape.dim, shape.dtype).min(4);
    let rows = shape.queries * shape.heads;
    let deltas = Buffer::new(client.empty(4 * rows), rows);
    let team = Team { units: 32, ..Team::new(client, shape.dim / vector) };
    row_products_kernel::launch(
        client,
        cubes(rows),
        team.dim(),
        vector,
        out.argument(),
        d_out.argument(),
        deltas.argument(),
        rows,
        shape.dim / vector,
        team.units,
        team.planes,
        shape.dtype,
    );
    let tiles = Tiles::fitting(client, shape.dim, |tiles| 4 * tiles.head_elements() + tiles.score_elements());
    queries_kernel::launch(
        client,
        tiles.cubes(shape.queries, shape.heads),
        tiles.cube_dim(),
        vector,
        inputs.q.argument(),
        inputs.k.argument(),
        inputs.v.argument(),
        inputs.sight.queries.argument(),
        d_out.argument(),
        log_sums.argument(),
        deltas.argument(),
        gradients.dq.argument(),
        shape.queries,
        shape.keys,
        shape.heads,
        shape.kv_heads,
        shape.scale,
        tiles,
        shape.dtype,
    );
    keys_kernel::launch(
        client,
        tiles.cubes(shape.keys, shape.kv_heads),
        tiles.cube_dim(),
        vector,
        inputs.q.argument(),
        inputs.k.argument(),
        inputs.v.argument(),
        inputs.sight.queries.argument(),
        inputs.sight.keys.argument(),
        d_out.argument(),
        log_sums.argument(),
        deltas.argument(),
        gradients.dk.argument(),
        gradients.dv.argument(),
        shape.queries,
        shape.keys,
        shape.heads,
        shape.kv_heads,
        shape.scale,
        tiles,
        shape.dtype,
    );
}

/// The inner products of rows.
#[cube(launch)]
fn row_products_kernel<F: Float, N: Size>(
    a: &[Vector<F, N>],
    b: &[Vector<F, N>],
    products: &mut [f32],
    rows: usize,
    vectors: usize,
    #[comptime] units: u32,
    #[comptime] planes: bool,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row < rows {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let at = row * vectors + i;
            sum += Vector::<f32, N>::cast_from(a[at]) * Vector::<f32, N>::cast_from(b[at]);
            i += units as usize;
        }
        let total = cube_sum(lane_sum(sum), units, planes);
        if UNIT_POS == 0 {
            products[row] = total;
        }
    }
}

#[cube(launch)]
fn queries_kernel<F: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    sight: &[u32],
    d_out: &[Vector<F, N>],
    log_sums: &[f32],
    deltas: &[f32],
    dq: &mut [F],
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let each = comptime!(tiles.each());
    let vectors = tiles.dim / N::value();
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (heads / kv_heads);
    let first_query = CUBE_POS_X as usize * comptime!(tiles.rows);

    let mut q_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut d_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut k_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut v_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut s_tile = Shared::<[f32]>::new_slice(comptime!(tiles.score_elements()));

    load(q, &mut q_tile, first_query, queries, heads * vectors, head * vectors, tiles);
    load(d_out, &mut d_tile, first_query, queries, heads * vectors, head * vectors, tiles);
    let mut first = Array::<u32>::new(each);
    let mut end = Array::<u32>::new(each);
    let mut log_sum = Array::<f32>::new(each);
    let mut delta = Array::<f32>::new(each);
    #[unroll]
    for i in 0..each {
        let query = first_query + UNIT_POS_Y as usize + comptime!(i * tiles.side);
        if query < queries {
            first[i] = sight[2 * query];
            end[i] = sight[2 * query + 1];
            log_sum[i] = log_sums[query * heads + head];
            delta[i] = deltas[query * heads + head];
        }
    }
    let mut sums = Array::<f32>::new(comptime!(each * tiles.columns()));

    let (from, to) = span(sight, first_query, queries, tiles);
    let mut first_key = from;
    while first_key < to {
        load(k, &mut k_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
        load(v, &mut v_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
        sync_cube();
        let mut s = scores(&q_tile, &k_tile, tiles);
        let d = scores(&d_tile, &v_tile, tiles);
        #[unroll]
        for i in 0..each {
            #[unroll]
            for j in 0..each {
                let at = comptime!(i * each + j);
                let key = (first_key + UNIT_POS_X as usize + comptime!(j * tiles.side)) as u32;
                let mut ds = 0.0f32;
                if key >= first[i] && key < end[i] {
                    ds = (s[at] * scale - log_sum[i]).exp() * (d[at] - delta[i]) * scale;
                }
                s[at] = ds;
            }
        }
        keep(&s, &mut s_tile, tiles);
        sync_cube();
        accumulate(&s_tile, &k_tile, &mut sums, tiles);
        sync_cube();
        first_key += comptime!(tiles.rows);
    }
    store(&sums, dq, first_query, queries, heads * tiles.dim, head * tiles.dim, tiles);
}

#[cube(launch)]
fn keys_kernel<F: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    sight: &[u32],
    seen_by: &[u32],
    d_out: &[Vector<F, N>],
    log_sums: &[f32],
    deltas: &[f32],
    dk: &mut [F],
    dv: &mut [F],
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let each = comptime!(tiles.each());
    let vectors = tiles.dim / N::value();
    let kv_head = CUBE_POS_Y as usize;
    let shared = heads / kv_heads;
    let first_key = CUBE_POS_X as usize * comptime!(tiles.rows);

    let mut k_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut v_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut q_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut d_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    // Of keys by queries: probabilities, then the gradients of scores.
    let mut s_tile = Shared::<[f32]>::new_slice(comptime!(tiles.score_elements()));

    load(k, &mut k_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
    load(v, &mut v_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
    let mut k_sums = Array::<f32>::new(comptime!(each * tiles.columns()));
    let mut v_sums = Array::<f32>::new(comptime!(each * tiles.columns()));

    let (from, to) = span(seen_by, first_key, keys, tiles);
    for nth in 0..shared {
        let head = kv_head * shared + nth;
        let mut first_query = from;
        while first_query < to {
            load(q, &mut q_tile, first_query, queries, heads * vectors, head * vectors, tiles);
            load(d_out, &mut d_tile, first_query, queries, heads * vectors, head * vectors, tiles);
            sync_cube();
            let mut p = scores(&k_tile, &q_tile, tiles);
            let mut d = scores(&v_tile, &d_tile, tiles);
            #[unroll]
            for j in 0..each {
                let query = first_query + UNIT_POS_X as usize + comptime!(j * tiles.side);
                let mut first = 0u32;
                let mut end = 0u32;
                let mut log_sum = 0.0f32;
                let mut delta = 0.0f32;
                if query < queries {
                    first = sight[2 * query];
                    end = sight[2 * query + 1];
                    log_sum = log_sums[query * heads + head];
                    delta = deltas[query * heads + head];
                }
                #[unroll]
                for i in 0..each {
                    let at = comptime!(i * each + j);
                    let key = (first_key + UNIT_POS_Y as usize + comptime!(i * tiles.side)) as u32;
                    let mut probability = 0.0f32;
                    if key >= first && key < end {
                        probability = (p[at] * scale - log_sum).exp();
                    }
                    p[at] = probability;
                    d[at] = probability * (d[at] - delta) * scale;
                }
            }
            keep(&p, &mut s_tile, tiles);
            sync_cube();
            accumulate(&s_tile, &d_tile, &mut v_sums, tiles);
            sync_cube();
            keep(&d, &mut s_tile, tiles);
            sync_cube();
            accumulate(&s_tile, &q_tile, &mut k_sums, tiles);
            sync_cube();
            first_query += comptime!(tiles.rows);
        }
    }
    store(&k_sums, dk, first_key, keys, kv_heads * tiles.dim, kv_head * tiles.dim, tiles);
    store(&v_sums, dv, first_key, keys, kv_heads * tiles.dim, kv_head * tiles.dim, tiles);
}
