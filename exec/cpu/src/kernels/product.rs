//! Products of a panel of weights with rows of activations.
//!
//! A panel holds [`PANEL`] weight rows side by side: the rows lie in lanes, the depth runs along memory. Each output is
//! one sum over the depth, front to back, in its own lane; how many tokens, panels or threads there are can't change its
//! order. That is why logits are the same alone and in any batch, to the bit.

use super::lanes::Lanes;

/// Weight rows of a panel: two times sixteen lanes.
pub(crate) const PANEL: usize = 32;
/// Weights, or activations, that share a scale in the formats of integers.
pub(crate) const BLOCK: usize = 32;
/// Bytes of the scales of one block of a panel: halves.
const SCALES: usize = PANEL * 2;
/// Bytes of one block of a panel of bytes.
pub(crate) const INT8_BLOCK: usize = SCALES + PANEL * BLOCK;
/// Bytes of one block of a panel of nibbles.
pub(crate) const INT4_BLOCK: usize = SCALES + PANEL * BLOCK / 2;
/// Bytes of one block of a panel of nibbles above a minimum.
pub(crate) const UINT4_BLOCK: usize = SCALES + INT4_BLOCK;

/// Bytes that weights are asked for ahead of their use: a page of 4 KiB, where the processor's own
/// prefetching ends.
const AHEAD: usize = 4096;
/// Tokens up to which memory is the limit, and asking ahead pays.
const FEW: usize = 4;

/// Rows of activations: `x` for weights of floats, the rest for weights of integers.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// `[tokens, stride]`.
    pub x: *const f32,
    /// `[tokens, stride]`: round(x / scale), within -127..=127.
    pub quantised: *const i8,
    /// `[tokens, stride / BLOCK]`.
    pub scales: *const f32,
    /// `[tokens, stride / BLOCK]`: sums of a block of `quantised`.
    pub sums: *const i32,
    /// Values from one row to the next.
    pub stride: usize,
}

impl Rows {
    /// Rows of floats alone.
    pub(crate) fn floats(x: *const f32, stride: usize) -> Self {
        Self { x, quantised: std::ptr::null(), scales: std::ptr::null(), sums: std::ptr::null(), stride }
    }

    /// The rows after the first `count`.
    pub(crate) fn skip_rows(self, count: usize) -> Self {
        let (values, blocks) = (count * self.stride, count * self.stride / BLOCK);
        Self {
            x: self.x.wrapping_add(values),
            quantised: self.quantised.wrapping_add(values),
            scales: self.scales.wrapping_add(blocks),
            sums: self.sums.wrapping_add(blocks),
            stride: self.stride,
        }
    }
}

/// One panel times some rows.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// The panel's first byte.
    pub panel: *const u8,
    /// Depth; for integers a multiple of [`BLOCK`], for bf16 of 2.
    pub depth: usize,
    /// Activations.
    pub rows: Rows,
    /// How many rows.
    pub tokens: usize,
    /// `[tokens, out_stride]`, of which the first [`PANEL`] of each row are written.
    pub out: *mut f32,
    /// Values from one row of `out` to the next.
    pub out_stride: usize,
    /// Whether the sums go on from what `out` holds (floats only).
    pub accumulate: bool,
}

/// Weights that are floats, two steps of the depth at a time.
pub(crate) trait Floats {
    /// Bytes of one step of the depth.
    const STEP: usize;
    /// Whether a single step can be read.
    const ODD: bool;
    unsafe fn pair<L: Lanes>(from: *const u8) -> [[L::F; 2]; 2];
    unsafe fn one<L: Lanes>(from: *const u8) -> [L::F; 2];
}

/// `[depth, PANEL]` of f32.
pub(crate) struct F32;
impl Floats for F32 {
    const STEP: usize = PANEL * 4;
    const ODD: bool = true;
    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const u8) -> [[L::F; 2]; 2] {
        [Self::one::<L>(from), Self::one::<L>(from.add(Self::STEP))]
    }
    #[inline(always)]
    unsafe fn one<L: Lanes>(from: *const u8) -> [L::F; 2] {
        [L::load(from.cast()), L::load(from.add(64).cast())]
    }
}

/// `[depth, PANEL]` of f16.
pub(crate) struct F16;
impl Floats for F16 {
    const STEP: usize = PANEL * 2;
    const ODD: bool = true;
    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const u8) -> [[L::F; 2]; 2] {
        [Self::one::<L>(from), Self::one::<L>(from.add(Self::STEP))]
    }
    #[inline(always)]
    unsafe fn one<L: Lanes>(from: *const u8) -> [L::F; 2] {
        [L::load_f16(from.cast()), L::load_f16(from.add(32).cast())]
    }
}

