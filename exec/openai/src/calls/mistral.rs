//! `[TOOL_CALLS]` and either a list of `{"name": …, "arguments": {…}}` or, for each call, `name[ARGS]{…}`.

use super::{
    Out, Seek,
    json::Checker,
    object::{CallObject, Stand},
};

pub(super) const OPEN: &str = "[TOOL_CALLS]";
pub(super) const ARGS: &str = "[ARGS]";
/// Between name and arguments in some versions; the id after it is not ours.
pub(super) const CALL_ID: &str = "[CALL_ID]";

/// Longest text between marker and arguments: a name has 64 characters at most.
const NAME_MAX: usize = 160;

#[derive(Debug)]
pub(super) enum Mistral {
    Text(Seek),
    /// After the marker: all since it, white space.
    Opened(String),
    /// A name so far, and with `before` all since the marker.
    Name {
        before: String,
        name: String,
    },
    /// Arguments after a name.
    Flow(Checker),
    /// In a list (or a lone object): what of it has not gone out as a call.
    List {
        before: String,
        list: bool,
        object: Option<CallObject>,
    },
    /// Arguments that are no JSON, up to the next marker.
    Verbatim(Seek),
}

impl Default for Mistral {
    fn default() -> Self {
        Self::Text(Seek::default())
    }
}

impl Mistral {
    pub(super) fn push(&mut self, c: char, out: &mut Out) {
        match self {
            Self::Text(seek) => {
                if seek.push(c, OPEN, |text| out.content(text)) {
                    *self = Self::Opened(String::new());
                }
            }
            Self::Opened(before) if c.is_whitespace() => before.push(c),
            Self::Opened(before) => {
                let mut before = std::mem::take(before);
                match c {
                    '[' => {
                        before.push(c);
                        *self = Self::List { before: OPEN.to_owned() + &before, list: true, object: None };
                    }
                    '{' => {
                        *self = Self::List { before: OPEN.to_owned() + &before, list: false, object: None };
                        self.push(c, out);
                    }
                    c => {
                        *self = Self::Name { before, name: String::new() };
                        self.push(c, out);
                    }
                }
            }
            Self::Name { before, name } => {
                name.push(c);
                let found = name.strip_suffix(ARGS).or_else(|| name.strip_suffix('{'));
                let found = found.map(|found| found.split(CALL_ID).next().unwrap_or_default().trim().to_owned());
                match found {
                    Some(found) if is_name(&found) => {
                        out.call(found);
                        *self = Self::Flow(Checker::default());
                        if c == '{' {
                            self.push(c, out);
                        }
                    }
                    None if name.len() < NAME_MAX && (is_name(name) || name.contains('[') || c == ' ') => {}
                    _ => {
                        let text = std::mem::take(before) + name;
                        out.content(OPEN);
                        *self = Self::default();
                        text.chars().for_each(|c| self.push(c, out));
                    }
                }
            }
            Self::Flow(checker) => {
                let first = checker.depth() == 0;
                if first && c.is_whitespace() {
                    return;
                }
                if (first && c != '{') || checker.push(c).is_err() {
                    *self = Self::Verbatim(Seek::default());
                    return self.push(c, out);
                }
                out.arguments(c.encode_utf8(&mut [0; 4]));
                if checker.whole() {
                    *self = Self::default();
                }
            }
            Self::List { .. } => self.in_list(c, out),
            Self::Verbatim(seek) => {
                if seek.push(c, OPEN, |text| out.arguments(text)) {
                    *self = Self::Opened(String::new());
                }
            }
        }
    }

    fn in_list(&mut self, c: char, out: &mut Out) {
        let Self::List { before, list, object } = self else {
            return;
        };
        let Some(open) = object else {
            match c {
                '{' => {
                    *object = Some(CallObject::default());
                    return self.in_list(c, out);
                }
                ']' if *list && !before.starts_with(OPEN) => *self = Self::default(),
                c if c.is_whitespace() || (c == ',' && *list) => before.push(c),
                c => {
                    before.push(c);
                    self.no_call(out);
                }
            }
            return;
        };
        match open.push(c, out, |_| true) {
            Stand::Open => {}
            Stand::Whole => {
                before.clear();
                *object = None;
                if !*list {
                    *self = Self::default();
                }
            }
            Stand::Broken if open.arguments_flow => {
                *self = Self::Verbatim(Seek::default());
                self.push(c, out);
            }
            Stand::Broken if open.called => {
                before.clear();
                *object = None;
                self.in_list(c, out);
            }
            Stand::Broken => {
                before.push_str(&open.raw);
                self.no_call(out);
            }
        }
    }

    /// What stands in `before` is content after all.
    fn no_call(&mut self, out: &mut Out) {
        let Self::List { before, .. } = std::mem::take(self) else {
            return;
        };
        let rest = match before.strip_prefix(OPEN) {
            Some(rest) => {
                out.content(OPEN);
                rest
            }
            None => &before,
        };
        rest.chars().for_each(|c| self.push(c, out));
    }

    pub(super) fn finish(&mut self, out: &mut Out) {
        match std::mem::take(self) {
            Self::Text(mut seek) => out.content(&seek.rest()),
            Self::Opened(before) => out.content(&(OPEN.to_owned() + &before)),
            Self::Name { before, name } => out.content(&(OPEN.to_owned() + &before + &name)),
            Self::Flow(_) => {}
            Self::List { object: Some(object), .. } if object.called => {}
            // Calls have gone out of it: what is left of the list says nothing.
            Self::List { before, object: None, .. } if !before.starts_with(OPEN) => {}
            Self::List { before, object, .. } => {
                out.content(&before);
                out.content(&object.map(|object| object.raw).unwrap_or_default());
            }
            Self::Verbatim(mut seek) => out.arguments(&seek.rest()),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}
