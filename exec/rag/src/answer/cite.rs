//! Citations in an answer: `[1]`, `[1, 3]`, `[1][3]`, `【2】`; found as the text comes, in whatever pieces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{index::Hit, span::Span};

/// A number that is cited: with more digits it is none.
const DIGITS: u32 = 4;

/// What an answer rests on: a place in a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// As it is cited.
    pub index: u32,
    /// The document.
    pub document_id: String,
    /// Its name.
    pub document_name: String,
    /// SHA-256 of the very file whose text it is.
    pub document_hash: String,
    /// The first page, of PDF.
    pub page: Option<u32>,
    /// The last page.
    pub page_end: Option<u32>,
    /// In the document's text, in chars.
    pub start: usize,
    /// Behind it.
    pub end: usize,
    /// The document's text there, exactly.
    pub text: String,
    /// What it stands under.
    pub headings: Vec<String>,
    /// Where in the answer it is cited, in chars.
    pub cited_at: Vec<Span>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum State {
    #[default]
    Outside,
    /// Since a bracket opened: where, numbers that are whole, and the one that is being read.
    Inside { start: usize, numbers: Vec<u32>, number: Option<u32> },
}

/// Reads an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finder {
    chars: usize,
    state: State,
    found: BTreeMap<u32, Vec<Span>>,
}

impl Finder {
    /// The next piece of the answer.
    pub fn feed(&mut self, piece: &str) {
        for c in piece.chars() {
            self.step(c);
            self.chars += 1;
        }
    }

    fn step(&mut self, c: char) {
        if matches!(c, '[' | '【') {
            self.state = State::Inside { start: self.chars, numbers: Vec::new(), number: None };
            return;
        }
        let State::Inside { start, numbers, number } = &mut self.state else {
            return;
        };
        match (c, c.to_digit(10)) {
            (_, Some(digit)) if number.is_none_or(|number| number < 10_u32.pow(DIGITS - 1)) => {
                *number = Some(number.unwrap_or(0) * 10 + digit);
            }
            (',' | ';' | ' ', _) => numbers.extend(number.take()),
            (']' | '】', _) => {
                numbers.extend(number.take());
                let span = Span::new(*start, self.chars + 1);
                for number in std::mem::take(numbers) {
                    let places = self.found.entry(number).or_default();
                    if places.last() != Some(&span) {
                        places.push(span);
                    }
                }
                self.state = State::Outside;
            }
            _ => self.state = State::Outside,
        }
    }

    /// What was cited, and numbers that stand for nothing.
    pub fn resolve(&self, hits: &[Hit]) -> (Vec<Citation>, Vec<u32>) {
        let mut citations = Vec::new();
        let mut unknown = Vec::new();
        for (&index, places) in &self.found {
            let hit = (index as usize).checked_sub(1).and_then(|at| hits.get(at));
            match hit {
                Some(hit) => citations.push(citation(index, hit, places.clone())),
                None => unknown.push(index),
            }
        }
        (citations, unknown)
    }
}

fn citation(index: u32, hit: &Hit, cited_at: Vec<Span>) -> Citation {
    Citation {
        index,
        document_id: hit.document_id.clone(),
        document_name: hit.document_name.clone(),
        document_hash: hit.document_hash.clone(),
        page: hit.pages.map(|(first, _)| first),
        page_end: hit.pages.map(|(_, last)| last),
        start: hit.chars.start,
        end: hit.chars.end,
        text: hit.text.clone(),
        headings: hit.headings.clone(),
        cited_at,
    }
}

/// Citations of an answer that is whole, and numbers that stand for nothing.
pub fn cited(answer: &str, hits: &[Hit]) -> (Vec<Citation>, Vec<u32>) {
    let mut finder = Finder::default();
    finder.feed(answer);
    finder.resolve(hits)
}
