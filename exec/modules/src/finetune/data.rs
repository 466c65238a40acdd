//! Rows of the task's data set, as they are.

use std::{collections::BTreeSet, path::Path};

use mloc_burn::formats::dataset::{self, LoadOptions, PromptTemplate, Row};
use mloc_core::task::{
    spec::{Dataset, Location},
    split,
};
use mloc_exec::{ModuleError, RunContext};

use crate::{fatal, unless_stopping};

/// What is made of the data, in the words of logs.
pub const TRAINING: &str = "training";
/// As [`TRAINING`].
pub const HELD_OUT: &str = "held-out";

/// What rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Texts, conversations, prompts and completions.
    Examples,
    /// Pairs of a chosen and a rejected answer.
    Preferences,
}

/// How the rows of the task's data are read.
///
/// # Errors
/// A prompt template that is none, or has no part in this form.
pub fn load_options(dataset: Option<&Dataset>, form: Form) -> Result<LoadOptions, ModuleError> {
    let template = dataset.and_then(|d| d.prompt_template.as_deref());
    let prompt_template = template.map(PromptTemplate::parse).transpose().map_err(fatal)?.flatten();
    let split = dataset.and_then(|d| d.source.split()).map(parts_of).transpose()?;
    if form == Form::Preferences && prompt_template.is_some() {
        return Err(ModuleError::Fatal(
            "dataset.preprocessing.prompt_template: pairs are read from `prompt`, `chosen` and `rejected`, and a template \
             has no part in it (hint: leave it out)"
                .to_owned(),
        ));
    }
    Ok(LoadOptions { split, prompt_template, preferences: form == Form::Preferences })
}

/// A split as a task names it.
fn parts_of(text: &str) -> Result<Vec<dataset::Part>, ModuleError> {
    let parts = split::parse(text).map_err(fatal)?;
    let slice = |s: split::Slice| dataset::Slice { from: s.from, to: s.to, percent: s.percent };
    Ok(parts.into_iter().map(|part| dataset::Part { name: part.name, slice: part.slice.map(slice) }).collect())
}

/// The rows of what was pulled to train on.
///
/// # Errors
/// The data's own errors, with file and line, and that it was asked to stop.
pub fn training_rows(ctx: &mut RunContext, form: Form) -> Result<Vec<Row>, ModuleError> {
    let missing = || ModuleError::Fatal("dataset.source was not pulled".to_owned());
    let path = ctx.run().inputs.dataset.clone().ok_or_else(missing)?;
    let options = load_options(ctx.run().spec.dataset.as_ref(), form)?;
    load_rows(ctx, &path, TRAINING, &options)
}

/// The rows of held-out data; none where the task has no such data.
///
/// # Errors
/// As [`training_rows`].
pub fn held_out_rows(ctx: &mut RunContext, form: Form) -> Result<Vec<Row>, ModuleError> {
    let Some(path) = ctx.run().inputs.eval.clone() else { return Ok(Vec::new()) };
    let dataset = ctx.run().spec.dataset.as_ref();
    let split = dataset.and_then(|d| d.eval.as_ref()).and_then(Location::split).map(parts_of).transpose()?;
    let options = LoadOptions { split, ..load_options(dataset, form)? };
    load_rows(ctx, &path, HELD_OUT, &options)
}

fn load_rows(ctx: &mut RunContext, path: &Path, what: &str, options: &LoadOptions) -> Result<Vec<Row>, ModuleError> {
    let loaded = dataset::load(path, options, &|| ctx.stopping());
    let rows = loaded.map_err(|e| unless_stopping(ctx, e))?;
    let format = match options.prompt_template {
        Some(_) => "the text that prompt_template makes of its columns".to_owned(),
        None => {
            let forms: BTreeSet<&str> = rows.iter().map(|row| row.example.form()).collect();
            format!("its own format ({})", forms.into_iter().collect::<Vec<_>>().join("; "))
        }
    };
    ctx.log(format!("{what} data: {} rows, read as {format}", rows.len()));
    Ok(rows)
}
