//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`

use super::{
    Out, Seek,
    object::{CallObject, Stand},
};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

#[derive(Debug)]
pub(super) enum Hermes {
    Text(Seek),
    /// After the marker: white space so far.
    Opened(String),
    /// Also what was between marker and brace.
    Call {
        space: String,
        object: CallObject,
    },
    /// After a whole object: what may become the closing marker, white space before it.
    Called {
        space: String,
        seek: Seek,
    },
    /// Arguments that are no JSON, up to the closing marker.
    Verbatim(Seek),
}

impl Default for Hermes {
    fn default() -> Self {
        Self::Text(Seek::default())
    }
}

impl Hermes {
    pub(super) fn push(&mut self, c: char, out: &mut Out) {
        match self {
            Self::Text(seek) => {
                if seek.push(c, OPEN, |text| out.content(text)) {
                    *self = Self::Opened(String::new());
                }
            }
            Self::Opened(space) if c.is_whitespace() => space.push(c),
            Self::Opened(space) => {
                let space = std::mem::take(space);
                if c == '{' {
                    *self = Self::Call { space, object: CallObject::default() };
                    return self.push(c, out);
                }
                self.no_call(&space, "", c, out);
            }
            Self::Call { space, object } => match object.push(c, out, |_| true) {
                Stand::Open => {}
                Stand::Whole => *self = Self::Called { space: String::new(), seek: Seek::default() },
                Stand::Broken if object.called => {
                    // Often it is only the last brace that is missing.
                    *self = match object.arguments_flow {
                        true => Self::Verbatim(Seek::default()),
                        false => Self::Called { space: String::new(), seek: Seek::default() },
                    };
                    self.push(c, out);
                }
                Stand::Broken => {
                    let (space, mut raw) = (std::mem::take(space), std::mem::take(&mut object.raw));
                    raw.pop();
                    self.no_call(&space, &raw, c, out);
                }
            },
            Self::Called { space, seek } => {
                if seek.held.is_empty() && c.is_whitespace() {
                    return space.push(c);
                }
                if seek.held.is_empty() && c == '{' {
                    *self = Self::Call { space: String::new(), object: CallObject::default() };
                    return self.push(c, out);
                }
                let mut other = std::mem::take(space);
                if seek.push(c, CLOSE, |text| other.push_str(text)) {
                    *self = Self::default();
                } else if other.trim().is_empty() {
                    *space = other;
                } else {
                    other.push_str(&seek.rest());
                    *self = Self::default();
                    other.chars().for_each(|c| self.push(c, out));
                }
            }
            Self::Verbatim(seek) => {
                if seek.push(c, CLOSE, |text| out.arguments(text)) {
                    *self = Self::default();
                }
            }
        }
    }

    /// The marker was followed by this, which is no call.
    fn no_call(&mut self, space: &str, raw: &str, c: char, out: &mut Out) {
        out.content(OPEN);
        *self = Self::default();
        space.chars().chain(raw.chars()).chain([c]).for_each(|c| self.push(c, out));
    }

    pub(super) fn finish(&mut self, out: &mut Out) {
        match std::mem::take(self) {
            Self::Text(mut seek) => out.content(&seek.rest()),
            Self::Opened(space) => out.content(&format!("{OPEN}{space}")),
            Self::Call { object, .. } if object.called => {}
            Self::Call { space, object } => out.content(&format!("{OPEN}{space}{}", object.raw)),
            Self::Called { mut seek, .. } => out.content(&seek.rest()),
            Self::Verbatim(mut seek) => out.arguments(&seek.rest()),
        }
    }
}
