//! A reward model: one score a text, read at its last real token; the chosen text of a pair shall score higher
//! (Bradley and Terry's model, as in arXiv 2203.02155).

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use super::{check_pairs, log_sigmoid, mean, sigmoid};
use crate::batch::Batch;
use crate::model::packed::int_tensor;
use crate::model::parameter::{host_values, matrix};
use crate::model::{Decoder, Packed, ScoreHead};
use crate::objective::{BatchReport, Evaluate, Evaluation, Figures, Objective, Pass, check_rows};
use crate::train::TrainError;

/// Pairs as rows: the chosen ones, then the rejected ones.
#[derive(Debug, Clone)]
pub struct RewardBatch {
    /// Whole texts, without labels.
    pub rows: Batch,
    /// How much higher each pair's chosen score shall be at the least, where the data says so.
    pub margins: Option<Vec<f64>>,
}

/// The objective: mean of −ln σ(chosen − rejected − margin).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BradleyTerry {
    /// Times the mean of (chosen + rejected)², it draws scores towards a mean of 0 (arXiv 2312.09244, eq. 2).
    pub center_rewards_coefficient: Option<f64>,
    /// Whether adapters drop elements in training.
    pub dropout: bool,
}

/// The score of each row, read at its last real token.
///
/// # Errors
/// [`TrainError::Batch`] for rows that do not fit or have no token and for a model without a head of one score, and
/// [`TrainError::Interrupted`] when `stop` says so.
pub fn scores(model: &Decoder, rows: &Batch, stop: &dyn Fn() -> bool) -> Result<Vec<f64>, TrainError> {
    check_rows(rows, model.config.vocab_size)?;
    let head = head_of(model)?;
    let packed = Packed::new(rows, &model.config, model.device());
    let last = last_tokens(&packed, rows)?;
    let mut go_on = || if stop() { Err(TrainError::Interrupted) } else { Ok(()) };
    let hidden = model.hidden_unless(&packed, &mut go_on)?;
    let scores = host_values(head.forward(&hidden.select(0, last)));
    Ok(scores.into_iter().map(f64::from).collect())
}

fn head_of(model: &Decoder) -> Result<&ScoreHead, TrainError> {
    let problem = match &model.score {
        Some(head) if head.weight.shape[0] == 1 => return Ok(head),
        Some(head) => format!("the model gives {} scores, a reward is one", head.weight.shape[0]),
        None => "the model has no score head".to_owned(),
    };
    Err(TrainError::Batch { row: 0, problem })
}

fn last_tokens(packed: &Packed, rows: &Batch) -> Result<Tensor<1, Int>, TrainError> {
    let last = packed.last_of_rows();
    match rows.attention_mask.iter().position(|mask| mask.iter().all(|m| *m == 0)) {
        Some(row) => Err(TrainError::Batch { row, problem: "it has no tokens".into() }),
        None => Ok(int_tensor(last, &packed.ids.device())),
    }
}

/// What a batch came to.
struct Judged {
    loss: f64,
    /// The derivative of the loss by each row's score.
    slopes: Vec<f64>,
    figures: Figures,
}

impl BradleyTerry {
    fn judge(&self, scores: &[f64], margins: Option<&[f64]>) -> Judged {
        let pairs = scores.len() / 2;
        let each = 1.0 / pairs.max(1) as f64;
        let center = self.center_rewards_coefficient.unwrap_or(0.0);
        let mut loss = 0.0;
        let mut slopes = vec![0.0; scores.len()];
        for pair in 0..pairs {
            let (chosen, rejected) = (scores[pair], scores[pairs + pair]);
            let apart = chosen - rejected - margins.map_or(0.0, |margins| margins[pair]);
            let sum = chosen + rejected;
            loss += each * (center * sum * sum - log_sigmoid(apart));
            slopes[pair] = each * (2.0 * center * sum - sigmoid(-apart));
            slopes[pairs + pair] = each * (2.0 * center * sum + sigmoid(-apart));
        }
        let apart = |pair: usize| scores[pair] - scores[pairs + pair];
        let figures = [
            ("min_reward", scores.iter().copied().fold(f64::INFINITY, f64::min)),
            ("mean_reward", mean(scores.iter().copied())),
            ("max_reward", scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ("accuracy", mean((0..pairs).map(|pair| f64::from(u8::from(apart(pair) > 0.0))))),
            ("margin", mean((0..pairs).map(apart))),
        ];
        Judged { loss, slopes, figures: figures.map(|(name, value)| (name.to_owned(), value)).into() }
    }
}

impl Objective for BradleyTerry {
    type Model = Decoder;
    type Batch = RewardBatch;

    fn check(&self, model: &Decoder, batch: &RewardBatch) -> Result<(), TrainError> {
        head_of(model)?;
        check_pairs(&batch.rows, model.config.vocab_size)?;
        let (pairs, margins) = (batch.rows.input_ids.len() / 2, batch.margins.as_ref().map(Vec::len));
        match margins.filter(|margins| *margins != pairs) {
            Some(margins) => Err(TrainError::Batch { row: 0, problem: format!("{margins} margins for {pairs} pairs") }),
            None => Ok(()),
        }
    }

    /// As in the reference trainer each micro-batch counts alike, however few pairs the last one has.
    fn weight(&self, batch: &RewardBatch) -> f64 {
        f64::from(u8::from(!batch.rows.input_ids.is_empty()))
    }

    fn tokens(&self, batch: &RewardBatch) -> usize {
        batch.rows.num_tokens()
    }

    fn accumulate(&self, model: &Decoder, batch: &RewardBatch, pass: &mut Pass<'_>) -> Result<BatchReport, TrainError> {
        let head = head_of(model)?;
        let mut packed = Packed::new(&batch.rows, &model.config, model.device());
        pass.prepare(&mut packed, &batch.rows, model);
        packed.dropout_seed = packed.dropout_seed.filter(|_| self.dropout);
        let last = last_tokens(&packed, &batch.rows)?;
        let scale = pass.scale;
        let judged = pass.through(model, &packed, |hidden, gradients| {
            let at_last = hidden.clone().select(0, last.clone());
            let scores: Vec<f64> = host_values(head.forward(&at_last)).into_iter().map(f64::from).collect();
            let judged = self.judge(&scores, batch.margins.as_deref());
            let slopes = judged.slopes.iter().map(|slope| (scale * slope) as f32).collect();
            let d_scores = matrix(slopes, &[scores.len(), 1], &hidden.device());
            let d_last = head.backward(&at_last, d_scores, gradients);
            let zeros = Tensor::zeros(hidden.dims(), &hidden.device());
            // Each row has one last token, so adding to zero is placing.
            let d_hidden = zeros.select_assign(0, last.clone(), d_last, IndexingUpdateOp::Add);
            (judged, d_hidden)
        })?;
        Ok(BatchReport { loss: judged.loss, figures: judged.figures })
    }
}

impl Evaluate for BradleyTerry {
    /// Weighted by pairs. (The least and the highest reward are means of those of the batches, as in the reference.)
    fn evaluate(&self, model: &Decoder, batch: &RewardBatch) -> Result<Evaluation, TrainError> {
        self.check(model, batch)?;
        let scores = scores(model, &batch.rows, &|| false)?;
        let Judged { loss, figures, .. } = self.judge(&scores, batch.margins.as_deref());
        Ok(Evaluation::of_mean((scores.len() / 2) as f64, loss, figures))
    }
}
