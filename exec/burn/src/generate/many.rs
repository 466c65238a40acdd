//! Continuing many texts at once, each with a seed of its own: what a text becomes does not depend on which others are
//! beside it (but for the rounding of products of another height).
//!
//! Texts of equal length are a group that attends together for as long as any of them goes on; equal prompts, as where
//! several answers to one are wanted, are read once.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::{Limits, Sampler};
use crate::model::packed::int_tensor;
use crate::model::parameter::host_values;
use crate::model::{Decoder, KeyValueCache, Packed};
use crate::random::Random;

/// A text to go on from.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Its tokens; at least one.
    pub ids: &'a [i64],
    /// The same seed gives the same continuation.
    pub seed: u64,
}

/// How a text goes on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Continuation {
    /// The new tokens; the stop token, where there is one, is the last of them.
    pub ids: Vec<i64>,
    /// log p of each in nats: of all tokens, logits divided by the temperature (by 1 where that is 0).
    pub logprobs: Vec<f64>,
    /// Whether a stop token ended it, and not the limit.
    pub ended: bool,
}

/// Why there are no continuations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// A prompt cannot be read.
    #[error("prompt {index}: {problem}")]
    Prompt {
        /// Its place among the prompts, from 0.
        index: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// The model's numbers left the range of floats.
    #[error("prompt {index}, new token {token}: the logits are no numbers: the model's weights are out of range")]
    NotFinite {
        /// The prompt's place, from 0.
        index: usize,
        /// Tokens that were made before.
        token: usize,
    },
    /// It was told to stop.
    #[error("stopped as asked")]
    Interrupted,
}

/// A text under way.
struct Text {
    random: Random,
    made: Continuation,
}

/// Continues every prompt to a stop token or the limit. `stop` is asked before each token whether to give up.
///
/// # Errors
/// [`GenerateError`]
pub fn generate_many(
    model: &Decoder,
    prompts: &[Prompt<'_>],
    sampler: Sampler,
    limits: &Limits,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Continuation>, GenerateError> {
    check(prompts, model.config.vocab_size)?;
    let fresh = |prompt: &Prompt<'_>| Text { random: Random::new(prompt.seed), made: Continuation::default() };
    let mut texts: Vec<Text> = prompts.iter().map(fresh).collect();
    if prompts.is_empty() || limits.max_new_tokens == 0 {
        return Ok(texts.into_iter().map(|text| text.made).collect());
    }
    if stop() {
        return Err(GenerateError::Interrupted);
    }
    let (mut groups, mut cache, mut last) = read(model, prompts);
    loop {
        let logits = host_values(model.logits(last));
        let mut rows = logits.chunks(model.config.vocab_size);
        for index in groups.iter().flatten() {
            let Some(logits) = rows.next() else { break };
            texts[*index].take(*index, logits, sampler, limits)?;
        }
        let goes_on = |index: &usize| {
            let made = &texts[*index].made;
            !made.ended && made.ids.len() < limits.max_new_tokens
        };
        // From behind: a group that is done moves those behind it.
        for group in (0..groups.len()).rev() {
            let kept: Vec<usize> = (0..groups[group].len()).filter(|i| goes_on(&groups[group][*i])).collect();
            if kept.len() < groups[group].len() {
                cache.keep(group, &kept);
                groups[group] = kept.iter().map(|i| groups[group][*i]).collect();
            }
        }
        groups.retain(|group| !group.is_empty());
        if groups.is_empty() {
            return Ok(texts.into_iter().map(|text| text.made).collect());
        }
        if stop() {
            return Err(GenerateError::Interrupted);
        }
        let newest = |index: &usize| texts[*index].made.ids.last().copied().into_iter().collect();
        let next: Vec<(usize, Vec<Vec<i64>>)> = groups
            .iter()
            .enumerate()
            .map(|(group, members)| (cache.tokens_of(group), members.iter().map(newest).collect()))
            .collect();
        let packed = Packed::continuations(&next, &model.config, model.device());
        last = model.hidden_cached(&packed, &mut cache);
    }
}

impl Text {
    fn take(&mut self, index: usize, logits: &[f32], sampler: Sampler, limits: &Limits) -> Result<(), GenerateError> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(GenerateError::NotFinite { index, token: self.made.ids.len() });
        }
        let id = sampler.choose(logits, &mut self.random);
        self.made.ids.push(id);
        self.made.logprobs.push(log_probability(logits, id, sampler.temperature));
        self.made.ended = limits.stop_ids.contains(&id);
        Ok(())
    }
}

fn log_probability(logits: &[f32], id: i64, temperature: f32) -> f64 {
    let temperature = if temperature > 0.0 { f64::from(temperature) } else { 1.0 };
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit - highest) / temperature;
    let partition: f64 = logits.iter().map(|logit| above(*logit).exp()).sum();
    above(logits[id as usize]) - partition.ln()
}

/// Reads all prompts: which of them are in which group, in the order of the rows; their keys and values; and the hidden
/// state at each one's last token.
fn read(model: &Decoder, prompts: &[Prompt<'_>]) -> (Vec<Vec<usize>>, KeyValueCache, Tensor<2>) {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, prompt) in prompts.iter().enumerate() {
        by_length.entry(prompt.ids.len()).or_default().push(index);
    }
    let (mut rows, mut copies) = (Vec::new(), Vec::new());
    for members in by_length.values() {
        let mut different: BTreeMap<&[i64], usize> = BTreeMap::new();
        let mut ids = Vec::new();
        let mut copy_of = |index: &usize| {
            let prompt = prompts[*index].ids;
            *different.entry(prompt).or_insert_with(|| {
                ids.push(prompt.to_vec());
                ids.len() - 1
            })
        };
        copies.push(members.iter().map(&mut copy_of).collect::<Vec<usize>>());
        rows.push((0, ids));
    }
    let mut cache = KeyValueCache::of_groups(model.layers.len(), rows.len());
    let packed = Packed::continuations(&rows, &model.config, model.device());
    let hidden = model.hidden_cached(&packed, &mut cache);
    let mut ends = Vec::with_capacity(prompts.len());
    for (group, copies) in packed.groups.iter().zip(&copies) {
        ends.extend(copies.iter().map(|row| (group.start + (row + 1) * group.length - 1) as i64));
    }
    for (group, copies) in copies.iter().enumerate() {
        cache.keep(group, copies);
    }
    let last = hidden.select(0, int_tensor(ends, model.device()));
    (by_length.into_values().collect(), cache, last)
}

fn check(prompts: &[Prompt<'_>], vocab_size: usize) -> Result<(), GenerateError> {
    for (index, prompt) in prompts.iter().enumerate() {
        let known = |id: &&i64| (0..vocab_size as i64).contains(*id);
        if prompt.ids.is_empty() {
            return Err(GenerateError::Prompt { index, problem: "it has no tokens".into() });
        }
        if let Some(id) = prompt.ids.iter().find(|id| !known(id)) {
            let problem = format!("token id {id}, the vocabulary has {vocab_size}");
            return Err(GenerateError::Prompt { index, problem });
        }
    }
    Ok(())
}
