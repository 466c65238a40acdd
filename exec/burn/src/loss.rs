//! Cross-entropy over target positions, in chunks, with its gradient computed on the way.
//!
//! A batch's logits over a vocabulary of 50,000 are its largest tensor by far. Here they exist for a few hundred
//! positions at a time and only where there is a target; each chunk leaves behind five numbers a target and its gradient
//! at the hidden states. Logits become that gradient in their own memory where they lie in the host's
//! (`processor/cross_entropy.rs`), by a kernel on a GPU, and else as plain tensors.
//!
//! With a label smoothing ε the target's share of the loss is 1 − ε, and ε is spread over the whole vocabulary of V
//! tokens: (1 − ε)·(−log p_target) + ε/V·Σ −log p (Szegedy et al., arXiv 1512.00567; transformers' `LabelSmoother`).

mod plain;

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::batch::{Batch, IGNORED};
#[cfg(feature = "kernels")]
use crate::kernels;
use crate::model::packed::int_tensor;
use crate::model::parameter::host_values;
use crate::model::{Gradients, Head, Packed};
use crate::processor;
use crate::processor::cross_entropy::Loss;
use crate::spent::{self, Work};

/// The logits alive at a time hold at most this many elements (64 MiB in f32), in forward and again in backward.
pub(crate) const CHUNK_ELEMENTS: usize = 16 << 20;

/// Which packed tokens predict a target, and which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// Indices into the packed tokens.
    pub rows: Vec<i64>,
    /// The token to be predicted there.
    pub ids: Vec<i64>,
}

impl Targets {
    /// Each token predicts its row's next real token, where that is a target.
    pub fn of(batch: &Batch, packed: &Packed) -> Self {
        let mut targets = Self::default();
        for (index, pair) in packed.slots.windows(2).enumerate() {
            let [(row, _), (next_row, next_column)] = [pair[0], pair[1]];
            let label = batch.labels[next_row][next_column];
            if row == next_row && label != IGNORED {
                targets.rows.push(index as i64);
                targets.ids.push(label);
            }
        }
        targets
    }
}

/// Sums over targets; divide by `targets` for means.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSums {
    /// Σ cross-entropy, in nats.
    pub loss: f64,
    /// How many targets have the highest logit.
    pub correct: f64,
    /// Σ entropy of the predicted distributions, in nats.
    pub entropy: f64,
    /// How many targets.
    pub targets: usize,
}

impl std::ops::AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.correct += other.correct;
        self.entropy += other.entropy;
        self.targets += other.targets;
    }
}

impl LossSums {
    fn of(figures: &[Figures], smoothing: f64) -> Self {
        let mut sums = Self { targets: figures.len(), ..Self::default() };
        for figures in figures {
            let target = figures.of_target();
            let all = figures.mean - figures.log_partition;
            sums.loss -= (1.0 - smoothing) * target.log_probability + smoothing * all;
            sums.entropy += target.entropy;
            sums.correct += f64::from(u8::from(target.correct));
        }
        sums
    }
}

/// What is known of one target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetFigures {
    /// Its log-probability, in nats.
    pub log_probability: f64,
    /// The entropy of the predicted distribution, in nats.
    pub entropy: f64,
    /// Whether it has the highest logit.
    pub correct: bool,
}

/// What is known of a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// The target's logit.
    pub target: f64,
    /// log Σ exp(logits).
    pub log_partition: f64,
    /// The highest logit.
    pub highest: f64,
    /// The logit that is expected of a token drawn from the distribution.
    pub expected: f64,
    /// The mean logit.
    pub mean: f64,
}

impl Figures {
    fn of_target(self) -> TargetFigures {
        TargetFigures {
            log_probability: self.target - self.log_partition,
            entropy: self.entropy(),
            correct: self.target >= self.highest,
        }
    }

    /// In nats.
    pub fn entropy(self) -> f64 {
        self.log_partition - self.expected
    }
}

