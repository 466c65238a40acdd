//! A model without weights that can't be fooled: its logits are a hash of all that a sequence can see, read back from the
//! cache through its table. A block that was given to the wrong sequence, or not copied, changes what it answers.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use mloc_engine::admission::Settings;
use mloc_engine::engine::Engine;
use mloc_engine::forward::{AdapterId, BlockId, Chunk, Forward, ForwardError, Logits, Shape, Wanted};
use mloc_engine::request::{Event, FinishReason, Logprobs, Request, RequestError, RequestId, Sampling, Stop, Usage};
use mloc_engine::vocabulary::Vocabulary;

/// What a place in a block holds.
type Place = (u32, usize, Option<AdapterId>);

/// What a model was asked to do.
#[derive(Debug, Default)]
pub struct Log {
    /// Tokens of each step.
    pub tokens: Vec<usize>,
    /// Sequences of each step.
    pub chunks: Vec<usize>,
    /// Blocks copied.
    pub copies: usize,
    /// Steps that fail, by their number from 0, and how.
    pub failures: BTreeMap<usize, ForwardError>,
    /// Steps of more tokens than this find no memory.
    pub memory: Option<usize>,
    /// Sequences whose last token this is find none in any step.
    pub poison: Option<u32>,
    calls: usize,
}

pub struct Model {
    shape: Shape,
    places: Vec<Option<Place>>,
    pub log: Arc<Mutex<Log>>,
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The hash of a sequence that goes on.
fn extend(hash: u64, token: u32) -> u64 {
    mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

fn root(adapter: Option<AdapterId>) -> u64 {
    adapter.map_or(7, |adapter| 1000 + u64::from(adapter.0))
}

/// Logits after a sequence of this hash that ends with this token. Often one token is likely because of the last one
/// alone, so that answers repeat themselves as those of real models do.
fn logits(hash: u64, last: u32, width: usize) -> impl Iterator<Item = f32> {
    let favoured = (!hash.is_multiple_of(4)).then_some((last as usize * 5 + 3) % 11);
    (0..width).map(move |id| {
        let noise = (mix(hash.wrapping_add(id as u64)) >> 40) as f32 / (1_u64 << 24) as f32;
        noise * 4.0 + if favoured == Some(id) { 3.0 } else { 0.0 }
    })
}

/// Greedy answers, without any engine.
pub fn by_hand(prompt: &[u32], adapter: Option<AdapterId>, width: usize, count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let hash = tokens.iter().fold(root(adapter), |hash, token| extend(hash, *token));
        let row: Vec<f32> = logits(hash, *tokens.last().expect("a prompt"), width).collect();
        let best = (0..width).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a token");
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

impl Model {
    pub fn new(shape: Shape) -> Self {
        Self { shape, places: vec![None; shape.blocks * shape.block_tokens], log: Arc::default() }
    }

    fn place(&mut self, blocks: &[BlockId], position: usize) -> &mut Option<Place> {
        let size = self.shape.block_tokens;
        &mut self.places[blocks[position / size].0 as usize * size + position % size]
    }

    fn fails(&self, step: &[Chunk]) -> Result<(), ForwardError> {
        let tokens = step.iter().map(|chunk| chunk.tokens.len()).sum();
        let mut log = self.log.lock().expect("no panic");
        let call = log.calls;
        log.calls += 1;
        let poisoned = log.poison.is_some_and(|id| step.iter().any(|chunk| chunk.tokens.last() == Some(&id)));
        if let Some(error) = log.failures.remove(&call) {
            return Err(error);
        }
        if log.memory.is_some_and(|memory| tokens > memory) || poisoned {
            return Err(ForwardError::OutOfMemory { tokens, detail: "as told".to_owned() });
        }
        log.tokens.push(tokens);
        log.chunks.push(step.len());
        Ok(())
    }
}

impl Forward for Model {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError> {
        let width = self.shape.vocabulary;
        let size = self.shape.block_tokens;
        let failed = self.fails(step);
        let mut written = BTreeSet::new();
        for chunk in step {
            assert!(!chunk.tokens.is_empty() && chunk.start + chunk.tokens.len() <= self.shape.max_length, "{chunk:?}");
            let blocks = &chunk.blocks[chunk.start / size..];
            assert!(blocks.iter().all(|id| written.insert(*id)), "E1: two sequences write to a block in {step:?}");
            for (offset, token) in chunk.tokens.iter().enumerate() {
                // A step that failed leaves anything behind where it would have written.
                let place = if failed.is_ok() { (*token, chunk.start + offset, chunk.adapter) } else { (99, 99, None) };
                *self.place(&chunk.blocks, chunk.start + offset) = Some(place);
            }
        }
        failed?;
        let mut values = Vec::new();
        for chunk in step {
            let mut hash = root(chunk.adapter);
            let end = chunk.start + chunk.tokens.len();
            for position in 0..end {
                let (token, at, adapter) =
                    self.place(&chunk.blocks, position).expect("E5: a position that was computed");
                assert_eq!((at, adapter), (position, chunk.adapter), "E1: another sequence's block in {chunk:?}");
                hash = extend(hash, token);
                let wanted = match chunk.wanted {
                    Wanted::None => false,
                    Wanted::Last => position + 1 == end,
                    Wanted::All => position >= chunk.start,
                };
                if wanted {
                    values.extend(logits(hash, token, width));
                }
            }
        }
        Ok(Logits { values, width })
    }

    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) {
        let size = self.shape.block_tokens;
        for (from, to) in pairs {
            let from = from.0 as usize * size;
            self.places.copy_within(from..from + size, to.0 as usize * size);
        }
        self.log.lock().expect("no panic").copies += pairs.len();
    }
}

/// Tokens of the letters and signs that JSON needs, and bytes of characters; the last one ends.
pub struct Words {
    words: Vec<Vec<u8>>,
    ends: Vec<u32>,
}

impl Words {
    pub fn new() -> Self {
        let mut words: Vec<Vec<u8>> = "abcdefgh {}[]\":,0123456789-.lnrstu".bytes().map(|byte| vec![byte]).collect();
        words.extend(["ab", " a", "true", "\",", "ée"].map(|word| word.as_bytes().to_vec()));
        words.extend("é👩".bytes().map(|byte| vec![byte]));
        let ends = vec![words.len() as u32];
        Self { words, ends }
    }

    pub fn end(&self) -> u32 {
        self.ends[0]
    }
}

impl Vocabulary for Words {
    fn size(&self) -> usize {
        self.words.len() + 1
    }

    fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|id| self.bytes(*id)).flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.words.get(id as usize).cloned()
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let id = |byte| self.words.iter().position(|word| *word == [byte]).expect("a byte with a token") as u32;
        text.bytes().map(id).collect()
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }
}

