//! Tokens a second on the shape of SmolLM2-135M with random weights, per format, beside the memory's own limit.
//!
//! ```text
//! cargo bench -p mloc-cpu --bench decode -- [threads=2] [formats=f32,bf16,int8,int4] [isa=best] [cache=f32] [rounds=3] [layers=30] [vocabulary=49152]
//!     [streams=1,8,32] [clock=wall]
//! ```
//! Each figure is the best of `rounds` (weights GB/s: those of the first streams); in brackets what the fastest single step would give, which on a machine with
//! other work is nearer to what a quiet one does. Decode runs 32 tokens after a prompt of 64 a stream; prefill is one
//! sequence of 512 in one step, the last token's logits wanted. `clock=cpu` with one thread counts the time it ran, not the
//! time it waited for a core (Linux).

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use half::bf16;
use mloc_cpu::{
    CacheFormat, Format, Keep, Model, Settings,
    architecture::{Activation, Architecture, Layer, Rope},
    isa::Isa,
    pool::{Job, Pool},
    weights::{Role, Values, Weights},
};
use mloc_engine::forward::{BlockId, Chunk, Forward, Wanted};

const BLOCK: usize = 32;
const PROMPT: usize = 64;
const DECODED: usize = 32;
const PREFILL: usize = 512;

/// Whether the clock counts the time on a core.
static CPU: AtomicBool = AtomicBool::new(false);

/// A point in time, or in what the calling thread has run.
struct Clock(Instant, Duration);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), Self::ran())
    }

    fn elapsed(&self) -> Duration {
        if CPU.load(Ordering::Relaxed) { Self::ran() - self.1 } else { self.0.elapsed() }
    }

    fn ran() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanoseconds = stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Duration::from_nanos(nanoseconds)
    }
}

fn main() {
    let arguments: HashMap<String, String> = std::env::args()
        .filter_map(|argument| argument.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect();
    let number = |key: &str, default: usize| arguments.get(key).map_or(default, |v| v.parse().expect("a number"));
    let (threads, rounds) = (number("threads", 2), number("rounds", 3));
    CPU.store(arguments.get("clock").is_some_and(|v| v == "cpu"), Ordering::Relaxed);
    let random = Random(smollm2(number("layers", 30), number("vocabulary", 49152)));
    let isa = match arguments.get("isa").map(String::as_str) {
        None | Some("best") => Isa::best(),
        Some("avx512") => Isa::Avx512,
        Some("avx2") => Isa::Avx2,
        Some("portable") => Isa::Portable,
        Some(other) => panic!("isa {other}: best, avx512, avx2 or portable would work"),
    };
    let cache = if arguments.get("cache").is_some_and(|v| v == "f16") { CacheFormat::F16 } else { CacheFormat::F32 };
    let formats = arguments.get("formats").map_or("f32,bf16,int8,int4", String::as_str);
    let streams = arguments.get("streams").map_or("1,8,32", String::as_str);
    let streams: Vec<usize> = streams.split(',').map(|n| n.parse().expect("a number of streams")).collect();
    let limit = read_limit(threads, rounds.min(10));
    let phase = phase_cost(threads, rounds);
    println!("{isa:?}, {threads} threads, cache {cache:?}; memory reads {limit:.1} GB/s; a phase costs {phase:.2} µs");
    print!("format");
    streams.iter().for_each(|n| print!("{:>24}", format!("{n} streams tok/s")));
    println!("{:>12}   weights GB/s  of limit", format!("prefill {PREFILL}"));
    for name in formats.split(',') {
        let format = Format::ALL.into_iter().find(|f| f.to_string() == name);
        let format = format.unwrap_or_else(|| panic!("format {name}: f32, f16, bf16, int8, uint4 or int4 would work"));
        let settings = Settings {
            threads,
            isa,
            keep: Keep::all(format),
            cache,
            block_tokens: BLOCK,
            blocks: 32 * (PROMPT + DECODED + 1).div_ceil(BLOCK) + PREFILL.div_ceil(BLOCK),
            max_length: 2048,
        };
        let mut model = Model::load(random.0.clone(), &random, &settings).expect("the shape is sound");
        let mut rates = Vec::new();
        for &streams in &streams {
            let runs: Vec<Vec<Duration>> = (0..rounds).map(|_| decode(&mut model, streams)).collect();
            let rate = |time: Duration, steps: usize| (streams * steps) as f64 / time.as_secs_f64();
            let whole = runs.iter().map(|run| run.iter().sum()).min().unwrap_or_default();
            let step = runs.iter().flatten().min().copied().unwrap_or_default();
            rates.push([rate(whole, DECODED), rate(step, 1)]);
        }
        let prefill = PREFILL as f64 / best(rounds, || prefill(&mut model)).as_secs_f64();
        let steps = rates[0][0] / streams[0] as f64;
        let bytes = model.weight_bytes() as f64 * steps / 1e9;
        print!("{name:6}");
        rates.iter().for_each(|[whole, step]| print!("{:>24}", format!("{whole:.1} ({step:.1})")));
        println!("{prefill:12.1} {bytes:14.1} {:8.0}%", bytes / limit * 100.0);
    }
}

fn best(rounds: usize, mut run: impl FnMut() -> Duration) -> Duration {
    (0..rounds.max(1)).map(|_| run()).min().unwrap_or_default()
}

fn chunk(stream: usize, start: usize, tokens: Vec<u32>, wanted: Wanted) -> Chunk {
    let blocks = (PROMPT + DECODED + 1).div_ceil(BLOCK);
    let blocks = (0..blocks).map(|block| BlockId((stream * blocks + block) as u32)).collect();
    Chunk { tokens, start, blocks, adapter: None, wanted }
}

/// Times of the steps.
fn decode(model: &mut Model, streams: usize) -> Vec<Duration> {
    let prompt = |stream: usize| (0..PROMPT as u32).map(|i| 7 + i * 3 + stream as u32).collect();
    let step: Vec<Chunk> = (0..streams).map(|stream| chunk(stream, 0, prompt(stream), Wanted::Last)).collect();
    let mut logits = model.forward(&step).expect("a step");
    let mut times = Vec::new();
    for at in 0..DECODED {
        let begin = Clock::start();
        let token = |stream: usize| argmax(logits.row(stream));
        let step: Vec<Chunk> = (0..streams).map(|s| chunk(s, PROMPT + at, vec![token(s)], Wanted::Last)).collect();
        logits = model.forward(&step).expect("a step");
        times.push(begin.elapsed());
    }
    black_box(logits);
    times
}

fn prefill(model: &mut Model) -> Duration {
    let blocks = model.shape().blocks - PREFILL.div_ceil(BLOCK)..model.shape().blocks;
    let blocks = blocks.map(|block| BlockId(block as u32)).collect();
    let tokens = (0..PREFILL as u32).map(|i| 11 + i).collect();
    let step = [Chunk { tokens, start: 0, blocks, adapter: None, wanted: Wanted::Last }];
    let begin = Clock::start();
    black_box(model.forward(&step).expect("a step"));
    begin.elapsed()
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best as u32
}

/// 16 chunks of next to nothing a phase.
struct Empty;

const EMPTY_PHASES: usize = 200;

impl Job for Empty {
    fn phases(&self) -> usize {
        EMPTY_PHASES
    }
    fn chunks(&self, _: usize) -> usize {
        16
    }
    fn chunk(&self, phase: usize, chunk: usize, worker: usize) {
        black_box((phase, chunk, worker));
    }
    fn finish(&self, _: usize, _: usize) {}
}

/// Microseconds of a phase that has nothing to compute: claims, and the change to the next.
fn phase_cost(threads: usize, rounds: usize) -> f64 {
    let mut pool = Pool::new(threads).expect("threads");
    let time = best(20 * rounds, || {
        let begin = Instant::now();
        pool.run(Arc::new(Empty));
        begin.elapsed()
    });
    time.as_secs_f64() * 1e6 / EMPTY_PHASES as f64
}

/// GB/s that `threads` threads read from a gigabyte: the best of some rounds.
fn read_limit(threads: usize, rounds: usize) -> f64 {
    let words = vec![1_u64; 128 << 20];
    let part = words.len() / threads;
    let time = best(rounds, || {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for words in words.chunks(part) {
                scope.spawn(move || {
                    let mut sums = [0_u64; 16];
                    for sixteen in words.chunks_exact(16) {
                        for lane in 0..16 {
                            sums[lane] = sums[lane].wrapping_add(sixteen[lane]);
                        }
                    }
                    black_box(sums)
                });
            }
        });
        begin.elapsed()
    });
    (words.len() * 8) as f64 / time.as_secs_f64() / 1e9
}

