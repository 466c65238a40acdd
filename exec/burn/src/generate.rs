//! Continuing a text: greedy or sampled. One text at a time here, with each token as it comes; [`many`] at once.

pub mod many;

use crate::model::parameter::host_values;
use crate::model::{Decoder, KeyValueCache, Packed};
use crate::random::Random;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The highest logit; the lowest id among equals.
    Greedy,
    /// At random.
    Random {
        /// Logits are divided by it; 0 is greedy.
        temperature: f32,
        /// Only the most probable tokens that together reach this probability are eligible; 1 = all.
        top_p: f32,
        /// The same seed gives the same text.
        seed: u64,
    },
}

/// Which tokens may come next, and how likely each is. The order of the steps is the reference library's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Logits are divided by it; 0 takes the highest one.
    pub temperature: f32,
    /// Only so many of the most probable are eligible; 0 = all.
    pub top_k: usize,
    /// Of those, only the most probable that together reach this probability; 1 = all.
    pub top_p: f32,
    /// Of those, only what is at least this share as probable as the most probable; 0 = all.
    pub min_p: f32,
}

impl Default for Sampler {
    /// The model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

/// When to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// A token among these ends the text; it is part of the result.
    pub stop_ids: Vec<i64>,
}

/// The tokens after `prompt`. `on_token` sees each as it comes and ends the generation by returning false.
/// An empty prompt, or one with ids outside the vocabulary, gives no tokens.
pub fn generate(
    model: &Decoder,
    prompt: &[i64],
    sampling: Sampling,
    limits: &Limits,
    mut on_token: impl FnMut(i64) -> bool,
) -> Vec<i64> {
    let known = |id: &i64| (0..model.config.vocab_size as i64).contains(id);
    let mut new = Vec::new();
    if prompt.is_empty() || !prompt.iter().all(known) {
        return new;
    }
    let mut random = Random::new(match sampling {
        Sampling::Greedy => 0,
        Sampling::Random { seed, .. } => seed,
    });
    let mut cache = KeyValueCache::new(model.layers.len());
    let mut next = prompt.to_vec();
    while new.len() < limits.max_new_tokens {
        let logits = next_logits(model, &next, &mut cache);
        let id = match sampling {
            Sampling::Greedy => argmax(&logits),
            Sampling::Random { temperature, top_p, .. } => {
                Sampler { temperature, top_p, ..Sampler::default() }.choose(&logits, &mut random)
            }
        };
        new.push(id);
        if limits.stop_ids.contains(&id) || !on_token(id) {
            break;
        }
        next = vec![id];
    }
    new
}

/// Feeds tokens into the cache; the logits after the last of them.
pub fn next_logits(model: &Decoder, ids: &[i64], cache: &mut KeyValueCache) -> Vec<f32> {
    let packed = Packed::continuation(ids, cache.tokens(), &model.config, model.device());
    let hidden = model.hidden_cached(&packed, cache);
    let last = hidden.narrow(0, ids.len() - 1, 1);
    host_values(model.logits(last))
}

fn argmax(logits: &[f32]) -> i64 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as i64
}

impl Sampler {
    /// A token at random; the lowest id among equals where there is nothing to choose. Logits must be finite.
    pub fn choose(&self, logits: &[f32], random: &mut Random) -> i64 {
        let best = argmax(logits);
        if self.temperature <= 0.0 {
            return best;
        }
        let highest = logits[best as usize];
        let mut weights: Vec<(usize, f32)> = logits
            .iter()
            .enumerate()
            .map(|(id, logit)| (id, ((logit - highest) / self.temperature).exp()))
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            weights.truncate(self.top_k);
        }
        // In f64: in f32 a sum near 1 no longer grows by what is below 6e-8, and a large vocabulary's tail is that.
        let total: f64 = weights.iter().map(|(_, w)| f64::from(*w)).sum();
        let mut reached = 0.0_f64;
        let mut count = 0;
        for (_, weight) in &weights {
            reached += f64::from(*weight);
            count += 1;
            if reached >= f64::from(self.top_p) * total {
                break;
            }
        }
        weights.truncate(count);
        // The most probable one weighs 1.
        weights.retain(|(_, weight)| *weight >= self.min_p);
        let eligible: f64 = weights.iter().map(|(_, w)| f64::from(*w)).sum();
        let mut point = f64::from(random.uniform()) * eligible;
        for (id, weight) in &weights {
            point -= f64::from(*weight);
            if point < 0.0 {
                return *id as i64;
            }
        }
        // Rounding may leave a sliver behind the last one.
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_the_probabilities_and_the_filters() {
        let logits = [1.0_f32, 3.0, 2.0].map(|p: f32| (p / 6.0).ln());
        let mut random = Random::new(1);
        let mut counts = [0_i32; 3];
        for _ in 0..6000 {
            counts[Sampler::default().choose(&logits, &mut random) as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1000, 3000, 2000]) {
            assert!((count - expected).abs() < 150, "{counts:?}");
        }
        let all = Sampler::default();
        for _ in 0..100 {
            for few in [Sampler { top_p: 0.8, ..all }, Sampler { top_k: 2, ..all }, Sampler { min_p: 0.5, ..all }] {
                assert_ne!(few.choose(&logits, &mut random), 0, "{few:?}");
            }
            for one in [Sampler { temperature: 0.01, ..all }, Sampler { temperature: 0.0, ..all }] {
                assert_eq!(one.choose(&logits, &mut random), 1, "{one:?}");
            }
            for one in [Sampler { top_k: 1, ..all }, Sampler { min_p: 0.9, ..all }, Sampler { top_p: 0.4, ..all }] {
                assert_eq!(one.choose(&logits, &mut random), 1, "{one:?}");
            }
        }
    }
}
