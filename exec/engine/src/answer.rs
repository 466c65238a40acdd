//! One answer, from rows of logits to tokens, text and its end.

use crate::constrain::{Grammar, Next};
use crate::draw::uniform;
use crate::request::{FinishReason, Logprobs, Request, RequestError, Sampling};
use crate::sample::{Choice, History, Scratch};
use crate::text::{StopStrings, Text};
use crate::vocabulary::Vocabulary;

/// What holds for all answers of a request.
#[derive(Debug, Clone)]
pub struct Rules {
    sampling: Sampling,
    seed: u64,
    stops: StopStrings,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    min_tokens: usize,
    max_tokens: usize,
    logprobs: Option<usize>,
    /// Whether answers are compared by their log-probabilities.
    scored: bool,
}

impl Rules {
    /// Of a request whose answers can have `max_tokens`.
    pub fn new(request: &Request, max_tokens: usize, seed: u64, vocabulary: &dyn Vocabulary) -> Self {
        let mut ends = request.stop.tokens.clone();
        // A constraint says itself where an answer may end, so there the vocabulary's ends count in any case.
        if !request.stop.ignore_eos || request.constraint.is_some() {
            ends.extend_from_slice(vocabulary.ends());
        }
        Self {
            sampling: request.sampling.clone(),
            seed,
            stops: StopStrings { strings: request.stop.strings.clone(), include: request.stop.include_in_output },
            ends,
            min_tokens: request.min_tokens,
            max_tokens,
            logprobs: request.logprobs,
            scored: request.best_of > request.choices,
        }
    }
}

/// An answer that has not ended, or just has.
pub struct Answer {
    choice: usize,
    tokens: usize,
    logprob: f64,
    history: History,
    text: Text,
    grammar: Option<Grammar>,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// The text that became whole with it.
    pub text: String,
    /// Where asked for.
    pub logprobs: Option<Logprobs>,
}

impl Answer {
    /// Answer number `choice`, without tokens.
    pub fn new(choice: usize, rules: &Rules, prompt: &[u32], grammar: Option<Grammar>) -> Self {
        let history = History::new(&rules.sampling, prompt);
        Self { choice, tokens: 0, logprob: 0.0, history, text: Text::default(), grammar }
    }

    /// Tokens it has.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The mean log-probability of its tokens, where the rules say that answers are compared.
    pub fn score(&self) -> f64 {
        self.logprob / self.tokens.max(1) as f64
    }

    /// Whether it may not have another token, before any logits are looked at.
    pub fn is_full(&self, rules: &Rules) -> bool {
        self.tokens >= rules.max_tokens
    }

    /// The text that was held back, when it has ended.
    pub fn finish(&mut self) -> String {
        self.text.finish()
    }

    /// The next token, and whether and why the answer has ended. No token comes of a grammar that allows no more.
    ///
    /// # Errors
    /// The logits are of no use, or the grammar met a limit.
    pub fn next(
        &mut self,
        row: &[f32],
        rules: &Rules,
        vocabulary: &dyn Vocabulary,
        scratch: &mut Scratch,
    ) -> Result<(Option<Token>, Option<FinishReason>), RequestError> {
        let mask = match self.grammar.as_mut().map(Grammar::allowed).transpose().map_err(limit)? {
            Some(Next::Nothing) => return Ok((None, Some(FinishReason::Stop))),
            Some(Next::Tokens(mask)) => Some(mask),
            None => None,
        };
        let mask = mask.as_ref().map(|mask| mask.as_slice());
        let early = self.tokens < rules.min_tokens;
        // What a grammar has come to the end of can't be made longer.
        let forbidden = if early && !mask.is_some_and(|mask| only(mask, &rules.ends)) { &rules.ends[..] } else { &[] };
        let wanted = if rules.scored { rules.logprobs.or(Some(0)) } else { rules.logprobs };
        let choice = Choice {
            sampling: &rules.sampling,
            history: &self.history,
            mask,
            forbidden,
            draw: uniform(rules.seed, self.choice, self.tokens),
            logprobs: wanted,
        };
        let (id, logprobs) = choice.choose(row, scratch)?;
        self.tokens += 1;
        self.history.push(id);
        self.logprob += logprobs.as_ref().map_or(0.0, |logprobs| f64::from(logprobs.chosen.logprob));
        let logprobs = logprobs.filter(|_| rules.logprobs.is_some());
        let ends = rules.ends.contains(&id);
        if ends {
            let text = if rules.stops.include {
                self.text.push(id, vocabulary, &rules.stops, false).text
            } else {
                String::new()
            };
            return Ok((Some(Token { id, text, logprobs }), Some(FinishReason::Stop)));
        }
        let whole = match &mut self.grammar {
            Some(grammar) => {
                grammar.push(id).map_err(limit)?;
                grammar.is_whole()
            }
            None => false,
        };
        let piece = self.text.push(id, vocabulary, &rules.stops, self.tokens > rules.min_tokens);
        let reason = match piece.stopped_by {
            Some(stop) => Some(FinishReason::StopString(stop)),
            None if whole => Some(FinishReason::Stop),
            None if self.is_full(rules) => Some(FinishReason::Length),
            None => None,
        };
        Ok((Some(Token { id, text: piece.text, logprobs }), reason))
    }
}

/// Whether a mask allows nothing but these tokens.
fn only(mask: &[u32], ids: &[u32]) -> bool {
    let allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
    let mut ids: Vec<u32> = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let among = ids.iter().filter(|id| mask.get(**id as usize / 32).is_some_and(|word| word >> (**id % 32) & 1 == 1));
    allowed as usize == among.count()
}

fn limit(detail: String) -> RequestError {
    RequestError::Invalid { field: "structured_outputs", detail }
}
