//! Reads a positioned map key by key: types are checked here, and a key nobody asked for is a problem with the
//! nearest known name. What the values mean is left to [`super::validate`].

use super::{
    problem::{At, Problem, Problems, nearest, show},
    yaml::{Node, Tree},
};

/// Longest list and largest map of the user's own names.
const LONGEST: usize = 256;

/// A value as typed, with its key's path and its own place.
#[derive(Clone, Debug, PartialEq)]
pub struct Typed<T> {
    /// The path, `spec.resources.replicas`.
    pub path: String,
    /// Where the value begins.
    pub at: At,
    /// The value.
    pub value: T,
}

impl<T> Typed<T> {
    /// The same place with another value.
    pub fn with<U>(&self, value: U) -> Typed<U> {
        Typed { path: self.path.clone(), at: self.at, value }
    }
}

impl Typed<String> {
    /// A problem with this text.
    pub fn problem(&self, expected: impl Into<String>) -> Problem {
        Problem::new(&self.path, self.at, show(&self.value), expected)
    }
}

/// What may stand for one or for several.
#[derive(Clone, Debug, PartialEq)]
pub enum TextOrTexts {
    /// A text by itself.
    Text(String),
    /// A list of texts.
    Texts(Vec<Typed<String>>),
}

/// A map being read.
pub struct Fields<'a> {
    /// Its path; empty at the top.
    pub path: String,
    /// Its key's place, where what is missing is missed.
    pub at: At,
    entries: &'a [(super::yaml::Key, Node)],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The map of a node, or a problem.
    pub fn of(node: &'a Node, path: &str, at: At, problems: &mut Problems) -> Option<Self> {
        match &node.tree {
            Tree::Map(entries) => Some(Self { path: path.to_owned(), at, entries, asked: Vec::new() }),
            Tree::Scalar { .. } | Tree::List(_) => {
                problems.push(Problem::new(path, node.at, node.shown(), "a map of keys and values"));
                None
            }
        }
    }

    /// The path of a key of this map.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A key's value; `null` is as good as absent.
    pub fn get(&mut self, name: &'static str) -> Option<&'a Node> {
        self.asked.push(name);
        self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// Every key and value, for maps whose keys are the user's.
    pub fn all(&self) -> &'a [(super::yaml::Key, Node)] {
        self.entries
    }

    /// Every key that has a value, and where it stands.
    pub fn given(&self) -> Vec<(String, At)> {
        let given = self.entries.iter().filter(|(_, node)| !node.is_null());
        given.map(|(key, _)| (key.text.clone(), key.at)).collect()
    }

    /// Where a key stands.
    fn key_at(&self, name: &str) -> At {
        self.entries.iter().find(|(key, _)| key.text == name).map_or(self.at, |(key, _)| key.at)
    }

    /// A map below this one.
    pub fn section(&mut self, name: &'static str, problems: &mut Problems) -> Option<Fields<'a>> {
        let at = self.key_at(name);
        let node = self.get(name)?;
        Fields::of(node, &self.path_of(name), at, problems)
    }

    /// A text. Numbers and truth values count as the text they were typed as: a revision `1.10` stays `1.10`.
    pub fn text(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<String>> {
        let node = self.get(name)?;
        text_of(node, self.path_of(name), problems)
    }

    /// A whole number.
    pub fn integer(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<i64>> {
        let node = self.get(name)?;
        let path = self.path_of(name);
        let value = node.json_scalar().and_then(|v| v.as_i64());
        if value.is_none() {
            let problem = Problem::new(&path, node.at, node.shown(), "a whole number");
            problems.push(with_unquoted_hint(problem, node, |v| v.is_i64()));
        }
        Some(Typed { path, at: node.at, value: value? })
    }

    /// A number.
    pub fn number(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<f64>> {
        let node = self.get(name)?;
        let path = self.path_of(name);
        let value = node.json_scalar().and_then(|v| v.as_f64());
        if value.is_none() {
            let problem = Problem::new(&path, node.at, node.shown(), "a number");
            problems.push(with_unquoted_hint(problem, node, |v| v.is_number()));
        }
        Some(Typed { path, at: node.at, value: value? })
    }

    /// A truth value.
    pub fn truth(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<bool>> {
        let node = self.get(name)?;
        let path = self.path_of(name);
        let value = node.json_scalar().and_then(|v| v.as_bool());
        if value.is_none() {
            let problem = Problem::new(&path, node.at, node.shown(), "true or false");
            problems.push(with_unquoted_hint(problem, node, |v| v.is_boolean()));
        }
        Some(Typed { path, at: node.at, value: value? })
    }

    /// A list of texts; one text stands for a list of one.
    pub fn texts(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<Vec<Typed<String>>>> {
        let node = self.get(name)?;
        let path = self.path_of(name);
        let value = match &node.tree {
            Tree::Scalar { .. } => text_of(node, path.clone(), problems).into_iter().collect(),
            Tree::List(items) if items.len() > LONGEST => {
                let expected = format!("a list of at most {LONGEST}");
                problems.push(Problem::new(&path, node.at, node.shown(), expected));
                Vec::new()
            }
            Tree::List(items) => {
                let each = items.iter().enumerate();
                each.filter_map(|(i, item)| text_of(item, format!("{path}[{i}]"), problems)).collect()
            }
            Tree::Map(_) => {
                problems.push(Problem::new(&path, node.at, node.shown(), "a list of texts"));
                Vec::new()
            }
        };
        Some(Typed { path, at: node.at, value })
    }

    /// A text or a list of texts, told apart.
    pub fn text_or_texts(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<TextOrTexts>> {
        let alone = matches!(self.get(name)?.tree, Tree::Scalar { .. });
        let mut texts = self.texts(name, problems)?;
        let value = match texts.value.pop_if(|_| alone) {
            Some(text) => TextOrTexts::Text(text.value),
            None => TextOrTexts::Texts(std::mem::take(&mut texts.value)),
        };
        Some(texts.with(value))
    }

    /// A list of whole numbers; one number stands for a list of one.
    pub fn integers(&mut self, name: &'static str, problems: &mut Problems) -> Option<Typed<Vec<Typed<i64>>>> {
        let texts = self.texts(name, problems)?;
        let number = |text: &Typed<String>| match text.value.parse() {
            Ok(value) => Some(text.with(value)),
            Err(_) => {
                problems.push(text.problem("a whole number"));
                None
            }
        };
        let value = texts.value.iter().filter_map(number).collect();
        Some(texts.with(value))
    }

    /// A map from the user's names to numbers; the first of each pair is the name, with its own place.
    pub fn number_map(&mut self, name: &'static str, problems: &mut Problems) -> Vec<(Typed<String>, Typed<f64>)> {
        let pairs = self.text_map(name, problems).into_iter();
        let number = |(name, text): (Typed<String>, Typed<String>)| match text.value.parse::<f64>() {
            Ok(value) if value.is_finite() => Some((name, text.with(value))),
            Ok(_) | Err(_) => {
                problems.push(text.problem("a number"));
                None
            }
        };
        pairs.filter_map(number).collect()
    }

    /// A map from the user's names to texts; the first of each pair is the name, with its own place.
    pub fn text_map(&mut self, name: &'static str, problems: &mut Problems) -> Vec<(Typed<String>, Typed<String>)> {
        let Some(section) = self.section(name, problems) else { return Vec::new() };
        let mut pairs = Vec::new();
        if section.entries.len() > LONGEST {
            let found = format!("{} keys", section.entries.len());
            problems.push(Problem::new(&section.path, section.at, found, format!("at most {LONGEST} keys")));
            return pairs;
        }
        for (key, node) in section.entries {
            let path = section.path_of(&key.text);
            let name = Typed { path: path.clone(), at: key.at, value: key.text.clone() };
            let value = if node.is_null() {
                Some(Typed { path, at: node.at, value: String::new() })
            } else {
                text_of(node, path, problems)
            };
            pairs.extend(value.map(|value| (name, value)));
        }
        pairs
    }

    /// Says that a key is needed.
    pub fn missing(&self, name: &str, expected: &str, problems: &mut Problems) {
        problems.push(Problem::new(self.path_of(name), self.at, "nothing", expected));
    }

    /// Every key that nobody asked for. `not_yet` are keys of the contract that this build does not implement.
    pub fn finish(self, not_yet: &[(&str, &str)], problems: &mut Problems) {
        for (key, _) in self.entries {
            if self.asked.contains(&key.text.as_str()) {
                continue;
            }
            let path = self.path_of(&key.text);
            let found = format!("the key {}", show(&key.text));
            if let Some((_, reason)) = not_yet.iter().find(|(name, _)| *name == key.text) {
                let expected = "only keys this build implements";
                problems.push(Problem::new(path, key.at, found, expected).hint(*reason));
                continue;
            }
            if problems.is_full() {
                problems.push(Problem::new(path, key.at, found, "known keys"));
                continue;
            }
            let mut known = self.asked.clone();
            known.sort_unstable();
            known.dedup();
            let problem = Problem::new(path, key.at, format!("the unknown key {}", show(&key.text)), {
                format!("one of {}", known.join(", "))
            });
            problems.push(match nearest(&key.text, known) {
                Some(name) => problem.hint(format!("did you mean `{name}`?")),
                None if key.text == "<<" => problem.hint("merge keys are no part of YAML 1.2: write the keys out"),
                None => problem,
            });
        }
    }
}

/// A scalar's text, or a problem.
pub fn text_of(node: &Node, path: String, problems: &mut Problems) -> Option<Typed<String>> {
    match &node.tree {
        Tree::Scalar { text, .. } => Some(Typed { path, at: node.at, value: text.clone() }),
        Tree::List(_) | Tree::Map(_) => {
            problems.push(Problem::new(path, node.at, node.shown(), "a text"));
            None
        }
    }
}

/// Says to leave the quotes out, when that is all that is wrong.
pub fn with_unquoted_hint(problem: Problem, node: &Node, right: fn(&serde_json::Value) -> bool) -> Problem {
    // YAML 1.1's truth values, which 1.2 reads as texts.
    if let Tree::Scalar { text, plain: true } = &node.tree
        && right(&serde_json::Value::Bool(true))
    {
        match text.to_ascii_lowercase().as_str() {
            "yes" | "on" => return problem.hint("write true"),
            "no" | "off" => return problem.hint("write false"),
            _ => {}
        }
    }
    if let Tree::Scalar { text, plain: false } = &node.tree {
        let unquoted = Node { at: node.at, tree: Tree::Scalar { text: text.clone(), plain: true } };
        if unquoted.json_scalar().is_some_and(|v| right(&v)) {
            return problem.hint(format!("write {text} without quotes"));
        }
    }
    problem
}
