//! Completions and their prompts as batches, and numbers a token back as rows.

use crate::batch::{Batch, IGNORED};
use crate::logprobs::{self, Scores};
use crate::loss::Targets;
use crate::model::packed::int_tensor;
use crate::model::parameter::host_values;
use crate::model::{Decoder, Packed};
use crate::objective::check_rows;
use crate::train::TrainError;

/// A prompt and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// At least one token.
    pub prompt: &'a [i64],
    /// May be empty.
    pub completion: &'a [i64],
}

impl Text<'_> {
    /// Tokens of both.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }
}

/// The texts as rows, the completions' tokens the targets.
pub fn batch(texts: &[Text<'_>]) -> Batch {
    let row = |text: &Text<'_>| {
        let labels = vec![IGNORED; text.prompt.len()].into_iter().chain(text.completion.iter().copied());
        ([text.prompt, text.completion].concat(), labels.collect())
    };
    Batch::collate(&texts.iter().map(row).collect::<Vec<_>>(), 0)
}

/// Numbers of all targets, one after another, as a row a text.
pub fn by_text(texts: &[Text<'_>], values: &[f64]) -> Vec<Vec<f64>> {
    let mut rest = values;
    let mut next = |text: &Text<'_>| {
        let (own, others) = rest.split_at(text.completion.len().min(rest.len()));
        rest = others;
        own.to_vec()
    };
    texts.iter().map(&mut next).collect()
}

/// Log-probabilities and entropies of the completions' tokens, a row a text, `at_once` texts in a forward pass. `stop` is
/// asked before each.
///
/// # Errors
/// [`TrainError::Interrupted`]; [`TrainError::Batch`] of tokens that the model does not know.
pub fn score(
    model: &Decoder,
    texts: &[Text<'_>],
    temperature: f64,
    at_once: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Scores>, TrainError> {
    let mut scores = Vec::with_capacity(texts.len());
    for texts in texts.chunks(at_once.max(1)) {
        if stop() {
            return Err(TrainError::Interrupted);
        }
        let batch = batch(texts);
        check_rows(&batch, model.config.vocab_size)?;
        let packed = Packed::new(&batch, &model.config, model.device());
        let targets = Targets::of(&batch, &packed);
        let all = logprobs::score(&model.hidden(&packed), model.head(), &targets, temperature);
        let rows = by_text(texts, &all.logprobs).into_iter().zip(by_text(texts, &all.entropies));
        scores.extend(rows.map(|(logprobs, entropies)| Scores { logprobs, entropies }));
    }
    Ok(scores)
}

/// What a classifier of one label says at the last token of each text, `at_once` texts in a forward pass. `stop` is asked
/// before each.
///
/// # Errors
/// [`TrainError::Interrupted`]; [`TrainError::Batch`] of a model without such a head, and of tokens that it does
/// not know.
pub fn rewards(
    model: &Decoder,
    texts: &[Text<'_>],
    at_once: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<f64>, TrainError> {
    let Some(head) = model.score.as_ref().filter(|head| head.weight.shape == [1, model.config.hidden_size]) else {
        let problem = format!("{} has no score head of one label", model.config.architecture);
        return Err(TrainError::Batch { row: 0, problem });
    };
    let mut rewards = Vec::with_capacity(texts.len());
    for texts in texts.chunks(at_once.max(1)) {
        if stop() {
            return Err(TrainError::Interrupted);
        }
        let batch = batch(texts);
        check_rows(&batch, model.config.vocab_size)?;
        let packed = Packed::new(&batch, &model.config, model.device());
        let last = model.hidden(&packed).select(0, int_tensor(packed.last_of_rows(), model.device()));
        rewards.extend(host_values(head.forward(&last)).into_iter().map(f64::from));
    }
    Ok(rewards)
}