/// `[depth / 2, PANEL, 2]` of bf16: a pair of the depth shares a lane, so that one load gives both.
pub(crate) struct Bf16;
impl Floats for Bf16 {
    const STEP: usize = PANEL * 2;
    const ODD: bool = false;
    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const u8) -> [[L::F; 2]; 2] {
        let (a, b) = (L::load_i(from), L::load_i(from.add(64)));
        [[L::bf16_low(a), L::bf16_low(b)], [L::bf16_high(a), L::bf16_high(b)]]
    }
    #[inline(always)]
    unsafe fn one<L: Lanes>(_: *const u8) -> [L::F; 2] {
        unreachable!("bf16 comes in pairs")
    }
}

/// Runs `$tile::<L, W, T>` over all tokens in the largest tiles that `$most` allows.
macro_rules! tiles {
    ($product:ident, $most:expr, $tile:ident; $($size:literal)+) => {{
        let mut done = 0;
        while done < $product.tokens {
            let left = $product.tokens - done;
            $(if $size <= $most && $size <= left {
                $tile::<L, W, $size>($product, done);
                done += $size;
                continue;
            })+
        }
    }};
}

/// Where T rows begin. A loop: a closure (`from_fn`, `map`) isn't inlined into a function with target features.
#[inline(always)]
fn starts<V, const T: usize>(first: *const V, stride: usize) -> [*const V; T] {
    let mut all = [first; T];
    for t in 1..T {
        all[t] = all[t - 1].wrapping_add(stride);
    }
    all
}

/// Floats: f32 activations, f32 sums.
///
/// # Safety
/// `p` points to what it says; the processor has what `L` needs.
#[inline(always)]
pub(crate) unsafe fn floats<L: Lanes, W: Floats>(p: &Product) {
    tiles!(p, L::FLOAT_TOKENS, float_tile; 12 8 6 4 3 2 1);
}

#[inline(always)]
unsafe fn float_tile<L: Lanes, W: Floats, const T: usize>(p: &Product, first: usize) {
    let rows = starts::<_, T>(p.rows.x.wrapping_add(first * p.rows.stride), p.rows.stride);
    let outs = starts::<_, T>(p.out.wrapping_add(first * p.out_stride), p.out_stride);
    let mut sums = [[L::splat(0.0); 2]; T];
    if p.accumulate {
        for t in 0..T {
            sums[t] = [L::load(outs[t]), L::load(outs[t].add(16))];
        }
    }
    let mut weights = p.panel;
    let mut k = 0;
    while k + 2 <= p.depth {
        if T <= FEW {
            for line in (0..2 * W::STEP).step_by(64) {
                L::prefetch(weights.wrapping_add(AHEAD + line));
            }
        }
        let [even, odd] = W::pair::<L>(weights);
        for t in 0..T {
            sums[t] = L::fma_pair::<0>(even, rows[t], k, sums[t]);
        }
        for t in 0..T {
            sums[t] = L::fma_pair::<1>(odd, rows[t], k, sums[t]);
        }
        weights = weights.add(2 * W::STEP);
        k += 2;
    }
    if W::ODD && k < p.depth {
        let weights = W::one::<L>(weights);
        for t in 0..T {
            sums[t] = L::fma_pair::<0>(weights, rows[t], k, sums[t]);
        }
    }
    for t in 0..T {
        L::store(sums[t][0], outs[t].cast_mut());
        L::store(sums[t][1], outs[t].cast_mut().add(16));
    }
}

/// Weights that are integers, a block of the depth at a time.
pub(crate) trait Integers {
    /// Bytes of a block of a panel.
    const BYTES: usize;
    /// Whether halves follow the scales that are added to each weight.
    const MINIMA: bool = false;
    /// What is added to each weight that is stored, as far as `add_dots` leaves it to the sums of the activations.
    fn offset<L: Lanes>() -> i32;
    /// Adds the exact dot products of one block.
    unsafe fn add_dots<L: Lanes, const T: usize>(weights: *const u8, rows: &[*const i8; T], sums: &mut [[L::I; 2]; T]);
}

/// Bytes, offset by 128: `[8 groups of 4, PANEL, 4]`.
pub(crate) struct Int8;
impl Integers for Int8 {
    const BYTES: usize = INT8_BLOCK;
    #[inline(always)]
    fn offset<L: Lanes>() -> i32 {
        if L::DOT_REMOVES_OFFSET { 0 } else { -128 }
    }
    #[inline(always)]
    unsafe fn add_dots<L: Lanes, const T: usize>(weights: *const u8, rows: &[*const i8; T], sums: &mut [[L::I; 2]; T]) {
        for group in 0..BLOCK / 4 {
            let at = weights.add(group * 2 * 64);
            let halves = [L::load_i(at), L::load_i(at.add(64))];
            for t in 0..T {
                let x = L::splat_i(rows[t].add(group * 4).cast::<i32>().read_unaligned());
                sums[t] = [L::dot(sums[t][0], halves[0], x), L::dot(sums[t][1], halves[1], x)];
            }
        }
    }
}

