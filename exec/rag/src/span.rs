//! A stretch of a text, from its first place to the one behind its last.

use serde::{Deserialize, Serialize};

/// `start..end`. In bytes or in chars (Unicode scalar values, as Python counts): the field that holds it says which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// First place.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
}

impl Span {
    /// From one place to another.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Places in it.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether all of another lies in it.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Bytes `self` of a text; empty where they are not there or cut a char.
    pub fn of(self, text: &str) -> &str {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// Chars `self` of a text, as many of them as there are.
    pub fn of_chars(self, text: &str) -> &str {
        let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        text.get(at(self.start)..at(self.end.max(self.start))).unwrap_or_default()
    }

    /// Without white space at either end (bytes).
    #[must_use]
    pub fn trimmed(self, text: &str) -> Self {
        let inner = self.of(text);
        let start = self.start + (inner.len() - inner.trim_start().len());
        Self { start, end: start + inner.trim().len() }
    }
}

/// Places in bytes to places in chars, asked for in rising order: one pass over a text, however many are asked for.
pub struct Chars<'a> {
    text: &'a str,
    byte: usize,
    char: usize,
}

impl<'a> Chars<'a> {
    /// At the text's beginning.
    pub fn new(text: &'a str) -> Self {
        Self { text, byte: 0, char: 0 }
    }

    /// The char at a byte. A place before the last asked for costs a new pass.
    pub fn at(&mut self, byte: usize) -> usize {
        if byte < self.byte {
            (self.byte, self.char) = (0, 0);
        }
        self.char += self.text.get(self.byte..byte).map_or(0, |passed| passed.chars().count());
        self.byte = byte;
        self.char
    }
}
