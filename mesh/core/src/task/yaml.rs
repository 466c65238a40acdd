//! The one place of this crate that reads and writes YAML; JSON is YAML too.
//!
//! Two libraries stand behind it. `saphyr-parser` gives events with positions, from which [`tree`] builds a value
//! whose every key and scalar knows its line and column: messages need that. `serde_yaml` (archived upstream, kept
//! behind this module) writes canonical text and reads files whose shape is a plain struct, such as node.yaml.
//!
//! A scalar keeps its text: what it means depends on who asks, so that a revision `1.10` is not the number 1.1.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::problem::{At, Problem, Problems, show};

/// Largest text taken, in bytes: a task names its data, it does not hold it.
pub const SIZE_MAX: usize = 256 * 1024;
/// Deepest nesting: the contract needs seven.
const DEPTH_MAX: usize = 32;
/// Most nodes after aliases are followed, so that a few lines cannot grow to gigabytes.
const NODES_MAX: usize = 20_000;
/// Most bytes of scalars after aliases are followed.
const TEXT_MAX: usize = SIZE_MAX;

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

fn at(marker: Marker) -> At {
    place(marker.line().max(1), marker.col())
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
    let mut builder = Builder {
        text,
        problems,
        open: Vec::new(),
        anchors: BTreeMap::new(),
        opened_anchors: BTreeSet::new(),
        root: None,
        nodes: 0,
        bytes: 0,
    };
    builder.run().then_some(builder.root)?
}

/// A list or map that is still open.
struct Open {
    at: At,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, seen: BTreeMap<String, At>, key: Option<Key> },
}

/// Builds a tree from events, without recursion: depth is the file's choice.
struct Builder<'t, 'p> {
    text: &'t str,
    problems: &'p mut Problems,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    opened_anchors: BTreeSet<usize>,
    root: Option<Node>,
    nodes: usize,
    bytes: usize,
}

