//! What a client asks for, and what it hears. Names and meanings are those of OpenAI's API and of vLLM's additions to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::forward::AdapterId;

/// A request that was taken, in the order of their coming. Ids are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One prompt to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt's ids, at least one.
    pub prompt: Vec<u32>,
    /// The adapter; `None` = the base model.
    pub adapter: Option<AdapterId>,
    /// Answers wanted (`n`), at least 1.
    pub choices: usize,
    /// Answers computed, the best `choices` of which by mean log-probability are returned; at least `choices`.
    pub best_of: usize,
    /// Tokens an answer may have; `None` = as many as fit.
    pub max_tokens: Option<usize>,
    /// Tokens an answer has before it may end.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends an answer.
    pub stop: Stop,
    /// Log-probabilities of each token of the answer, with so many alternatives; `None` = not wanted.
    pub logprobs: Option<usize>,
    /// The same of each token of the prompt but its first.
    pub prompt_logprobs: Option<usize>,
    /// What every answer must match.
    pub constraint: Option<Constraint>,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 = the likeliest token, always.
    pub temperature: f32,
    /// The likeliest tokens that together have this probability; 1 = all.
    pub top_p: f32,
    /// So many of the likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Tokens at least this probable, relative to the likeliest; 0 = all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of what prompt or answer have already; 1 = none.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of what the answer has already.
    pub presence_penalty: f32,
    /// Subtracted for each time the answer has it already.
    pub frequency_penalty: f32,
    /// Makes the draw repeatable; `None` = the engine picks one.
    pub seed: Option<u64>,
    /// Added to logits, by id.
    pub logit_bias: BTreeMap<u32, f32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: BTreeMap::new(),
        }
    }
}

/// What ends an answer, besides its length.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Texts.
    pub strings: Vec<String>,
    /// Tokens, besides the vocabulary's own.
    pub tokens: Vec<u32>,
    /// Whether the vocabulary's own end tokens end nothing.
    pub ignore_eos: bool,
    /// Whether the text that ended it is part of the answer.
    pub include_in_output: bool,
}

/// What an answer must match from its first byte to its last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// A regular expression.
    Regex(String),
    /// A context-free grammar in Lark's notation, as llguidance reads it.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A token and how likely it was, after all that [`Sampling`] does to logits but the cuts.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    pub rank: usize,
}

/// A position's log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the token that is there.
    pub chosen: TokenLogprob,
    /// Of the likeliest, as many as were asked for, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// By an end token, a stop token, or the end of what its constraint allows.
    Stop,
    /// By this stop string.
    StopString(String),
    /// By its length.
    Length,
    /// The client went away or took it back.
    Cancelled,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the prompt, those that were in the cache.
    pub cached_tokens: usize,
    /// Of all answers that were computed.
    pub completion_tokens: usize,
}

/// What a client hears, in this order: `Prompt` once, then `Token` and `Finished` of each choice, then `Done`; or
/// `Failed` at any point, as the last one. With `best_of` above `choices` tokens come when all are whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is computed.
    Prompt {
        /// One for each token of the prompt but the first, where asked for.
        logprobs: Vec<Logprobs>,
    },
    /// A token of an answer.
    Token {
        /// Which answer, from 0.
        choice: usize,
        /// The token.
        id: u32,
        /// The text that became whole with it; can be empty, is never half a character, and never has the beginning of
        /// a stop string that may yet become whole.
        text: String,
        /// Where asked for.
        logprobs: Option<Logprobs>,
    },
    /// An answer has ended.
    Finished {
        /// Which answer, from 0.
        choice: usize,
        /// The text that was held back, if any.
        text: String,
        /// Why.
        reason: FinishReason,
    },
    /// All answers have ended.
    Done {
        /// What it took.
        usage: Usage,
    },
    /// The request can't be answered, or not to its end.
    Failed(RequestError),
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The prompt and the answer don't fit.
    #[error("{prompt} prompt tokens and {answer} answer tokens are more than the {max} that fit")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        answer: usize,
        /// Tokens that fit.
        max: usize,
    },
    /// A field's value is out of range.
    #[error("{field}: {detail}")]
    Invalid {
        /// The field, as the API names it.
        field: &'static str,
        /// What was found and what would work.
        detail: String,
    },
    /// As many requests are waiting as may.
    #[error("{waiting} requests are waiting, as many as may")]
    Busy {
        /// Requests waiting.
        waiting: usize,
    },
    /// The engine is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The model failed.
    #[error(transparent)]
    Forward(#[from] crate::forward::ForwardError),
}

/// Where a request's events go. `false` = nobody listens any more: the request is cancelled and its blocks are free at
/// the next step.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;
