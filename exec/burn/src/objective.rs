//! What a step minimises. A [`Trainer`](crate::train::Trainer) has the parameters, the optimizer and the count of
//! steps; an [`Objective`] knows what a batch is and how a model's loss on it, and the gradient, come about.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::batch::{Batch, IGNORED};
use crate::loss::{self, LossSums, Targets};
use crate::model::packed::EmbeddingNoise;
use crate::model::parameter::Parameters;
use crate::model::{Decoder, Gradients, Packed};
use crate::train::TrainError;

/// Figures under the reference trainer's names, such as `rewards/chosen`.
pub type Figures = BTreeMap<String, f64>;

/// A loss over micro-batches. Several devices may ask it at once.
pub trait Objective: Sync {
    /// What is trained.
    type Model: Parameters;
    /// A micro-batch.
    type Batch: Sync;

    /// Whether a batch fits the model: what is wrong here could be an out-of-bounds read on a device.
    ///
    /// # Errors
    /// [`TrainError::Batch`]: the row and what was expected.
    fn check(&self, model: &Self::Model, batch: &Self::Batch) -> Result<(), TrainError>;

    /// A batch's weight in the mean over a step's micro-batches: the step's loss is Σ weight·loss / Σ weight. At 0 there
    /// is nothing to learn in it, and [`Self::accumulate`] is not called.
    fn weight(&self, batch: &Self::Batch) -> f64;

    /// Real tokens of a batch.
    fn tokens(&self, batch: &Self::Batch) -> usize;

    /// Adds the gradient of `pass.scale · weight · loss` to `pass.gradients`.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`] when `pass.stop` says so.
    fn accumulate(
        &self,
        model: &Self::Model,
        batch: &Self::Batch,
        pass: &mut Pass<'_>,
    ) -> Result<BatchReport, TrainError>;
}

/// An objective that can be measured on held-out data.
pub trait Evaluate: Objective {
    /// A batch without gradients and without dropout.
    ///
    /// # Errors
    /// [`TrainError::Batch`]
    fn evaluate(&self, model: &Self::Model, batch: &Self::Batch) -> Result<Evaluation, TrainError>;
}

/// A micro-batch's part in a step.
pub struct Pass<'a> {
    /// 1 / the weights of all micro-batches of the step.
    pub scale: f64,
    /// Seeds this batch's dropout and noise.
    pub dropout_seed: u64,
    /// Strength of the noise on embeddings ([`EmbeddingNoise`]); `None` = none.
    pub neftune_noise_alpha: Option<f64>,
    /// What the step has so far.
    pub gradients: &'a mut Gradients,
    /// Whether to give up: asked before each layer, forward and backward.
    pub stop: &'a dyn Fn() -> bool,
}

impl Pass<'_> {
    /// Makes a packed batch one of training: with dropout, and with noise on embeddings where it is asked for.
    pub fn prepare(&self, packed: &mut Packed, batch: &Batch, model: &Decoder) {
        packed.dropout_seed = Some(self.dropout_seed);
        packed.embedding_noise = self.neftune_noise_alpha.map(|alpha| {
            let length = batch.input_ids.first().map_or(0, Vec::len);
            EmbeddingNoise::new(alpha, length, model.config.hidden_size, self.dropout_seed)
        });
    }

    /// One batch forward and backward through a decoder. In between `loss` is given the hidden states; it returns what it
    /// has to report and the gradient at them, and adds those of whatever head it used.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`]; the gradients are then no good.
    pub fn through<T>(
        &mut self,
        model: &Decoder,
        packed: &Packed,
        loss: impl FnOnce(&Tensor<2>, &mut Gradients) -> (T, Tensor<2>),
    ) -> Result<T, TrainError> {
        self.balanced(model, packed, None, loss).map(|(report, _)| report)
    }

    /// As [`Self::through`] for a batch of this weight, and a model with experts is also trained to spread tokens over them,
    /// if its config asks for it: `coefficient · load-balancing loss` is added to the batch's loss.
    ///
    /// # Errors
    /// As [`Self::through`].
    pub fn through_balanced<T>(
        &mut self,
        model: &Decoder,
        packed: &Packed,
        weight: f64,
        loss: impl FnOnce(&Tensor<2>, &mut Gradients) -> (T, Tensor<2>),
    ) -> Result<(T, Balanced), TrainError> {
        self.balanced(model, packed, Some(weight), loss)
    }

    fn balanced<T>(
        &mut self,
        model: &Decoder,
        packed: &Packed,
        weight: Option<f64>,
        loss: impl FnOnce(&Tensor<2>, &mut Gradients) -> (T, Tensor<2>),
    ) -> Result<(T, Balanced), TrainError> {
        let stop = self.stop;
        let mut go_on = || if stop() { Err(TrainError::Interrupted) } else { Ok(()) };
        let (hidden, mut tape) = model.forward_unless(packed, &mut go_on)?;
        let (report, d_hidden) = loss(&hidden, self.gradients);
        drop(hidden);
        let mut balanced = Balanced::default();
        let coefficient = model.config.experts.as_ref().and_then(|experts| experts.balance);
        if let (Some(weight), Some(coefficient), Some(balance)) = (weight, coefficient, tape.balance()) {
            balanced = Balanced { added: weight * coefficient * balance.loss, aux_loss: Some(balance.loss) };
            tape = tape.with_balance(self.scale * weight * coefficient, balance);
        }
        model.backward_unless(packed, tape, d_hidden, self.gradients, &mut go_on)?;
        Ok((report, balanced))
    }
}

