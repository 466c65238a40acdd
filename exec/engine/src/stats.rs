//! What the engine counts, and the page that Prometheus reads, under vLLM's names so that its dashboards work.

use std::fmt::Write as _;
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

impl Stats {
    /// The page in Prometheus' text format (version 0.0.4), for a model of this name.
    pub fn page(&self, model: &str) -> String {
        let mut page = Page { out: String::new(), label: format!("model_name=\"{}\"", escaped(model)) };
        let usage = self.resident_blocks as f64 / self.blocks.max(1) as f64;
        page.one("num_requests_running", "gauge", "Sequences in the cache.", self.running as f64);
        page.one("num_requests_waiting", "gauge", "Sequences that wait.", self.waiting as f64);
        page.one("kv_cache_usage_perc", "gauge", "Share of the cache's blocks in use, 1 = all.", usage);
        page.one("kv_cache_blocks_resident", "gauge", "Cache blocks in use.", self.resident_blocks as f64);
        page.one("step_tokens_limit", "gauge", "Tokens a step may have now.", self.step_tokens_limit as f64);
        let counters = [
            ("prefix_cache_queries", "Tokens looked for in the cache.", self.prefix_queries),
            ("prefix_cache_hits", "Tokens found in the cache.", self.prefix_hits),
            ("num_preemptions", "Sequences thrown out of the cache.", self.preemptions),
            ("out_of_memory_steps", "Steps for which the device had no memory.", self.out_of_memory),
            ("prompt_tokens", "Tokens of prompts.", self.prompt_tokens),
            ("generation_tokens", "Tokens of answers.", self.generation_tokens),
            ("spec_decode_num_drafts", "Guesses.", self.drafts),
            ("spec_decode_num_draft_tokens", "Tokens guessed.", self.draft_tokens),
            ("spec_decode_num_accepted_tokens", "Guessed tokens that were right.", self.accepted_tokens),
        ];
        for (name, help, value) in counters {
            page.one(&format!("{name}_total"), "counter", help, value as f64);
        }
        let Endings { stop, length, abort, error } = self.endings;
        page.head("request_success_total", "counter", "Answers that ended, by reason.");
        for (reason, value) in [("stop", stop), ("length", length), ("abort", abort), ("error", error)] {
            page.row("request_success_total", &format!("finished_reason=\"{reason}\""), value as f64);
        }
        page.histogram("iteration_tokens_total", "Tokens a step.", &self.tokens_per_step);
        page.histogram("time_to_first_token_seconds", "Time to the first token.", &self.first_token);
        page.histogram("inter_token_latency_seconds", "Time between tokens.", &self.between_tokens);
        page.histogram("e2e_request_latency_seconds", "Time of a whole request.", &self.whole);
        page.out
    }
}

struct Page {
    out: String,
    label: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}"));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.row(name, "", value);
    }

    fn row(&mut self, name: &str, more: &str, value: f64) {
        let comma = if more.is_empty() { "" } else { "," };
        let label = std::mem::take(&mut self.label);
        self.line(format_args!("vllm:{name}{{{label}{comma}{more}}} {value}"));
        self.label = label;
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut below = 0;
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            below += count;
            self.row(&format!("{name}_bucket"), &format!("le=\"{bound}\""), below as f64);
        }
        self.row(&format!("{name}_sum"), "", histogram.sum);
        self.row(&format!("{name}_count"), "", below as f64);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string doesn't fail.
        let _ = writeln!(self.out, "{line}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_vllms_names_and_histograms_that_add_up() {
        let mut stats = Stats { running: 3, blocks: 8, resident_blocks: 2, generation_tokens: 7, ..Stats::default() };
        [0.003, 0.5, 9000.0].into_iter().for_each(|value| stats.first_token.observe(value));
        let page = stats.page("a \"b\"");
        let has = |line: &str| assert!(page.lines().any(|other| other == line), "{line} in {page}");
        has("# TYPE vllm:num_requests_running gauge");
        has(r#"vllm:num_requests_running{model_name="a \"b\""} 3"#);
        has(r#"vllm:kv_cache_usage_perc{model_name="a \"b\""} 0.25"#);
        has(r#"vllm:generation_tokens_total{model_name="a \"b\""} 7"#);
        has(r#"vllm:time_to_first_token_seconds_bucket{model_name="a \"b\"",le="0.001"} 0"#);
        has(r#"vllm:time_to_first_token_seconds_bucket{model_name="a \"b\"",le="0.5"} 2"#);
        has(r#"vllm:time_to_first_token_seconds_bucket{model_name="a \"b\"",le="+Inf"} 3"#);
        has(r#"vllm:time_to_first_token_seconds_count{model_name="a \"b\""} 3"#);
        has(r#"vllm:request_success_total{model_name="a \"b\"",finished_reason="stop"} 0"#);
    }
}
