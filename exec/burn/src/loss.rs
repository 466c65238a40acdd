//! Cross-entropy over target positions, in chunks, with its gradient computed on the way.
//!
//! A batch's logits over a vocabulary of 50,000 are its largest tensor by far. Here they exist for a few hundred
//! positions at a time and only where there is a target; each chunk leaves behind three numbers and its gradient at
//! the hidden states.
//!
//! With a label smoothing ε the target's share of the loss is 1 − ε, and ε is spread over the whole vocabulary of V
//! tokens: (1 − ε)·(−log p_target) + ε/V·Σ −log p (Szegedy et al., arXiv 1512.00567; transformers' `LabelSmoother`).

use burn::tensor::activation::softmax;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::batch::{Batch, IGNORED};
use crate::model::packed::int_tensor;
use crate::model::parameter::{host_values, matrix};
use crate::model::{Gradients, Head, Packed};

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

/// Each target by itself, in their order, without gradients.
pub fn each(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets) -> Vec<TargetFigures> {
    chunks(hidden, head, targets, 0.0)
        .flat_map(|chunk| chunk.figures().into_iter().map(|(figures, _)| figures))
        .collect()
}

/// Evaluates without gradients, with a label smoothing (0 for none).
pub fn evaluate(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets, smoothing: f64) -> LossSums {
    let mut sums = LossSums::default();
    for chunk in chunks(hidden, head, targets, smoothing) {
        sums += chunk.sums(smoothing);
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
    for chunk in chunks(hidden, head, targets, smoothing) {
        sums += chunk.sums(smoothing);
        d_hidden = chunk.backward(head, smoothing, |x| x.mul_scalar(weight), d_hidden, gradients);
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
    for chunk in chunks(hidden, head, targets, 0.0) {
        let (own, others) = rest.split_at(chunk.rows.dims()[0]);
        rest = others;
        let column = matrix(own.to_vec(), &[own.len(), 1], &hidden.device());
        d_hidden = chunk.backward(head, 0.0, |x| x * column.clone(), d_hidden, gradients);
    }
    d_hidden
}

/// At each target, in their order, the mean logit over the vocabulary.
pub fn mean_logits(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets) -> Vec<f32> {
    if head.softcap.is_some() {
        return chunks(hidden, head, targets, 0.0)
            .filter_map(|chunk| chunk.logits)
            .flat_map(|logits| host_values(logits.mean_dim(1)))
            .collect();
    }
    // The mean of h·w over all w is h times the mean w.
    let mean_weight = head.weight.value.clone().mean_dim(0).transpose();
    let at_targets = hidden.clone().select(0, int_tensor(targets.rows.clone(), &hidden.device()));
    host_values(at_targets.matmul(mean_weight))
}

/// A few hundred targets at a time.
pub(crate) struct Chunk {
    rows: Tensor<1, Int>,
    hidden: Tensor<2>,
    ids: Tensor<2, Int>,
    /// Where the head caps them.
    logits: Option<Tensor<2>>,
    pub(crate) probabilities: Tensor<2>,
    /// Per position: logit of the target, highest logit, highest probability, expected logit, and the mean logit where
    /// labels are smoothed.
    columns: Tensor<2>,
}

impl Chunk {
    /// What is known of each target, and the mean of the log-probabilities of all tokens there where labels are smoothed.
    pub(crate) fn figures(&self) -> Vec<(TargetFigures, f64)> {
        let [_, width] = self.columns.dims();
        let of = |row: &[f32]| {
            let column = |index: usize| row.get(index).map_or(0.0, |value| f64::from(*value));
            let [target, highest, highest_probability, expected, mean] = std::array::from_fn(column);
            // log Σ exp(logits): the highest probability is at least 1/vocabulary, so its logarithm is exact,
            // which the target's own probability would not be.
            let log_partition = highest - highest_probability.ln();
            let figures = TargetFigures {
                log_probability: target - log_partition,
                entropy: log_partition - expected,
                correct: target >= highest,
            };
            (figures, mean - log_partition)
        };
        host_values(self.columns.clone()).chunks(width).map(of).collect()
    }

    fn sums(&self, smoothing: f64) -> LossSums {
        let mut sums = LossSums::default();
        for (target, all) in self.figures() {
            sums.loss -= (1.0 - smoothing) * target.log_probability + smoothing * all;
            sums.entropy += target.entropy;
            sums.correct += f64::from(u8::from(target.correct));
            sums.targets += 1;
        }
        sums
    }

    /// Puts the gradient at this chunk's hidden states into `d_hidden`; `weigh` multiplies a target's row by its weight.
    fn backward(
        self,
        head: Head<'_>,
        smoothing: f64,
        weigh: impl Fn(Tensor<2>) -> Tensor<2>,
        d_hidden: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let Chunk { rows, hidden, ids, logits, probabilities, .. } = self;
        let [count, vocabulary] = probabilities.dims();
        // d/dlogits of −log softmax = softmax − one-hot. The weight goes onto the narrow factors: one pass less over the
        // widest tensor there is.
        let minus = Tensor::full([count, 1], smoothing - 1.0, &hidden.device());
        let mut d_logits = probabilities.scatter(1, ids, minus, IndexingUpdateOp::Add);
        if smoothing > 0.0 {
            d_logits = d_logits.sub_scalar(smoothing / vocabulary as f64);
        }
        place(head, Below { rows, hidden, logits }, d_logits, weigh, d_hidden, gradients)
    }

    /// As a loss whose slopes at the logits are made of the probabilities: `d_logits` is given these.
    pub(crate) fn backward_of(
        self,
        head: Head<'_>,
        d_logits: impl FnOnce(Tensor<2>) -> Tensor<2>,
        d_hidden: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let Chunk { rows, hidden, logits, probabilities, .. } = self;
        place(head, Below { rows, hidden, logits }, d_logits(probabilities), |x| x, d_hidden, gradients)
    }
}

/// What is below a chunk's logits.
struct Below {
    rows: Tensor<1, Int>,
    hidden: Tensor<2>,
    logits: Option<Tensor<2>>,
}

/// Puts the gradient at the hidden states into `d_hidden`, and adds the head's if it is trainable.
fn place(
    head: Head<'_>,
    Below { rows, hidden, logits }: Below,
    mut d_logits: Tensor<2>,
    weigh: impl Fn(Tensor<2>) -> Tensor<2>,
    d_hidden: Tensor<2>,
    gradients: &mut Gradients,
) -> Tensor<2> {
    if let Some(logits) = logits {
        d_logits = head.through_cap(&logits, d_logits);
    }
    let weight = head.weight;
    if weight.trainable {
        gradients.add(&weight.name, d_logits.clone().transpose().matmul(weigh(hidden)));
    }
    let d = weigh(d_logits.matmul(weight.value.clone()));
    // Each row occurs once, so adding to zero is placing.
    d_hidden.select_assign(0, rows, d, IndexingUpdateOp::Add)
}

/// The targets in chunks whose logits fit [`CHUNK_ELEMENTS`].
pub(crate) fn chunks<'a>(
    hidden: &'a Tensor<2>,
    head: Head<'a>,
    targets: &'a Targets,
    smoothing: f64,
) -> impl Iterator<Item = Chunk> + 'a {
    let size = (CHUNK_ELEMENTS / head.weight.shape[0].max(1)).max(1);
    let device = hidden.device();
    targets.rows.chunks(size).zip(targets.ids.chunks(size)).map(move |(rows, ids)| {
        let rows = int_tensor(rows.to_vec(), &device);
        let ids = int_tensor(ids.to_vec(), &device).reshape([ids.len(), 1]);
        let hidden = hidden.clone().select(0, rows.clone());
        let logits = head.logits(hidden.clone());
        let probabilities = softmax(logits.clone(), 1);
        let mean = (smoothing > 0.0).then(|| logits.clone().mean_dim(1));
        let mut columns = vec![
            logits.clone().gather(1, ids.clone()),
            logits.clone().max_dim(1),
            probabilities.clone().max_dim(1),
            (logits.clone() * probabilities.clone()).sum_dim(1),
        ];
        columns.extend(mean);
        let logits = head.softcap.map(|_| logits);
        Chunk { rows, hidden, ids, logits, probabilities, columns: Tensor::cat(columns, 1) }
    })
}
