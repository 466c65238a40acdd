//! A document as it grows, within its bounds.

use super::{Block, Bounds, Document, Kind, Metadata, ParseError};
use crate::span::Span;

/// A heading's words in a path of them: longer ones are paragraphs that were marked as headings for their looks.
const HEADING_CHARS: usize = 200;

/// Which headings a place stands under.
#[derive(Default)]
pub(super) struct Headings(Vec<(u8, String)>);

impl Headings {
    /// A heading of a level, from 1, with white space in one piece.
    pub(super) fn open(&mut self, level: u8, words: &str) {
        self.0.retain(|(other, _)| *other < level);
        let words: Vec<_> = words.split_whitespace().collect();
        self.0.push((level, words.join(" ").chars().take(HEADING_CHARS).collect()));
    }

    pub(super) fn path(&self) -> Vec<String> {
        self.0.iter().map(|(_, words)| words.clone()).collect()
    }
}

/// A document that is being written.
pub(super) struct Builder {
    document: Document,
    bounds: Bounds,
    headings: Headings,
    page: Option<u32>,
}

impl Builder {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self { document: Document::default(), bounds: *bounds, headings: Headings::default(), page: None }
    }

    /// Over a text that is there already: blocks are places in it.
    pub(super) fn over(text: String, bounds: &Bounds) -> Result<Self, ParseError> {
        let mut builder = Self::new(bounds);
        builder.room(text.len())?;
        builder.document.text = text;
        Ok(builder)
    }

    pub(super) fn text(&self) -> &str {
        &self.document.text
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.document.notes.push(note.into());
    }

    pub(super) fn title(&mut self, title: &str) {
        let title = title.trim();
        if !title.is_empty() && self.document.title.is_none() {
            self.document.title = Some(title.chars().take(HEADING_CHARS).collect());
        }
    }

    pub(super) fn page(&mut self, page: u32) {
        self.page = Some(page);
        self.document.pages = Some(self.document.pages.unwrap_or(0).max(page));
    }

    fn room(&self, more: usize) -> Result<(), ParseError> {
        let max = self.bounds.text_bytes;
        if self.document.text.len() + more > max {
            return Err(ParseError::TooLarge { what: "its text in bytes".into(), max });
        }
        Ok(())
    }

    /// A block at a place of the text. White space at its ends is no part of it; nothing else, no block.
    pub(super) fn place(&mut self, span: Span, kind: Kind, metadata: Option<Metadata>) -> Result<(), ParseError> {
        let span = span.trimmed(self.text());
        if span.is_empty() {
            return Ok(());
        }
        let max = self.bounds.blocks;
        if self.document.blocks.len() >= max {
            return Err(ParseError::TooLarge { what: "the number of its blocks".into(), max });
        }
        let headings = self.headings.path();
        self.document.blocks.push(Block { span, kind, page: self.page, headings, metadata });
        Ok(())
    }

    /// A heading at a place of the text.
    pub(super) fn place_heading(&mut self, level: u8, words: &str, span: Span) -> Result<(), ParseError> {
        if !words.trim().is_empty() {
            self.headings.open(level, words);
            self.title(words);
        }
        self.place(span, Kind::Heading, None)
    }

    /// Text behind what is there, an empty line between.
    fn write(&mut self, words: &str) -> Result<Span, ParseError> {
        self.room(words.len() + 2)?;
        if !self.document.text.is_empty() {
            self.document.text.push_str("\n\n");
        }
        let start = self.document.text.len();
        // Control characters say nothing, and a NUL ends the text for some who read it.
        self.document.text.extend(words.trim().chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')));
        Ok(Span::new(start, self.document.text.len()))
    }

    /// A block of new text.
    pub(super) fn block(&mut self, words: &str, kind: Kind, metadata: Option<Metadata>) -> Result<(), ParseError> {
        if words.trim().is_empty() {
            return Ok(());
        }
        let span = self.write(words)?;
        self.place(span, kind, metadata)
    }

    /// A heading of new text.
    pub(super) fn heading(&mut self, level: u8, words: &str) -> Result<(), ParseError> {
        if words.trim().is_empty() {
            return Ok(());
        }
        let span = self.write(words)?;
        self.place_heading(level, words, span)
    }

    pub(super) fn done(self) -> Document {
        self.document
    }
}