/// What spreading tokens over experts came to; nothing where it is not trained.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Balanced {
    /// What it adds to the batch's weight times its loss.
    pub added: f64,
    /// The load-balancing loss itself.
    pub aux_loss: Option<f64>,
}

impl Balanced {
    /// Adds it to what is reported.
    #[must_use]
    pub fn report(self, mut report: BatchReport) -> BatchReport {
        report.loss += self.added;
        report.figures.extend(self.aux_loss.map(|loss| ("aux_loss".to_owned(), loss)));
        report
    }
}

/// What a micro-batch came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchReport {
    /// Its weight times its loss.
    pub loss: f64,
    /// Means over the batch, by name.
    pub figures: Figures,
}

/// What held-out batches came to: sums, so that [`Self::add`] gives the same whatever the batches were.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// What the sums are divided by: targets, or pairs.
    pub weight: f64,
    /// Σ weight·loss.
    pub loss: f64,
    /// Σ weight·figure, by name.
    pub figures: Figures,
}

impl Evaluation {
    /// A batch of this weight, given its mean loss and mean figures.
    pub fn of_mean(weight: f64, loss: f64, figures: Figures) -> Self {
        let figures = figures.into_iter().map(|(name, mean)| (name, weight * mean)).collect();
        Self { weight, loss: weight * loss, figures }
    }

    /// Takes in another batch.
    pub fn add(&mut self, other: Self) {
        self.weight += other.weight;
        self.loss += other.loss;
        for (name, sum) in other.figures {
            *self.figures.entry(name).or_default() += sum;
        }
    }

    /// The mean loss and the mean figures.
    pub fn means(self) -> (f64, Figures) {
        let weight = if self.weight > 0.0 { self.weight } else { 1.0 };
        let figures = self.figures.into_iter().map(|(name, sum)| (name, sum / weight));
        (self.loss / weight, figures.collect())
    }
}

/// Cross-entropy over the target positions of a [`Batch`]; the mean over a step is over its targets. Training also balances
/// experts where the model's config asks for it ([`Pass::through_balanced`]); held-out figures are of the cross-entropy alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy {
    /// The share of the loss that is spread over the vocabulary ([`loss`]); 0 = none.
    pub label_smoothing: f64,
}

impl Objective for CrossEntropy {
    type Model = Decoder;
    type Batch = Batch;

    fn check(&self, model: &Decoder, batch: &Batch) -> Result<(), TrainError> {
        check_rows(batch, model.config.vocab_size)
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.num_targets() as f64
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.num_tokens()
    }

    fn accumulate(&self, model: &Decoder, batch: &Batch, pass: &mut Pass<'_>) -> Result<BatchReport, TrainError> {
        let mut packed = Packed::new(batch, &model.config, model.device());
        pass.prepare(&mut packed, batch, model);
        let targets = Targets::of(batch, &packed);
        let (scale, smoothing) = (pass.scale, self.label_smoothing);
        let (sums, balanced) = pass.through_balanced(model, &packed, self.weight(batch), |hidden, gradients| {
            loss::backward(hidden, model.head(), &targets, smoothing, scale, gradients)
        })?;
        let figures = figures_of(&sums).map(|(name, sum)| (name, sum / sums.targets as f64)).into();
        Ok(balanced.report(BatchReport { loss: sums.loss, figures }))
    }
}

impl Evaluate for CrossEntropy {
    fn evaluate(&self, model: &Decoder, batch: &Batch) -> Result<Evaluation, TrainError> {
        self.check(model, batch)?;
        if batch.num_targets() == 0 {
            return Ok(Evaluation::default());
        }
        let packed = Packed::new(batch, &model.config, model.device());
        let targets = Targets::of(batch, &packed);
        let sums = loss::evaluate(&model.hidden(&packed), model.head(), &targets, self.label_smoothing);
        Ok(Evaluation { weight: sums.targets as f64, loss: sums.loss, figures: figures_of(&sums).into() })
    }
}

/// Sums over targets: how many have the highest logit, and the entropy in nats.
fn figures_of(sums: &LossSums) -> [(String, f64); 2] {
    [("mean_token_accuracy".to_owned(), sums.correct), ("entropy".to_owned(), sums.entropy)]
}

/// Whether rows fit a vocabulary: a token outside it would be an out-of-bounds read on a device.
///
/// # Errors
/// [`TrainError::Batch`]
pub fn check_rows(batch: &Batch, vocab_size: usize) -> Result<(), TrainError> {
    let wrong = |row, problem| Err(TrainError::Batch { row, problem });
    let known = |id: &i64| (0..vocab_size as i64).contains(id);
    for (row, ids) in batch.input_ids.iter().enumerate() {
        let (mask, labels) = match (batch.attention_mask.get(row), batch.labels.get(row)) {
            (Some(m), Some(l)) if m.len() == ids.len() && l.len() == ids.len() => (m, l),
            _ => return wrong(row, "ids, mask and labels differ in length".into()),
        };
        for (id, (mask, label)) in ids.iter().zip(mask.iter().zip(labels)) {
            if *mask != 0 && !known(id) {
                return wrong(row, format!("token id {id}, the vocabulary has {vocab_size}"));
            }
            if *label != IGNORED && (*mask == 0 || !known(label)) {
                return wrong(row, format!("label {label} at padding or outside the vocabulary"));
            }
        }
    }
    Ok(())
}
