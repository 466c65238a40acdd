//! Sixteen lanes in two registers: AVX2 with FMA and F16C, products of bytes without VNNI.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Needs avx2, fma, f16c.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// The same on both halves.
macro_rules! both {
    ($f:ident, $($a:expr),+) => { [both!(@ $f, 0, $($a),+), both!(@ $f, 1, $($a),+)] };
    (@ $f:ident, $i:literal, $($a:expr),+) => { $f($($a[$i]),+) };
}

/// Four products of bytes a lane: weights that fit in seven bits by signed activations.
#[inline(always)]
unsafe fn dot8(sum: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(weights, activations);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[inline(always)]
unsafe fn signed_dot8(sum: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
    // |w| · sign(w)·a: at most 128·127 twice, which i16 holds; an unsigned weight of 255 would not.
    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    dot8(sum, _mm256_abs_epi8(signed), _mm256_sign_epi8(activations, signed))
}

impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    // 12 accumulators of 16 registers.
    const FLOAT_TOKENS: usize = 3;
    const INTEGER_TOKENS: usize = 2;
    const DOT_REMOVES_OFFSET: bool = true;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [_mm256_set1_ps(value); 2]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
    }
    #[inline(always)]
    unsafe fn store(value: Self::F, to: *mut f32) {
        _mm256_storeu_ps(to, value[0]);
        _mm256_storeu_ps(to.add(8), value[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        let sign = [_mm256_set1_ps(-0.0); 2];
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        [
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[0]),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[1]),
        ]
    }
    #[inline(always)]
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: Self::F) -> Self::F {
        let lane = [_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)];
        let (before, end) = ([_mm256_set1_epi32(from as i32 - 1); 2], [_mm256_set1_epi32(to as i32); 2]);
        let (above, below) = (both!(_mm256_cmpgt_epi32, lane, before), both!(_mm256_cmpgt_epi32, end, lane));
        let mask = both!(_mm256_and_si256, above, below);
        let mask = both!(_mm256_castsi256_ps, mask);
        both!(_mm256_blendv_ps, other, a, mask)
    }
    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Self::I {
        [_mm256_set1_epi32(value); 2]
    }
    #[inline(always)]
    unsafe fn load_i(from: *const u8) -> Self::I {
        [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    unsafe fn sum_i(a: Self::I) -> i32 {
        let eight = _mm256_add_epi32(a[0], a[1]);
        let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps, a)
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        both!(_mm256_cvtps_epi32, a)
    }
    #[inline(always)]
    unsafe fn store_i8(a: Self::I, to: *mut i8) {
        // Packing works within 128-bit halves; the permutation puts the lanes back in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a[0], a[1]));
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(to.cast(), bytes);
    }
    #[inline(always)]
    unsafe fn exp2(a: Self::F) -> Self::F {
        let (whole, bias) = (both!(_mm256_cvtps_epi32, a), [_mm256_set1_epi32(127); 2]);
        let biased = both!(_mm256_add_epi32, whole, bias);
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[0])),
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[1])),
        ]
    }
    #[inline(always)]
    unsafe fn bf16_low(a: Self::I) -> Self::F {
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(a[0])), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a[1]))]
    }
    #[inline(always)]
    unsafe fn bf16_high(a: Self::I) -> Self::F {
        let mask = [_mm256_set1_epi32(0xffff_0000_u32 as i32); 2];
        let bits = both!(_mm256_and_si256, a, mask);
        both!(_mm256_castsi256_ps, bits)
    }
    #[inline(always)]
    unsafe fn nibble_low(a: Self::I) -> Self::I {
        let mask = [_mm256_set1_epi8(15); 2];
        both!(_mm256_and_si256, a, mask)
    }
    #[inline(always)]
    unsafe fn nibble_high(a: Self::I) -> Self::I {
        Self::nibble_low([_mm256_srli_epi32::<4>(a[0]), _mm256_srli_epi32::<4>(a[1])])
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I {
        both!(signed_dot8, sum, weights, activations)
    }
    #[inline(always)]
    unsafe fn dot_small(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I {
        both!(dot8, sum, weights, activations)
    }
}