/// Nibbles, offset by 8: `[4 groups of 4, PANEL, 4]`, the lower halves group g, the upper ones group g + 4.
pub(crate) struct Int4;
impl Integers for Int4 {
    const BYTES: usize = INT4_BLOCK;
    #[inline(always)]
    fn offset<L: Lanes>() -> i32 {
        -8
    }
    #[inline(always)]
    unsafe fn add_dots<L: Lanes, const T: usize>(weights: *const u8, rows: &[*const i8; T], sums: &mut [[L::I; 2]; T]) {
        for group in 0..BLOCK / 8 {
            let at = weights.add(group * 2 * 64);
            let packed = [L::load_i(at), L::load_i(at.add(64))];
            let low = [L::nibble_low(packed[0]), L::nibble_low(packed[1])];
            let high = [L::nibble_high(packed[0]), L::nibble_high(packed[1])];
            for t in 0..T {
                let x = L::splat_i(rows[t].add(group * 4).cast::<i32>().read_unaligned());
                sums[t] = [L::dot_small(sums[t][0], low[0], x), L::dot_small(sums[t][1], low[1], x)];
                let x = L::splat_i(rows[t].add(BLOCK / 2 + group * 4).cast::<i32>().read_unaligned());
                sums[t] = [L::dot_small(sums[t][0], high[0], x), L::dot_small(sums[t][1], high[1], x)];
            }
        }
    }
}

/// Nibbles without an offset, above a minimum: `[4 groups of 4, PANEL, 4]` as [`Int4`].
pub(crate) struct Uint4;
impl Integers for Uint4 {
    const BYTES: usize = UINT4_BLOCK;
    const MINIMA: bool = true;
    #[inline(always)]
    fn offset<L: Lanes>() -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn add_dots<L: Lanes, const T: usize>(weights: *const u8, rows: &[*const i8; T], sums: &mut [[L::I; 2]; T]) {
        Int4::add_dots::<L, T>(weights, rows, sums);
    }
}

/// Integers with a scale a block of 32, by activations quantised likewise: the sum of a block is exact in i32; blocks
/// are added in f32, front to back.
///
/// # Safety
/// As [`floats`].
#[inline(always)]
pub(crate) unsafe fn integers<L: Lanes, W: Integers>(p: &Product) {
    tiles!(p, L::INTEGER_TOKENS, integer_tile; 6 4 3 2 1);
}

#[inline(always)]
unsafe fn integer_tile<L: Lanes, W: Integers, const T: usize>(p: &Product, first: usize) {
    let offset = W::offset::<L>();
    let blocks = p.depth / BLOCK;
    let tile = p.rows.skip_rows(first);
    let mut rows = starts::<_, T>(tile.quantised, tile.stride);
    let scales = starts::<_, T>(tile.scales, tile.stride / BLOCK);
    let offsets = starts::<_, T>(tile.sums, tile.stride / BLOCK);
    let mut totals = [[L::splat(0.0); 2]; T];
    let mut weights = p.panel;
    for block in 0..blocks {
        let mut sums: [[L::I; 2]; T] = [[L::splat_i(0); 2]; T];
        if offset != 0 {
            for t in 0..T {
                sums[t] = [L::splat_i(*offsets[t].add(block) * offset); 2];
            }
        }
        if T <= FEW {
            for line in (0..W::BYTES).step_by(64) {
                L::prefetch(weights.wrapping_add(AHEAD + line));
            }
        }
        let first = if W::MINIMA { 2 * SCALES } else { SCALES };
        W::add_dots::<L, T>(weights.add(first), &rows, &mut sums);
        let scale = [L::load_f16(weights.cast()), L::load_f16(weights.add(SCALES / 2).cast())];
        for t in 0..T {
            let x = L::splat(*scales[t].add(block));
            for half in 0..2 {
                totals[t][half] = L::fma(L::to_f(sums[t][half]), L::mul(scale[half], x), totals[t][half]);
            }
        }
        if W::MINIMA {
            let at = weights.add(SCALES);
            let minimum = [L::load_f16(at.cast()), L::load_f16(at.add(SCALES / 2).cast())];
            for t in 0..T {
                let sum = L::splat(*scales[t].add(block) * *offsets[t].add(block) as f32);
                totals[t] = [L::fma(minimum[0], sum, totals[t][0]), L::fma(minimum[1], sum, totals[t][1])];
            }
        }
        weights = weights.add(W::BYTES);
        for row in &mut rows {
            *row = row.wrapping_add(BLOCK);
        }
    }
    for t in 0..T {
        let out = p.out.add((first + t) * p.out_stride);
        L::store(totals[t][0], out);
        L::store(totals[t][1], out.add(16));
    }
}