/// A greedy request for one answer of this many tokens.
pub fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        adapter: None,
        choices: 1,
        best_of: 1,
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        sampling: Sampling { temperature: 0.0, seed: Some(1), ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        logprobs: None,
        prompt_logprobs: None,
        constraint: None,
    }
}

/// What a client heard of one answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    pub ids: Vec<u32>,
    pub text: String,
    pub logprobs: Vec<Logprobs>,
    pub reason: Option<FinishReason>,
}

/// What a client heard.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    pub prompt: Option<Vec<Logprobs>>,
    pub answers: Vec<Heard>,
    pub usage: Option<Usage>,
    pub failed: Option<RequestError>,
    /// Listens to no more than so many events.
    pub patience: Option<usize>,
    events: usize,
}

impl Transcript {
    pub fn is_over(&self) -> bool {
        self.usage.is_some() || self.failed.is_some()
    }

    /// Takes an event, which must be one that may come now.
    pub fn hear(&mut self, event: Event) -> bool {
        assert!(!self.is_over(), "{event:?} after the last one");
        self.events += 1;
        assert!(self.patience.is_none_or(|patience| self.events <= patience), "{event:?} to nobody");
        match event {
            Event::Prompt { logprobs } => assert!(self.prompt.replace(logprobs).is_none(), "the prompt twice"),
            Event::Token { choice, id, text, logprobs } => {
                let answer = self.answer(choice);
                answer.ids.push(id);
                answer.text.push_str(&text);
                answer.logprobs.extend(logprobs);
            }
            Event::Finished { choice, text, reason } => {
                let answer = self.answer(choice);
                answer.text.push_str(&text);
                answer.reason = Some(reason);
            }
            Event::Done { usage } => {
                assert!(self.answers.iter().all(|answer| answer.reason.is_some()), "done before all answers");
                self.usage = Some(usage);
            }
            Event::Failed(error) => self.failed = Some(error),
        }
        self.patience != Some(self.events)
    }

