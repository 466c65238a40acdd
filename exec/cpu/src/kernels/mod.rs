//! Kernels, each written once over sixteen lanes and compiled for every instruction set.
//!
//! ```text
//! lanes        what a kernel needs of a processor   avx512, avx2, portable implement it
//! product      panels of weights × rows of activations
//! elementwise  norms, quantisation, gates
//! attention    queries over cached positions
//! ```
#![expect(unsafe_code, reason = "vector instructions and raw rows; each function says what it needs")]
#![allow(
    clippy::needless_range_loop,
    reason = "iterators and closures aren't inlined into functions with target features; loops over an index are"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "kernels are unsafe from end to end; a block around each line says nothing")]

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
pub(crate) mod lanes;
mod portable;
pub(crate) mod product;
#[cfg(test)]
mod tests;

use crate::{architecture::Activation, isa::Isa, matrix::Format};
use attention::{Attend, State};
use product::{Bf16, F16, F32, Int4, Int8, Product, Uint4};

/// The kernels for one instruction set.
///
/// All are unsafe: pointers as each says, and a processor with the instruction set, which [`Kernels::of`] has checked.
pub(crate) struct Kernels {
    /// Weights in f32.
    pub f32: unsafe fn(&Product),
    /// Weights in bf16.
    pub bf16: unsafe fn(&Product),
    /// Weights in f16.
    pub f16: unsafe fn(&Product),
    /// Weights in bytes.
    pub int8: unsafe fn(&Product),
    /// Weights in nibbles.
    pub int4: unsafe fn(&Product),
    /// Weights in nibbles above a minimum.
    pub uint4: unsafe fn(&Product),
    /// Cache in f32.
    pub attend_f32: unsafe fn(&Attend<'_>),
    /// Cache in f16.
    pub attend_f16: unsafe fn(&Attend<'_>),
    /// See [`attention::merge`].
    pub merge: unsafe fn(&State, &State, usize),
    /// See [`elementwise::gate`].
    pub gate: unsafe fn(Activation, usize, *const f32, *mut f32, usize),
    /// See [`elementwise::soft_cap`].
    pub soft_cap: unsafe fn(f32, *mut f32, usize),
    /// See [`elementwise::rms_norm`].
    pub rms_norm: unsafe fn(*const f32, *const f32, f32, *mut f32, usize, usize),
    /// See [`elementwise::quantise`].
    pub quantise: unsafe fn(*const f32, usize, *mut i8, *mut f32, *mut i32),
}

impl Kernels {
    /// The product with weights of a format.
    pub(crate) fn product(&self, format: Format) -> unsafe fn(&Product) {
        match format {
            Format::F32 => self.f32,
            Format::Bf16 => self.bf16,
            Format::F16 => self.f16,
            Format::Int8 => self.int8,
            Format::Int4 => self.int4,
            Format::Uint4 => self.uint4,
        }
    }

    /// The kernels for an instruction set that this processor has.
    pub(crate) fn of(isa: Isa) -> &'static Self {
        assert!(isa.is_available(), "this processor has no {isa:?}");
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512_kernels::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2_kernels::KERNELS,
            _ => &portable_kernels::KERNELS,
        }
    }
}

macro_rules! kernels {
    ($module:ident, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;
            pub(super) static KERNELS: Kernels = Kernels {
                f32, bf16, f16, int8, int4, uint4, attend_f32, attend_f16, merge, gate, soft_cap, rms_norm, quantise,
            };
            $(#[target_feature(enable = $features)])?
            unsafe fn f32(p: &Product) { product::floats::<$lanes, F32>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn bf16(p: &Product) { product::floats::<$lanes, Bf16>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn f16(p: &Product) { product::floats::<$lanes, F16>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn int8(p: &Product) { product::integers::<$lanes, Int8>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn int4(p: &Product) { product::integers::<$lanes, Int4>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn uint4(p: &Product) { product::integers::<$lanes, Uint4>(p) }
            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f32(a: &Attend<'_>) { attention::attend::<$lanes, F32>(a) }
            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f16(a: &Attend<'_>) { attention::attend::<$lanes, F16>(a) }
            $(#[target_feature(enable = $features)])?
            unsafe fn merge(into: &State, from: &State, rows: usize) { attention::merge::<$lanes>(into, from, rows) }
            $(#[target_feature(enable = $features)])?
            unsafe fn gate(activation: Activation, tokens: usize, from: *const f32, out: *mut f32, stride: usize) {
                elementwise::gate::<$lanes>(activation, tokens, from, out, stride)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn soft_cap(cap: f32, x: *mut f32, n: usize) { elementwise::soft_cap::<$lanes>(cap, x, n) }
            $(#[target_feature(enable = $features)])?
            unsafe fn rms_norm(x: *const f32, weight: *const f32, epsilon: f32, out: *mut f32, width: usize, n: usize) {
                elementwise::rms_norm::<$lanes>(x, weight, epsilon, out, width, n)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn quantise(x: *const f32, n: usize, to: *mut i8, scales: *mut f32, sums: *mut i32) {
                elementwise::quantise::<$lanes>(x, n, to, scales, sums)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512_kernels, avx512::Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(avx2_kernels, avx2::Avx2, "avx2,fma,f16c");
kernels!(portable_kernels, portable::Portable);
