//! Hyperparameters: one table of names per task type ([`rows`]), read against what was typed here, and turned into
//! typed settings in [`settings`], so that no module parses again.
//!
//! Names and defaults are those of TRL 1.16.0's config classes (PPO: 0.29.1) and transformers' `TrainingArguments`;
//! names of what has an engine in it are those of vLLM's engine arguments. A name is supported, an old name of a
//! supported one, without effect here (told as a note), or takes its default only (told with the reason).
//! Our own names, which the reference lacks, stand last in each table.

mod arguments;
pub mod dpo;
mod engine_args;
pub mod grpo;
pub mod inference;
mod online;
mod optimizer;
pub mod ppo;
pub mod rm;
pub mod rows;
mod schedule;
pub mod settings;
mod steering;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    fields::with_unquoted_hint,
    kind::TaskType,
    problem::{At, Note, Problem, Problems, nearest, show},
    yaml::{Key, Node, Tree},
};
use rows::{HABITS, Row, Status, Translate, Type, tables};

/// What was read: values under their canonical names, and where each was typed.
#[derive(Debug, Default)]
pub struct Read {
    /// Values.
    pub values: BTreeMap<String, Value>,
    /// For each of them the name that was typed and the value's place.
    pub typed: BTreeMap<String, (String, At)>,
}

const PATH: &str = "spec.hyperparameters";

/// The row of a name.
pub fn find(task_type: TaskType, name: &str) -> Option<&'static Row> {
    tables(task_type).iter().find_map(|table| table.iter().find(|row| row.name == name))
}

/// Checks each name and value against the table of the task type.
pub fn read(task_type: TaskType, typed: &[(Key, Node)], problems: &mut Problems, notes: &mut Vec<Note>) -> Read {
    let mut read = Read::default();
    if task_type == TaskType::Command {
        // A program's names are its own: they are passed on as they are.
        for (key, node) in typed {
            read.values.insert(key.text.clone(), node.json());
            read.typed.insert(key.text.clone(), (key.text.clone(), node.at));
        }
        return read;
    }
    for (key, node) in typed {
        let path = format!("{PATH}.{}", key.text);
        let Some(row) = find(task_type, &key.text) else {
            problems.push(if problems.is_full() {
                Problem::new(path, key.at, "an unknown name", "known names")
            } else {
                unknown(task_type, key, path)
            });
            continue;
        };
        let (row, value) = match row.status {
            Status::OldName(new, translate) => {
                let Some(new) = find(task_type, new) else { continue };
                let Some(value) = check(row, node, &path, problems) else { continue };
                let value = translated(translate, value);
                notes.push(Note { path, at: key.at, text: format!("an old name: read as `{}: {value}`", new.name) });
                (new, value)
            }
            Status::NoEffect(reason) => {
                notes.push(Note { path, at: key.at, text: format!("has no effect: {reason}") });
                continue;
            }
            Status::Secret(reason) => {
                if !node.is_null() {
                    problems.push(Problem::new(path, node.at, "a secret", "no secrets in a task").hint(reason));
                }
                continue;
            }
            Status::OnlyDefault(reason) => {
                let default = row.default.value();
                // `0` says what `0.0` does.
                let is_default = |value: &Value| {
                    *value == default || value.as_f64().is_some_and(|value| default.as_f64() == Some(value))
                };
                if let Some(value) = check(row, node, &path, problems)
                    && !is_default(&value)
                {
                    let expected = format!("{}, the only value in this build", show(&default.to_string()));
                    problems.push(Problem::new(path, node.at, node.shown(), expected).hint(reason));
                }
                continue;
            }
            Status::Works => {
                let Some(value) = check(row, node, &path, problems) else { continue };
                (row, value)
            }
        };
        if let Some((other, _)) = read.typed.get(row.name)
            && read.values.get(row.name) != Some(&value)
        {
            let expected = format!("the value of `{other}`, for both are names of one setting");
            let path = format!("{PATH}.{}", key.text);
            problems
                .push(Problem::new(path, node.at, node.shown(), expected).hint(format!("keep only `{}`", row.name)));
            continue;
        }
        read.typed.insert(row.name.to_owned(), (key.text.clone(), node.at));
        read.values.insert(row.name.to_owned(), value);
    }
    together(task_type, &read, problems);
    steering::tell_unused(task_type, &read, notes);
    if task_type.has_engine() {
        inference::tell_unused(task_type, &read, notes);
    }
    read
}