    fn answer(&mut self, choice: usize) -> &mut Heard {
        if self.answers.len() <= choice {
            self.answers.resize(choice + 1, Heard::default());
        }
        let answer = &mut self.answers[choice];
        assert!(answer.reason.is_none(), "more of answer {choice} after its end");
        answer
    }
}

/// Sizes of a model with a vocabulary of [`Words`].
pub fn shape(blocks: usize, block_tokens: usize) -> Shape {
    Shape { vocabulary: Words::new().size(), max_length: 200, block_tokens, blocks }
}

/// An engine on a fake model, with all that its clients hear. Each step ends by checking every promise.
pub struct Env {
    pub engine: Engine,
    pub log: Arc<Mutex<Log>>,
    pub clients: Vec<(RequestId, Arc<Mutex<Transcript>>)>,
    pub steps: u32,
}

impl Env {
    pub fn new(shape: Shape, settings: Settings) -> Self {
        let model = Model::new(shape);
        let log = Arc::clone(&model.log);
        let engine = Engine::new(Box::new(model), Arc::new(Words::new()), settings).expect("good settings");
        Self { engine, log, clients: Vec::new(), steps: 0 }
    }

    /// Submits; the client's number.
    pub fn submit(&mut self, request: Request) -> usize {
        self.try_submit(request, None).expect("a request that can be answered")
    }

    pub fn try_submit(&mut self, request: Request, patience: Option<usize>) -> Result<usize, RequestError> {
        let admitted = self.engine.admission().admit(request)?;
        let transcript = Arc::new(Mutex::new(Transcript { patience, ..Transcript::default() }));
        self.clients.push((admitted.id(), Arc::clone(&transcript)));
        let sink = Box::new(move |event| transcript.lock().expect("no panic").hear(event));
        self.engine.submit(admitted, sink);
        Ok(self.clients.len() - 1)
    }

    pub fn cancel(&mut self, client: usize) {
        self.engine.cancel(self.clients[client].0);
    }

    /// One step.
    pub fn step(&mut self) {
        self.steps += 1;
        self.engine.step().expect("the device works");
        self.engine.scheduler().check().expect("all promises");
        let stats = self.engine.stats();
        assert_eq!(stats.resident_blocks, self.engine.scheduler().blocks().resident());
        let log = self.log.lock().expect("no panic");
        let limits = self.engine.admission().settings();
        assert!(log.tokens.iter().all(|tokens| *tokens <= limits.step_tokens), "E2: {:?}", log.tokens);
        assert!(log.chunks.iter().all(|chunks| *chunks <= limits.sequences), "E2: {:?}", log.chunks);
        let computed: usize = log.tokens.iter().sum();
        assert_eq!(stats.step_tokens, computed as u64);
    }

    /// Steps until all is answered.
    pub fn run(&mut self) {
        for _ in 0..20_000 {
            if self.engine.is_idle() {
                return self.check_end();
            }
            self.step();
        }
        panic!("E3: {} requests don't end", self.engine.requests());
    }

    fn check_end(&self) {
        assert_eq!(self.engine.stats().resident_blocks, 0, "E4");
        assert_eq!((self.engine.stats().running, self.engine.stats().waiting), (0, 0));
        let quiet = |transcript: &Transcript| transcript.is_over() || transcript.patience.is_some();
        assert!(self.clients.iter().all(|(_, transcript)| quiet(&transcript.lock().expect("no panic"))));
    }

    pub fn heard(&self, client: usize) -> Transcript {
        self.clients[client].1.lock().expect("no panic").clone()
    }

    /// The ids of a client's first answer.
    pub fn ids(&self, client: usize) -> Vec<u32> {
        self.heard(client).answers.first().map_or_else(Vec::new, |answer| answer.ids.clone())
    }
}

/// What a request is answered alone, with all the memory there is, computed in one piece, nothing found again and nothing
/// guessed.
pub fn alone(request: &Request) -> Transcript {
    let settings = Settings { step_tokens: 4096, prefix_cache: false, guessing: None, ..Settings::default() };
    let mut env = Env::new(shape(400, 4), settings);
    for id in 0..2 {
        env.engine.admission().adapters().add(&format!("a{id}"), AdapterId(id), Box::new(|_| ())).expect("new");
    }
    let client = env.submit(request.clone());
    env.run();
    env.heard(client)
}
