//! Sixteen lanes in arrays, for any processor. Where multiply-add is an instruction of the target (NEON) the compiler
//! makes vectors of it; on an x86 without FMA it is a slow library call, exact all the same.

use super::lanes::Lanes;

/// Needs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|lane| f(a[lane]))
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn bytes(sum: [i32; 16], weights: [i32; 16], activations: [i32; 16], offset: i32) -> [i32; 16] {
    std::array::from_fn(|lane| {
        let (w, a) = (weights[lane].to_le_bytes(), activations[lane].to_le_bytes());
        (0..4).fold(sum[lane], |sum, i| sum + (i32::from(w[i]) - offset) * i32::from(a[i] as i8))
    })
}

impl Lanes for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    const FLOAT_TOKENS: usize = 2;
    const INTEGER_TOKENS: usize = 1;
    const DOT_REMOVES_OFFSET: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        from.cast::<[f32; 16]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(value: Self::F, to: *mut f32) {
        to.cast::<[f32; 16]>().write_unaligned(value);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        let bits = from.cast::<[u16; 16]>().read_unaligned();
        std::array::from_fn(|lane| half::f16::from_bits(bits[lane]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: Self::F) -> Self::F {
        std::array::from_fn(|lane| if (from..to).contains(&lane) { a[lane] } else { other[lane] })
    }
    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Self::I {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn load_i(from: *const u8) -> Self::I {
        from.cast::<[i32; 16]>().read_unaligned().map(i32::from_le)
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn sum_i(a: Self::I) -> i32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        a.map(|a| a as i32)
    }
    #[inline(always)]
    unsafe fn store_i8(a: Self::I, to: *mut i8) {
        to.cast::<[i8; 16]>().write_unaligned(a.map(|a| a as i8));
    }
    #[inline(always)]
    unsafe fn exp2(a: Self::F) -> Self::F {
        map(a, |a| f32::from_bits(((a as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn bf16_low(a: Self::I) -> Self::F {
        a.map(|a| f32::from_bits((a as u32) << 16))
    }
    #[inline(always)]
    unsafe fn bf16_high(a: Self::I) -> Self::F {
        a.map(|a| f32::from_bits(a as u32 & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn nibble_low(a: Self::I) -> Self::I {
        a.map(|a| a & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn nibble_high(a: Self::I) -> Self::I {
        a.map(|a| (a >> 4) & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I {
        bytes(sum, weights, activations, 128)
    }
    #[inline(always)]
    unsafe fn dot_small(sum: Self::I, weights: Self::I, activations: Self::I) -> Self::I {
        bytes(sum, weights, activations, 0)
    }
}
