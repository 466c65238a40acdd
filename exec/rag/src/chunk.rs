//! A document to chunks: stretches of its text, as long as an embedder reads at once, whose beginnings and ends are those
//! of sentences where it can be.
//!
//! A chunk keeps to its section, a record to itself. A chunk's text is exactly `text[chunk.bytes]`. Tokens are counted a
//! block at a time, so that two blocks together may have a token more or less than their sum.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use crate::{
    parse::{Block, Document, Kind, Metadata},
    seams::Tokens,
    span::{Chars, Span},
};

/// How long chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// Tokens of a chunk and of what stands before it for the search.
    pub max_tokens: usize,
    /// Tokens at its end that the next one begins with, at most.
    pub overlap: usize,
}

impl Default for Chunking {
    /// 200 tokens: sentence embedders read 256, and answers are a few sentences.
    fn default() -> Self {
        Self { max_tokens: 200, overlap: 32 }
    }
}

impl Chunking {
    /// What a document's chunks depend on, besides it.
    pub fn recipe(&self, tokens: &dyn Tokens) -> String {
        format!("1 {} {} {}", self.max_tokens, self.overlap, tokens.identity())
    }
}

/// A stretch of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// From 0, in the document's order.
    pub ordinal: u32,
    /// Bytes of the document's text.
    pub bytes: Span,
    /// The same in chars.
    pub chars: Span,
    /// First and last page.
    pub pages: Option<(u32, u32)>,
    /// From the outermost inward.
    pub headings: Vec<String>,
    /// Title and headings, which are searched with the text and are no part of it.
    pub context: String,
    /// A record's other fields.
    pub metadata: Option<Metadata>,
    /// In it.
    pub tokens: u32,
}

impl Chunk {
    /// What is searched: its context and its text.
    pub fn searched(&self, text: &str) -> String {
        let own = self.bytes.of(text);
        if self.context.is_empty() { own.to_owned() } else { format!("{}\n{own}", self.context) }
    }
}

/// What is not cut when it need not be: a sentence, a line of code.
struct Unit {
    span: Span,
    tokens: usize,
    /// The block it is of, by its place in the document.
    block: usize,
}

/// All of a document's chunks.
///
/// # Errors
/// When tokens can't be counted, or the settings leave no room for a text.
pub fn chunks(document: &Document, tokens: &dyn Tokens, chunking: &Chunking) -> Result<Vec<Chunk>> {
    let Chunking { max_tokens, overlap } = *chunking;
    ensure!(max_tokens >= 8, "chunks of {max_tokens} tokens hold no sentence, expected 8 or more");
    ensure!(overlap < max_tokens, "an overlap of {overlap} tokens leaves nothing new in chunks of {max_tokens}");
    let mut made = Vec::new();
    let mut chars = Chars::new(&document.text);
    let sections: Vec<&[Block]> = document.blocks.chunk_by(same_section).collect();
    let mut first = 0;
    for (at, section) in sections.iter().enumerate() {
        let begin = first;
        first += section.len();
        let bare = section.iter().all(|block| block.kind == Kind::Heading);
        let opens = |next: &&[Block]| next[0].headings.starts_with(&section[0].headings);
        // Its words are before those of the sections in it.
        if bare && sections.get(at + 1).is_some_and(opens) {
            continue;
        }
        let (context, taken) = context(document, &section[0], tokens, max_tokens / 4)?;
        let budget = max_tokens - taken;
        let mut units = Vec::new();
        for (block, place) in section.iter().zip(begin..) {
            split(&document.text, block, place, tokens, budget, &mut units)?;
        }
        for (from, to) in packed(&units, budget, overlap.min(budget / 2)) {
            let bytes = Span::new(units[from].span.start, units[to - 1].span.end).trimmed(&document.text);
            if bytes.is_empty() {
                continue;
            }
            let pages = document.blocks[units[from].block].page.zip(document.blocks[units[to - 1].block].page);
            made.push(Chunk {
                ordinal: u32::try_from(made.len())?,
                bytes,
                chars: Span::new(chars.at(bytes.start), chars.at(bytes.end)),
                pages,
                headings: section[0].headings.clone(),
                context: context.clone(),
                metadata: section[0].metadata.clone(),
                tokens: u32::try_from(units[from..to].iter().map(|unit| unit.tokens).sum::<usize>())?,
            });
        }
    }
    Ok(made)
}

fn same_section(one: &Block, next: &Block) -> bool {
    one.kind != Kind::Record && next.kind != Kind::Record && one.headings == next.headings && next.kind != Kind::Heading
}

