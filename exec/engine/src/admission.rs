//! Whether a request can be answered at all, said before it is queued, by whoever brings it: nothing here waits for the
//! engine.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::adapters::{Adapters, InUse};
use crate::constrain::{Grammar, Grammars};
use crate::forward::Shape;
use crate::guess::Guessing;
use crate::request::{Request, RequestError, RequestId};
use crate::schedule::Cache;
use crate::vocabulary::Vocabulary;

/// How an engine serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Tokens a step, of prompts and answers together; no fewer than sequences.
    pub step_tokens: usize,
    /// Sequences that are computed at once.
    pub sequences: usize,
    /// Requests that may wait.
    pub waiting: usize,
    /// How cache blocks are given out.
    pub cache: Cache,
    /// Whether prompts that begin alike share what is computed of them.
    pub prefix_cache: bool,
    /// Whether and how answers are guessed ahead.
    pub guessing: Option<Guessing>,
    /// What seeds are made from where requests have none.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            step_tokens: 512,
            sequences: 64,
            waiting: 1024,
            cache: Cache::Paged,
            prefix_cache: true,
            guessing: None,
            seed: 0,
        }
    }
}

/// Settings that a model can't be served with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSettings(pub(crate) String);

/// A request that can be answered.
pub struct Admitted {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// Tokens of prompt and answer together.
    pub(crate) most: usize,
    pub(crate) grammar: Option<Grammar>,
    pub(crate) adapter: Option<InUse>,
    pub(crate) place: Place,
}

impl Admitted {
    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

/// A place among the waiting, free again when it is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What an engine admits.
pub struct Admission {
    shape: Shape,
    settings: Settings,
    vocabulary: Arc<dyn Vocabulary>,
    /// Made for the first constraint.
    grammars: OnceLock<Result<Grammars, String>>,
    adapters: Arc<Adapters>,
    waiting: Arc<AtomicUsize>,
    closed: AtomicBool,
    next: AtomicU64,
}

impl Admission {
    /// For a model and its tokenizer.
    ///
    /// # Errors
    /// [`BadSettings`]
    pub fn new(shape: Shape, vocabulary: Arc<dyn Vocabulary>, settings: Settings) -> Result<Self, BadSettings> {
        let Settings { step_tokens, sequences, waiting, guessing, .. } = settings;
        let problems = [
            (sequences == 0, "sequences is 0; 1 or more works".to_owned()),
            (waiting == 0, "waiting is 0; 1 or more works".to_owned()),
            // Each sequence that answers has a token in each step.
            (
                step_tokens < sequences,
                format!("step_tokens is {step_tokens}; {sequences}, as many as sequences, or more works"),
            ),
            (
                shape.blocks == 0 || shape.block_tokens == 0,
                format!("the cache has {} blocks of {} tokens", shape.blocks, shape.block_tokens),
            ),
            (
                shape.max_length == 0 || shape.vocabulary == 0,
                format!("the model has {} logits and a length of {}", shape.vocabulary, shape.max_length),
            ),
            (guessing.is_some_and(|guessing| guessing.tokens == 0), "guessing.tokens is 0; 1 or more works".to_owned()),
            (
                guessing.is_some_and(|guessing| guessing.longest < guessing.shortest),
                "guessing.longest is less than guessing.shortest".to_owned(),
            ),
        ];
        let problems: Vec<String> = problems.into_iter().filter(|(is, _)| *is).map(|(_, words)| words).collect();
        if !problems.is_empty() {
            return Err(BadSettings(problems.join("; ")));
        }
        Ok(Self {
            shape,
            settings,
            vocabulary,
            grammars: OnceLock::new(),
            adapters: Arc::default(),
            waiting: Arc::default(),
            closed: AtomicBool::new(false),
            next: AtomicU64::new(0),
        })
    }

    /// How it serves.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The model's sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The tokenizer.
    pub fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.vocabulary
    }

    /// The adapters that requests can name.
    pub fn adapters(&self) -> &Arc<Adapters> {
        &self.adapters
    }

