//! What Prometheus scrapes, under vLLM's names, so that dashboards made for it work.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use mloc_engine::request::{Event, FinishReason};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::model::Load;

type Labels = Vec<(&'static str, String)>;

/// What `/metrics` is written in.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

// vLLM's buckets.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const NEXT_TOKEN: [f64; 18] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0];
const WHOLE: [f64; 20] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0,
];
const TOKENS: [f64; 16] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
const FEW: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// All series.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    cache: Gauge<f64, AtomicU64>,
    cache_old: Gauge<f64, AtomicU64>,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    blocks: Gauge,
    resident_blocks: Gauge,
    steps: Counter,
    step_tokens: Counter,
    out_of_memory: Counter,
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    success: Family<Labels, Counter>,
    first_token: Histogram,
    next_token: Histogram,
    next_token_old: Histogram,
    whole: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_prompt: Histogram,
    request_generation: Histogram,
    request_n: Histogram,
    request_max: Histogram,
    requests: Family<Labels, Counter>,
}

impl Metrics {
    /// Of a model by this name.
    pub fn new(model: &str) -> Self {
        let histogram = |buckets: &[f64]| Histogram::new(buckets.iter().copied());
        let mut metrics = Self {
            registry: Registry::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache: Gauge::default(),
            cache_old: Gauge::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            preemptions: Counter::default(),
            blocks: Gauge::default(),
            resident_blocks: Gauge::default(),
            steps: Counter::default(),
            step_tokens: Counter::default(),
            out_of_memory: Counter::default(),
            drafts: Counter::default(),
            draft_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            success: Family::default(),
            first_token: histogram(&FIRST_TOKEN),
            next_token: histogram(&NEXT_TOKEN),
            next_token_old: histogram(&NEXT_TOKEN),
            whole: histogram(&WHOLE),
            prefill: histogram(&WHOLE),
            decode: histogram(&WHOLE),
            request_prompt: histogram(&TOKENS),
            request_generation: histogram(&TOKENS),
            request_n: histogram(&FEW),
            request_max: histogram(&TOKENS),
            requests: Family::default(),
        };
        let labels = [("model_name".into(), model.to_owned().into()), ("engine".into(), "0".into())];
        let mut registry = Registry::with_labels(labels.into_iter());
        let m = &metrics;
        registry.register("vllm:num_requests_running", "Requests being computed", m.running.clone());
        registry.register("vllm:num_requests_waiting", "Requests that wait", m.waiting.clone());
        registry.register("vllm:kv_cache_usage_perc", "Part of the cache in use, 0 to 1", m.cache.clone());
        registry.register("vllm:gpu_cache_usage_perc", "The same by its older name", m.cache_old.clone());
        registry.register(
            "vllm:prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache",
            m.prefix_queries.clone(),
        );
        registry.register("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", m.prefix_hits.clone());
        registry.register("vllm:num_preemptions", "Requests put back from running to waiting", m.preemptions.clone());
        registry.register("vllm:spec_decode_num_drafts", "Times that tokens were guessed ahead", m.drafts.clone());
        registry.register("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead", m.draft_tokens.clone());
        registry.register(
            "vllm:spec_decode_num_accepted_tokens",
            "Tokens guessed ahead that were right",
            m.accepted_tokens.clone(),
        );
        registry.register("mloc:engine_steps", "Times that tokens went through the model", m.steps.clone());
        registry.register("mloc:engine_step_tokens", "Tokens that went through the model", m.step_tokens.clone());
        registry.register(
            "mloc:engine_out_of_memory",
            "Steps that were made smaller for want of memory",
            m.out_of_memory.clone(),
        );
        registry.register("mloc:cache_blocks", "Blocks of the cache", m.blocks.clone());
        registry.register("mloc:cache_blocks_resident", "Blocks that requests hold", m.resident_blocks.clone());
        registry.register("vllm:prompt_tokens", "Tokens of prompts", m.prompt_tokens.clone());
        registry.register("vllm:generation_tokens", "Tokens of answers", m.generation_tokens.clone());
        registry.register("vllm:request_success", "Answers by why they ended", m.success.clone());
        registry.register("vllm:time_to_first_token_seconds", "From request to first token", m.first_token.clone());
        registry.register("vllm:inter_token_latency_seconds", "From token to token", m.next_token.clone());
        registry.register("vllm:time_per_output_token_seconds", "The same by its older name", m.next_token_old.clone());
        registry.register("vllm:e2e_request_latency_seconds", "From request to last token", m.whole.clone());
        registry.register(
            "vllm:request_prefill_time_seconds",
            "From request to computed prompt, waiting included",
            m.prefill.clone(),
        );
        registry.register("vllm:request_decode_time_seconds", "From computed prompt to last token", m.decode.clone());
        registry.register("vllm:request_prompt_tokens", "Tokens of a prompt", m.request_prompt.clone());
        registry.register(
            "vllm:request_generation_tokens",
            "Tokens of a request's answers",
            m.request_generation.clone(),
        );
        registry.register("vllm:request_params_n", "Answers asked for", m.request_n.clone());
        registry.register("vllm:request_params_max_tokens", "Tokens an answer may have", m.request_max.clone());
        registry.register("http_requests", "Requests by endpoint and status", m.requests.clone());
        metrics.registry = registry;
        metrics
    }

