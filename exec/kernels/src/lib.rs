//! GPU kernels for what a language model spends its time on, where fused operations of a tensor library fall short.
//!
//! Each kernel is written once, in cubecl's `#[cube]`, and runs on every runtime of cubecl: CUDA in production, any Vulkan
//! driver (a software one too) in this crate's tests. The crate knows tensors only as [`Buffer`]s: contiguous, row-major.
//! What a kernel computes is defined by a plain twin: operations on tensors in `mloc-burn`, loops over slices in `tests/`.
//!
//! - [`rms_norm`], [`rope`], [`swiglu`]: one pass over memory instead of one for each operation;
//! - [`cross_entropy`]: figures and gradient of a chunk of logits, each in one pass;
//! - [`four_bit`]: weights in 4-bit codes, unpacked, or multiplied by a few rows without being unpacked;
//! - [`attention`]: forward and backward without a matrix of scores in memory;
//! - [`paged`]: attention of new tokens over keys and values in blocks, as serving has them, and what writes those;
//! - `reduce`: sums and maxima over the units of a cube.
//!
//! What is known of them: results on Vulkan in software (`tests/`), and that each compiles to machine code of sm_80 and
//! sm_90a without spilling registers to speak of (`.ci/kernels`). Unrun: any of them on a GPU; no time was ever measured.
//!
//! Sums are in f32, whatever the elements are. Deliberately absent: products on tensor cores (`cmma`), which no software
//! driver can run; a choice of tiles by measurement; atomics (results do not depend on the order of execution).

#![cfg(feature = "cubecl")]

pub mod attention;
mod buffer;
pub mod cross_entropy;
pub mod four_bit;
pub mod paged;
mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

pub use buffer::Buffer;
