//! Sixteen lanes in one register: AVX-512 with VNNI.

use std::arch::{asm, x86_64::*};

use super::lanes::Lanes;

/// Needs avx512f, avx512bw, avx512vl, avx512dq, avx512vnni.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// In this order and with this register: left to itself the compiler loads the activations of all tokens first, and for
/// want of registers keeps the sums in memory.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fma_pair<const STEP: usize>(
    weights: [__m512; 2],
    x: *const f32,
    at: usize,
    mut sums: [__m512; 2],
) -> [__m512; 2] {
    let _broadcast: __m512;
    // SAFETY: reads x[at + STEP] alone.
    asm!(
        "vbroadcastss {b}, dword ptr [{x} + 4*{at} + {offset}]",
        "vfmadd231ps {low}, {first}, {b}",
        "vfmadd231ps {high}, {second}, {b}",
        x = in(reg) x,
        at = in(reg) at,
        offset = const STEP * 4,
        first = in(zmm_reg) weights[0],
        second = in(zmm_reg) weights[1],
        b = out(zmm_reg) _broadcast,
        low = inout(zmm_reg) sums[0],
        high = inout(zmm_reg) sums[1],
        options(nostack, preserves_flags, readonly),
    );
    sums
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    // 24 accumulators, 2 registers of weights and one of activations, of 32 registers.
    const FLOAT_TOKENS: usize = 12;
    // 12 accumulators of integers and 12 of floats.
    const INTEGER_TOKENS: usize = 6;
    const DOT_REMOVES_OFFSET: bool = false;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(value: __m512, to: *mut f32) {
        _mm512_storeu_ps(to, value);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        _mm512_abs_ps(a)
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    #[inline(always)]
    unsafe fn keep(a: __m512, from: usize, to: usize, other: __m512) -> __m512 {
        let mask = ((1u32 << to) - 1) & !((1u32 << from) - 1);
        _mm512_mask_blend_ps(mask as u16, other, a)
    }
    #[inline(always)]
    unsafe fn splat_i(value: i32) -> __m512i {
        _mm512_set1_epi32(value)
    }
    #[inline(always)]
    unsafe fn load_i(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn sum_i(a: __m512i) -> i32 {
        _mm512_reduce_add_epi32(a)
    }
    #[inline(always)]
    unsafe fn to_f(a: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(a)
    }
    #[inline(always)]
    unsafe fn to_i(a: __m512) -> __m512i {
        _mm512_cvtps_epi32(a)
    }
    #[inline(always)]
    unsafe fn store_i8(a: __m512i, to: *mut i8) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a));
    }
    #[inline(always)]
    unsafe fn exp2(a: __m512) -> __m512 {
        let biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn bf16_low(a: __m512i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a))
    }
    #[inline(always)]
    unsafe fn bf16_high(a: __m512i) -> __m512 {
        _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
    }
    #[inline(always)]
    unsafe fn nibble_low(a: __m512i) -> __m512i {
        _mm512_and_si512(a, _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn nibble_high(a: __m512i) -> __m512i {
        _mm512_and_si512(_mm512_srli_epi32::<4>(a), _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, weights, activations)
    }
    #[inline(always)]
    unsafe fn dot_small(sum: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, weights, activations)
    }
    #[inline(always)]
    unsafe fn fma_pair<const STEP: usize>(w: [__m512; 2], x: *const f32, at: usize, sums: [__m512; 2]) -> [__m512; 2] {
        fma_pair::<STEP>(w, x, at, sums)
    }
}
