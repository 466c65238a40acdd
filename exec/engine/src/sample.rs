//! From a row of logits to a token.
//!
//! Order and meaning are vLLM's (v1/sample/sampler.py, `Sampler`): what a constraint forbids, end tokens before
//! `min_tokens`, logit bias, repetition, frequency and presence penalty; a greedy answer takes the highest of that. Else
//! temperature, min-p, top-k, top-p, and the draw. Log-probabilities are those before the cuts.
//!
//! No step sorts the vocabulary: what can be chosen is gathered by falling thresholds, and cut by selection.

use std::collections::{HashMap, HashSet};

use crate::forward::ForwardError;
use crate::request::{Logprobs, Sampling, TokenLogprob};

/// Below it an answer is greedy, as vLLM has it (`_SAMPLING_EPS`).
const GREEDY_BELOW: f32 = 1e-5;

/// Whether the likeliest token is always taken.
pub fn is_greedy(sampling: &Sampling) -> bool {
    sampling.temperature < GREEDY_BELOW
}

/// What an answer and its prompt have already, as far as penalties ask for it.
#[derive(Debug, Clone, Default)]
pub struct History {
    penalised: bool,
    prompt: HashSet<u32>,
    answer: HashMap<u32, u32>,
}

impl History {
    /// Of an answer without tokens.
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let repetition = sampling.repetition_penalty != 1.0;
        let penalised = repetition || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let prompt = if repetition { prompt.iter().copied().collect() } else { HashSet::new() };
        Self { penalised, prompt, answer: HashMap::new() }
    }

    /// The answer has one more.
    pub fn push(&mut self, id: u32) {
        if self.penalised {
            *self.answer.entry(id).or_default() += 1;
        }
    }
}

/// What is done to one row.
#[derive(Debug)]
pub struct Choice<'a> {
    /// How.
    pub sampling: &'a Sampling,
    /// What was there before.
    pub history: &'a History,
    /// One bit a token: what a constraint allows. Tokens beyond its end are forbidden.
    pub mask: Option<&'a [u32]>,
    /// Tokens that can't be chosen yet.
    pub forbidden: &'a [u32],
    /// In [0, 1).
    pub draw: f64,
    /// Whether log-probabilities are wanted, and of how many alternatives.
    pub logprobs: Option<usize>,
}

/// Memory that is used again for each row.
#[derive(Debug, Default)]
pub struct Scratch {
    row: Vec<f32>,
    items: Vec<Item>,
    ordered: Vec<Item>,
    sums: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    /// The logit, or its weight.
    value: f32,
    id: u32,
}

/// Highest first; the lower id among equals.
fn by_rank(a: &Item, b: &Item) -> std::cmp::Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

