//! A request that has not ended: what its answers come to, and who hears of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::adapters::InUse;
use crate::admission::Place;
use crate::answer::{Answer, Rules, Token};
use crate::forward::Logits;
use crate::request::{Event, FinishReason, Logprobs, Request, RequestError, Sink};
use crate::sample::{Scratch, prompt_logprobs};
use crate::stats::Stats;
use crate::vocabulary::Vocabulary;

/// A request that has not ended.
pub(super) struct Active {
    pub(super) request: Request,
    pub(super) rules: Rules,
    pub(super) sink: Sink,
    /// Until it begins.
    pub(super) place: Option<Place>,
    /// As long as it is here the model has its adapter.
    pub(super) _adapter: Option<InUse>,
    pub(super) cached: Option<usize>,
    /// As far as the prompt is computed; taken when it is.
    pub(super) prompt_logprobs: Vec<Logprobs>,
    pub(super) answers: Vec<Progress>,
    pub(super) completion_tokens: usize,
    /// Whether somebody listens.
    pub(super) heard: bool,
}

pub(super) struct Progress {
    pub(super) answer: Answer,
    pub(super) ended: bool,
    /// Of an answer that may not be among the best.
    pub(super) kept: Vec<Event>,
}

impl Active {
    /// The log-probabilities of prompt tokens that these rows, from this position on, tell of. Rows seen before, of a
    /// prompt that is computed again, tell nothing new.
    pub(super) fn score_prompt(
        &mut self,
        start: usize,
        rows: &Rows<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), RequestError> {
        let Some(count) = self.request.prompt_logprobs else { return Ok(()) };
        for place in 0..rows.count {
            let position = start + place;
            let Some(id) = self.request.prompt.get(position + 1) else { break };
            if position == self.prompt_logprobs.len() {
                self.prompt_logprobs.push(prompt_logprobs(rows.row(place), *id, count, scratch)?);
            }
        }
        Ok(())
    }

    /// An answer's next token, told; and whether it has ended.
    pub(super) fn next(
        &mut self,
        choice: usize,
        row: &[f32],
        vocabulary: &dyn Vocabulary,
        scratch: &mut Scratch,
        stats: &mut Stats,
    ) -> Result<(Option<u32>, bool), RequestError> {
        let progress = &mut self.answers[choice];
        let (token, reason) = if progress.answer.is_full(&self.rules) {
            (None, Some(FinishReason::Length))
        } else {
            progress.answer.next(row, &self.rules, vocabulary, scratch)?
        };
        let id = token.as_ref().map(|token| token.id);
        if let Some(Token { id, text, logprobs }) = token {
            stats.generation_tokens += 1;
            self.completion_tokens += 1;
            self.say(choice, Event::Token { choice, id, text, logprobs });
        }
        let ended = reason.is_some();
        if let Some(reason) = reason {
            self.finish(choice, reason, stats);
        }
        Ok((id, ended))
    }

    pub(super) fn finish(&mut self, choice: usize, reason: FinishReason, stats: &mut Stats) {
        match reason {
            FinishReason::Stop | FinishReason::StopString(_) => stats.endings.stop += 1,
            FinishReason::Length => stats.endings.length += 1,
            FinishReason::Cancelled => stats.endings.abort += 1,
        }
        self.answers[choice].ended = true;
        let text = self.answers[choice].answer.finish();
        self.say(choice, Event::Finished { choice, text, reason });
    }

    /// Tells, or keeps until it is known which answers are best.
    pub(super) fn say(&mut self, choice: usize, event: Event) {
        if self.request.best_of > self.request.choices {
            self.answers[choice].kept.push(event);
        } else {
            self.tell(event);
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.heard = self.heard && tell(&mut self.sink, event);
    }

    pub(super) fn tell_best(&mut self) {
        if self.request.best_of == self.request.choices {
            return;
        }
        let mut order: Vec<usize> = (0..self.answers.len()).collect();
        let score = |choice: &usize| self.answers[*choice].answer.score();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
        for (place, choice) in order.into_iter().take(self.request.choices).enumerate() {
            for event in std::mem::take(&mut self.answers[choice].kept) {
                let event = match event {
                    Event::Token { id, text, logprobs, .. } => Event::Token { choice: place, id, text, logprobs },
                    Event::Finished { text, reason, .. } => Event::Finished { choice: place, text, reason },
                    Event::Prompt { .. } | Event::Done { .. } | Event::Failed(_) => event,
                };
                self.tell(event);
            }
        }
    }
}

/// The rows of one part.
pub(super) struct Rows<'a> {
    pub(super) logits: &'a Logits,
    pub(super) first: usize,
    pub(super) count: usize,
}

impl Rows<'_> {
    pub(super) fn row(&self, place: usize) -> &[f32] {
        self.logits.row(self.first + place)
    }

    /// So many rows before the last.
    pub(super) fn before_last(&self, place: usize) -> &[f32] {
        self.row(self.count - 1 - place)
    }

    pub(super) fn last(&self) -> &[f32] {
        self.before_last(0)
    }
}

/// A listener's panic is the listener's end alone.
fn tell(sink: &mut Sink, event: Event) -> bool {
    catch_unwind(AssertUnwindSafe(|| sink(event))).unwrap_or(false)
}
