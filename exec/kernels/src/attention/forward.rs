//! The forward pass: the softmax is taken online, tile of keys by tile of keys (Milakov and Gimelshein, arXiv 1805.02867).

use cubecl::client::Client;
use cubecl::prelude::*;

use super::tile::{Tiles, accumulate, keep, load, scores, span, store};
use super::{Inputs, MOST_DIM, Shape};
use crate::buffer::{Buffer, vector_size};

/// Writes `softmax(scale · q·kᵀ) · v` to `out`, as q, and the log of each sum of exponentials to `log_sums`, f32,
/// `[queries, heads]`, for [`super::backward()`]. A query that sees nothing gets zeros.
///
/// # Panics
///
/// With heads wider than [`MOST_DIM`].
pub fn forward(client: &Client, inputs: &Inputs, out: &Buffer, log_sums: &Buffer, shape: Shape) {
    assert!(shape.dim <= MOST_DIM, "heads of {} elements; at most {MOST_DIM} will do", shape.dim);
    // Queries, and in turn keys and values; probabilities; what units know of rows.
    let tiles = Tiles::fitting(client, shape.dim, |tiles| {
        2 * tiles.head_elements() + tiles.score_elements() + tiles.rows * tiles.side
    });
    forward_kernel::launch(
        client,
        tiles.cubes(shape.queries, shape.heads),
        tiles.cube_dim(),
        vector_size(shape.dim, shape.dtype).min(4),
        inputs.q.argument(),
        inputs.k.argument(),
        inputs.v.argument(),
        inputs.sight.queries.argument(),
        out.argument(),
        log_sums.argument(),
        shape.queries,
        shape.keys,
        shape.heads,
        shape.kv_heads,
        shape.scale,
        tiles,
        shape.dtype,
    );
}

/// Below every score, and still finite: a difference of two infinities would be no number.
const LOWEST: f32 = -1e30;

#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    sight: &[u32],
    out: &mut [F],
    log_sums: &mut [f32],
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let each = comptime!(tiles.each());
    let columns = comptime!(tiles.columns());
    let vectors = tiles.dim / N::value();
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (heads / kv_heads);
    let first_query = CUBE_POS_X as usize * comptime!(tiles.rows);
    let ty = UNIT_POS_Y as usize;
    let tx = UNIT_POS_X as usize;

    let mut q_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    // Keys, and when scores are known, values.
    let mut kv_tile = Shared::<[f32]>::new_slice(comptime!(tiles.head_elements()));
    let mut p_tile = Shared::<[f32]>::new_slice(comptime!(tiles.score_elements()));
    // What each of 16 units knows of a row.
    let mut parts = Shared::<[f32]>::new_slice(comptime!(tiles.rows * tiles.side));

    load(q, &mut q_tile, first_query, queries, heads * vectors, head * vectors, tiles);
    let mut first = Array::<u32>::new(each);
    let mut end = Array::<u32>::new(each);
    // The highest score so far, the unit's own share of the sum of exponentials, and the unit's share of the result.
    let mut highest = Array::<f32>::new(each);
    let mut sum = Array::<f32>::new(each);
    let mut mixed = Array::<f32>::new(comptime!(each * columns));
    #[unroll]
    for i in 0..each {
        let query = first_query + ty + comptime!(i * tiles.side);
        if query < queries {
            first[i] = sight[2 * query];
            end[i] = sight[2 * query + 1];
        }
        highest[i] = LOWEST;
    }

    let (from, to) = span(sight, first_query, queries, tiles);
    let mut first_key = from;
    while first_key < to {
        load(k, &mut kv_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
        sync_cube();
        let mut p = scores(&q_tile, &kv_tile, tiles);
        #[unroll]
        for i in 0..each {
            let mut own = f32::new(LOWEST);
            #[unroll]
            for j in 0..each {
                let key = (first_key + tx + comptime!(j * tiles.side)) as u32;
                let mut score = f32::new(LOWEST);
                if key >= first[i] && key < end[i] {
                    score = p[comptime!(i * each + j)] * scale;
                }
                p[comptime!(i * each + j)] = score;
                own = max(own, score);
            }
            parts[(ty + comptime!(i * tiles.side)) * tiles.side + tx] = own;
        }
        sync_cube();
        load(v, &mut kv_tile, first_key, keys, kv_heads * vectors, kv_head * vectors, tiles);
        #[unroll]
        for i in 0..each {
            let before = highest[i];
            let mut higher = before;
            for unit in 0..tiles.side {
                higher = max(higher, parts[(ty + comptime!(i * tiles.side)) * tiles.side + unit]);
            }
            let shrink = (before - higher).exp();
            let mut own = sum[i] * shrink;
            #[unroll]
            for j in 0..each {
                let score = p[comptime!(i * each + j)];
                let mut e = 0.0f32;
                // What is hidden is exactly LOWEST, and must count for nothing even where all is hidden so far.
                if score > LOWEST {
                    e = (score - higher).exp();
                }
                p[comptime!(i * each + j)] = e;
                own += e;
            }
            sum[i] = own;
            highest[i] = higher;
            #[unroll]
            for c in 0..columns {
                mixed[comptime!(i * columns + c)] *= shrink;
            }
        }
        keep(&p, &mut p_tile, tiles);
        sync_cube();
        accumulate(&p_tile, &kv_tile, &mut mixed, tiles);
        sync_cube();
        first_key += comptime!(tiles.rows);
    }

    #[unroll]
    for i in 0..each {
        parts[(ty + comptime!(i * tiles.side)) * tiles.side + tx] = sum[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..each {
        let mut total = 0.0f32;
        for unit in 0..tiles.side {
            total += parts[(ty + comptime!(i * tiles.side)) * tiles.side + unit];
        }
        let query = first_query + ty + comptime!(i * tiles.side);
        let mut log_sum = 0.0f32;
        let mut share = 0.0f32;
        if total > 0.0f32 {
            log_sum = highest[i] + total.ln();
            share = 1.0 / total;
        }
        if tx == 0 && query < queries {
            log_sums[query * heads + head] = log_sum;
        }
        #[unroll]
        for c in 0..columns {
            mixed[comptime!(i * columns + c)] *= share;
        }
    }
    store(&mixed, out, first_query, queries, heads * tiles.dim, head * tiles.dim, tiles);
}