fn unknown(task_type: TaskType, key: &Key, path: String) -> Problem {
    let found = format!("the unknown name {}", show(&key.text));
    let rows = || tables(task_type).iter().copied().flatten();
    let names: Vec<_> = rows().map(|row| row.name).collect();
    if names.is_empty() {
        return Problem::new(path, key.at, found, format!("no hyperparameters: {task_type} has none in this build"));
    }
    let problem = Problem::new(path, key.at, found, format!("a hyperparameter of {task_type}"));
    let habit = HABITS.iter().find(|(typed, name)| *typed == key.text && names.contains(name)).map(|(_, name)| *name);
    // A name that does something here is the better guess.
    let working = rows().filter(|row| matches!(row.status, Status::Works | Status::OldName(..))).map(|row| row.name);
    match habit.or_else(|| nearest(&key.text, working)).or_else(|| nearest(&key.text, names)) {
        Some(name) => problem.hint(format!("did you mean `{name}`?")),
        None if task_type.has_engine() => problem.hint("names are those of vLLM's engine arguments"),
        None => problem.hint("names are those of TRL's config classes and transformers' TrainingArguments"),
    }
}

fn translated(translate: Translate, value: Value) -> Value {
    match translate {
        Translate::Same => value,
        Translate::SamplingOrder => match value.as_str() {
            Some("sequential") => Value::from("given"),
            Some("group_by_length") => value,
            _ => Value::from("shuffled"),
        },
        Translate::Grouping => Value::from(if value == true { "group_by_length" } else { "shuffled" }),
    }
}

/// The value in its canonical form when it is right, so that equal settings are equal values: `3` for a number with
/// a fraction becomes `3.0`.
fn check(row: &Row, node: &Node, path: &str, problems: &mut Problems) -> Option<Value> {
    if node.is_null() && row.nullable {
        return Some(Value::Null);
    }
    let mut value = node.json();
    if row.kind.is_float()
        && let Some(number) = value.as_f64()
    {
        value = Value::from(number);
    }
    if row.kind.takes(&value) {
        return Some(row.kind.canonical(value));
    }
    let or_null = if row.nullable { ", or null" } else { "" };
    let mut problem = Problem::new(path, node.at, node.shown(), format!("{}{or_null}", row.kind.expected()));
    problem = with_unquoted_hint(problem, node, |v| v.is_number() || v.is_boolean());
    let (choices, refused) = match row.kind {
        Type::Choice(choices) => (choices, &[][..]),
        Type::Word(words) => (words.choices, words.refused),
        _ => (&[][..], &[][..]),
    };
    if let (Tree::Scalar { text, .. }, None) = (&node.tree, &problem.hint) {
        if let Some((_, reason)) = refused.iter().find(|(word, _)| word == text) {
            problem = problem.hint(*reason);
        } else if let Some(near) = nearest(text, choices.iter().copied()) {
            problem = problem.hint(format!("did you mean `{near}`?"));
        }
    }
    problems.push(problem);
    None
}

