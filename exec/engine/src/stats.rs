//! What the engine counts. A page for Prometheus is the server's to write.

use std::time::Duration;

/// Bounds of vLLM's histograms (vllm/v1/metrics/loggers.py): seconds to the first token, seconds between tokens, seconds
/// of a whole request, tokens a step.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const WHOLE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// How often values fell below each bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last counts what is above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// One more value.
    pub fn observe(&mut self, value: f64) {
        let place = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[place] += 1;
        self.sum += value;
    }

    /// Each bound with the values up to it; the last bound is infinite.
    pub fn below(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.counts).scan(0, |below, (bound, count)| {
            *below += count;
            Some((bound, *below))
        })
    }

    /// Values seen.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

/// How requests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endings {
    /// Answers that ended by a stop token, a stop string or their constraint.
    pub stop: u64,
    /// Answers that ended by their length.
    pub length: u64,
    /// Answers whose client took them back.
    pub abort: u64,
    /// Requests that failed.
    pub error: u64,
}

/// Since the engine's beginning, but for what is said to be now.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Sequences in the cache now.
    pub running: usize,
    /// Sequences that wait now.
    pub waiting: usize,
    /// Cache blocks there are.
    pub blocks: usize,
    /// Cache blocks that sequences hold now.
    pub resident_blocks: usize,
    /// Tokens a step may have now: fewer than set after the device ran out of memory.
    pub step_tokens_limit: usize,
    /// Steps computed.
    pub steps: u64,
    /// Tokens that were looked for in the cache.
    pub prefix_queries: u64,
    /// And found there.
    pub prefix_hits: u64,
    /// Sequences thrown out.
    pub preemptions: u64,
    /// Steps for which the device had no memory.
    pub out_of_memory: u64,
    /// Prompt tokens of requests whose prompt is computed.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub generation_tokens: u64,
    /// Sequences of a step for which something was guessed.
    pub drafts: u64,
    /// Tokens guessed.
    pub draft_tokens: u64,
    /// And right.
    pub accepted_tokens: u64,
    /// How answers ended.
    pub endings: Endings,
    /// Tokens a step.
    pub tokens_per_step: Histogram,
    /// Seconds from a request's coming to its first token.
    pub first_token: Histogram,
    /// Seconds between an answer's tokens.
    pub between_tokens: Histogram,
    /// Seconds from a request's coming to its end.
    pub whole: Histogram,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            running: 0,
            waiting: 0,
            blocks: 0,
            resident_blocks: 0,
            step_tokens_limit: 0,
            steps: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
            out_of_memory: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            drafts: 0,
            draft_tokens: 0,
            accepted_tokens: 0,
            endings: Endings::default(),
            tokens_per_step: Histogram::new(STEP_TOKENS),
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole: Histogram::new(WHOLE),
        }
    }
}

pub(crate) fn seconds(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_every_value_once() {
        let mut stats = Stats::default();
        [0.003, 0.5, 9000.0].into_iter().for_each(|value| stats.first_token.observe(value));
        let below: Vec<(f64, u64)> = stats.first_token.below().collect();
        let at = |wanted: f64| below.iter().find(|(bound, _)| *bound == wanted).map(|(_, count)| *count);
        assert_eq!((at(0.001), at(0.005), at(0.5), at(2560.0)), (Some(0), Some(1), Some(2), Some(2)));
        assert_eq!((at(f64::INFINITY), stats.first_token.count(), stats.first_token.sum()), (Some(3), 3, 9000.503));
    }
}
