//! Attention of some queries over the cached positions of one key-value head.
//!
//! Positions are taken in spans of [`SPAN`], aligned at position 0. A span's maximum, sum and weighted values are
//! computed by themselves and then merged front to back (the online softmax of Milakov and Gimelshein 2018). So what a
//! query gets depends on its position and the cache alone: not on the chunk it came in, nor on who computes which span.

use super::{
    elementwise::{exp, tanh},
    lanes::{Lanes, sum16},
    product::{Floats, PANEL, Product, Rows, floats},
};

/// Positions whose softmax is computed in one go. Cache blocks divide it.
pub(crate) const SPAN: usize = 128;

/// Some consecutive queries of one sequence, for each head of a group that shares a key-value head.
pub(crate) struct Attend<'a> {
    /// `[queries * group, head_dim]`, scaled.
    pub queries: *const f32,
    /// How many positions ask.
    pub tokens: usize,
    /// Query heads a key-value head.
    pub group: usize,
    /// Values a head.
    pub head_dim: usize,
    /// The first query's position.
    pub start: usize,
    /// Positions that a query sees, itself included.
    pub window: Option<usize>,
    /// Cap of the scores.
    pub soft_cap: Option<f32>,
    /// Spans to visit.
    pub spans: std::ops::Range<usize>,
    /// The sequence's blocks.
    pub blocks: &'a [u32],
    /// Tokens a block.
    pub block_tokens: usize,
    /// This layer's and head's part of block 0.
    pub cache: *const u8,
    /// Bytes from one block to the next.
    pub block_bytes: usize,
    /// Bytes from a block's keys to its values.
    pub values_at: usize,
    /// Scratch: `[queries * group, SPAN]`.
    pub scores: *mut f32,
    /// Scratch: `[queries * group, padded head_dim]`.
    pub part: *mut f32,
    /// What was merged so far.
    pub state: State,
}

/// The running softmax of some rows: largest score, sum of weights, weighted values.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// `[rows]`, −∞ at the start.
    pub largest: *mut f32,
    /// `[rows]`, 0 at the start.
    pub sum: *mut f32,
    /// `[rows, width]`, 0 at the start.
    pub values: *mut f32,
    /// Padded values a row, a multiple of [`PANEL`].
    pub width: usize,
}

impl State {
    /// # Safety
    /// `row` is one of the rows.
    #[inline(always)]
    unsafe fn merge<L: Lanes>(&self, row: usize, largest: f32, sum: f32, values: *const f32) {
        let before = *self.largest.add(row);
        let now = if largest > before { largest } else { before };
        let mut factors = [0.0; 16];
        L::store(exp::<L>(L::splat(before - now)), factors.as_mut_ptr());
        let old = factors[0];
        L::store(exp::<L>(L::splat(largest - now)), factors.as_mut_ptr());
        let new = factors[0];
        *self.largest.add(row) = now;
        *self.sum.add(row) = *self.sum.add(row) * old + sum * new;
        for at in (0..self.width).step_by(16) {
            let to = self.values.add(row * self.width + at);
            let added = L::mul(L::load(values.add(at)), L::splat(new));
            L::store(L::fma(L::load(to), L::splat(old), added), to);
        }
    }
}

/// Merges a later state of the same rows into an earlier one.
///
/// # Safety
/// Both have `rows` rows; the processor has what `L` needs.
#[inline(always)]
pub(crate) unsafe fn merge<L: Lanes>(into: &State, from: &State, rows: usize) {
    for row in 0..rows {
        if *from.sum.add(row) > 0.0 {
            into.merge::<L>(row, *from.largest.add(row), *from.sum.add(row), from.values.add(row * from.width));
        }
    }
}