impl Choice<'_> {
    /// The token, and its log-probabilities where wanted.
    ///
    /// # Errors
    /// No token has a logit that is a number.
    pub fn choose(&self, row: &[f32], scratch: &mut Scratch) -> Result<(u32, Option<Logprobs>), ForwardError> {
        let Scratch { row: own, items, ordered, sums } = scratch;
        let change = self.changes_logits().then_some(|row: &mut [f32]| self.change(row));
        let (row, highest) = settle(row, own, change)?;
        let greedy = is_greedy(self.sampling);
        let scale = Scale::new(highest, if greedy { 1.0 } else { self.sampling.temperature });
        let id = if greedy { first(row, highest) } else { self.draw(row, scale, items, ordered, sums) };
        let logprobs = self.logprobs.map(|count| logprobs(row, scale, id, count, items, sums));
        Ok((id, logprobs))
    }

    fn changes_logits(&self) -> bool {
        let touched = self.history.penalised && !(self.history.prompt.is_empty() && self.history.answer.is_empty());
        touched || self.mask.is_some() || !self.forbidden.is_empty() || !self.sampling.logit_bias.is_empty()
    }

    fn change(&self, row: &mut [f32]) {
        if let Some(mask) = self.mask {
            for (word, values) in row.chunks_mut(32).enumerate() {
                let allowed = mask.get(word).copied().unwrap_or(0);
                if allowed != u32::MAX {
                    let forbidden = values.iter_mut().enumerate().filter(|(bit, _)| allowed >> bit & 1 == 0);
                    forbidden.for_each(|(_, value)| *value = f32::NEG_INFINITY);
                }
            }
        }
        for id in self.forbidden {
            if let Some(value) = row.get_mut(*id as usize) {
                *value = f32::NEG_INFINITY;
            }
        }
        for (id, bias) in &self.sampling.logit_bias {
            if let Some(value) = row.get_mut(*id as usize) {
                *value += bias;
            }
        }
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = *self.sampling;
        if repetition_penalty != 1.0 {
            let answer = self.history.answer.keys().filter(|id| !self.history.prompt.contains(id));
            for id in self.history.prompt.iter().chain(answer) {
                if let Some(value) = row.get_mut(*id as usize) {
                    *value = if *value > 0.0 { *value / repetition_penalty } else { *value * repetition_penalty };
                }
            }
        }
        for (id, count) in &self.history.answer {
            if let Some(value) = row.get_mut(*id as usize) {
                *value = *value - frequency_penalty * *count as f32 - presence_penalty;
            }
        }
    }

    /// A token at random from what the cuts leave.
    fn draw(
        &self,
        row: &[f32],
        scale: Scale,
        items: &mut Vec<Item>,
        ordered: &mut Vec<Item>,
        sums: &mut Vec<f64>,
    ) -> u32 {
        let Sampling { min_p, top_k, top_p, .. } = *self.sampling;
        let top_k = if top_k >= row.len() { 0 } else { top_k };
        if min_p <= 0.0 && top_k == 0 {
            let total = scale.sums(row, sums);
            if top_p >= 1.0 {
                return scale.draw_from_all(row, sums, self.draw * total);
            }
            let wanted = f64::from(top_p) * total;
            for width in WIDTHS {
                gather(row, scale.threshold(width), items);
                if scale.weigh(items) >= wanted {
                    break;
                }
            }
            keep_top_p(items, ordered, wanted);
            return draw_from(items, self.draw);
        }
        if min_p > 0.0 {
            gather(row, scale.highest + min_p.ln() * scale.temperature, items);
        } else {
            gather_most(row, scale, top_k, items);
        }
        keep_top_k(items, ordered, top_k);
        let total = scale.weigh(items);
        if top_p < 1.0 {
            keep_top_p(items, ordered, f64::from(top_p) * total);
        }
        draw_from(items, self.draw)
    }
}

/// The log-probabilities of a token of a prompt: of the logits as they are.
///
/// # Errors
/// No token has a logit that is a number.
pub fn prompt_logprobs(row: &[f32], id: u32, count: usize, scratch: &mut Scratch) -> Result<Logprobs, ForwardError> {
    let Scratch { row: own, items, sums, .. } = scratch;
    let (row, highest) = settle(row, own, None::<fn(&mut [f32])>)?;
    Ok(logprobs(row, Scale::new(highest, 1.0), id, count, items, sums))
}

/// The row after its change, copied only where there is one, and its highest logit, which is finite. What is not a
/// number is never chosen; infinity is the highest number.
fn settle<'a>(
    row: &'a [f32],
    own: &'a mut Vec<f32>,
    change: Option<impl FnOnce(&mut [f32])>,
) -> Result<(&'a [f32], f32), ForwardError> {
    let mut copied = change.is_some();
    if let Some(change) = change {
        own.clear();
        own.extend_from_slice(row);
        change(own);
    }
    let mut top = highest(if copied { own } else { row });
    if top == f32::INFINITY {
        if !copied {
            own.clear();
            own.extend_from_slice(row);
            copied = true;
        }
        own.iter_mut().filter(|value| **value == f32::INFINITY).for_each(|value| *value = f32::MAX);
        top = f32::MAX;
    }
    if top == f32::NEG_INFINITY {
        return Err(ForwardError::Device(format!("none of {} logits is a number to choose by", row.len())));
    }
    Ok((if copied { own } else { row }, top))
}

/// Passes over a row go by so many values at once, which the compiler makes vectors of.
const LANES: usize = 16;