    /// A request was answered, or refused.
    pub fn answered(&self, handler: &str, method: &str, status: u16) {
        let labels =
            vec![("handler", handler.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// All of it, as text.
    pub fn written(&self, load: Load) -> String {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.running.set(whole(load.running));
        self.waiting.set(whole(load.waiting));
        let used = load.resident_blocks as f64 / load.blocks.max(1) as f64;
        self.cache.set(used);
        self.cache_old.set(used);
        self.blocks.set(whole(load.blocks));
        self.resident_blocks.set(whole(load.resident_blocks));
        for (counter, now) in [
            (&self.prefix_queries, load.prefix_queries),
            (&self.prefix_hits, load.prefix_hits),
            (&self.preemptions, load.preemptions),
            (&self.steps, load.steps),
            (&self.step_tokens, load.step_tokens),
            (&self.out_of_memory, load.out_of_memory),
            (&self.drafts, load.drafts),
            (&self.draft_tokens, load.draft_tokens),
            (&self.accepted_tokens, load.accepted_tokens),
        ] {
            counter.inner().store(now, Ordering::Relaxed);
        }
        let mut text = String::new();
        // A String takes all that is written.
        let _: Result<(), std::fmt::Error> = text::encode(&mut text, &self.registry);
        text
    }
}

/// Measures one request by its events.
#[derive(Debug)]
pub struct Measure {
    metrics: Arc<Metrics>,
    began: Instant,
    prompt: Option<Instant>,
    first: bool,
    /// When each answer's last token came.
    last: Vec<Option<Instant>>,
}

impl Measure {
    /// It begins now.
    pub fn new(metrics: Arc<Metrics>, choices: usize, max_tokens: Option<usize>, now: Instant) -> Self {
        metrics.request_n.observe(choices as f64);
        if let Some(most) = max_tokens {
            metrics.request_max.observe(most as f64);
        }
        Self { metrics, began: now, prompt: None, first: true, last: vec![None; choices] }
    }

    /// An event came now.
    pub fn hear(&mut self, event: &Event, now: Instant) {
        let metrics = &self.metrics;
        let since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
        match event {
            Event::Prompt { .. } => {
                metrics.prefill.observe(since(self.began));
                self.prompt = Some(now);
            }
            Event::Token { choice, .. } => {
                if std::mem::take(&mut self.first) {
                    metrics.first_token.observe(since(self.began));
                }
                let last = self.last.get_mut(*choice).and_then(|last| last.replace(now));
                if let Some(last) = last {
                    metrics.next_token.observe(since(last));
                    metrics.next_token_old.observe(since(last));
                }
            }
            Event::Finished { reason, .. } => {
                let reason = match reason {
                    FinishReason::Stop | FinishReason::StopString(_) => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Cancelled => "abort",
                };
                metrics.success.get_or_create(&vec![("finished_reason", reason.to_owned())]).inc();
            }
            Event::Done { usage } => {
                metrics.whole.observe(since(self.began));
                metrics.decode.observe(since(self.prompt.unwrap_or(self.began)));
                metrics.request_prompt.observe(usage.prompt_tokens as f64);
                metrics.request_generation.observe(usage.completion_tokens as f64);
                metrics.prompt_tokens.inc_by(usage.prompt_tokens as u64);
                metrics.generation_tokens.inc_by(usage.completion_tokens as u64);
            }
            Event::Failed(_) => {
                metrics.success.get_or_create(&vec![("finished_reason", "error".to_owned())]).inc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mloc_engine::request::Usage;

    use super::*;

    #[test]
    fn what_a_dashboard_made_for_vllm_reads() {
        let metrics = Arc::new(Metrics::new("m"));
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut measure = Measure::new(metrics.clone(), 1, Some(8), began);
        let token = |text: &str| Event::Token { choice: 0, id: 1, text: text.into(), logprobs: None };
        measure.hear(&Event::Prompt { logprobs: vec![] }, at(20));
        measure.hear(&token("a"), at(50));
        measure.hear(&token("b"), at(80));
        measure.hear(&Event::Finished { choice: 0, text: String::new(), reason: FinishReason::Stop }, at(80));
        measure
            .hear(&Event::Done { usage: Usage { prompt_tokens: 7, cached_tokens: 0, completion_tokens: 2 } }, at(80));
        metrics.answered("/v1/completions", "POST", 200);
        let text = metrics.written(Load {
            running: 3,
            waiting: 2,
            blocks: 8,
            resident_blocks: 4,
            prefix_queries: 40,
            prefix_hits: 10,
            preemptions: 1,
            steps: 5,
            step_tokens: 12,
            out_of_memory: 2,
            drafts: 3,
            draft_tokens: 9,
            accepted_tokens: 6,
        });
        let sums: Vec<&str> =
            text.lines().filter(|line| !line.contains("_bucket") && !line.starts_with("# HELP")).collect();
        insta::assert_snapshot!(sums.join("\n"));
        assert!(
            text.contains("vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.06\"} 1"),
            "{text}"
        );
    }
}
