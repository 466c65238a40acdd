//! Sixteen lanes: what a kernel needs of a processor, so that each kernel is written once.
//!
//! Every operation rounds as IEEE 754 says and none is reordered, so a kernel gives the same bits on every
//! implementation, and a test holds them to that.

/// Sixteen f32 (`F`) or sixteen i32 (`I`) at once.
///
/// # Safety
/// Each function needs the processor features of its implementation; those with a pointer need as many bytes behind
/// it as they say. Alignment is not needed.
pub(crate) trait Lanes: Copy + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32, or 64 bytes of packed weights.
    type I: Copy;
    /// Tokens that a tile of floats holds in registers beside 32 rows.
    const FLOAT_TOKENS: usize;
    /// Tokens that a tile of integers holds in registers beside 32 rows.
    const INTEGER_TOKENS: usize;
    /// Whether [`Lanes::dot`] takes the offset of 128 off the weights itself.
    const DOT_REMOVES_OFFSET: bool;

    unsafe fn splat(value: f32) -> Self::F;
    /// 16 f32.
    unsafe fn load(from: *const f32) -> Self::F;
    /// 16 f32.
    unsafe fn store(value: Self::F, to: *mut f32);
    /// 16 halves.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger; no lane is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; no lane is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// Lanes `from..to` of `a`, `other` elsewhere; `from ≤ to ≤ 16`.
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: Self::F) -> Self::F;

    unsafe fn splat_i(value: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_i(from: *const u8) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sum_i(a: Self::I) -> i32;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Integral values within i32.
    unsafe fn to_i(a: Self::F) -> Self::I;
    /// Writes 16 values within -128..=127 as bytes.
    unsafe fn store_i8(a: Self::I, to: *mut i8);
    /// 2 to the power of each lane, which is integral and within -126..=127.
    unsafe fn exp2(a: Self::F) -> Self::F;
    /// The lower bf16 of each lane as f32.
    unsafe fn bf16_low(a: Self::I) -> Self::F;
    /// The upper bf16 of each lane as f32.
    unsafe fn bf16_high(a: Self::I) -> Self::F;
    /// The lower four bits of each byte.
    unsafe fn nibble_low(a: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    unsafe fn nibble_high(a: Self::I) -> Self::I;
    /// Adds to each lane the dot product of four weights (bytes, 0..=255, offset by 128) and four activations (signed
    /// bytes, never -128).
    unsafe fn dot(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I;
    /// As [`Lanes::dot`] with weights 0..=15, from which no offset is ever taken.
    unsafe fn dot_small(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I;

    /// Asks for a cache line that will be read soon. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    /// Adds `weights · x[at + STEP]` to 32 sums.
    #[inline(always)]
    unsafe fn fma_pair<const STEP: usize>(
        weights: [Self::F; 2],
        x: *const f32,
        at: usize,
        sums: [Self::F; 2],
    ) -> [Self::F; 2] {
        let x = Self::splat(*x.add(at + STEP));
        [Self::fma(weights[0], x, sums[0]), Self::fma(weights[1], x, sums[1])]
    }
}

/// Adds sixteen numbers in one fixed order: halves onto each other.
#[inline(always)]
pub(crate) fn sum16(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}