fn smollm2(layers: usize, vocabulary: usize) -> Architecture {
    Architecture {
        vocabulary,
        hidden: 576,
        intermediate: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        layers: vec![Layer { window: None, rope: 0 }; layers],
        ropes: vec![Rope {
            inverse_frequencies: (0..32).map(|i| 100_000_f32.powf(-(i as f32) / 32.0)).collect(),
            scale: 1.0,
        }],
        norm_epsilon: 1e-5,
        attention_scale: 0.125,
        activation: Activation::Silu,
        qk_norm: false,
        post_norms: false,
        embedding_scale: 1.0,
        attention_soft_cap: None,
        logit_soft_cap: None,
        tied: true,
        experts: None,
    }
}

/// Weights of the scale that a trained model has, the same in each run.
struct Random(Architecture);

impl Weights for Random {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        use mloc_cpu::weights::{Matrix, Part};
        let a = &self.0;
        let (len, scale) = match role {
            Role::Embedding => (a.vocabulary * a.hidden, 0.1),
            Role::Layer(_, Part::Matrix(Matrix::Query | Matrix::Output)) => (a.hidden * a.hidden, 0.05),
            Role::Layer(_, Part::Matrix(Matrix::Key | Matrix::Value)) => (192 * a.hidden, 0.05),
            Role::Layer(_, Part::Matrix(_)) => (a.intermediate * a.hidden, 0.05),
            Role::FinalNorm | Role::Layer(_, Part::AttentionNorm | Part::FeedForwardNorm) => {
                return Some(Values::F32(vec![1.0; a.hidden].into()));
            }
            Role::Head | Role::Layer(..) => return None,
        };
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bf16::from_f32(((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale)
        };
        Some(Values::Bf16((0..len).map(|_| next()).collect()))
    }
}