/// Each target by itself, in their order, without gradients.
pub fn each(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets) -> Vec<TargetFigures> {
    chunks(hidden, head, targets).flat_map(|chunk| chunk.figures().into_iter().map(Figures::of_target)).collect()
}

/// Evaluates without gradients, with a label smoothing (0 for none).
pub fn evaluate(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets, smoothing: f64) -> LossSums {
    let mut sums = LossSums::default();
    for chunk in chunks(hidden, head, targets) {
        sums += LossSums::of(&chunk.figures(), smoothing);
    }
    sums
}

/// Evaluates, and returns the gradient at `hidden` of `weight · Σ cross-entropy`; adds the head's gradient if the head
/// is trainable. The mean over all targets of a step has `weight` = 1 / their number.
pub fn backward(
    hidden: &Tensor<2>,
    head: Head<'_>,
    targets: &Targets,
    smoothing: f64,
    weight: f64,
    gradients: &mut Gradients,
) -> (LossSums, Tensor<2>) {
    let mut sums = LossSums::default();
    let mut d_hidden = Tensor::zeros(hidden.dims(), &hidden.device());
    let weights = vec![weight as f32; targets.ids.len()];
    for chunk in chunks(hidden, head, targets) {
        let weights = &weights[..chunk.ids.len()];
        let (figures, slopes) = chunk.gradient(Loss { weights, smoothing });
        sums += LossSums::of(&figures, smoothing);
        d_hidden = slopes.place(d_hidden, gradients);
    }
    (sums, d_hidden)
}

/// The gradient at `hidden` of `−Σ weight · log-probability`, with a weight for each target; adds the head's gradient if
/// the head is trainable. What a loss over [`each`] target's log-probability needs, whatever it is.
pub fn backward_each(
    hidden: &Tensor<2>,
    head: Head<'_>,
    targets: &Targets,
    weights: &[f32],
    gradients: &mut Gradients,
) -> Tensor<2> {
    let mut d_hidden = Tensor::zeros(hidden.dims(), &hidden.device());
    let mut rest = weights;
    for chunk in chunks(hidden, head, targets) {
        let (weights, others) = rest.split_at(chunk.ids.len());
        rest = others;
        let (_, slopes) = chunk.gradient(Loss { weights, smoothing: 0.0 });
        d_hidden = slopes.place(d_hidden, gradients);
    }
    d_hidden
}

/// At each target, in their order, the mean logit over the vocabulary.
pub fn mean_logits(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets) -> Vec<f32> {
    if head.softcap.is_some() {
        let means = |chunk: Chunk<'_>| chunk.figures().into_iter().map(|figures| figures.mean as f32);
        return chunks(hidden, head, targets).flat_map(means).collect();
    }
    // The mean of h·w over all w is h times the mean w.
    let mean_weight = head.weight.value.clone().mean_dim(0).transpose();
    let at_targets = hidden.clone().select(0, int_tensor(targets.rows.clone(), &hidden.device()));
    host_values(at_targets.matmul(mean_weight))
}

/// A few hundred targets at a time.
pub(crate) struct Chunk<'a> {
    rows: Tensor<1, Int>,
    hidden: Tensor<2>,
    head: Head<'a>,
    ids: &'a [i64],
    /// Before the head's cap.
    logits: Tensor<2>,
}

/// The gradient at a chunk's logits, before their cap.
pub(crate) struct Slopes<'a> {
    rows: Tensor<1, Int>,
    hidden: Tensor<2>,
    head: Head<'a>,
    d_logits: Tensor<2>,
}

impl<'a> Chunk<'a> {
    /// Of each target.
    pub fn figures(&self) -> Vec<Figures> {
        let Self { head, ids, logits, .. } = self;
        spent::on(Work::Loss, || {
            if processor::take([logits]) {
                return processor::cross_entropy::figures(logits, ids, head.softcap);
            }
            let capped = head.capped(logits.clone());
            #[cfg(feature = "kernels")]
            if kernels::take([&capped]) {
                return of_rows(&kernels::cross_entropy(&capped, &kernels::indices(ids, &capped.device())));
            }
            plain::figures(&capped, ids)
        })
    }

