//! Learning from pairs of answers, one chosen and one rejected.
//!
//! ```text
//! losses   what a pair's two log-ratios cost, and how steeply
//! dpo      direct preference optimisation: those losses over the log-probabilities of completions
//! reward   a reward model: Bradley and Terry's loss over the scores of whole texts
//! ```
//! A batch holds the rows of the chosen answers first, then those of the rejected ones in the same order.

pub mod dpo;
pub mod losses;
pub mod reward;

pub use dpo::{Dpo, DpoBatch, Reference};
pub use losses::{PairLoss, Preference};
pub use reward::{BradleyTerry, RewardBatch};

use crate::batch::Batch;
use crate::objective::check_rows;
use crate::train::TrainError;

/// Whether rows are pairs that fit a vocabulary, each with at least one real token.
fn check_pairs(rows: &Batch, vocab_size: usize) -> Result<(), TrainError> {
    check_rows(rows, vocab_size)?;
    let count = rows.input_ids.len();
    if !count.is_multiple_of(2) {
        return Err(TrainError::Batch { row: count - 1, problem: format!("{count} rows are no pairs") });
    }
    match rows.attention_mask.iter().position(|mask| mask.iter().all(|m| *m == 0)) {
        Some(row) => Err(TrainError::Batch { row, problem: "it has no tokens".into() }),
        None => Ok(()),
    }
}

/// ln σ(x), without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ(x), without overflow.
fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// The mean of the values; 0 of none.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.fold(0.0, |sum, value| sum + value) / count
}