impl Builder<'_, '_> {
    /// Reads to the end, and whether the tree is whole.
    fn run(&mut self) -> bool {
        let mut documents = 0;
        for event in Parser::new_from_str(self.text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    self.syntax(at(*error.marker()), error.info());
                    return false;
                }
            };
            let at = at(span.start);
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    self.problem(at, "a second document", "one document in a file", Some("submit one file per task"));
                    return self.root.is_some();
                }
            }
            if !self.on(event, at) {
                return false;
            }
        }
        if self.root.is_none() {
            self.problem(At::START, "an empty file", "a task", None);
        }
        self.root.is_some()
    }

    fn problem(&mut self, at: At, found: &str, expected: &str, hint: Option<&str>) {
        let problem = Problem::new("", at, found, expected);
        self.problems.push(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    }

    /// What the parser could not read. Tabs are the one mistake that cannot be seen in an editor.
    fn syntax(&mut self, at: At, info: &str) {
        let line = self.text.lines().nth(at.line as usize - 1).unwrap_or_default();
        let indent = line.len() - line.trim_start().len();
        let tab = line.get(..indent).is_some_and(|indent| indent.contains('\t'));
        let found = if tab { "a tab in the indentation".to_owned() } else { format!("text that is no YAML ({info})") };
        let hint = tab.then_some("indent with spaces");
        self.problem(at, &found, "YAML", hint);
    }

    /// Takes one event; `false` when going on makes no sense.
    fn on(&mut self, event: Event<'_>, at: At) -> bool {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !tag.as_deref().is_some_and(is_text_tag);
                self.tag(tag.as_deref(), at);
                if text.contains('\0') {
                    self.problem(at, "a NUL character", "text", None);
                }
                let node = Node { at, tree: Tree::Scalar { text: text.into_owned(), plain } };
                self.grown(&node, at) && self.place(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.as_deref(), at);
                self.open(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.as_deref(), at);
                self.open(at, anchor, Content::Map { entries: Vec::new(), seen: BTreeMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.grown(&node, at) && self.place(Node { at, ..node }, 0),
                None => {
                    let found = if self.opened_anchors.contains(&anchor) {
                        "an alias inside its own anchor"
                    } else {
                        "an alias without its anchor"
                    };
                    self.problem(at, found, "an alias of an earlier, whole value", None);
                    false
                }
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                true
            }
        }
    }

    fn tag(&mut self, tag: Option<&Tag>, at: At) {
        const CORE: [&str; 7] = ["str", "int", "float", "bool", "null", "map", "seq"];
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && CORE.contains(&tag.suffix.as_str()))
        {
            let found = format!("the tag {}", show(&tag.to_string()));
            self.problem(at, &found, "plain values", Some("leave the tag out"));
        }
    }

    fn open(&mut self, at: At, anchor: usize, content: Content) -> bool {
        if self.open.len() >= DEPTH_MAX {
            self.problem(at, "nesting deeper than 32", "a task, which is seven deep", None);
            return false;
        }
        self.opened_anchors.insert(anchor);
        self.open.push(Open { at, anchor, content });
        true
    }

    fn close(&mut self) -> bool {
        let Some(Open { at, anchor, content }) = self.open.pop() else { return false };
        let tree = match content {
            Content::List(items) => Tree::List(items),
            Content::Map { entries, .. } => Tree::Map(entries),
        };
        // Its children were counted as they came.
        self.nodes += 1;
        self.place(Node { at, tree }, anchor)
    }

    /// Counts what a node adds, and whether the sum is still within bounds.
    fn grown(&mut self, node: &Node, at: At) -> bool {
        let (nodes, bytes, depth) = measure(node);
        self.nodes += nodes;
        self.bytes += bytes;
        let hint = Some("write values out where aliases repeat them");
        if self.nodes > NODES_MAX {
            self.problem(at, "a text that grows beyond 20000 values", "a task", hint);
        } else if self.bytes > TEXT_MAX {
            self.problem(at, "a text that grows beyond 256 KiB", "a task", hint);
        } else if self.open.len() + depth > DEPTH_MAX {
            self.problem(at, "nesting deeper than 32", "a task, which is seven deep", None);
        } else {
            return true;
        }
        false
    }

    /// The path of a key in the map that is being read.
    fn path_of(&self, key: &str) -> String {
        let mut path = String::new();
        for open in self.open.iter() {
            let part = match &open.content {
                Content::List(items) => format!("[{}]", items.len()),
                Content::Map { key: Some(key), .. } if path.is_empty() => key.text.clone(),
                Content::Map { key: Some(key), .. } => format!(".{}", key.text),
                Content::Map { key: None, .. } => String::new(),
            };
            path.push_str(&part);
        }
        if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, node: Node, anchor: usize) -> bool {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return true;
        };
        match &mut open.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, seen, key } => match key.take() {
                Some(key) => {
                    if !seen.contains_key(&key.text) {
                        seen.insert(key.text.clone(), key.at);
                        entries.push((key, node));
                    } else if let Some(first) = seen.get(&key.text) {
                        let found = format!("{} a second time", show(&key.text));
                        let hint = format!("the first is on line {}", first.line);
                        let problem = Problem::new(self.path_of(&key.text), key.at, found, "each key once");
                        self.problems.push(problem.hint(hint));
                    }
                }
                None => match node.tree {
                    Tree::Scalar { text, .. } => *key = Some(Key { at: node.at, text }),
                    Tree::List(_) | Tree::Map(_) => {
                        let found = node.shown();
                        self.problem(node.at, &format!("{found} as a key"), "a name", None);
                        return false;
                    }
                },
            },
        }
        true
    }
}

fn is_text_tag(tag: &Tag) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == "str"
}

/// Nodes, bytes of scalars and depth of a value. Recursion is bounded by [`DEPTH_MAX`].
fn measure(node: &Node) -> (usize, usize, usize) {
    let add = |(n, b, d): (usize, usize, usize), child: &Node| {
        let (nodes, bytes, depth) = measure(child);
        (n + nodes, b + bytes, d.max(depth + 1))
    };
    match &node.tree {
        Tree::Scalar { text, .. } => (1, text.len(), 0),
        Tree::List(items) => items.iter().fold((1, 0, 1), add),
        Tree::Map(entries) => {
            let keys = entries.iter().map(|(key, _)| key.text.len()).sum();
            entries.iter().fold((1 + entries.len(), keys, 1), |sum, (_, value)| add(sum, value))
        }
    }
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