/// Negative infinity if there is none.
fn highest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |highest, value| if *value > highest { *value } else { highest })
}

/// The first token with this logit, which one has.
fn first(row: &[f32], logit: f32) -> u32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let chunk = chunks.iter().position(|chunk| chunk.iter().fold(false, |any, value| any | (*value == logit)));
    let (before, within) = chunk.map_or((chunks.len(), rest), |place| (place, &chunks[place]));
    (before * LANES + within.iter().position(|value| *value == logit).unwrap_or(0)) as u32
}

/// How far below the highest logit, in temperatures, tokens are gathered, first the few likeliest. The last one has all
/// that can be chosen at all.
const WIDTHS: [f32; 5] = [4.0, 8.0, 16.0, 32.0, f32::INFINITY];

/// Below it a weight counts as none: it would be no normal number.
const LOWEST_EXPONENT: f32 = -87.0;

/// Values a block of [`Scale::sums`].
const BLOCK: usize = 256;

/// From logits to weights, the highest of which is 1.
#[derive(Debug, Clone, Copy)]
struct Scale {
    highest: f32,
    temperature: f32,
    inverse: f32,
}

impl Scale {
    fn new(highest: f32, temperature: f32) -> Self {
        Self { highest, temperature, inverse: 1.0 / temperature }
    }

    /// Without a branch, so that rows are computed in vectors.
    #[inline]
    fn weight(self, logit: f32) -> f32 {
        let exponent = (logit - self.highest) * self.inverse;
        let counts = exponent > LOWEST_EXPONENT;
        let weight = exponential(if counts { exponent } else { LOWEST_EXPONENT });
        if counts { weight } else { 0.0 }
    }

    /// The logit that is so many temperatures below the highest.
    fn threshold(self, width: f32) -> f32 {
        (self.highest - width * self.temperature).max(f32::MIN)
    }

    /// The weights of each block of a row, and of all.
    fn sums(self, row: &[f32], sums: &mut Vec<f64>) -> f64 {
        sums.clear();
        sums.extend(row.chunks(BLOCK).map(|block| {
            let mut lanes = [0.0_f32; LANES];
            let (chunks, rest) = block.as_chunks::<LANES>();
            for chunk in chunks {
                for (lane, logit) in lanes.iter_mut().zip(chunk) {
                    *lane += self.weight(*logit);
                }
            }
            let rest = rest.iter().map(|logit| f64::from(self.weight(*logit))).sum::<f64>();
            lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() + rest
        }));
        sums.iter().sum()
    }

    /// Turns logits into weights, and adds them up.
    fn weigh(self, items: &mut [Item]) -> f64 {
        items.iter_mut().for_each(|item| item.value = self.weight(item.value));
        mass(items)
    }

    /// The token at which the weights of a row reach `point`.
    fn draw_from_all(self, row: &[f32], sums: &[f64], mut point: f64) -> u32 {
        let mut blocks = row.chunks(BLOCK).zip(sums).zip((0_u32..).step_by(BLOCK)).filter(|((_, sum), _)| **sum > 0.0);
        let mut last = None;
        let found = blocks.find(|((block, sum), first)| {
            last = Some((*block, *first));
            point -= **sum;
            point < 0.0
        });
        let Some((block, first)) = found.map(|((block, _), first)| (block, first)).or(last) else { return 0 };
        // What is left of the point in this block, from its end.
        let items = block.iter().zip(first..).map(|(logit, id)| Item { value: self.weight(*logit), id });
        let before = point + sums[first as usize / BLOCK];
        pick(items, before)
    }
}

/// The first item at which the sum exceeds the point; rounding may leave a sliver behind the last one of some weight.
fn pick(items: impl Iterator<Item = Item>, mut point: f64) -> u32 {
    let mut last = 0;
    for Item { value, id } in items.filter(|item| item.value > 0.0) {
        last = id;
        point -= f64::from(value);
        if point < 0.0 {
            break;
        }
    }
    last
}

fn draw_from(items: &[Item], draw: f64) -> u32 {
    pick(items.iter().copied(), draw * mass(items))
}

