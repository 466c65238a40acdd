//! The model and the data it learns from.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Validation;
use crate::task::{
    fields::Typed,
    hyperparameters::Read,
    kind::{Kind, TaskTypeRow},
    problem::{Problem, nearest, show},
    raw::{Pairs, RawDataset, RawSource, RawSpec},
    spec::{Dataset, Model, TestSize},
};

/// Columns that mean something to a module.
const COLUMNS: [&str; 14] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "margin",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "tools",
    "chat_template_kwargs",
];

impl Validation<'_> {
    pub(super) fn model(
        &mut self,
        spec: &RawSpec,
        kind: Option<Kind>,
        row: Option<&TaskTypeRow>,
    ) -> Option<Option<Model>> {
        let raw = spec.model.as_ref()?;
        let source = self.source(&raw.source);
        let adapter = raw.adapter.as_ref().map(|adapter| match kind {
            Some(Kind::ServiceTask) => self.served_adapter(adapter, row),
            Some(Kind::TrainingTask) | None => self.adapter(adapter, kind),
        });
        let mut beside = |raw: &Option<RawSource>| raw.as_ref().and_then(|raw| self.source(&raw.source));
        let (reference, value) = (beside(&raw.reference), beside(&raw.value));
        Some(source.map(|source| Model { source, adapter: adapter.flatten(), reference, value }))
    }

    /// A number as a whole number of small parts, for the ledger has no floats.
    pub(super) fn fixed(
        &mut self,
        typed: &Typed<f64>,
        parts: f64,
        bounds: std::ops::RangeInclusive<f64>,
        expected: &str,
    ) -> u64 {
        let scaled = (typed.value * parts).round();
        let exact = (scaled / parts - typed.value).abs() <= f64::EPSILON * typed.value.abs();
        if !bounds.contains(&scaled) || !exact {
            self.problems.push(Problem::new(&typed.path, typed.at, format!("`{}`", typed.value), expected));
            return 0;
        }
        scaled as u64
    }

    pub(super) fn dataset(&mut self, raw: &RawDataset) -> Option<Dataset> {
        let source = self.data(&raw.source);
        let eval = self.data(&raw.eval);
        let prompt_template = raw.prompt_template.as_ref().and_then(|template| self.template(template));
        let max_seq_length = raw.max_seq_length.as_ref().map(|length| {
            if !(1..=1 << 24).contains(&length.value) {
                let found = format!("`{}`", length.value);
                self.problems.push(Problem::new(&length.path, length.at, found, "a number of tokens, at least 1"));
            }
            u32::try_from(length.value).unwrap_or(1)
        });
        let test_size = raw.test_size.as_ref().and_then(|size| self.test_size(size, raw.eval.is_some()));
        let columns = self.columns(&raw.columns, raw.prompt_template.is_some() && prompt_template.is_some());
        let chat_template = raw.chat_template.as_ref().map(|template| template.value.clone());
        if let Some(template) = raw.chat_template.as_ref().filter(|template| template.value.trim().is_empty()) {
            self.problems.push(template.problem("a Jinja template of messages"));
        }
        Some(Dataset { source: source?, eval, test_size, prompt_template, chat_template, columns, max_seq_length })
    }

    /// A share below 1, or a number of rows.
    fn test_size(&mut self, size: &Typed<f64>, beside_eval: bool) -> Option<TestSize> {
        if beside_eval {
            let problem =
                Problem::new(&size.path, size.at, format!("`{}`", size.value), "nothing beside `dataset.eval`");
            self.problems.push(problem.hint("keep one of the two: other data to measure on, or a part of this"));
        }
        let expected = "a share above 0 and below 1 with at most 6 digits after the point, or a whole number of rows";
        if size.value < 1.0 {
            let share = self.fixed(size, 1e6, 1.0..=999_999.0, expected);
            return u32::try_from(share).ok().map(TestSize::Millionths);
        }
        let rows = self.fixed(size, 1.0, 1.0..=1e15, expected);
        Some(TestSize::Rows(rows))
    }

    fn columns(&mut self, pairs: &Pairs, template: bool) -> BTreeMap<String, String> {
        let mut columns = BTreeMap::new();
        if let (Some((first, _)), true) = (pairs.first(), template) {
            let problem = first.problem("no `columns` beside a `prompt_template`");
            self.problems.push(problem.hint("the template names the data's columns itself"));
        }
        for (ours, theirs) in pairs {
            if !COLUMNS.contains(&ours.value.as_str()) {
                let problem = ours.problem(format!("one of {}", COLUMNS.join(", ")));
                let swapped = COLUMNS.contains(&theirs.value.as_str());
                let near = nearest(&ours.value, COLUMNS).map(|name| format!("did you mean `{name}`?"));
                let hint = swapped.then(|| format!("write `{}: {}`", theirs.value, ours.value)).or(near);
                self.problems.push(match hint {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                });
            } else if theirs.value.is_empty() {
                self.problems.push(theirs.problem("the name of a column of the data"));
            }
            columns.insert(ours.value.clone(), theirs.value.clone());
        }
        columns
    }

    /// A template with at least one `{column}`; `...` stands for none.
    fn template(&mut self, text: &Typed<String>) -> Option<String> {
        if text.value.trim() == "..." {
            self.note(&text.path, text.at, "`...` stands for the data set's own format");
            return None;
        }
        match placeholders(&text.value) {
            Ok(0) => {
                let expected = "a template with at least one `{column}` of the data set";
                let hint =
                    "write for example \"{instruction}\\n{response}\", or leave it out for the data set's own format";
                self.problems.push(text.problem(expected).hint(hint));
            }
            Ok(_) => {}
            Err(found) => {
                let problem = Problem::new(&text.path, text.at, found, "`{column}` with a column's name");
                self.problems.push(problem.hint("write {{ and }} for braces that stand for themselves"));
            }
        }
        Some(text.value.clone())
    }

    /// One bound on the length, however many ways there are to write it.
    pub(super) fn lengths(&mut self, spec: &RawSpec, read: &Read) {
        let preprocessing = spec.dataset.as_ref().and_then(|dataset| dataset.max_seq_length.as_ref());
        let Some(preprocessing) = preprocessing else { return };
        if let Some(length) = read.values.get("max_length")
            && length.as_i64() != Some(preprocessing.value)
        {
            let name = read.typed.get("max_length").map_or("max_length", |(name, _)| name.as_str());
            let problem = Problem::new(
                &preprocessing.path,
                preprocessing.at,
                format!("`{}`", preprocessing.value),
                format!("{length}, as `hyperparameters.{name}` has it"),
            );
            self.problems.push(problem.hint("keep one of the two"));
        }
    }

    /// Evaluations in training need data to evaluate on.
    pub(super) fn evaluations(&mut self, spec: &RawSpec, read: &Read) {
        if spec.dataset.as_ref().is_some_and(|dataset| dataset.eval.is_some() || dataset.test_size.is_some()) {
            return;
        }
        let asks = |name: &str| match read.values.get(name) {
            Some(Value::String(strategy)) => strategy != "no",
            Some(truth) => truth == &Value::Bool(true),
            None => false,
        };
        for name in ["eval_strategy", "eval_on_start"].into_iter().filter(|name| asks(name)) {
            let expected = "`dataset.eval` or `dataset.test_size` with it: held-out data to look at";
            read.problem(name, "evaluations without held-out data", expected, self.problems);
        }
    }
}

/// How many `{column}` a template has; `{{` and `}}` stand for braces.
fn placeholders(template: &str) -> Result<usize, String> {
    let mut count = 0;
    let mut rest = template;
    while let Some(brace) = rest.find(['{', '}']) {
        let (open, after) = (rest[brace..].starts_with('{'), &rest[brace + 1..]);
        let doubled = after.starts_with(if open { '{' } else { '}' });
        rest = if doubled {
            &after[1..]
        } else if open {
            let Some(close) = after.find('}') else { return Err(format!("the open brace of {}", show(after))) };
            let column = &after[..close];
            if column.is_empty() || !column.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c)) {
                return Err(show(&format!("{{{column}}}")));
            }
            count += 1;
            &after[close + 1..]
        } else {
            return Err("a closing brace without its opening one".to_owned());
        };
    }
    Ok(count)
}
