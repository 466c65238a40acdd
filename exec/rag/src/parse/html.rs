//! HTML by its tokens: without a tree, nesting costs nothing and has no end that could be overrun.

use std::cell::RefCell;

use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts, states::RawKind,
    },
};

use super::{Bounds, Document, Kind, ParseError, build::Builder, text::decoded};

/// What is in these is not for readers.
const HIDDEN: [&str; 7] = ["script", "style", "noscript", "template", "svg", "iframe", "object"];
/// What ends a paragraph where it begins and where it ends.
const BLOCKS: [&str; 34] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "dd",
    "details",
    "dialog",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "tbody",
    "thead",
    "tr",
    "ul",
];

struct State {
    builder: Builder,
    /// Words since the last block ended.
    words: String,
    heading: Option<u8>,
    title: Option<String>,
    /// Inside of what is hidden: its name, and how many of that name are open.
    hidden: Option<(String, usize)>,
    pre: bool,
    failed: Option<ParseError>,
}

impl State {
    fn flush(&mut self) {
        let words = std::mem::take(&mut self.words);
        let words = words.trim().trim_end_matches('|');
        let done = match (self.heading, self.pre) {
            (Some(level), _) => self.builder.heading(level, words),
            (None, true) => self.builder.block(words, Kind::Code, None),
            (None, false) => self.builder.block(words, Kind::Text, None),
        };
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }

    fn tell(&mut self, text: &str) {
        if self.hidden.is_some() || self.failed.is_some() {
            return;
        }
        if let Some(title) = &mut self.title {
            return title.push_str(text);
        }
        if self.pre {
            return self.words.push_str(text);
        }
        for c in text.chars() {
            let space = c.is_whitespace() && c != '\u{a0}';
            if !space {
                self.words.push(c);
            } else if !self.words.is_empty() && !self.words.ends_with([' ', '\n']) {
                self.words.push(' ');
            }
        }
    }

    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name: &str = &tag.name;
        let opens = tag.kind == TagKind::StartTag;
        if let Some((hidden, depth)) = &mut self.hidden {
            if name == hidden {
                *depth =
                    if opens && !tag.self_closing { *depth + 1 } else { depth.saturating_sub(usize::from(!opens)) };
                if *depth == 0 {
                    self.hidden = None;
                }
            }
            return TokenSinkResult::Continue;
        }
        if HIDDEN.contains(&name) && opens && !tag.self_closing {
            self.hidden = Some((name.to_owned(), 1));
            return match name {
                "script" => TokenSinkResult::RawData(RawKind::ScriptData),
                "style" | "noscript" | "iframe" => TokenSinkResult::RawData(RawKind::Rawtext),
                _ => TokenSinkResult::Continue,
            };
        }
        match (name, opens) {
            ("title", true) => {
                self.title = Some(String::new());
                return TokenSinkResult::RawData(RawKind::Rcdata);
            }
            ("title", false) => {
                if let Some(title) = self.title.take() {
                    self.builder.title(&title);
                }
            }
            ("textarea", true) => return TokenSinkResult::RawData(RawKind::Rcdata),
            ("br", _) => self.words.push('\n'),
            ("td" | "th", false) => self.words.push_str(" |"),
            ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", _) => {
                self.flush();
                self.heading = opens.then(|| name.as_bytes()[1] - b'0');
            }
            _ if BLOCKS.contains(&name) => {
                self.flush();
                self.pre = if name == "pre" { opens } else { self.pre };
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

struct Sink(RefCell<State>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut state = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) => return state.tag(&tag),
            Token::CharacterTokens(text) => state.tell(&text),
            Token::EOFToken => state.flush(),
            Token::DoctypeToken(_) | Token::CommentToken(_) | Token::NullCharacterToken | Token::ParseError(_) => {}
        }
        TokenSinkResult::Continue
    }
}

pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let (text, note) = decoded(bytes, "html")?;
    let (builder, words) = (Builder::new(bounds), String::new());
    let state = State { builder, words, heading: None, title: None, hidden: None, pre: false, failed: None };
    let tokenizer = Tokenizer::new(Sink(RefCell::new(state)), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(text));
    // It stops where a page would wait for a script; there is none that runs.
    while !input.is_empty() {
        let _ = tokenizer.feed(&input);
    }
    tokenizer.end();
    let State { mut builder, failed, .. } = tokenizer.sink.0.into_inner();
    note.into_iter().for_each(|note| builder.note(note));
    failed.map_or_else(|| Ok(builder.done()), Err)
}
