//! Direct preference optimisation (arXiv 2305.18290).
//!
//! A row's log-probability is the sum over its completion; the gradient of the loss at it, a number a row, is the weight
//! of each of the row's tokens in an ordinary cross-entropy backward pass.

use burn::tensor::{Device, Tensor};

use super::losses::{Preference, Side};
use super::{check_pairs, mean};
use crate::batch::Batch;
use crate::loss::{self, Targets};
use crate::model::{Decoder, Head, Packed};
use crate::objective::{BatchReport, Evaluate, Evaluation, Figures, Objective, Pass};
use crate::train::TrainError;

/// Pairs as rows: the chosen ones, then the rejected ones.
#[derive(Debug, Clone)]
pub struct DpoBatch {
    /// Labels are the completions' tokens.
    pub rows: Batch,
    /// Each row's log-probability under the reference, where it was computed before.
    pub reference: Option<Vec<f64>>,
}

/// What the policy is compared with.
#[derive(Debug, Clone)]
pub enum Reference {
    /// Nothing: a log-ratio is the policy's log-probability.
    Free,
    /// The log-probabilities that batches bring along.
    Precomputed,
    /// A frozen model, on each device that the policy is trained on. A clone of the policy made before its first step
    /// shares what is never trained.
    Models(Vec<Decoder>),
}

/// The objective.
#[derive(Debug, Clone)]
pub struct Dpo {
    /// The loss of a pair.
    pub preference: Preference,
    /// What the policy is compared with.
    pub reference: Reference,
    /// Whether adapters drop elements in training; the reference never does.
    pub dropout: bool,
}

/// Each row's log-probability: the sum over its targets.
///
/// # Errors
/// [`TrainError::Batch`], and [`TrainError::Interrupted`] when `stop` says so.
pub fn log_probabilities(model: &Decoder, rows: &Batch, stop: &dyn Fn() -> bool) -> Result<Vec<f64>, TrainError> {
    crate::objective::check_rows(rows, model.config.vocab_size)?;
    let packed = Packed::new(rows, &model.config, model.device());
    let targets = Targets::of(rows, &packed);
    let mut go_on = || if stop() { Err(TrainError::Interrupted) } else { Ok(()) };
    let hidden = model.hidden_unless(&packed, &mut go_on)?;
    let mut sums = vec![0.0; rows.input_ids.len()];
    for (index, target) in targets.rows.iter().zip(loss::each(&hidden, model.head(), &targets)) {
        sums[packed.slots[*index as usize].0] += target.log_probability;
    }
    Ok(sums)
}

/// A row's sums over its completion.
#[derive(Debug, Clone, Copy, Default)]
struct RowSums {
    tokens: f64,
    log_probability: f64,
    entropy: f64,
    correct: f64,
    /// Of the mean logit over the vocabulary.
    logits: f64,
}

fn sums_by_row(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets, packed: &Packed, rows: usize) -> Vec<RowSums> {
    let logits = loss::mean_logits(hidden, head, targets);
    let mut sums = vec![RowSums::default(); rows];
    let each = loss::each(hidden, head, targets);
    for ((index, target), logit) in targets.rows.iter().zip(each).zip(logits) {
        let row = &mut sums[packed.slots[*index as usize].0];
        row.tokens += 1.0;
        row.log_probability += target.log_probability;
        row.entropy += target.entropy;
        row.correct += f64::from(u8::from(target.correct));
        row.logits += f64::from(logit);
    }
    sums
}

/// What a batch came to.
struct Judged {
    /// The mean over pairs.
    loss: f64,
    /// The derivative of that mean by each row's log-probability.
    slopes: Vec<f64>,
    figures: Figures,
}

impl Dpo {
    /// The log-probability of each row under the reference, computed on `device`.
    fn reference_of(&self, batch: &DpoBatch, device: &Device, stop: &dyn Fn() -> bool) -> Result<Vec<f64>, TrainError> {
        let rows = batch.rows.input_ids.len();
        match (&self.reference, &batch.reference) {
            (Reference::Free, _) => Ok(vec![0.0; rows]),
            (Reference::Models(models), _) => match models.iter().find(|model| model.device() == device) {
                Some(model) => log_probabilities(model, &batch.rows, stop),
                None => Err(TrainError::Batch { row: 0, problem: format!("there is no reference on {device:?}") }),
            },
            (Reference::Precomputed, Some(values)) if values.len() == rows => Ok(values.clone()),
            (Reference::Precomputed, _) => {
                let problem = "it has no log-probability under the reference".to_owned();
                Err(TrainError::Batch { row: 0, problem })
            }
        }
    }

