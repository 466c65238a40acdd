//! A task: what was typed (`raw`), what it means ([`spec`]), and everything that is wrong with it at once
//! (`validate`, [`problem`]). Past `validate` nobody checks again.
//!
//! [`parse`] is the way in; [`canonical`] writes a spec back as a file that means the same.

pub mod agent;
pub mod artifacts;
pub mod canonical;
mod fields;
pub mod hyperparameters;
pub mod kind;
mod names;
mod places;
pub mod problem;
mod raw;
pub mod reward;
pub mod spec;
pub mod split;
mod validate;
pub mod yaml;

pub use hyperparameters::settings;
pub use kind::TaskType;
pub use problem::{At, Note, Problem, Problems};
pub use spec::TaskSpec;
pub use validate::DEFAULT_PROJECT;

use std::collections::BTreeSet;

use crate::files::Brought;

/// A file that is taken: what it means, and what its author should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What it means.
    pub spec: TaskSpec,
    /// Settings without effect, old names, and the like.
    pub notes: Vec<Note>,
}

/// What the text of a task file means, YAML or JSON, and what its author should know. `file` is its name in messages.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Problems> {
    parse_bytes(text.as_bytes(), file)
}

/// The same from bytes that may not be text.
///
/// # Errors
/// Everything that is wrong with it; a file that is no text, or no YAML, or over [`yaml::SIZE_MAX`] has one problem.
pub fn parse_bytes(bytes: &[u8], file: &str) -> Result<Parsed, Problems> {
    parse_with(bytes, file, &Brought::default())
}

/// The same with what came along: paths such as `./train.jsonl` mean it.
///
/// # Errors
/// As [`parse_bytes`]; a path beside the file that did not come along is a problem.
pub fn parse_with(bytes: &[u8], file: &str, brought: &Brought) -> Result<Parsed, Problems> {
    let text = yaml::text_of(bytes, file)?;
    let mut problems = Problems::none(file);
    let Some(root) = yaml::tree(text, &mut problems) else { return problems.check(None) };
    let raw = raw::RawTask::read(&root, &mut problems);
    let parsed = validate::validate(&raw, brought, &mut problems);
    problems.check(parsed)
}

/// The paths beside its file that a task's sources name, as they stand there: what should come along with it. None of a
/// text that is no task.
pub fn beside(bytes: &[u8]) -> BTreeSet<String> {
    let mut problems = Problems::none("");
    let text = yaml::text_of(bytes, "").ok();
    let root = text.and_then(|text| yaml::tree(text, &mut problems));
    root.map(|root| validate::beside(&raw::RawTask::read(&root, &mut problems))).unwrap_or_default()
}

#[cfg(test)]
mod tests;
