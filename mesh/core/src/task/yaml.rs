//! The one place of this crate that reads and writes YAML; JSON is YAML too.
//!
//! Two libraries stand behind it. `saphyr-parser` gives events with positions, from which [`tree`] builds a value
//! whose every key and scalar knows its line and column: messages need that. `serde_yaml` (archived upstream, kept
//! behind this module) writes canonical text and reads files whose shape is a plain struct, such as node.yaml.
//!
//! A scalar keeps its text: what it means depends on who asks, so that a revision `1.10` is not the number 1.1.

mod build;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::problem::{At, Problem, Problems, show};

/// Largest text taken, in bytes: a task names its data, it does not hold it.
pub const SIZE_MAX: usize = 256 * 1024;
/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub at: At,
    /// What.
    pub tree: Tree,
}

/// A value of YAML.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// A scalar as typed.
    Scalar {
        /// Its text, unescaped.
        text: String,
        /// Whether it was written without quotes, so that it may be a number, a truth value or nothing.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where.
    pub at: At,
    /// Its text.
    pub text: String,
}

impl Node {
    /// Whether nothing was written, or `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.json_scalar(), Some(Value::Null))
    }

    /// A scalar by the YAML 1.2 core schema; `None` for lists and maps.
    pub fn json_scalar(&self) -> Option<Value> {
        match &self.tree {
            Tree::Scalar { text, plain: true } => Some(core_schema(text)),
            Tree::Scalar { text, plain: false } => Some(Value::String(text.clone())),
            Tree::List(_) | Tree::Map(_) => None,
        }
    }

    /// The whole value as JSON.
    pub fn json(&self) -> Value {
        match &self.tree {
            Tree::Scalar { .. } => self.json_scalar().unwrap_or(Value::Null),
            Tree::List(items) => items.iter().map(Node::json).collect(),
            Tree::Map(entries) => Value::Object(entries.iter().map(|(k, v)| (k.text.clone(), v.json())).collect()),
        }
    }

    /// What a message says was found.
    pub fn shown(&self) -> String {
        match &self.tree {
            Tree::Scalar { text, plain: true } if text.is_empty() => "nothing".to_owned(),
            Tree::Scalar { text, plain: true } => show(text),
            Tree::Scalar { text, plain: false } => format!("the text {}", show(text)),
            Tree::List(items) => format!("a list of {}", items.len()),
            Tree::Map(entries) => match entries.first() {
                Some((first, _)) => format!("a map with {}", show(&first.text)),
                None => "an empty map".to_owned(),
            },
        }
    }
}

/// What an unquoted scalar means in YAML 1.2. Infinities and NaN have no JSON form and stay text.
fn core_schema(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit())) {
        return i64::from_str_radix(hex, 16).map_or(Value::String(text.to_owned()), Value::from);
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        if let Ok(number) = unsigned.parse::<i64>() {
            return Value::from(number);
        }
        if let Ok(number) = unsigned.parse::<u64>() {
            return Value::from(number);
        }
    }
    let number_like = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    if number_like
        && let Ok(number) = text.parse::<f64>()
        && let Some(number) = serde_json::Number::from_f64(number)
    {
        return Value::Number(number);
    }
    Value::String(text.to_owned())
}

/// The text of a file's bytes, when it is text at all and small enough.
///
/// # Errors
/// Too large, not UTF-8, or with control characters: each with its place.
pub fn text_of<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, Problems> {
    let mut problems = Problems::none(file);
    if bytes.len() > SIZE_MAX {
        problems.push(
            Problem::new("", At::START, format!("{} bytes", bytes.len()), format!("at most {SIZE_MAX} bytes"))
                .hint("a task names its data and does not hold it: put the data where a `source` can name it"),
        );
        return Err(problems);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let found = format!("byte 0x{:02x}", bytes.get(error.valid_up_to()).copied().unwrap_or(0));
            let at = end_of(&String::from_utf8_lossy(good));
            problems.push(Problem::new("", at, found, "text in UTF-8").hint("save the file as UTF-8"));
            Err(problems)
        }
    }
}

