//! What happens between products: norms, quantisation of activations, gates.

use super::{
    lanes::{Lanes, sum16},
    product::BLOCK,
};
use crate::architecture::Activation;

/// e to the power of each lane: 2ⁿ · (Taylor's polynomial of degree 7 around 0), where |rest| ≤ ln 2 / 2, so the cut is
/// below 6e-9 relative. Lanes are clamped to -87..=88, where f32 is normal.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    /// ln 2 in two parts: n · HIGH is exact for each n there is.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = L::min(L::max(x, L::splat(-87.0)), L::splat(88.0));
    let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
    let rest = L::fma(n, L::splat(-LN2_HIGH), x);
    let rest = L::fma(n, L::splat(-LN2_LOW), rest);
    let mut sum = L::splat(1.0 / 5040.0);
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = L::fma(sum, rest, L::splat(1.0 / factorial));
    }
    L::mul(sum, L::exp2(n))
}

/// tanh x = 1 - 2 / (e²ˣ + 1).
#[inline(always)]
pub(crate) unsafe fn tanh<L: Lanes>(x: L::F) -> L::F {
    let e = exp::<L>(L::add(x, x));
    L::sub(L::splat(1.0), L::div(L::splat(2.0), L::add(e, L::splat(1.0))))
}

/// x · σ(x), or GELU by its tanh form, which is x · σ(2u) with u = √(2/π) · (x + 0.044715 x³).
#[inline(always)]
unsafe fn activate<L: Lanes>(activation: Activation, x: L::F) -> L::F {
    let u = match activation {
        Activation::Silu => x,
        Activation::GeluTanh => {
            let cubic = L::mul(L::mul(x, x), L::mul(x, L::splat(0.044_715)));
            L::mul(L::add(x, cubic), L::splat(2.0 * 0.797_884_6))
        }
    };
    let e = exp::<L>(L::sub(L::splat(0.0), u));
    L::div(x, L::add(L::splat(1.0), e))
}

/// From `[tokens, 32]` of 16 gates and 16 ups a row: activation(gate) · up, to 16 values each `out_stride`.
///
/// # Safety
/// The pointers have what is said behind them; the processor has what `L` needs.
#[inline(always)]
pub(crate) unsafe fn gate<L: Lanes>(
    activation: Activation,
    tokens: usize,
    from: *const f32,
    out: *mut f32,
    out_stride: usize,
) {
    for token in 0..tokens {
        let row = from.add(token * 32);
        let value = L::mul(activate::<L>(activation, L::load(row)), L::load(row.add(16)));
        L::store(value, out.add(token * out_stride));
    }
}

/// Cap · tanh(x / cap) in place. `n` is a multiple of 16.
///
/// # Safety
/// As [`gate`].
#[inline(always)]
pub(crate) unsafe fn soft_cap<L: Lanes>(cap: f32, x: *mut f32, n: usize) {
    for at in (0..n).step_by(16) {
        let y = tanh::<L>(L::div(L::load(x.add(at)), L::splat(cap)));
        L::store(L::mul(y, L::splat(cap)), x.add(at));
    }
}

/// x / rms(x) · weight (Zhang and Sennrich 2019) of `width` values, of which `n`, a multiple of 16, are there: the
/// padding is 0.
///
/// # Safety
/// As [`gate`].
#[inline(always)]
pub(crate) unsafe fn rms_norm<L: Lanes>(
    x: *const f32,
    weight: *const f32,
    epsilon: f32,
    out: *mut f32,
    width: usize,
    n: usize,
) {
    let mut squares = L::splat(0.0);
    for at in (0..n).step_by(16) {
        let x = L::load(x.add(at));
        squares = L::fma(x, x, squares);
    }
    let mut lanes = [0.0; 16];
    L::store(squares, lanes.as_mut_ptr());
    let factor = 1.0 / (sum16(lanes) / width as f32 + epsilon).sqrt();
    for at in (0..n).step_by(16) {
        let normed = L::mul(L::load(x.add(at)), L::splat(factor));
        L::store(L::mul(normed, L::load(weight.add(at))), out.add(at));
    }
}

/// Quantises `n` values, a multiple of [`BLOCK`]: a block's scale is its largest magnitude / 127.
///
/// # Safety
/// As [`gate`].
#[inline(always)]
pub(crate) unsafe fn quantise<L: Lanes>(x: *const f32, n: usize, to: *mut i8, scales: *mut f32, sums: *mut i32) {
    for block in 0..n / BLOCK {
        let at = x.add(block * BLOCK);
        let (low, high) = (L::load(at), L::load(at.add(16)));
        let mut lanes = [0.0_f32; 16];
        L::store(L::max(L::abs(low), L::abs(high)), lanes.as_mut_ptr());
        let largest = lanes.iter().fold(0.0_f32, |a, &b| if b > a { b } else { a });
        let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        // A largest magnitude so small that its factor overflows is 0 to every weight there is.
        let factor = if factor.is_finite() { factor } else { 0.0 };
        let low = L::to_i(L::round(L::mul(low, L::splat(factor))));
        let high = L::to_i(L::round(L::mul(high, L::splat(factor))));
        L::store_i8(low, to.add(block * BLOCK));
        L::store_i8(high, to.add(block * BLOCK + 16));
        *scales.add(block) = largest / 127.0;
        *sums.add(block) = L::sum_i(L::add_i(low, high));
    }
}