fn mass(items: &[Item]) -> f64 {
    items.iter().map(|item| f64::from(item.value)).sum()
}

/// All tokens with at least this logit, by id.
fn gather(row: &[f32], threshold: f32, items: &mut Vec<Item>) {
    items.clear();
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut take = |chunk: &[f32], first: usize| {
        let above = chunk.iter().zip(first as u32..).filter(|(value, _)| **value >= threshold);
        items.extend(above.map(|(value, id)| Item { value: *value, id }));
    };
    for (place, chunk) in chunks.iter().enumerate() {
        if chunk.iter().fold(false, |any, value| any | (*value >= threshold)) {
            take(chunk, place * LANES);
        }
    }
    take(rest, chunks.len() * LANES);
}

/// At least `count` of the likeliest tokens, by id, or all there are.
fn gather_most(row: &[f32], scale: Scale, count: usize, items: &mut Vec<Item>) {
    for width in WIDTHS {
        gather(row, scale.threshold(width), items);
        if items.len() >= count {
            break;
        }
    }
}

/// Of items in any order of their ids, those at least as high as the `count`th: equals of it stay, as vLLM has it. 0 =
/// all.
fn keep_top_k(items: &mut Vec<Item>, ordered: &mut Vec<Item>, count: usize) {
    if count == 0 || items.len() <= count {
        return;
    }
    ordered.clone_from(items);
    let (_, least, _) = ordered.select_nth_unstable_by(count - 1, by_rank);
    let least = least.value;
    items.retain(|item| item.value >= least);
}

/// The fewest of the highest weights that together reach `wanted`, at least one.
fn keep_top_p(items: &mut Vec<Item>, ordered: &mut Vec<Item>, mut wanted: f64) {
    ordered.clone_from(items);
    // The last one to be kept is in `rest`; what is before it weighs less than what was wanted at first.
    let mut rest = &mut ordered[..];
    while rest.len() > 1 {
        let half = rest.len() / 2;
        rest.select_nth_unstable_by(half, by_rank);
        let (high, low) = rest.split_at_mut(half);
        let reached = mass(high);
        if reached >= wanted {
            rest = high;
        } else {
            wanted -= reached;
            rest = low;
        }
    }
    if let Some(last) = rest.first() {
        items.retain(|item| by_rank(item, last).is_le());
    }
}

fn logprobs(row: &[f32], scale: Scale, id: u32, count: usize, items: &mut Vec<Item>, sums: &mut Vec<f64>) -> Logprobs {
    let total = scale.sums(row, sums).ln();
    let of = |logit: f32| {
        let logprob = (f64::from(logit - scale.highest) / f64::from(scale.temperature) - total) as f32;
        if logprob.is_nan() { f32::NEG_INFINITY } else { logprob }
    };
    let logit = row.get(id as usize).copied().unwrap_or(f32::NAN);
    let higher = row.iter().map(|other| u32::from(*other > logit)).sum::<u32>() as usize;
    let before = &row[..row.len().min(id as usize)];
    let equal_before = before.iter().map(|other| u32::from(*other == logit)).sum::<u32>() as usize;
    let chosen = TokenLogprob { id, logprob: of(logit), rank: 1 + higher + equal_before };
    let mut top = Vec::new();
    if count > 0 {
        gather_most(row, scale, count, items);
        items.sort_unstable_by(by_rank);
        let ranked = items.iter().take(count).zip(1..);
        top.extend(ranked.map(|(item, rank)| TokenLogprob { id: item.id, logprob: of(item.value), rank }));
    }
    Logprobs { chosen, top }
}

/// e to the power of a number in [-87, 0], to about 1e-7 of itself. Without the platform's library: the same draw falls
/// on the same token on every machine, and a row is computed in vectors. Cody and Waite's reduction to [-ln 2 / 2, ln 2 /
/// 2] with Cephes' polynomial (expf.c).
#[inline]
fn exponential(x: f32) -> f32 {
    // Added to a number of less than 2²² it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = x - power * LN_2_HIGH - power * LN_2_LOW;
    let tail =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let mantissa = tail * r * r + r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests;