    /// Of each target, and the gradient at its logits.
    fn gradient(self, loss: Loss<'_>) -> (Vec<Figures>, Slopes<'a>) {
        let Self { rows, hidden, head, ids, logits } = self;
        let (figures, d_logits) = spent::on(Work::Loss, || {
            if processor::take([&logits]) {
                return processor::cross_entropy::gradient(logits, ids, head.softcap, loss);
            }
            let capped = head.capped(logits);
            #[cfg(feature = "kernels")]
            if kernels::take([&capped]) {
                let targets = kernels::indices(ids, &capped.device());
                let figures = kernels::cross_entropy(&capped, &targets);
                // Kept only where it is asked for again: its memory may become the gradient's.
                let kept = head.softcap.map(|_| capped.clone());
                let d = kernels::cross_entropy_backward(capped, &targets, &figures, loss.weights, loss.smoothing);
                let d = match kept {
                    Some(kept) => head.through_cap(&kept, d),
                    None => d,
                };
                return (of_rows(&figures), d);
            }
            let d = plain::gradient(&capped, ids, loss);
            (plain::figures(&capped, ids), head.through_cap(&capped, d))
        });
        (figures, Slopes { rows, hidden, head, d_logits })
    }

    /// A loss whose slopes at the capped logits are made of these: `d_logits` is given them.
    pub fn slopes_of(self, d_logits: impl FnOnce(&Tensor<2>) -> Tensor<2>) -> Slopes<'a> {
        let Self { rows, hidden, head, logits, .. } = self;
        let capped = head.capped(logits);
        let d_logits = head.through_cap(&capped, d_logits(&capped));
        Slopes { rows, hidden, head, d_logits }
    }
}

impl Slopes<'_> {
    /// Puts the gradient at the hidden states into `d_hidden`, and adds the head's if it is trainable.
    pub fn place(self, d_hidden: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        let Self { rows, hidden, head, d_logits } = self;
        let weight = head.weight;
        if weight.trainable {
            let gradient = spent::on(Work::Head, || processor::product(d_logits.clone().transpose(), hidden));
            gradients.add(&weight.name, gradient);
        }
        let d = spent::on(Work::Head, || processor::product(d_logits, weight.value.clone()));
        // Each row occurs once, so adding to zero is placing.
        d_hidden.select_assign(0, rows, d, IndexingUpdateOp::Add)
    }
}

/// The targets in chunks whose logits fit [`CHUNK_ELEMENTS`].
pub(crate) fn chunks<'a>(
    hidden: &'a Tensor<2>,
    head: Head<'a>,
    targets: &'a Targets,
) -> impl Iterator<Item = Chunk<'a>> + 'a {
    let size = (CHUNK_ELEMENTS / head.weight.shape[0].max(1)).max(1);
    let device = hidden.device();
    targets.rows.chunks(size).zip(targets.ids.chunks(size)).map(move |(rows, ids)| {
        let rows = int_tensor(rows.to_vec(), &device);
        let hidden = hidden.clone().select(0, rows.clone());
        let logits = spent::on(Work::Head, || head.before_cap(hidden.clone()));
        Chunk { rows, hidden, head, ids, logits }
    })
}

/// Figures as a kernel writes them, a row each.
#[cfg(feature = "kernels")]
fn of_rows(figures: &Tensor<2>) -> Vec<Figures> {
    let of = |row: &[f32]| {
        let [target, log_partition, highest, expected, mean] =
            std::array::from_fn(|index| row.get(index).map_or(0.0, |figure| f64::from(*figure)));
        Figures { target, log_partition, highest, expected, mean }
    };
    host_values(figures.clone()).chunks(mloc_kernels::cross_entropy::FIGURES).map(of).collect()
}

#[cfg(test)]
mod tests;
