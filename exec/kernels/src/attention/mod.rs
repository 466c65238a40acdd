//! Attention without a matrix of scores in memory (Dao et al., arXiv 2205.14135), forward and backward.
//!
//! Grouped queries, causal, with or without a window, over any number of texts at once: which keys a query sees is a range
//! of its own, [`Sight`], so that packed texts, continuations of cached ones and windows are the same case. Queries are
//! `[queries, heads · dim]`, keys and values `[keys, kv heads · dim]`, as linear layers leave them.
//!
//! A cube of 16 × 16 units has a tile of queries of one head (in the gradients at keys and values: a tile of keys) and
//! runs over the keys that any of them sees, tile by tile, through shared memory. A unit has 1/16 of the rows by 1/16 of
//! the columns of each product, in registers. Tiles are as large as shared memory allows, at most 64 × 64. (On devices with
//! very little of it, and wide heads, a cube has fewer units.)
//!
//! With n queries and keys of a head, elements of b bytes and tiles of t rows, forward reads q and writes the result once,
//! and reads k and v n/t times (half of that where causal), of which the second-level cache takes most: the minimum is
//! 4·n·dim·b. Scores would be 4·n² bytes for each of five passes. Arithmetic is in f32 without tensor cores: it, not
//! memory, bounds these kernels on a device that has them.

pub(crate) mod backward;
pub(crate) mod forward;
mod sight;
mod tile;

pub use backward::{Gradients, backward};
pub use forward::forward;
pub use sight::{Sight, SightBuffers};

use cubecl::prelude::ElemType;

use crate::Buffer;

/// Queries, keys and values.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// `[queries, heads · dim]`.
    pub q: Buffer,
    /// `[keys, kv_heads · dim]`.
    pub k: Buffer,
    /// As k.
    pub v: Buffer,
    /// What each query sees.
    pub sight: SightBuffers,
}

/// The sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Heads of q; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Elements of a head; at most [`MOST_DIM`].
    pub dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// The type of the elements; f32, f16 or bf16.
    pub dtype: ElemType,
}

/// The widest heads there may be, in elements: the sums of a wider one would not fit a unit's registers.
pub const MOST_DIM: usize = 256;