    /// From now on nothing is admitted.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether anything is admitted.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    /// Checks a request, compiles its constraint, and gives it a place among the waiting.
    ///
    /// # Errors
    /// [`RequestError`], all but `Forward`.
    pub fn admit(&self, request: Request) -> Result<Admitted, RequestError> {
        if !self.is_open() {
            return Err(RequestError::ShuttingDown);
        }
        self.check(&request)?;
        let most = self.fit(&request)?;
        let limit = self.settings.waiting;
        let counted = self
            .waiting
            .try_update(Ordering::AcqRel, Ordering::Acquire, |waiting| (waiting < limit).then_some(waiting + 1));
        counted.map_err(|waiting| RequestError::Busy { waiting })?;
        let place = Place(Arc::clone(&self.waiting));
        let grammar = match &request.constraint {
            None => None,
            Some(constraint) => {
                let grammars = self.grammars.get_or_init(|| Grammars::new(self.vocabulary.as_ref()));
                let grammars = grammars.as_ref().map_err(|words| invalid("structured_outputs", words.clone()))?;
                Some(grammars.compile(constraint)?)
            }
        };
        let adapter = match request.adapter {
            None => None,
            Some(id) => {
                let words = || invalid("model", format!("adapter {} is not loaded", id.0));
                Some(self.adapters.hold(id).ok_or_else(words)?)
            }
        };
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        Ok(Admitted { id, request, most, grammar, adapter, place })
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let sampling = &request.sampling;
        let range = |field: &'static str, value: f32, good: bool, works: &str| {
            if good { Ok(()) } else { Err(invalid(field, format!("{value} is out of range; {works} works"))) }
        };
        if request.prompt.is_empty() {
            return Err(invalid("prompt", "has no tokens; one or more works".to_owned()));
        }
        let known = self.shape.vocabulary;
        let ids = request.prompt.iter().map(|id| ("prompt", id));
        let ids = ids.chain(request.stop.tokens.iter().map(|id| ("stop_token_ids", id)));
        let mut ids = ids.chain(sampling.logit_bias.keys().map(|id| ("logit_bias", id)));
        if let Some((field, id)) = ids.find(|(_, id)| **id as usize >= known) {
            return Err(invalid(field, format!("token {id} is none of the model's {known}")));
        }
        let sequences = self.settings.sequences;
        if request.choices == 0 || request.choices > sequences {
            return Err(invalid("n", format!("{} is out of range; 1 to {sequences} works", request.choices)));
        }
        if request.best_of < request.choices || request.best_of > sequences {
            let detail = format!("{} is out of range; n, {}, to {sequences} works", request.best_of, request.choices);
            return Err(invalid("best_of", detail));
        }
        let within = |value: f32, low: f32, high: f32| value >= low && value <= high;
        range("temperature", sampling.temperature, within(sampling.temperature, 0.0, f32::MAX), "0 or more")?;
        range("top_p", sampling.top_p, within(sampling.top_p, f32::MIN_POSITIVE, 1.0), "more than 0, up to 1,")?;
        range("min_p", sampling.min_p, within(sampling.min_p, 0.0, 1.0), "0 to 1")?;
        let repetition = sampling.repetition_penalty;
        range("repetition_penalty", repetition, within(repetition, f32::MIN_POSITIVE, f32::MAX), "more than 0")?;
        range("presence_penalty", sampling.presence_penalty, within(sampling.presence_penalty, -2.0, 2.0), "-2 to 2")?;
        range(
            "frequency_penalty",
            sampling.frequency_penalty,
            within(sampling.frequency_penalty, -2.0, 2.0),
            "-2 to 2",
        )?;
        for bias in sampling.logit_bias.values() {
            range("logit_bias", *bias, within(*bias, -100.0, 100.0), "-100 to 100")?;
        }
        if request.stop.strings.iter().any(String::is_empty) {
            return Err(invalid("stop", "a stop string is empty; one or more characters work".to_owned()));
        }
        match request.max_tokens {
            Some(most) if request.min_tokens > most => {
                Err(invalid("min_tokens", format!("{} is more than max_tokens, {most}", request.min_tokens)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Tokens that prompt and answer together may have.
    fn fit(&self, request: &Request) -> Result<usize, RequestError> {
        let Shape { max_length, block_tokens, blocks, .. } = self.shape;
        let prompt = request.prompt.len();
        let fits = match self.settings.cache {
            Cache::Paged => blocks * block_tokens,
            // All answers are there at once, and share the prompt's full blocks.
            Cache::Static => {
                (blocks + (request.best_of - 1) * (prompt / block_tokens)) / request.best_of * block_tokens
            }
        };
        let max = fits.min(max_length);
        // An answer of unknown length has one token at least, if it is asked for at all.
        let answer = request.max_tokens.unwrap_or(request.min_tokens.max(1));
        match prompt.checked_add(answer) {
            Some(most) if most <= max => Ok(if request.max_tokens.is_some() { most } else { max }),
            Some(_) | None => Err(RequestError::TooLong { prompt, answer, max }),
        }
    }
}

fn invalid(field: &'static str, detail: String) -> RequestError {
    RequestError::Invalid { field, detail }
}
