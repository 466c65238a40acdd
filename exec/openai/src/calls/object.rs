//! One call that is a JSON object: `{"name": …, "arguments" or "parameters": {…}}`, its keys in any order.

use super::{
    Out,
    json::{Checker, Mark},
};

/// Where an object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    /// It goes on.
    Open,
    /// It was a call, and is whole.
    Whole,
    /// It is no call, or no JSON.
    Broken,
}

/// The machine. Arguments go out as they come where the name was before them.
#[derive(Debug, Default)]
pub(super) struct CallObject {
    /// All of it so far.
    pub(super) raw: String,
    checker: Checker,
    /// Where the key or value that is open at the top began, in `raw`.
    began: usize,
    key: String,
    name: Option<String>,
    /// The arguments' place in `raw`, where they came before the name or are no object.
    arguments: Option<(usize, usize)>,
    /// Whether arguments are going out as they come.
    pub(super) arguments_flow: bool,
    /// Whether the call has gone out.
    pub(super) called: bool,
}

impl CallObject {
    /// The next character, first of all `{`. `known`: whether a name is one of a function.
    pub(super) fn push(&mut self, c: char, out: &mut Out, known: impl Fn(&str) -> bool) -> Stand {
        let at = self.raw.len();
        self.raw.push(c);
        let depth = self.checker.depth();
        let Ok(mark) = self.checker.push(c) else {
            return Stand::Broken;
        };
        if self.arguments_flow {
            out.arguments(c.encode_utf8(&mut [0; 4]));
            self.arguments_flow = !(mark == Mark::ValueEnds && self.checker.depth() == 1);
            return Stand::Open;
        }
        match mark {
            Mark::KeyBegins | Mark::ValueBegins if depth == 1 => {
                self.began = at;
                if mark == Mark::ValueBegins && c == '{' && self.is_arguments() && !self.called {
                    return self.arguments_begin(out, known);
                }
            }
            Mark::KeyEnds if depth == 1 => self.key = self.read(at + 1).unwrap_or_default(),
            Mark::ValueEnds if self.checker.depth() == 1 => self.value_ended(),
            // A word or a number has ended somewhere before its comma or brace; only its absence of quotes matters.
            _ if self.checker.whole() => return self.ended(out, known),
            _ => {}
        }
        Stand::Open
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    fn read(&self, end: usize) -> Option<String> {
        serde_json::from_str(&self.raw[self.began..end]).ok()
    }

    fn arguments_begin(&mut self, out: &mut Out, known: impl Fn(&str) -> bool) -> Stand {
        let Some(name) = &self.name else {
            return Stand::Open;
        };
        if !known(name) {
            return Stand::Broken;
        }
        out.call(name.clone());
        out.arguments("{");
        (self.called, self.arguments_flow) = (true, true);
        Stand::Open
    }

    fn value_ended(&mut self) {
        if self.key == "name" {
            self.name = self.read(self.raw.len());
        } else if self.is_arguments() {
            self.arguments = Some((self.began, self.raw.len()));
        }
    }

    fn ended(&mut self, out: &mut Out, known: impl Fn(&str) -> bool) -> Stand {
        if self.called {
            return Stand::Whole;
        }
        let Some(name) = self.name.take().filter(|name| known(name)) else {
            return Stand::Broken;
        };
        let Some(arguments) = self.arguments_at_last() else {
            return Stand::Broken;
        };
        out.call(name);
        out.arguments(&arguments);
        self.called = true;
        Stand::Whole
    }

    /// Arguments that didn't flow: an object before the name, an object written as a string, none at all.
    fn arguments_at_last(&self) -> Option<String> {
        let Some((from, to)) = self.arguments else {
            let whole: serde_json::Value = serde_json::from_str(&self.raw).ok()?;
            let given = whole.get("arguments").or(whole.get("parameters"));
            return given.is_none_or(serde_json::Value::is_null).then(|| "{}".to_owned());
        };
        let text = &self.raw[from..to];
        if text.starts_with('{') {
            return Some(text.to_owned());
        }
        let text: String = serde_json::from_str(text).ok()?;
        if text.trim().is_empty() {
            return Some("{}".into());
        }
        serde_json::from_str::<serde_json::Value>(&text).ok()?.is_object().then_some(text)
    }
}
