//! Reciprocal-rank fusion: ranks are compared where scores can't be.

use serde::{Deserialize, Serialize};

/// The constant of the formula: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
/// Rank Learning Methods", SIGIR 2009, found 60 by trial and results insensitive to it.
pub const K: f32 = 60.0;

/// What one arm says of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// From 1.
    pub rank: u32,
    /// The arm's own: cosine, or BM25.
    pub score: f32,
}

/// The sum over arms of `1 / (60 + rank)`.
pub fn fused(arms: &[Option<Arm>]) -> f32 {
    arms.iter().flatten().map(|arm| 1.0 / (K + arm.rank as f32)).sum()
}