/// What settings must hold together.
fn together(task_type: TaskType, read: &Read, problems: &mut Problems) {
    let is_true = |name: &str| read.values.get(name) == Some(&Value::Bool(true));
    if is_true("fp16") && is_true("bf16") {
        read.problem("bf16", "true with fp16", "one of the two precisions", problems);
    }
    steering::check(task_type, read, problems);
    for packing in ["packing", "eval_packing"] {
        if is_true(packing) && read.values.get("max_length") == Some(&Value::Null) {
            read.problem(packing, "true with max_length null", "a max_length that samples are filled to", problems);
        }
    }
    match task_type {
        TaskType::Dpo => dpo::together(read, problems),
        TaskType::Grpo => grpo::together(read, problems),
        TaskType::Ppo => ppo::together(read, problems),
        TaskType::Inference | TaskType::RagInference | TaskType::Agent => {
            inference::together(task_type, read, problems);
        }
        _ => {}
    }
    if task_type == TaskType::Pretrain {
        let int = |name: &str| match read.values.get(name) {
            Some(value) => value.as_i64(),
            None => find(task_type, name).and_then(|row| row.default.value().as_i64()),
        };
        let divides = [("num_attention_heads", "hidden_size"), ("num_key_value_heads", "num_attention_heads")];
        for (part, whole) in divides {
            if let (Some(p), Some(w)) = (int(part), int(whole))
                && (p == 0 || w % p != 0)
            {
                let name = if read.typed.contains_key(part) { part } else { whole };
                read.problem(
                    name,
                    &format!("{part} {p} with {whole} {w}"),
                    &format!("a {part} that divides {whole}"),
                    problems,
                );
            }
        }
    }
}

impl Read {
    /// The value under a name, or the default of the task type's table.
    fn value(&self, task_type: TaskType, name: &str) -> Value {
        let default = || find(task_type, name).map_or(Value::Null, |row| row.default.value());
        self.values.get(name).cloned().unwrap_or_else(default)
    }

    /// A note at the place where a name was typed.
    fn note(&self, name: &str, text: &str) -> Note {
        let (typed, at) = self.place(name);
        Note { path: format!("{PATH}.{typed}"), at, text: text.to_owned() }
    }

    /// A problem at the place where a name was typed.
    pub fn problem(&self, name: &str, found: &str, expected: &str, problems: &mut Problems) {
        let (typed, at) = self.typed.get(name).cloned().unwrap_or((name.to_owned(), At::START));
        problems.push(Problem::new(format!("{PATH}.{typed}"), at, found, expected));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;

    /// The reference's config class of a task type.
    const CLASSES: [(TaskType, &str); 5] = [
        (TaskType::Sft, "SFTConfig"),
        (TaskType::Rm, "RewardConfig"),
        (TaskType::Dpo, "DPOConfig"),
        (TaskType::Grpo, "GRPOConfig"),
        (TaskType::Ppo, "PPOConfig"),
    ];

    /// Names whose default is not the reference's: an example's model, where a task names its own elsewhere; and what
    /// trades time for memory without changing a bit, which who needs the memory asks for.
    const OWN_DEFAULTS: [&str; 3] = ["reward_model_path", "sft_model_path", "gradient_checkpointing"];

    /// Every name of the published classes with its default, as tests/fixtures/reference/names.py reads them.
    fn classes() -> BTreeMap<String, BTreeMap<String, Value>> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/reference/names.json");
        serde_json::from_str(&fs::read_to_string(file).expect("fixture")).expect("JSON")
    }

    #[test]
    fn every_name_of_the_reference_has_a_row() {
        let classes = classes();
        for (task_type, class) in CLASSES {
            let names = &classes[class];
            assert!(names.len() > 100, "{class} has {} names", names.len());
            let without: Vec<_> = names.keys().filter(|name| find(task_type, name).is_none()).collect();
            assert!(without.is_empty(), "{class}: {without:?}");
        }
    }

    #[test]
    fn defaults_are_the_references() {
        let classes = classes();
        let mut differ = Vec::new();
        for (task_type, class) in CLASSES {
            for (name, default) in &classes[class] {
                let row = find(task_type, name).expect("a row");
                let own = OWN_DEFAULTS.contains(&name.as_str());
                // What is no plain value is named by its source.
                if own || default.is_object() || !matches!(row.status, Status::Works | Status::OnlyDefault(_)) {
                    continue;
                }
                let mine = row.default.value();
                let same = mine == *default || mine.as_f64().is_some() && mine.as_f64() == default.as_f64();
                if !same {
                    differ.push(format!("{class}.{name}: {mine}, the reference has {default}"));
                }
            }
        }
        assert!(differ.is_empty(), "{}", differ.join("\n"));
    }
}
