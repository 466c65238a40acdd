//! Rows of the task's data set, as they are.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use mloc_burn::formats::dataset::{self, LoadOptions, PromptTemplate, ReadSoFar};
use mloc_core::{
    quantity::show_bytes,
    task::{settings::Training, spec::Location, split},
};
use mloc_exec::{ModuleError, RunContext};

use crate::fatal;

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

/// A file or folder of data, and how its rows are read.
pub struct Source {
    /// Where it was pulled to.
    pub path: PathBuf,
    /// How it is read.
    pub options: LoadOptions,
}

/// The data to train on.
///
/// # Errors
/// That it was not pulled, and a template or split that is none.
pub fn training_source(ctx: &RunContext, form: Form) -> Result<Source, ModuleError> {
    let missing = || ModuleError::Fatal("dataset.source was not pulled".to_owned());
    let path = ctx.run().inputs.dataset.clone().ok_or_else(missing)?;
    Ok(Source { path, options: load_options(ctx, form)? })
}

/// Held-out data; none where the task has no such data.
///
/// # Errors
/// As [`training_source`].
pub fn held_out_source(ctx: &RunContext, form: Form) -> Result<Option<Source>, ModuleError> {
    let Some(path) = ctx.run().inputs.eval.clone() else { return Ok(None) };
    let dataset = ctx.run().spec.dataset.as_ref();
    let split = dataset.and_then(|d| d.eval.as_ref()).and_then(Location::split).map(parts_of).transpose()?;
    Ok(Some(Source { path, options: LoadOptions { split, ..load_options(ctx, form)? } }))
}

/// How many of so many rows of the training data are held out, as the task has it.
///
/// # Errors
/// That none would be left to train on.
pub fn held_out_of(ctx: &RunContext, rows: usize) -> Result<Option<usize>, ModuleError> {
    let Some(size) = ctx.run().spec.dataset.as_ref().and_then(|d| d.test_size) else { return Ok(None) };
    match size.of(rows) {
        some if some < rows => Ok(Some(some)),
        all => Err(ModuleError::Fatal(format!(
            "dataset.test_size: {all} of {rows} rows held out leave none to train on (hint: hold less out)"
        ))),
    }
}

/// How the rows of the task's data are read.
///
/// # Errors
/// A prompt template that is none, or has no part in this form.
pub fn load_options(ctx: &RunContext, form: Form) -> Result<LoadOptions, ModuleError> {
    let dataset = ctx.run().spec.dataset.as_ref();
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
    Ok(LoadOptions {
        split,
        prompt_template,
        columns: dataset.map(|d| d.columns.clone()).unwrap_or_default(),
        text_column: Training::of(&ctx.run().spec).dataset_text_field,
        preferences: form == Form::Preferences,
    })
}

/// A split as a task names it.
fn parts_of(text: &str) -> Result<Vec<dataset::Part>, ModuleError> {
    let parts = split::parse(text).map_err(fatal)?;
    let slice = |s: split::Slice| dataset::Slice { from: s.from, to: s.to, percent: s.percent };
    Ok(parts.into_iter().map(|part| dataset::Part { name: part.name, slice: part.slice.map(slice) }).collect())
}

/// Between two lines about how far reading is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Looks on while data is read: says now and then how far it is, and whether to give up.
pub fn watch<'a>(ctx: &'a mut RunContext, what: &'a str) -> impl FnMut(ReadSoFar) -> bool + 'a {
    let (began, mut told) = (Instant::now(), Instant::now());
    move |so_far| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let rate = so_far.rows as f64 / began.elapsed().as_secs_f64();
            let (rows, bytes) = (so_far.rows, show_bytes(so_far.bytes));
            ctx.log(format!("{what} data: {rows} rows, {bytes} read so far, {rate:.0} rows a second"));
        }
        ctx.stopping()
    }
}

/// What was read, for the log.
pub fn log_read(ctx: &mut RunContext, what: &str, options: &LoadOptions, forms: &BTreeSet<&str>, read: ReadSoFar) {
    ctx.log(format!(
        "{what} data: {} rows, read as {}, {}",
        read.rows,
        read_as(options, forms),
        show_bytes(read.bytes)
    ));
}

/// What rows were taken for, for people.
fn read_as(options: &LoadOptions, forms: &BTreeSet<&str>) -> String {
    match options.prompt_template {
        Some(_) => "the text that prompt_template makes of its columns".to_owned(),
        None => format!("its own format ({})", forms.iter().copied().collect::<Vec<_>>().join("; ")),
    }
}