/// What stands before a section's chunks, and its tokens: nothing where it would take more than `max` of them.
fn context(document: &Document, first: &Block, tokens: &dyn Tokens, max: usize) -> Result<(String, usize)> {
    let title = document.title.iter().filter(|title| !first.headings.contains(title));
    let context: Vec<&str> = title.chain(&first.headings).map(String::as_str).collect();
    // The innermost says most.
    for from in 0..context.len() {
        let words = context[from..].join(" > ");
        let taken = tokens.spans(&words)?.len();
        if taken <= max {
            return Ok((words, taken));
        }
    }
    Ok((String::new(), 0))
}

/// A block's sentences; one that is too long in pieces of whole tokens.
fn split(
    text: &str,
    block: &Block,
    place: usize,
    tokens: &dyn Tokens,
    budget: usize,
    units: &mut Vec<Unit>,
) -> Result<()> {
    let own = block.span.of(text);
    let starts: Vec<usize> =
        tokens.spans(own)?.into_iter().filter(|span| !span.is_empty()).map(|span| span.start).collect();
    let mut seen = 0;
    for (start, end) in sentences(own, block.kind) {
        let inside = starts[seen..].partition_point(|token| *token < end);
        let mut own_tokens = &starts[seen..seen + inside];
        seen += inside;
        let mut from = start;
        while own_tokens.len() > budget {
            let mut cut = own_tokens[budget].min(end);
            while !own.is_char_boundary(cut) {
                cut += 1;
            }
            units.push(unit(block, place, from, cut, budget));
            from = cut;
            own_tokens = &own_tokens[budget..];
        }
        if from < end {
            units.push(unit(block, place, from, end, own_tokens.len()));
        }
    }
    Ok(())
}

fn unit(block: &Block, place: usize, from: usize, to: usize, tokens: usize) -> Unit {
    Unit { span: Span::new(block.span.start + from, block.span.start + to), tokens, block: place }
}

/// Where sentences begin and end. A line's end is none of a sentence, but before what begins an item, a row or a quote.
fn sentences(text: &str, kind: Kind) -> Vec<(usize, usize)> {
    let lines = || {
        let mut at = 0;
        text.split_inclusive('\n').map(move |line| {
            at += line.len();
            (at - line.len(), at)
        })
    };
    if matches!(kind, Kind::Code | Kind::Record) {
        return lines().collect();
    }
    let mut flat = text.to_owned().into_bytes();
    for (start, _) in lines().skip(1) {
        if !text[start..].trim_start_matches([' ', '\t']).starts_with(['|', '-', '*', '+', '>', '#', '\n', '\r']) {
            flat[start - 1] = b' ';
            if start > 1 && flat[start - 2] == b'\r' {
                flat[start - 2] = b' ';
            }
        }
    }
    // One byte became one byte, so that places are the same.
    let flat = String::from_utf8(flat).unwrap_or_else(|_| text.to_owned());
    flat.split_sentence_bound_indices().map(|(at, words)| (at, at + words.len())).collect()
}

/// Units to chunks: from which to behind which.
fn packed(units: &[Unit], budget: usize, overlap: usize) -> Vec<(usize, usize)> {
    let mut chunks = Vec::new();
    let mut start = 0;
    // Up to here all is in some chunk.
    let mut done = 0;
    while done < units.len() {
        let mut sum = 0;
        let mut end = start;
        while end < units.len() && (end <= done || sum + units[end].tokens <= budget) {
            sum += units[end].tokens;
            end += 1;
        }
        if end < units.len() {
            end = at_paragraph(units, start, end, done, budget);
        }
        chunks.push((start, end));
        done = end;
        let mut back = end;
        let mut repeated = 0;
        let room = overlap.min(budget.saturating_sub(units.get(end).map_or(0, |next| next.tokens)));
        while back > start + 1 && repeated + units[back - 1].tokens <= room {
            back -= 1;
            repeated += units[back].tokens;
        }
        start = back;
    }
    chunks
}

/// The last beginning of a paragraph that leaves a chunk at least half full; else where it was.
fn at_paragraph(units: &[Unit], start: usize, end: usize, done: usize, budget: usize) -> usize {
    let begins = |at: usize| units[at].block != units[at - 1].block;
    let full = |at: usize| units[start..at].iter().map(|unit| unit.tokens).sum::<usize>() >= budget / 2;
    (start.max(done) + 1..=end).rev().find(|at| begins(*at) && full(*at)).unwrap_or(end)
}
