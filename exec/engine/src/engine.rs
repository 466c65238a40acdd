//! The engine: requests in, a step at a time, events out. Plain and synchronous; who calls [`Engine::step`] has the
//! thread. Nothing here knows what time it is: who hears the events does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admission::{Admission, Admitted, BadSettings, Settings};
use crate::answer::{Answer, Rules};
use crate::blocks::Blocks;
use crate::constrain::Grammar;
use crate::draw;
use crate::forward::{Chunk, Forward, ForwardError, Wanted};
use crate::request::{Event, FinishReason, RequestError, RequestId, Sink, Usage};
use crate::sample::Scratch;
use crate::schedule::{Limits, Part, Scheduler, Step};
use crate::sequence::{Key, Sequence, State};
use crate::stats::Stats;
use crate::vocabulary::Vocabulary;

mod active;

use active::{Active, Progress, Rows};

/// Steps without lack of memory after which steps may be twice as large again.
const STEPS_TO_GROW: u64 = 256;

/// A model that serves.
pub struct Engine {
    model: Box<dyn Forward>,
    admission: Arc<Admission>,
    scheduler: Scheduler,
    requests: BTreeMap<RequestId, Active>,
    scratch: Scratch,
    stats: Stats,
    clean_steps: u64,
}

impl Engine {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`BadSettings`]
    pub fn new(
        model: Box<dyn Forward>,
        vocabulary: Arc<dyn Vocabulary>,
        settings: Settings,
    ) -> Result<Self, BadSettings> {
        let shape = model.shape();
        let blocks = Blocks::new(shape.blocks, shape.block_tokens, settings.prefix_cache);
        let limits = Limits { step_tokens: settings.step_tokens, sequences: settings.sequences, cache: settings.cache };
        let admission = Arc::new(Admission::new(shape, vocabulary, settings)?);
        let mut engine = Self {
            model,
            admission,
            scheduler: Scheduler::new(blocks, limits),
            requests: BTreeMap::new(),
            scratch: Scratch::default(),
            stats: Stats::default(),
            clean_steps: 0,
        };
        engine.count_now();
        Ok(engine)
    }

    /// What it admits; can be asked from any thread.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// What it counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Who computes what.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Requests that have not ended.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is nothing to compute.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes a request that was admitted. All that becomes of it goes to the sink.
    pub fn submit(&mut self, admitted: Admitted, sink: Sink) {
        let Admitted { id, request, most, grammar, adapter, place } = admitted;
        let prompt = request.prompt.len();
        let seed = request.sampling.seed.unwrap_or_else(|| draw::seed(self.admission.settings().seed, id.0));
        let rules = Rules::new(&request, most - prompt, seed, self.admission.vocabulary().as_ref());
        let choices = request.best_of;
        let mut grammar = grammar;
        let answers = (0..choices).map(|choice| {
            let last = choice + 1 == choices;
            let own = if last { grammar.take() } else { grammar.as_ref().map(Grammar::fork) };
            let answer = Answer::new(choice, &rules, &request.prompt, own);
            Progress { answer, ended: false, kept: Vec::new() }
        });
        let answers = answers.collect();
        let sequence = Sequence {
            tokens: request.prompt.clone(),
            prompt,
            most,
            adapter: request.adapter,
            forks: choices - 1,
            scores_prompt: request.prompt_logprobs.is_some(),
            guesses: Vec::new(),
            state: State::Waiting,
        };
        self.scheduler.add(Key { request: id, choice: 0 }, sequence);
        let active = Active {
            request,
            rules,
            sink,
            place: Some(place),
            _adapter: adapter,
            cached: None,
            prompt_logprobs: Vec::new(),
            answers,
            completion_tokens: 0,
            heard: true,
        };
        self.requests.insert(id, active);
        self.count_now();
    }

    /// Ends a request's answers as they are; nothing if it has ended.
    pub fn cancel(&mut self, id: RequestId) {
        let Some(active) = self.requests.get_mut(&id) else { return };
        for choice in 0..active.answers.len() {
            if !active.answers[choice].ended {
                active.finish(choice, FinishReason::Cancelled, &mut self.stats);
            }
        }
        self.conclude(id);
        self.count_now();
    }

    /// Ends all requests: they failed.
    pub fn fail_all(&mut self, error: &RequestError) {
        while let Some(id) = self.requests.keys().next().copied() {
            self.fail(id, error.clone());
        }
        self.count_now();
    }

    /// Computes a step.
    ///
    /// # Errors
    /// [`ForwardError::Device`]: nothing can be computed any more; requests are as they were. Lack of memory is none:
    /// the next step is smaller.
    pub fn step(&mut self) -> Result<(), ForwardError> {
        self.guess();
        let step = self.scheduler.plan();
        debug_assert_eq!(step.check(&self.scheduler), Ok(()));
        self.count_plan(&step);
        if step.parts.is_empty() {
            return Ok(());
        }
        if !step.copies.is_empty() {
            self.model.copy_blocks(&step.copies);
        }
        let chunks: Vec<Chunk> = step.parts.iter().map(|part| self.scheduler.chunk(part)).collect();
        let logits = match self.model.forward(&chunks) {
            Ok(logits) => logits,
            Err(error) => {
                self.scheduler.undo(&step);
                return self.recover(error, &step);
            }
        };
        let rows: usize = chunks.iter().map(rows).sum();
        if logits.rows() != rows || logits.width != self.admission.shape().vocabulary {
            self.scheduler.undo(&step);
            let words = format!("{} rows of {} logits for {rows} that were wanted", logits.rows(), logits.width);
            return Err(ForwardError::Device(words));
        }
        self.stats.steps += 1;
        self.stats.step_tokens += step.tokens() as u64;
        self.grow();
        let mut first = 0;
        for (part, chunk) in step.parts.iter().zip(&chunks) {
            let count = self::rows(chunk);
            let rows = Rows { logits: &logits, first, count };
            first += count;
            // Another answer of the same request may have been the last one that was listened to.
            if self.scheduler.sequence(part.key).is_some() {
                self.take(part, chunk, rows);
            }
        }
        self.count_now();
        debug_assert_eq!(self.scheduler.check(), Ok(()));
        Ok(())
    }

    fn guess(&mut self) {
        let Some(guessing) = self.admission.settings().guessing else { return };
        let guesses: Vec<(Key, Vec<u32>)> = self
            .scheduler
            .decoding()
            .map(|(key, sequence)| (key, guessing.guess(&sequence.tokens)))
            .filter(|(_, guesses)| !guesses.is_empty())
            .collect();
        for (key, guesses) in guesses {
            self.scheduler.guess(key, guesses);
        }
    }

    /// After a step that failed and was undone.
    fn recover(&mut self, error: ForwardError, step: &Step) -> Result<(), ForwardError> {
        match error {
            ForwardError::Device(_) => Err(error),
            ForwardError::OutOfMemory { .. } => {
                self.stats.out_of_memory += 1;
                self.clean_steps = 0;
                let tokens = step.tokens();
                self.scheduler.limit_step(tokens / 2);
                // A step of one token can't be smaller.
                if tokens == 1
                    && let Some(part) = step.parts.first()
                {
                    self.fail(part.key.request, RequestError::Forward(error));
                }
                self.count_now();
                Ok(())
            }
        }
    }

    /// Lack of memory may pass: after some steps without it they may be larger again.
    fn grow(&mut self) {
        let (limit, most) = (self.scheduler.limits().step_tokens, self.admission.settings().step_tokens);
        self.clean_steps += 1;
        if limit < most && self.clean_steps >= STEPS_TO_GROW {
            self.clean_steps = 0;
            self.scheduler.limit_step(most.min(limit * 2));
        }
    }

    /// What a part's logits bring.
    fn take(&mut self, part: &Part, chunk: &Chunk, rows: Rows<'_>) {
        match self.try_take(part, chunk, rows) {
            Ok(true) => {}
            // Nobody listens any more.
            Ok(false) => self.cancel(part.key.request),
            Err(error) => self.fail(part.key.request, error),
        }
    }

    fn try_take(&mut self, part: &Part, chunk: &Chunk, rows: Rows<'_>) -> Result<bool, RequestError> {
        let id = part.key.request;
        let (Some(active), Some(sequence)) = (self.requests.get_mut(&id), self.scheduler.sequence(part.key)) else {
            return Ok(true);
        };
        if sequence.scores_prompt {
            active.score_prompt(part.start, &rows, &mut self.scratch)?;
        }
        let at_end = part.start + part.count == sequence.tokens.len();
        if !at_end {
            self.scheduler.advance(part, 0, &[]);
            return Ok(true);
        }
        let prompt_is_new = sequence.tokens.len() == sequence.prompt;
        let forks = sequence.forks;
        if prompt_is_new {
            self.stats.prompt_tokens += sequence.prompt as u64;
            let logprobs = std::mem::take(&mut active.prompt_logprobs);
            active.tell(Event::Prompt { logprobs });
        }
        let vocabulary = self.admission.vocabulary().as_ref();
        if prompt_is_new && (forks > 0 || active.answers[0].answer.is_full(&active.rules)) {
            self.scheduler.advance(part, 0, &[]);
            let keys = self.scheduler.fork(part.key);
            for key in std::iter::once(part.key).chain(keys) {
                let row = rows.last();
                let (token, ended) = active.next(key.choice, row, vocabulary, &mut self.scratch, &mut self.stats)?;
                if ended {
                    self.scheduler.end(key);
                } else if let Some(token) = token {
                    self.scheduler.begin(key, token);
                }
            }
        } else {
            let guesses = &chunk.tokens[part.count..];
            let (mut next, mut right, mut over) = (Vec::new(), 0, false);
            for place in 0..=guesses.len() {
                let row = rows.before_last(guesses.len() - place);
                let (token, ended) =
                    active.next(part.key.choice, row, vocabulary, &mut self.scratch, &mut self.stats)?;
                next.extend(token);
                over = ended;
                if ended || token.is_none() || guesses.get(place) != token.as_ref() {
                    break;
                }
                right += 1;
            }
            if !guesses.is_empty() {
                self.stats.drafts += 1;
                self.stats.draft_tokens += guesses.len() as u64;
                self.stats.accepted_tokens += right as u64;
            }
            self.scheduler.advance(part, right, &next);
            if over {
                self.scheduler.end(part.key);
            }
        }
        let listened = active.heard;
        self.conclude(id);
        Ok(listened)
    }

    /// Ends a request if all its answers have ended.
    fn conclude(&mut self, id: RequestId) {
        if self.requests.get(&id).is_none_or(|active| active.answers.iter().any(|progress| !progress.ended)) {
            return;
        }
        if let Some(mut active) = self.remove(id) {
            active.tell_best();
            let usage = Usage {
                prompt_tokens: active.request.prompt.len(),
                cached_tokens: active.cached.unwrap_or(0),
                completion_tokens: active.completion_tokens,
            };
            active.tell(Event::Done { usage });
        }
    }

    fn fail(&mut self, id: RequestId, error: RequestError) {
        if let Some(mut active) = self.remove(id) {
            self.stats.endings.error += 1;
            active.tell(Event::Failed(error));
        }
    }

    fn remove(&mut self, id: RequestId) -> Option<Active> {
        let active = self.requests.remove(&id)?;
        for choice in 0..active.answers.len() {
            self.scheduler.end(Key { request: id, choice });
        }
        Some(active)
    }

    fn count_plan(&mut self, step: &Step) {
        self.stats.preemptions += step.preempted as u64;
        for (key, cached) in &step.admitted {
            if let Some(sequence) = self.scheduler.sequence(*key) {
                self.stats.prefix_queries += sequence.tokens.len() as u64;
                self.stats.prefix_hits += *cached as u64;
            }
            if let Some(active) = self.requests.get_mut(&key.request) {
                active.place = None;
                active.cached.get_or_insert(*cached);
            }
        }
    }

    fn count_now(&mut self) {
        self.stats.running = self.scheduler.running();
        self.stats.waiting = self.scheduler.waiting();
        self.stats.blocks = self.scheduler.blocks().total();
        self.stats.resident_blocks = self.scheduler.blocks().resident();
        self.stats.step_tokens_limit = self.scheduler.limits().step_tokens;
    }
}

fn rows(chunk: &Chunk) -> usize {
    match chunk.wanted {
        Wanted::None => 0,
        Wanted::Last => 1,
        Wanted::All => chunk.tokens.len(),
    }
}
