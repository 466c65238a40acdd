//! GRPO's loss on a model: one forward and one backward pass a micro-batch.

use serde::{Deserialize, Serialize};

use super::completions::{Text, batch, by_text};
use super::grpo::{self, Completion, GrpoLoss, GrpoSettings, Normalizer};
use crate::logprobs::{self, Slopes};
use crate::loss::Targets;
use crate::model::{Decoder, Packed};
use crate::objective::{BatchReport, Figures, Objective, Pass, check_rows};
use crate::train::TrainError;

/// A completion that is learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// At least one token.
    pub prompt: Vec<i64>,
    /// The tokens that count: none of a completion that is left out.
    pub completion: Vec<i64>,
    /// log p of each when it was sampled; absent where nothing was learnt since, and it is what it is now.
    pub old: Option<Vec<f64>>,
    /// log p of each under the reference; empty where nothing is held to it.
    pub reference: Vec<f64>,
    /// How much better it is than its group.
    pub advantage: f64,
}

impl Judged {
    /// Its tokens.
    pub fn text(&self) -> Text<'_> {
        Text { prompt: &self.prompt, completion: &self.completion }
    }
}

/// A micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpoBatch {
    /// Completions.
    pub rows: Vec<Judged>,
    /// What some losses are divided by.
    pub normalizer: Normalizer,
}

/// GRPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Settings of the loss.
    pub settings: GrpoSettings,
    /// Logits are divided by it, as they were in sampling.
    pub temperature: f64,
    /// Whether adapters drop what their config says.
    pub dropout: bool,
}

impl Objective for Grpo {
    type Model = Decoder;
    type Batch = GrpoBatch;

    fn check(&self, model: &Decoder, batch: &GrpoBatch) -> Result<(), TrainError> {
        let texts: Vec<Text<'_>> = batch.rows.iter().map(Judged::text).collect();
        check_rows(&super::completions::batch(&texts), model.config.vocab_size)
    }

    /// The mean is over micro-batches.
    fn weight(&self, _: &GrpoBatch) -> f64 {
        1.0
    }

    fn tokens(&self, batch: &GrpoBatch) -> usize {
        batch.rows.iter().map(|row| row.text().tokens()).sum()
    }

    fn accumulate(&self, model: &Decoder, given: &GrpoBatch, pass: &mut Pass<'_>) -> Result<BatchReport, TrainError> {
        let texts: Vec<Text<'_>> = given.rows.iter().map(Judged::text).collect();
        if texts.iter().all(|text| text.completion.is_empty()) {
            return Ok(BatchReport::default());
        }
        let batch = batch(&texts);
        let mut packed = Packed::new(&batch, &model.config, model.device());
        packed.dropout_seed = Some(pass.dropout_seed).filter(|_| self.dropout);
        let targets = Targets::of(&batch, &packed);
        let (head, scale) = (model.head(), pass.scale);
        let found = pass.through(model, &packed, |hidden, gradients| {
            let scores = logprobs::score(hidden, head, &targets, self.temperature);
            let new = by_text(&texts, &scores.logprobs);
            let entropies = by_text(&texts, &scores.entropies);
            let rows: Vec<Completion<'_>> = (0..texts.len())
                .map(|row| Completion {
                    old: given.rows[row].old.as_deref().unwrap_or(&new[row]),
                    reference: &given.rows[row].reference,
                    new: &new[row],
                    entropies: &entropies[row],
                    advantage: given.rows[row].advantage,
                })
                .collect();
            let loss = grpo::loss(&rows, &self.settings, given.normalizer);
            let scaled = |rows: &[Vec<f64>]| rows.iter().flatten().map(|slope| scale * slope).collect();
            let slopes = Slopes { logprobs: scaled(&loss.d_logprobs), entropies: scaled(&loss.d_entropies) };
            let d_hidden = logprobs::backward(hidden, head, &targets, self.temperature, &slopes, gradients);
            (loss, d_hidden)
        })?;
        Ok(BatchReport { loss: found.loss, figures: self.figures(&found) })
    }
}

impl Grpo {
    /// Under the reference trainer's names.
    fn figures(&self, loss: &GrpoLoss) -> Figures {
        let mut figures = Figures::from([("entropy".to_owned(), loss.entropy)]);
        let mut say = |name: &str, value: f64| figures.insert(name.to_owned(), value);
        if self.settings.beta != 0.0 {
            say("kl", loss.kl);
        }
        match self.settings.loss_type {
            grpo::LossType::Grpo | grpo::LossType::Bnpo | grpo::LossType::DrGrpo | grpo::LossType::Dapo => {
                say("clip_ratio/low_mean", loss.clip_low);
                say("clip_ratio/low_min", loss.clip_low_min);
                say("clip_ratio/high_mean", loss.clip_high);
                say("clip_ratio/high_max", loss.clip_high_max);
                say("clip_ratio/region_mean", loss.clip_low + loss.clip_high);
            }
            grpo::LossType::Cispo => {
                say("cispo_clip_ratio", loss.clip_high);
            }
            grpo::LossType::Sapo => {}
        }
        figures
    }
}