/// The place after a text.
fn end_of(text: &str) -> At {
    let line = text.matches('\n').count();
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count();
    place(line + 1, column)
}

/// A place from a line counted from 1 and a column counted from 0.
fn place(line: usize, column: usize) -> At {
    At { line: u32::try_from(line).unwrap_or(u32::MAX), column: u32::try_from(column + 1).unwrap_or(u32::MAX) }
}

/// The one document of a text, with positions. Problems that leave a usable tree are collected in `problems`.
pub fn tree(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > SIZE_MAX {
        problems.push(Problem::new(
            "",
            At::START,
            format!("{} bytes", text.len()),
            format!("at most {SIZE_MAX} bytes"),
        ));
        return None;
    }
    if let Some((place, c)) = text.char_indices().find(|(_, c)| c.is_control() && !"\t\n\r\u{85}".contains(*c)) {
        let at = end_of(text.get(..place).unwrap_or_default());
        problems.push(Problem::new("", at, format!("the control character {}", c.escape_default()), "text"));
        return None;
    }
    build::build(text, problems)
}

/// Reads a file whose shape is a struct of its own, such as node.yaml.
///
/// # Errors
/// What serde found first, with its line and column where it knows them.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.len() > SIZE_MAX {
        return Err(format!("{} bytes, and {SIZE_MAX} are the most", text.len()));
    }
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

/// Writes a value as YAML that [`tree`] reads back as the same value.
///
/// `serde_yaml` writes YAML 1.1, where U+2028 and its like break lines; such texts are rare, and for them the value
/// is written as JSON, which is YAML as well and can escape every character.
///
/// # Errors
/// When the value has no JSON form, such as a map whose keys are maps.
pub fn write<T: Serialize>(value: &T) -> Result<String, String> {
    let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    let text = serde_yaml::to_string(&value).map_err(|error| error.to_string())?;
    let mut problems = Problems::none("");
    if tree(&text, &mut problems).is_some_and(|read| problems.problems.is_empty() && read.json() == value) {
        return Ok(text);
    }
    let json = serde_json::to_string_pretty(&value).map_err(|error| error.to_string())?;
    let mut escaped = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // Outside its texts JSON has no such characters, and all of them fit four digits.
        if (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped.push('\n');
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_the_core_schema_says() {
        for (text, want) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("true", Value::Bool(true)),
            ("yes", Value::from("yes")),
            ("12", Value::from(12)),
            ("-3", Value::from(-3)),
            ("+3", Value::from(3)),
            ("0x1F", Value::from(31)),
            ("2e-4", Value::from(2e-4)),
            ("1.", Value::from(1.0)),
            (".5", Value::from(0.5)),
            ("1e999", Value::from("1e999")),
            (".inf", Value::from(".inf")),
            (".nan", Value::from(".nan")),
            ("1.2.3", Value::from("1.2.3")),
            ("18446744073709551615", Value::from(u64::MAX)),
            ("--1", Value::from("--1")),
            (".", Value::from(".")),
        ] {
            assert_eq!(core_schema(text), want, "{text}");
        }
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let mut problems = Problems::none("x");
        let root = tree("a: 1\nbö:\n  - ü: [2,\n     3]\r\n", &mut problems).unwrap();
        let Tree::Map(top) = &root.tree else { panic!("{root:?}") };
        let place = |line, column| At { line, column };
        assert_eq!((top[0].0.at, top[0].1.at), (place(1, 1), place(1, 4)));
        let Tree::List(list) = &top[1].1.tree else { panic!("{root:?}") };
        let Tree::Map(inner) = &list[0].tree else { panic!("{root:?}") };
        let Tree::List(numbers) = &inner[0].1.tree else { panic!("{root:?}") };
        assert_eq!((inner[0].0.at, numbers[0].at, numbers[1].at), (place(3, 5), place(3, 9), place(4, 6)));
        assert!(problems.problems.is_empty());
    }
}
