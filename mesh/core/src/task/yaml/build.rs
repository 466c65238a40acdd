//! Builds a positioned tree from the parser's events, without recursion and within bounds: depth, aliases and
//! repetition are the file's choice.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::{Key, Node, SIZE_MAX, Tree, place};
use crate::task::problem::{At, Problem, Problems, show};

/// Deepest nesting: the contract needs seven.
const DEPTH_MAX: usize = 32;
/// Most nodes after aliases are followed, so that a few lines cannot grow to gigabytes.
const NODES_MAX: usize = 20_000;
/// Most bytes of scalars after aliases are followed.
const TEXT_MAX: usize = SIZE_MAX;

fn at(marker: Marker) -> At {
    place(marker.line().max(1), marker.col())
}

/// The tree, when the text is one whole document.
pub(super) fn build(text: &str, problems: &mut Problems) -> Option<Node> {
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
    if builder.run() { builder.root } else { None }
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

/// What was read so far.
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
