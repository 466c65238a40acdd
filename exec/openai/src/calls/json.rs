//! JSON, a character at a time: whether what came so far can be the beginning of a value, and when the value is whole.

/// What a character did, for whoever looks at the outermost container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing of note.
    Inside,
    /// A key begins with it.
    KeyBegins,
    /// A key ends with it.
    KeyEnds,
    /// A value begins with it.
    ValueBegins,
    /// A string, an object or a list ends with it.
    ValueEnds,
}

/// A character that no JSON has at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Object,
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Dot,
    Fraction,
    Exponent,
    Sign,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    None,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// Hexadecimal digits that are still to come.
    Unicode {
        key: bool,
        left: u8,
    },
    Number(Number),
    /// What is left of `true`, `false` or `null`.
    Word(&'static str),
}

/// Containers in containers. No tool has arguments this deep.
const DEPTH_MAX: usize = 128;

/// The machine.
#[derive(Debug)]
pub(super) struct Checker {
    open: Vec<Container>,
    next: Next,
    token: Token,
    whole: bool,
}

impl Default for Checker {
    fn default() -> Self {
        Self { open: Vec::new(), next: Next::Value, token: Token::None, whole: false }
    }
}

impl Checker {
    /// Whether the value is whole. A number at the top never is: the next character may belong to it.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    /// Containers that are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    pub(super) fn push(&mut self, c: char) -> Result<Mark, Malformed> {
        if self.whole {
            return Err(Malformed);
        }
        match self.token {
            Token::None => self.between(c),
            Token::Text { key } => self.text(c, key),
            Token::Escape { key } => match c {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => self.goes_on(Token::Text { key }),
                'u' => self.goes_on(Token::Unicode { key, left: 4 }),
                _ => Err(Malformed),
            },
            Token::Unicode { key, left } if c.is_ascii_hexdigit() => {
                self.goes_on(if left == 1 { Token::Text { key } } else { Token::Unicode { key, left: left - 1 } })
            }
            Token::Unicode { .. } => Err(Malformed),
            Token::Number(state) => match number(state, c) {
                Some(state) => self.goes_on(Token::Number(state)),
                None if matches!(state, Number::Zero | Number::Whole | Number::Fraction | Number::Power) => {
                    self.token = Token::None;
                    self.value_ended();
                    self.between(c)
                }
                None => Err(Malformed),
            },
            Token::Word(rest) => match rest.strip_prefix(c) {
                Some("") => {
                    self.token = Token::None;
                    self.value_ended();
                    Ok(Mark::Inside)
                }
                Some(rest) => self.goes_on(Token::Word(rest)),
                None => Err(Malformed),
            },
        }
    }

    fn goes_on(&mut self, token: Token) -> Result<Mark, Malformed> {
        self.token = token;
        Ok(Mark::Inside)
    }

    fn text(&mut self, c: char, key: bool) -> Result<Mark, Malformed> {
        match c {
            '"' if key => {
                (self.token, self.next) = (Token::None, Next::Colon);
                Ok(Mark::KeyEnds)
            }
            '"' => {
                self.token = Token::None;
                self.value_ended();
                Ok(Mark::ValueEnds)
            }
            '\\' => self.goes_on(Token::Escape { key }),
            '\u{0}'..='\u{1f}' => Err(Malformed),
            _ => Ok(Mark::Inside),
        }
    }

    fn between(&mut self, c: char) -> Result<Mark, Malformed> {
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            return Ok(Mark::Inside);
        }
        match (self.next, c) {
            (Next::Value | Next::ValueOrEnd, '{') => self.opens(Container::Object, Next::KeyOrEnd),
            (Next::Value | Next::ValueOrEnd, '[') => self.opens(Container::List, Next::ValueOrEnd),
            (Next::Key | Next::KeyOrEnd, '"') => {
                self.token = Token::Text { key: true };
                Ok(Mark::KeyBegins)
            }
            (Next::Colon, ':') => {
                self.next = Next::Value;
                Ok(Mark::Inside)
            }
            (Next::CommaOrEnd, ',') => {
                self.next = if self.open.last() == Some(&Container::Object) { Next::Key } else { Next::Value };
                Ok(Mark::Inside)
            }
            (Next::KeyOrEnd | Next::CommaOrEnd, '}') => self.closes(Container::Object),
            (Next::ValueOrEnd | Next::CommaOrEnd, ']') => self.closes(Container::List),
            (Next::Value | Next::ValueOrEnd, _) => {
                self.token = match c {
                    '"' => Token::Text { key: false },
                    '-' => Token::Number(Number::Minus),
                    '0' => Token::Number(Number::Zero),
                    '1'..='9' => Token::Number(Number::Whole),
                    't' => Token::Word("rue"),
                    'f' => Token::Word("alse"),
                    'n' => Token::Word("ull"),
                    _ => return Err(Malformed),
                };
                Ok(Mark::ValueBegins)
            }
            _ => Err(Malformed),
        }
    }

    fn opens(&mut self, container: Container, next: Next) -> Result<Mark, Malformed> {
        if self.open.len() == DEPTH_MAX {
            return Err(Malformed);
        }
        self.open.push(container);
        self.next = next;
        Ok(Mark::ValueBegins)
    }

    fn closes(&mut self, container: Container) -> Result<Mark, Malformed> {
        if self.open.pop() != Some(container) {
            return Err(Malformed);
        }
        self.value_ended();
        Ok(Mark::ValueEnds)
    }

    fn value_ended(&mut self) {
        self.next = Next::CommaOrEnd;
        self.whole = self.open.is_empty();
    }
}

fn number(state: Number, c: char) -> Option<Number> {
    Some(match (state, c) {
        (Number::Minus, '0') => Number::Zero,
        (Number::Minus, '1'..='9') | (Number::Whole, '0'..='9') => Number::Whole,
        (Number::Zero | Number::Whole, '.') => Number::Dot,
        (Number::Dot | Number::Fraction, '0'..='9') => Number::Fraction,
        (Number::Zero | Number::Whole | Number::Fraction, 'e' | 'E') => Number::Exponent,
        (Number::Exponent, '+' | '-') => Number::Sign,
        (Number::Exponent | Number::Sign | Number::Power, '0'..='9') => Number::Power,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn whole(text: &str) -> bool {
        let mut checker = Checker::default();
        text.chars().all(|c| checker.push(c).is_ok()) && checker.whole()
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_whole_at_its_last_character_only(inner in value(), pretty: bool) {
            let value = json!({ "v": inner });
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert!(whole(&text), "{text}");
            let last = text.len() - 1;
            prop_assert!(!whole(&text[..last]));
        }

        #[test]
        fn it_takes_what_serde_takes(text in r#"\{"a": ?[\[\]{}"a0-9.eE+\-,: truefalsn\\]{0,12}\}"#) {
            prop_assert_eq!(whole(&text), serde_json::from_str::<Value>(&text).is_ok() || big(&text), "{}", text);
        }
    }

    /// serde refuses numbers beyond f64; JSON has them.
    fn big(text: &str) -> bool {
        matches!(serde_json::from_str::<Value>(text), Err(error) if error.to_string().contains("out of range"))
    }
}
