//! What the engine itself takes a token, beside the model: 256 sequences that answer at once, a vocabulary of 49,152.
//! The model gives rows made before, and its own time is taken off. Processor time, so that what else the machine does
//! counts little.
//!
//! `cargo bench -p mloc-engine`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mloc_engine::admission::Settings;
use mloc_engine::engine::Engine;
use mloc_engine::forward::{BlockId, Chunk, Forward, ForwardError, Logits, Shape, Wanted};
use mloc_engine::guess::Guessing;
use mloc_engine::request::{Constraint, Request, Sampling, Stop};
use mloc_engine::vocabulary::Vocabulary;

use nix::time::{ClockId, clock_gettime};

const VOCABULARY: usize = 49_152;
const SEQUENCES: usize = 256;
const PROMPT: usize = 64;
const TOKENS: usize = 24;

/// Rows as a model's are: few tokens likely, a long tail. Zipf's law, each row with another order of tokens.
struct Rows {
    rows: Vec<Vec<f32>>,
    nanos: Arc<AtomicU64>,
}

impl Rows {
    fn new(nanos: Arc<AtomicU64>) -> Self {
        let row = |seed: usize| {
            let rank = move |id: usize| (id * 30_011 + seed * 7_919) % VOCABULARY;
            (0..VOCABULARY).map(move |id| -1.3 * ((rank(id) + 1) as f32).ln()).collect()
        };
        Self { rows: (0..16).map(row).collect(), nanos }
    }
}

impl Forward for Rows {
    fn shape(&self) -> Shape {
        Shape { vocabulary: VOCABULARY, max_length: 4096, block_tokens: 16, blocks: 4096 }
    }

    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError> {
        let begun = processor_time();
        let mut values = Vec::new();
        for chunk in step {
            let rows = match chunk.wanted {
                Wanted::None => 0,
                Wanted::Last => 1,
                Wanted::All => chunk.tokens.len(),
            };
            for row in 0..rows {
                let place = chunk.start + row + chunk.blocks[0].0 as usize;
                values.extend_from_slice(&self.rows[place % self.rows.len()]);
            }
        }
        self.nanos.fetch_add((processor_time() - begun).as_nanos() as u64, Ordering::Relaxed);
        Ok(Logits { values, width: VOCABULARY })
    }

    fn copy_blocks(&mut self, _: &[(BlockId, BlockId)]) {}
}

/// Each token a byte, or a word of letters.
struct Words;

impl Vocabulary for Words {
    fn size(&self) -> usize {
        VOCABULARY
    }

    fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|id| self.bytes(*id)).flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        match id {
            0..256 => Some(vec![id as u8]),
            49_151 => None,
            _ => Some([id % 26, id / 26 % 26, id / 676].map(|letter| b'a' + (letter % 26) as u8).to_vec()),
        }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn ends(&self) -> &[u32] {
        &[49_151]
    }
}

/// What this thread has had.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

fn main() {
    let sampled = Sampling { temperature: 0.8, ..Sampling::default() };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let plain = |sampling: &Sampling| Request {
        prompt: vec![1; PROMPT],
        adapter: None,
        choices: 1,
        best_of: 1,
        max_tokens: Some(TOKENS),
        min_tokens: 0,
        sampling: sampling.clone(),
        stop: Stop { ignore_eos: true, ..Stop::default() },
        logprobs: None,
        prompt_logprobs: None,
        constraint: None,
    };
    let string = Constraint::JsonSchema(serde_json::json!({ "type": "string" }));
    let settings = Settings { sequences: SEQUENCES, step_tokens: 4096, ..Settings::default() };
    let guessing = Settings { guessing: Some(Guessing { shortest: 4, ..Guessing::default() }), ..settings.clone() };
    let cases = [
        ("greedy", plain(&greedy), settings.clone()),
        ("greedy, guesses looked for", plain(&greedy), guessing),
        ("temperature", plain(&sampled), settings.clone()),
        ("top-p 0.9", plain(&Sampling { top_p: 0.9, ..sampled.clone() }), settings.clone()),
        ("top-k 50, top-p 0.9", plain(&Sampling { top_k: 50, top_p: 0.9, ..sampled.clone() }), settings.clone()),
        ("min-p 0.05", plain(&Sampling { min_p: 0.05, ..sampled.clone() }), settings.clone()),
        (
            "penalties, top-p 0.9",
            plain(&Sampling { top_p: 0.9, frequency_penalty: 0.5, ..sampled.clone() }),
            settings.clone(),
        ),
        ("greedy, 5 log-probabilities", Request { logprobs: Some(5), ..plain(&greedy) }, settings.clone()),
        ("greedy, stop strings", with_stops(plain(&greedy)), settings.clone()),
        ("greedy, a JSON string", Request { constraint: Some(string), ..plain(&greedy) }, settings),
    ];
    println!("{SEQUENCES} sequences, {VOCABULARY} logits, microseconds a token without the model:");
    for (name, request, settings) in cases {
        let nanos = Arc::new(AtomicU64::new(0));
        let model = Box::new(Rows::new(Arc::clone(&nanos)));
        let mut engine = Engine::new(model, Arc::new(Words), settings).expect("good settings");
        for place in 0..SEQUENCES {
            let mut request = request.clone();
            request.prompt[0] = place as u32;
            let admitted = engine.admission().admit(request).expect("it fits");
            engine.submit(admitted, Box::new(|_| true));
        }
        // Prompts, and the memory that is used again.
        while engine.stats().prompt_tokens < (SEQUENCES * PROMPT) as u64 {
            engine.step().expect("a device");
        }
        nanos.store(0, Ordering::Relaxed);
        let before = engine.stats().generation_tokens;
        let begun = processor_time();
        for _ in 0..TOKENS / 2 {
            engine.step().expect("a device");
        }
        let took = (processor_time() - begun).saturating_sub(Duration::from_nanos(nanos.load(Ordering::Relaxed)));
        let tokens = engine.stats().generation_tokens - before;
        println!("{:>8.2}  {name}", took.as_secs_f64() * 1e6 / tokens.max(1) as f64);
    }
}

fn with_stops(mut request: Request) -> Request {
    request.stop.strings = ["\n\n", "User:", "</s>"].map(str::to_owned).to_vec();
    request
}
