//! The model, its adapter, and the data it learns from.

use super::Validation;
use crate::task::{
    fields::Typed,
    hyperparameters::Read,
    names,
    problem::{Problem, show},
    raw::{RawAdapter, RawDataset, RawSource, RawSpec},
    spec::{Adapter, AdapterKind, Dataset, Model},
};

impl Validation<'_> {
    pub(super) fn model(&mut self, spec: &RawSpec) -> Option<Option<Model>> {
        let raw = spec.model.as_ref()?;
        let source = self.source(&raw.source);
        let adapter = raw.adapter.as_ref().map(|adapter| self.adapter(adapter));
        let mut beside = |raw: &Option<RawSource>| raw.as_ref().and_then(|raw| self.source(&raw.source));
        let (reference, value) = (beside(&raw.reference), beside(&raw.value));
        Some(source.map(|source| Model { source, adapter: adapter.flatten(), reference, value }))
    }

    fn adapter(&mut self, raw: &RawAdapter) -> Option<Adapter> {
        let kind = match raw.kind.as_ref().map(|kind| (kind, kind.value.as_str())) {
            Some((_, "lora")) => Some(AdapterKind::Lora),
            Some((_, "qlora")) => Some(AdapterKind::Qlora),
            Some((kind, _)) => {
                self.problems.push(kind.problem("`lora` or `qlora`"));
                None
            }
            None => None,
        };
        if let Some(bias) = raw.bias.as_ref().filter(|bias| bias.value != "none") {
            self.problems.push(bias.problem("`none`: training biases is not in this build"));
        }
        let r = raw.r.as_ref().map_or(8, |r| {
            if !(1..=1024).contains(&r.value) {
                self.problems.push(Problem::new(&r.path, r.at, format!("`{}`", r.value), "a rank from 1 to 1024"));
            }
            u32::try_from(r.value).unwrap_or(1)
        });
        let alpha = raw.lora_alpha.as_ref().map_or(8_000, |alpha| {
            let expected = "a number above 0, at most 1000000, with at most 3 digits after the point";
            self.fixed(alpha, 1e3, 1.0..=1e9, expected)
        });
        let dropout = raw.lora_dropout.as_ref().map_or(0, |dropout| {
            let expected = "a share from 0 to below 1, with at most 6 digits after the point";
            self.fixed(dropout, 1e6, 0.0..=999_999.0, expected)
        });
        let target_modules = match &raw.target_modules {
            Some(modules) => self.target_modules(modules),
            // PEFT's own choice for this family.
            None => vec!["q_proj".to_owned(), "v_proj".to_owned()],
        };
        Some(Adapter {
            kind: kind?,
            r,
            lora_alpha_milli: alpha,
            lora_dropout_micro: u32::try_from(dropout).unwrap_or(0),
            target_modules,
            use_rslora: raw.use_rslora.as_ref().is_some_and(|truth| truth.value),
            source: self.source(&raw.source),
        })
    }

    fn target_modules(&mut self, modules: &Typed<Vec<Typed<String>>>) -> Vec<String> {
        if modules.value.is_empty() {
            let expected = "names of linear layers, such as q_proj, or `all-linear`";
            self.problems.push(Problem::new(&modules.path, modules.at, "an empty list", expected));
        }
        let mut kept = Vec::new();
        for module in &modules.value {
            match names::name(module, "", 128) {
                Ok(name) if kept.contains(&name) => {
                    self.problems.push(module.problem("each module once"));
                }
                Ok(name) => kept.push(name),
                Err(problem) => self.problems.push(Problem {
                    expected: "the name of a linear layer; patterns are not in this build".to_owned(),
                    hint: None,
                    ..problem
                }),
            }
        }
        kept
    }

    /// A number as a whole number of small parts, for the ledger has no floats.
    fn fixed(&mut self, typed: &Typed<f64>, parts: f64, bounds: std::ops::RangeInclusive<f64>, expected: &str) -> u64 {
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
        Some(Dataset { source: source?, eval, prompt_template, max_seq_length })
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
