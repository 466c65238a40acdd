//! Rows of logits: what is known of each, and the gradient at them in their own memory. A row is read, made exponentials and
//! made its gradient while it is in a thread's cache.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Values;
use super::lanes::{LANES, exp, filled, highest, total, wide};
use crate::loss::Figures;

/// Elements whose sums are taken in f32; those of a row are added up in f64.
const BLOCK: usize = 64 * LANES;
/// In place of what a row lacks at its end: e to its power is 0, and 0 times it too.
const LOWEST: f32 = -1e30;

/// What the gradient is of: Σ weight · ((1 − smoothing)·(−log p of the target) + smoothing·mean(−log p)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss<'a> {
    /// One a row.
    pub weights: &'a [f32],
    pub smoothing: f64,
}

/// The figures of each row of `logits`, `[rows, vocabulary]`, capped to ±`softcap` if there is one.
pub(crate) fn figures(logits: &Tensor<2>, targets: &[i64], softcap: Option<f64>) -> Vec<Figures> {
    let [_, vocabulary] = logits.dims();
    let logits = Values::of(logits.clone());
    let rows = logits.slice().par_chunks(vocabulary).zip(targets);
    let of = |row: &mut Vec<f32>, (logits, target): (&[f32], &i64)| {
        row.clear();
        row.extend_from_slice(logits);
        cap(row, softcap);
        Row::look(row, *target as usize).figures
    };
    rows.map_init(Vec::new, of).collect()
}

/// The same, and the gradient at the logits before their cap, in their memory.
pub(crate) fn gradient(
    logits: Tensor<2>,
    targets: &[i64],
    softcap: Option<f64>,
    loss: Loss<'_>,
) -> (Vec<Figures>, Tensor<2>) {
    let [_, vocabulary] = logits.dims();
    let mut logits = Values::of(logits);
    let rows = logits.slice_mut().par_chunks_mut(vocabulary).zip(targets).zip(loss.weights);
    let share_of_target = (1.0 - loss.smoothing) as f32;
    let share_of_each = (loss.smoothing / vocabulary as f64) as f32;
    let of = |capped: &mut Vec<f32>, ((row, target), weight): ((&mut [f32], &i64), &f32)| {
        let target = *target as usize;
        cap(row, softcap);
        if softcap.is_some() {
            capped.clear();
            capped.extend_from_slice(row);
        }
        let Row { figures, sum } = Row::look(row, target);
        slope(row, (f64::from(*weight) / sum) as f32, weight * share_of_each);
        row[target] -= weight * share_of_target;
        if let Some(cap) = softcap {
            through_cap(row, capped, cap as f32);
        }
        figures
    };
    let figures = rows.map_init(Vec::new, of).collect();
    (figures, logits.tensor())
}

struct Row {
    figures: Figures,
    /// Σ e^(l − highest).
    sum: f64,
}

impl Row {
    /// Looks at a row, whose elements become e^(l − highest).
    fn look(row: &mut [f32], target: usize) -> Self {
        let vocabulary = row.len() as f64;
        let at_target = f64::from(row[target]);
        let mut sums = Sums::default();
        exponentials(row, &mut sums);
        let Sums { highest, exponentials, weighted, plain } = sums;
        let highest = f64::from(highest);
        let figures = Figures {
            target: at_target,
            log_partition: highest + exponentials.ln(),
            highest,
            expected: weighted / exponentials,
            mean: plain / vocabulary,
        };
        Self { figures, sum: exponentials }
    }
}

#[derive(Default)]
struct Sums {
    highest: f32,
    exponentials: f64,
    /// Σ l·e^(l − highest).
    weighted: f64,
    plain: f64,
}

/// `c·tanh(l/c)`.
fn cap(row: &mut [f32], softcap: Option<f64>) {
    if let Some(cap) = softcap.map(|cap| cap as f32) {
        row.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
    }
}

wide! {
    fn exponentials<'a>(row: &'a mut [f32], sums: &'a mut Sums) {
        let top = highest(row);
        sums.highest = top;
        for block in row.chunks_mut(BLOCK) {
            let (mut each, mut weighted, mut plain) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            let (whole, rest) = block.as_chunks_mut::<LANES>();
            for logits in whole {
                for lane in 0..LANES {
                    let l = logits[lane];
                    let e = exp(l - top);
                    each[lane] += e;
                    weighted[lane] += l * e;
                    plain[lane] += l;
                    logits[lane] = e;
                }
            }
            if !rest.is_empty() {
                let last = filled(rest, LOWEST);
                let mut exps = [0.0; LANES];
                for lane in 0..LANES {
                    exps[lane] = exp(last[lane] - top);
                    each[lane] += exps[lane];
                    weighted[lane] += last[lane] * exps[lane];
                }
                for (lane, logit) in rest.iter().enumerate() {
                    plain[lane] += logit;
                }
                rest.copy_from_slice(&exps[..rest.len()]);
            }
            sums.exponentials += f64::from(total(each));
            sums.weighted += f64::from(total(weighted));
            sums.plain += f64::from(total(plain));
        }
    }
}

wide! {
    fn slope<'a>(row: &'a mut [f32], share: f32, minus: f32) {
        for e in row {
            *e = *e * share - minus;
        }
    }
}

wide! {
    /// tanh' = 1 − tanh²
    fn through_cap<'a>(row: &'a mut [f32], capped: &'a [f32], cap: f32) {
        for (d, logit) in row.iter_mut().zip(capped) {
            let between = logit / cap;
            *d *= 1.0 - between * between;
        }
    }
}
