//! An answer that is `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not.
//!
//! There may be no marker, so only the names of the functions on offer tell a call from an answer that is JSON.

use super::{
    Out, Seek,
    object::{CallObject, Stand},
};

pub(super) const TAG: &str = "<|python_tag|>";

#[derive(Debug)]
enum State {
    /// A call may begin here: what came since, white space or the tag.
    Ready(String),
    Call {
        before: String,
        object: CallObject,
    },
    Text(Seek),
    /// After a call: separators so far.
    Called(String),
    /// Arguments that are no JSON, to the end.
    Verbatim,
}

#[derive(Debug)]
pub(super) struct Llama {
    tools: Vec<String>,
    state: State,
    seek: Seek,
}

impl Llama {
    pub(super) fn new(tools: Vec<String>) -> Self {
        Self { tools, state: State::Ready(String::new()), seek: Seek::default() }
    }

    pub(super) fn push(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Ready(before) => {
                if self.seek.held.is_empty() && c.is_whitespace() {
                    return before.push(c);
                }
                if self.seek.held.is_empty() && c == '{' {
                    let before = std::mem::take(before);
                    self.state = State::Call { before, object: CallObject::default() };
                    return self.push(c, out);
                }
                let mut other = String::new();
                if self.seek.push(c, TAG, |text| other.push_str(text)) {
                    before.push_str(TAG);
                } else if !other.is_empty() {
                    let before = std::mem::take(before);
                    let rest = self.seek.rest();
                    self.content(&before, &(other + &rest), out);
                }
            }
            State::Call { before, object } => match object.push(c, out, |name| self.tools.iter().any(|t| t == name)) {
                Stand::Open => {}
                Stand::Whole => self.state = State::Called(String::new()),
                Stand::Broken if object.called => {
                    self.state = if object.arguments_flow { State::Verbatim } else { State::Called(String::new()) };
                    self.push(c, out);
                }
                Stand::Broken => {
                    let (before, raw) = (std::mem::take(before), std::mem::take(&mut object.raw));
                    self.content(&before, &raw, out);
                }
            },
            State::Text(seek) => {
                if seek.push(c, TAG, |text| out.content(text)) {
                    self.state = State::Ready(TAG.into());
                }
            }
            State::Called(between) => match c {
                ';' | ',' => between.push(c),
                c if c.is_whitespace() => between.push(c),
                c => {
                    self.state = State::Ready(std::mem::take(between));
                    self.push(c, out);
                }
            },
            State::Verbatim => out.arguments(c.encode_utf8(&mut [0; 4])),
        }
    }

    fn content(&mut self, before: &str, rest: &str, out: &mut Out) {
        out.content(before);
        self.state = State::Text(Seek::default());
        rest.chars().for_each(|c| self.push(c, out));
    }

    pub(super) fn finish(&mut self, out: &mut Out) {
        match std::mem::replace(&mut self.state, State::Verbatim) {
            State::Ready(before) => {
                out.content(&before);
                out.content(&self.seek.rest());
            }
            State::Call { object, .. } if object.called => {}
            State::Call { before, object } => out.content(&(before + &object.raw)),
            State::Text(mut seek) => out.content(&seek.rest()),
            State::Called(between) => out.content(between.trim_matches([';', ',', ' ', '\n', '\r', '\t'])),
            State::Verbatim => {}
        }
    }
}