    fn judge(&self, sums: &[RowSums], reference: &[f64]) -> Judged {
        let pairs = sums.len() / 2;
        let side = |row: usize| Side {
            log_ratio: sums[row].log_probability - reference[row],
            tokens: sums[row].tokens.max(1.0),
        };
        let mut loss = 0.0;
        let mut slopes = vec![0.0; sums.len()];
        for pair in 0..pairs {
            let cost = self.preference.cost(side(pair), side(pairs + pair));
            loss += cost.loss / pairs as f64;
            slopes[pair] = cost.by_chosen / pairs as f64;
            slopes[pairs + pair] = cost.by_rejected / pairs as f64;
        }
        let reward = |row: usize| self.preference.beta * side(row).log_ratio;
        let (chosen, rejected) = sums.split_at(pairs);
        let share = |rows: &[RowSums], of: fn(&RowSums) -> f64| {
            let tokens = rows.iter().fold(0.0, |sum, row| sum + row.tokens).max(1.0);
            rows.iter().fold(0.0, |sum, row| sum + of(row)) / tokens
        };
        let of_pairs = |of: &dyn Fn(usize) -> f64| mean((0..pairs).map(of));
        let figures = [
            ("rewards/chosen", of_pairs(&reward)),
            ("rewards/rejected", of_pairs(&|pair| reward(pairs + pair))),
            ("rewards/margins", of_pairs(&|pair| reward(pair) - reward(pairs + pair))),
            ("rewards/accuracies", of_pairs(&|pair| f64::from(u8::from(reward(pair) > reward(pairs + pair))))),
            ("logps/chosen", mean(chosen.iter().map(|row| row.log_probability))),
            ("logps/rejected", mean(rejected.iter().map(|row| row.log_probability))),
            ("logits/chosen", share(chosen, |row| row.logits)),
            ("logits/rejected", share(rejected, |row| row.logits)),
            ("entropy", share(sums, |row| row.entropy)),
            ("mean_token_accuracy", share(chosen, |row| row.correct)),
        ];
        Judged { loss, slopes, figures: figures.map(|(name, value)| (name.to_owned(), value)).into() }
    }
}

impl Objective for Dpo {
    type Model = Decoder;
    type Batch = DpoBatch;

    fn check(&self, model: &Decoder, batch: &DpoBatch) -> Result<(), TrainError> {
        check_pairs(&batch.rows, model.config.vocab_size)
    }

    /// As in the reference trainer each micro-batch counts alike, however few pairs the last one has.
    fn weight(&self, batch: &DpoBatch) -> f64 {
        f64::from(u8::from(batch.rows.num_targets() > 0))
    }

    fn tokens(&self, batch: &DpoBatch) -> usize {
        batch.rows.num_tokens()
    }

    fn accumulate(&self, model: &Decoder, batch: &DpoBatch, pass: &mut Pass<'_>) -> Result<BatchReport, TrainError> {
        let reference = self.reference_of(batch, model.device(), pass.stop)?;
        let mut packed = Packed::new(&batch.rows, &model.config, model.device());
        pass.prepare(&mut packed, &batch.rows, model);
        packed.dropout_seed = packed.dropout_seed.filter(|_| self.dropout);
        let targets = Targets::of(&batch.rows, &packed);
        let scale = pass.scale;
        let (judged, balanced) = pass.through_balanced(model, &packed, self.weight(batch), |hidden, gradients| {
            let sums = sums_by_row(hidden, model.head(), &targets, &packed, reference.len());
            let judged = self.judge(&sums, &reference);
            let weight = |index: &i64| (-scale * judged.slopes[packed.slots[*index as usize].0]) as f32;
            let weights: Vec<f32> = targets.rows.iter().map(weight).collect();
            let d_hidden = loss::backward_each(hidden, model.head(), &targets, &weights, gradients);
            (judged, d_hidden)
        })?;
        Ok(balanced.report(BatchReport { loss: judged.loss, figures: judged.figures }))
    }
}

impl Evaluate for Dpo {
    /// Weighted by pairs, so that means do not depend on how they were batched. (Those a token are of their batch.)
    fn evaluate(&self, model: &Decoder, batch: &DpoBatch) -> Result<Evaluation, TrainError> {
        self.check(model, batch)?;
        if batch.rows.num_targets() == 0 {
            return Ok(Evaluation::default());
        }
        let reference = self.reference_of(batch, model.device(), &|| false)?;
        let packed = Packed::new(&batch.rows, &model.config, model.device());
        let targets = Targets::of(&batch.rows, &packed);
        let sums = sums_by_row(&model.hidden(&packed), model.head(), &targets, &packed, reference.len());
        let Judged { loss, figures, .. } = self.judge(&sums, &reference);
        Ok(Evaluation::of_mean((sums.len() / 2) as f64, loss, figures))
    }
}