/// Visits the spans and merges them into the state.
///
/// # Safety
/// All pointers have behind them what is said; the blocks reach over all positions up to the last query's; the
/// processor has what `L` needs.
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes, W: Floats>(a: &Attend<'_>) {
    let last = a.start + a.tokens - 1;
    let first_seen = |position: usize| a.window.map_or(0, |window| (position + 1).saturating_sub(window));
    for span in a.spans.clone() {
        let origin = span * SPAN;
        let end = (last + 1 - origin).min(SPAN);
        // Whole panels of positions before the first that any query sees are left out: all their weights are 0.
        let begin = first_seen(a.start).saturating_sub(origin) / PANEL * PANEL;
        if begin >= end {
            continue;
        }
        scores::<L, W>(a, origin, begin, end);
        let mut seen = [0.0_f32; 2];
        let mut sums = [[0.0_f32; 2]; MOST_ROWS];
        for row in 0..a.tokens * a.group {
            let position = a.start + row / a.group;
            let from = first_seen(position).saturating_sub(origin).min(end);
            let to = (position + 1).saturating_sub(origin).min(end);
            sums[row] = soft_max::<L>(a, a.scores.add(row * SPAN), from.min(to), to, begin, end);
            seen[0] += sums[row][1];
        }
        if seen[0] == 0.0 {
            continue;
        }
        weighted::<L, W>(a, origin, begin, end);
        for (row, &[largest, sum]) in sums[..a.tokens * a.group].iter().enumerate() {
            if sum > 0.0 {
                a.state.merge::<L>(row, largest, sum, a.part.add(row * a.state.width));
            }
        }
    }
}

/// Rows at most: queries × group.
pub(crate) const MOST_ROWS: usize = 128;

#[inline(always)]
unsafe fn block<W: Floats>(a: &Attend<'_>, position: usize) -> *const u8 {
    a.cache.add(a.blocks[position / a.block_tokens] as usize * a.block_bytes)
}

/// Scores of positions `begin..end`, whole panels of them: keys lie as `[positions / 32, head_dim, 32]`.
#[inline(always)]
unsafe fn scores<L: Lanes, W: Floats>(a: &Attend<'_>, origin: usize, begin: usize, end: usize) {
    for at in (begin..end).step_by(PANEL) {
        let within = (origin + at) % a.block_tokens / PANEL;
        floats::<L, W>(&Product {
            panel: block::<W>(a, origin + at).add(within * a.head_dim * W::STEP),
            depth: a.head_dim,
            rows: Rows::floats(a.queries, a.head_dim),
            tokens: a.tokens * a.group,
            out: a.scores.add(at),
            out_stride: SPAN,
            accumulate: false,
        });
    }
}

/// Makes weights of one row's scores: e^(score - largest) in `from..to`, 0 elsewhere in `begin..end`. Returns the largest
/// score and the sum of the weights.
#[inline(always)]
unsafe fn soft_max<L: Lanes>(
    a: &Attend<'_>,
    row: *mut f32,
    from: usize,
    to: usize,
    begin: usize,
    end: usize,
) -> [f32; 2] {
    let lanes = |at: usize| (from.saturating_sub(at).min(16), to.saturating_sub(at).min(16));
    let mut largest = L::splat(f32::NEG_INFINITY);
    for at in (begin..end).step_by(16) {
        let mut score = L::load(row.add(at));
        if let Some(cap) = a.soft_cap {
            score = L::mul(tanh::<L>(L::div(score, L::splat(cap))), L::splat(cap));
            L::store(score, row.add(at));
        }
        let (low, high) = lanes(at);
        largest = L::max(L::keep(score, low.min(high), high, L::splat(f32::NEG_INFINITY)), largest);
    }
    let mut each = [0.0; 16];
    L::store(largest, each.as_mut_ptr());
    let largest = each.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let mut sum = L::splat(0.0);
    for at in (begin..end).step_by(16) {
        let (low, high) = lanes(at);
        let weight = exp::<L>(L::sub(L::load(row.add(at)), L::splat(largest)));
        let weight = L::keep(weight, low.min(high), high, L::splat(0.0));
        sum = L::add(sum, weight);
        L::store(weight, row.add(at));
    }
    L::store(sum, each.as_mut_ptr());
    [largest, sum16(each)]
}

/// Weighted values of positions `begin..end`: values lie as `[head_dim / 32, block_tokens, 32]`.
#[inline(always)]
unsafe fn weighted<L: Lanes, W: Floats>(a: &Attend<'_>, origin: usize, begin: usize, end: usize) {
    let mut at = begin;
    while at < end {
        let within = (origin + at) % a.block_tokens;
        let count = (a.block_tokens - within).min(end - at);
        for panel in 0..a.state.width / PANEL {
            floats::<L, W>(&Product {
                panel: block::<W>(a, origin + at).add(a.values_at + (panel * a.block_tokens + within) * W::STEP),
                depth: count,
                rows: Rows::floats(a.scores.add(at), SPAN),
                tokens: a.tokens * a.group,
                out: a.part.add(panel * PANEL),
                out_stride: a.state.width,
                accumulate: at > begin,
            });
        }
        at += count;
    }
}
