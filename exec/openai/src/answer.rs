//! An answer's text as it comes, read for thoughts and calls: what a client is told of it, a piece at a time.

use mloc_engine::request::{FinishReason, Usage};
use serde_json::{Value, json};

use crate::{
    calls::{Format, Parser, Piece},
    thought::{Part, Splitter},
    tools::{Choice, Tools},
};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Thinking.
    Thought(String),
    /// Text for the reader.
    Content(String),
    /// A call begins.
    Call {
        /// Which one of the answer, from 0.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Which call.
        index: usize,
        /// JSON text.
        text: String,
    },
}

/// How answers to a request are read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Whether thoughts are taken out: and if the prompt left one open.
    pub thoughts: Option<bool>,
    /// Whether they are told.
    pub tell_thoughts: bool,
    /// In which format calls are looked for.
    pub calls: Option<Format>,
    /// What may be called.
    pub tools: Tools,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    thoughts: Option<Splitter>,
    tell_thoughts: bool,
    calls: Option<Parser>,
    one_call: bool,
    begun: usize,
    /// Tokens of thinking.
    pub thought_tokens: usize,
    /// Tokens so far.
    pub tokens: usize,
}

impl Answer {
    /// Nothing of it has come.
    pub fn new(reading: &Reading) -> Self {
        let parser = |format| Parser::new(format, reading.tools.names());
        Self {
            thoughts: reading.thoughts.map(Splitter::new),
            tell_thoughts: reading.tell_thoughts,
            calls: reading.calls.filter(|_| reading.tools.read_for_calls()).map(parser),
            one_call: !reading.tools.parallel,
            begun: 0,
            thought_tokens: 0,
            tokens: 0,
        }
    }

    /// A token and its text; `marker`: its name where it is special, which is read for calls and thoughts and no text.
    pub fn token(&mut self, text: &str, marker: Option<&String>) -> Vec<Said> {
        self.tokens += 1;
        self.thought_tokens += usize::from(self.thoughts.as_ref().is_some_and(Splitter::thinking));
        match marker.filter(|_| self.calls.is_some() || self.thoughts.is_some()) {
            Some(marker) => self.text(&format!("{text}{marker}")),
            None => self.text(text),
        }
    }

    /// Text that is no token's own.
    pub fn text(&mut self, text: &str) -> Vec<Said> {
        let parts = match &mut self.thoughts {
            Some(splitter) => splitter.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Answer(text.to_owned())],
        };
        parts.into_iter().flat_map(|part| self.part(part)).collect()
    }

    /// It has ended.
    pub fn finish(&mut self) -> Vec<Said> {
        let last = self.thoughts.as_mut().and_then(Splitter::finish);
        let mut said: Vec<Said> = last.into_iter().flat_map(|part| self.part(part)).collect();
        let rest = self.calls.as_mut().map(Parser::finish).unwrap_or_default();
        said.extend(rest.into_iter().filter_map(|piece| self.piece(piece)));
        said
    }

    fn part(&mut self, part: Part) -> Vec<Said> {
        match part {
            Part::Thought(text) => {
                if self.tell_thoughts {
                    vec![Said::Thought(text)]
                } else {
                    Vec::new()
                }
            }
            Part::Answer(text) => match &mut self.calls {
                Some(parser) => {
                    let pieces = parser.push(&text);
                    pieces.into_iter().filter_map(|piece| self.piece(piece)).collect()
                }
                None => vec![Said::Content(text)],
            },
        }
    }

    /// With `parallel_tool_calls: false` an answer ends with its first call, whatever else the model wrote.
    fn piece(&mut self, piece: Piece) -> Option<Said> {
        let over = self.one_call && self.begun > 0;
        match piece {
            Piece::Content(_) if over => None,
            Piece::Content(text) => Some(Said::Content(text)),
            Piece::Call { .. } if over => {
                self.begun += 1;
                None
            }
            Piece::Call { index, name } => {
                self.begun += 1;
                Some(Said::Call { index, name })
            }
            Piece::Arguments { index, .. } if self.one_call && index > 0 => None,
            Piece::Arguments { index, text } => Some(Said::Arguments { index, text }),
        }
    }

    /// Whether anything was called.
    pub fn called(&self) -> bool {
        self.begun > 0
    }
}

/// OpenAI's word for why an answer ended, and vLLM's `stop_reason`.
pub fn finish_reason(reason: &FinishReason, called: bool, choice: &Choice) -> (&'static str, Value) {
    match reason {
        FinishReason::Length => ("length", Value::Null),
        FinishReason::Cancelled => ("abort", Value::Null),
        // A function that was named by the client is no decision of the model: OpenAI says "stop".
        FinishReason::Stop | FinishReason::StopString(_) if called && !matches!(choice, Choice::Named(_)) => {
            ("tool_calls", Value::Null)
        }
        FinishReason::Stop => ("stop", Value::Null),
        FinishReason::StopString(text) => ("stop", text.clone().into()),
    }
}

/// Tokens of all prompts of a request.
pub fn sum(usages: impl IntoIterator<Item = Usage>) -> Usage {
    usages.into_iter().fold(Usage::default(), |sum, one| Usage {
        prompt_tokens: sum.prompt_tokens + one.prompt_tokens,
        cached_tokens: sum.cached_tokens + one.cached_tokens,
        completion_tokens: sum.completion_tokens + one.completion_tokens,
    })
}

/// OpenAI's `usage`.
pub fn usage(usage: Usage, thought_tokens: usize) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": thought_tokens },
    })
}

/// OpenAI's call, with a name of its own.
pub fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}
