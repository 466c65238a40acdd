//! Cross-entropy of a chunk of logits: what is known of each row in one pass, and the gradient in a second.
//!
//! The logits of a batch never exist at once: a chunk of them comes out of a matrix product, is read here once for the
//! figures, and becomes its own gradient in place. With `Z = Σ exp(l)` the figures of a row are the target's logit,
//! `log Z`, the highest logit, the expected logit `Σ p·l` (whence the entropy, `log Z − Σ p·l`) and the mean logit (for
//! smoothed labels). Z is summed online (Milakov and Gimelshein, arXiv 1805.02867). The gradient at the logits of
//! `(1 − ε)·(−log p_target) + ε/V·Σ −log p`, times the row's weight, is
//! `weight · (exp(l − log Z) − (1 − ε)·[target] − ε/V)`.
//!
//! A cube has a row. Memory traffic of elements of b bytes: b bytes a logit for the figures, 2·b for the gradient, both
//! the minimum while logits come out of a product of its own; as separate operations it was 11·b and 5·b. A product that
//! kept its tiles of logits on the chip would save the rest and needs tensor cores to pay.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::buffer::{Buffer, Team, cubes, vector_size};
use crate::reduce::{cube_max, cube_sum, lane_sum};

/// A chunk of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logits {
    /// Positions.
    pub rows: usize,
    /// Logits of each.
    pub vocabulary: usize,
    /// The type of the logits; f32, f16 or bf16.
    pub dtype: ElemType,
}

/// The figures of a row, in this order: the target's logit, log Σ exp(logits), the highest, the expected and the mean one.
pub const FIGURES: usize = 5;

/// Writes the figures of each row to `figures`, f32, `[rows, 5]`. `targets` are u32, `[rows]`.
pub fn figures(client: &Client, logits: &Buffer, targets: &Buffer, figures: &Buffer, shape: Logits) {
    let vector = vector_size(shape.vocabulary, shape.dtype);
    let team = Team::new(client, shape.vocabulary / vector);
    figures_kernel::launch(
        client,
        cubes(shape.rows),
        team.dim(),
        vector,
        logits.argument(),
        targets.argument(),
        figures.argument(),
        shape.rows,
        shape.vocabulary / vector,
        team.units,
        team.planes,
        shape.dtype,
    );
}

/// Writes the gradient at the logits to `d_logits`, which may be `logits`, given the [`figures`] and a weight for each row,
/// f32, `[rows]`.
#[expect(clippy::too_many_arguments, reason = "five tensors and how to join them")]
pub fn gradient(
    client: &Client,
    logits: &Buffer,
    targets: &Buffer,
    figures: &Buffer,
    weights: &Buffer,
    d_logits: &Buffer,
    smoothing: f32,
    shape: Logits,
) {
    let vector = vector_size(shape.vocabulary, shape.dtype);
    let team = Team::new(client, shape.vocabulary / vector);
    gradient_kernel::launch(
        client,
        cubes(shape.rows),
        team.dim(),
        vector,
        logits.argument(),
        targets.argument(),
        figures.argument(),
        weights.argument(),
        d_logits.argument(),
        1.0 - smoothing,
        smoothing / shape.vocabulary as f32,
        shape.rows,
        shape.vocabulary / vector,
        team.units,
        shape.dtype,
    );
}

/// Below every logit, and still finite: a difference of two infinities would be no number.
const LOWEST: f32 = -1e30;

#[cube(launch)]
fn figures_kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[u32],
    figures: &mut [f32],
    rows: usize,
    vectors: usize,
    #[comptime] units: u32,
    #[comptime] planes: bool,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * vectors;
        // Of what this unit has seen: the highest logit, and Σ exp(l − highest) and Σ l·exp(l − highest), lane by lane.
        let mut highest = Vector::<f32, N>::new(LOWEST);
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut weighted = Vector::<f32, N>::new(0.0);
        let mut plain = Vector::<f32, N>::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let l = Vector::<f32, N>::cast_from(logits[start + i]);
            let higher = max(highest, l);
            let shrink = (highest - higher).exp();
            let e = (l - higher).exp();
            sum = sum * shrink + e;
            weighted = weighted * shrink + e * l;
            plain += l;
            highest = higher;
            i += units as usize;
        }
        let mut own = f32::new(LOWEST);
        #[unroll]
        for lane in 0..N::value() {
            own = max(own, highest.extract(lane));
        }
        let top = cube_max(own, units, planes);
        let shrink = (highest - Vector::new(top)).exp();
        let total = cube_sum(lane_sum(sum * shrink), units, planes);
        let expected = cube_sum(lane_sum(weighted * shrink), units, planes) / total;
        let mean = cube_sum(lane_sum(plain), units, planes) / f32::cast_from(vectors * N::value());
        if UNIT_POS == 0 {
            let target = targets[row] as usize;
            let vector = Vector::<f32, N>::cast_from(logits[start + target / N::value()]);
            let mut at_target = 0.0f32;
            #[unroll]
            for lane in 0..N::value() {
                if target % N::value() == lane {
                    at_target = vector.extract(lane);
                }
            }
            let at = row * 5;
            figures[at] = at_target;
            figures[at + 1] = top + total.ln();
            figures[at + 2] = top;
            figures[at + 3] = expected;
            figures[at + 4] = mean;
        }
    }
}

#[cube(launch)]
fn gradient_kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[u32],
    figures: &[f32],
    weights: &[f32],
    d_logits: &mut [Vector<F, N>],
    share_of_target: f32,
    share_of_each: f32,
    rows: usize,
    vectors: usize,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * vectors;
        let target = targets[row] as usize;
        let log_partition = Vector::<f32, N>::new(figures[row * 5 + 1]);
        let weight = Vector::<f32, N>::new(weights[row]);
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let l = Vector::<f32, N>::cast_from(logits[start + i]);
            let mut d = (l - log_partition).exp() - Vector::new(share_of_each);
            if target / N::value() == i {
                #[unroll]
                for lane in 0..N::value() {
                    if target % N::value() == lane {
                        d.insert(lane, d.extract(lane) - share_of_target);
                    }
                }
            }
            d_logits[start + i] = Vector::cast_from(d * weight);
            i += units as usize;
        }
    }
}
