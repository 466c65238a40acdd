//! Tool calls in the text a model writes. Each family of models was trained on one [`Format`]; a [`Parser`] is fed the
//! text in pieces of any cut and says what is content and what is a call, as early as it can be known.
//!
//! What is no call stays content, to the byte: a marker without JSON behind it, JSON that is not a call, a call that was
//! cut off before its name and the beginning of its arguments were whole. From there on pieces of arguments have gone out
//! and can't be taken back: whatever follows up to the closing marker is then arguments in the model's own words. OpenAI
//! tells clients to expect arguments that are no valid JSON.
//!
//! White space between a call and what is around it is dropped; without a call none is.

mod hermes;
mod json;
mod llama;
mod mistral;
mod object;

use serde::{Deserialize, Serialize};

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them: Hermes, Qwen 2.5, Qwen 3.
    Hermes,
    /// An answer that is `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not; several are parted by `;`.
    Llama3,
    /// `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`, or `[TOOL_CALLS]name[ARGS]{…}` for each.
    Mistral,
}

/// What a piece of an answer's text turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Content(String),
    /// A call begins.
    Call {
        /// Which one of the answer, from 0.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments, JSON text.
    Arguments {
        /// Which call.
        index: usize,
        /// The text.
        text: String,
    },
}

/// One answer's machine.
#[derive(Debug)]
pub struct Parser {
    machine: Machine,
    out: Out,
}

#[derive(Debug)]
enum Machine {
    Hermes(hermes::Hermes),
    Llama3(llama::Llama),
    Mistral(mistral::Mistral),
}

impl Parser {
    /// For one answer. `tools`: names of the functions on offer; where a format has no marker, they tell a call from an
    /// answer that is JSON.
    pub fn new(format: Format, tools: Vec<String>) -> Self {
        let machine = match format {
            Format::Hermes => Machine::Hermes(hermes::Hermes::default()),
            Format::Llama3 => Machine::Llama3(llama::Llama::new(tools)),
            Format::Mistral => Machine::Mistral(mistral::Mistral::default()),
        };
        Self { machine, out: Out::default() }
    }

    /// The next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        for c in text.chars() {
            match &mut self.machine {
                Machine::Hermes(machine) => machine.push(c, &mut self.out),
                Machine::Llama3(machine) => machine.push(c, &mut self.out),
                Machine::Mistral(machine) => machine.push(c, &mut self.out),
            }
        }
        std::mem::take(&mut self.out.pieces)
    }

    /// The answer has ended: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        match &mut self.machine {
            Machine::Hermes(machine) => machine.finish(&mut self.out),
            Machine::Llama3(machine) => machine.finish(&mut self.out),
            Machine::Mistral(machine) => machine.finish(&mut self.out),
        }
        if self.out.calls == 0 {
            self.out.flush_space();
        }
        self.out.space.clear();
        std::mem::take(&mut self.out.pieces)
    }
}

/// Where machines write. Neighbours of one kind are one piece.
#[derive(Debug, Default)]
struct Out {
    pieces: Vec<Piece>,
    /// White space that is content unless a call begins.
    space: String,
    /// Calls begun.
    calls: usize,
}

impl Out {
    fn content(&mut self, text: &str) {
        for c in text.chars() {
            if c.is_whitespace() {
                self.space.push(c);
                continue;
            }
            self.flush_space();
            self.append(c);
        }
    }

    fn flush_space(&mut self) {
        for c in std::mem::take(&mut self.space).chars() {
            self.append(c);
        }
    }

    fn append(&mut self, c: char) {
        match self.pieces.last_mut() {
            Some(Piece::Content(text)) => text.push(c),
            _ => self.pieces.push(Piece::Content(c.into())),
        }
    }

    fn call(&mut self, name: String) {
        self.space.clear();
        self.pieces.push(Piece::Call { index: self.calls, name });
        self.calls += 1;
    }

    /// More arguments of the call that began last.
    fn arguments(&mut self, more: &str) {
        let last = self.calls.saturating_sub(1);
        match self.pieces.last_mut() {
            Some(Piece::Arguments { text, .. }) => text.push_str(more),
            _ => self.pieces.push(Piece::Arguments { index: last, text: more.to_owned() }),
        }
    }
}

/// Text in which a marker is looked for; what may yet become the marker is held back.
#[derive(Debug, Default)]
struct Seek {
    held: String,
}

impl Seek {
    /// Whether the marker is whole with this character; what can't be part of it goes to `pass`.
    fn push(&mut self, c: char, marker: &str, mut pass: impl FnMut(&str)) -> bool {
        self.held.push(c);
        if self.held == marker {
            self.held.clear();
            return true;
        }
        // Markers are ASCII, and short.
        while !marker.starts_with(&self.held) {
            let first = self.held.chars().next().map_or(0, char::len_utf8);
            pass(&self.held[..first]);
            self.held.drain(..first);
        }
        false
    }

    fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests;
