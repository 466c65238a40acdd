//! Training data: files become rows, rows become examples, examples become token ids and labels.
//!
//! ```text
//! files    which files of a folder, which of a split     read     JSON lines, JSON, CSV, Parquet → rows
//! example  a row → what is learnt (template: of any columns)      tokens   examples → ids and labels
//! preference   a row of a chosen and a rejected answer → the pair → its tokens
//! pairs    such pairs in a file, however many
//! store    ids and labels in a file, however many        samples  which of them are a training sample: split, packed
//! ```
//! A row is `messages` (or ShareGPT's `conversations`), or `prompt` and `completion` (texts or lists of messages), or
//! Alpaca's `instruction`, `input` and `output`, or `text`; with a prompt template any columns will do. All rows are
//! checked before anything is returned, and every complaint names file and line (or row, where a format has no lines).
//! Order is the file's; shuffling and batching are left to the trainer.

mod example;
mod files;
mod pairs;
mod parquet;
mod preference;
mod prompts;
mod read;
mod samples;
mod split;
mod store;
mod template;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chat_template::Conversation;

pub use self::pairs::{Pair, PairCounts, PairFile, PairText, tokenize_pair_files};
pub use self::preference::{Preference, SCORES, Sides, TokenizedPair};
pub use self::prompts::{Prompt, PromptRow, load_prompts};
pub use self::samples::{Packing, Samples, Selection, held_out_of};
pub use self::split::{Part, Slice};
pub use self::store::{TokenFile, TokenWriter};
pub use self::template::PromptTemplate;
pub use self::tokens::{
    Counts, TokenizeOptions, TokenizedDataset, TokenizedExample, Truncation, tokenize, tokenize_all, tokenize_files,
};
pub use crate::batch::IGNORED;

/// Rows are all checked, but no more complaints than this are kept: the rest are counted.
const MAX_PROBLEMS: usize = 20;

/// A complaint about one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowProblem {
    /// The file.
    pub path: PathBuf,
    /// Line in it, or row where it has no lines; from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for RowProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.problem)
    }
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder has no file to read.
    #[error("{path}: {problem}")]
    NoFiles {
        /// The folder.
        path: PathBuf,
        /// What was looked for and what is there.
        problem: String,
    },
    /// The files have no rows.
    #[error("{0}: the data set is empty")]
    Empty(PathBuf),
    /// A file is not what its name says, or is damaged.
    #[error("{path}: {problem}")]
    Format {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A slice has no rows.
    #[error("{path}: {slice} has none of the {rows} rows that there are")]
    EmptySlice {
        /// The data.
        path: PathBuf,
        /// The slice, as it is written.
        slice: String,
        /// Rows of its split.
        rows: usize,
    },
    /// What was asked for cannot be done with this model's tokenizer.
    #[error("{0}")]
    Unfit(String),
    /// The prompt template cannot be used.
    #[error("prompt_template: {0}")]
    Template(String),
    /// The caller did not want to go on.
    #[error("stopped as asked")]
    Interrupted,
    /// Rows that cannot be used.
    #[error("{}", list(problems, *total))]
    Rows {
        /// The first of them.
        problems: Vec<RowProblem>,
        /// How many there are.
        total: usize,
    },
}

fn list(problems: &[RowProblem], total: usize) -> String {
    let mut lines: Vec<String> = problems.iter().map(RowProblem::to_string).collect();
    if total > problems.len() {
        lines.push(format!("and {} more rows", total - problems.len()));
    }
    lines.join("\n")
}

/// One training example.
#[derive(Debug, Clone)]
pub enum Example {
    /// A text to continue, as in pretraining.
    Text(String),
    /// A conversation.
    Messages(Conversation),
    /// A plain text and its continuation.
    Continuation {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// A conversation and the messages that answer it.
    Answer {
        /// What is given.
        prompt: Conversation,
        /// What is to be learnt.
        completion: Conversation,
    },
    /// Alpaca's columns: a conversation for a model with a chat template, Alpaca's own text for one without.
    Instruction {
        /// What stands above all; may be empty.
        system: String,
        /// What is to be done.
        instruction: String,
        /// To what; may be empty.
        input: String,
        /// What is to be learnt.
        output: String,
    },
    /// A prompt with a chosen and a rejected answer.
    Preference(Preference),
}

impl Example {
    /// What form it has, for people.
    pub fn form(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Messages(_) => "messages",
            Self::Continuation { .. } => "prompt and completion, as texts",
            Self::Answer { .. } => "prompt and completion, as messages",
            Self::Instruction { .. } => "instruction, input and output",
            Self::Preference(Preference { sides: Sides::Texts { .. }, .. }) => "chosen and rejected, as texts",
            Self::Preference(Preference { sides: Sides::Messages { .. }, .. }) => "chosen and rejected, as messages",
        }
    }

    /// The texts inside, without any format around them: what a tokenizer is trained on.
    pub fn texts(&self) -> Vec<String> {
        let contents = |talk: &Conversation| talk.turns().into_iter().map(|(_, content)| content).collect();
        match self {
            Self::Text(text) => vec![text.clone()],
            Self::Messages(talk) => contents(talk),
            Self::Continuation { prompt, completion } => vec![prompt.clone(), completion.clone()],
            Self::Answer { prompt, completion } => contents(&prompt.followed_by(completion)),
            Self::Instruction { system, instruction, input, output } => {
                let all = [system, instruction, input, output];
                all.into_iter().filter(|text| !text.is_empty()).cloned().collect()
            }
            Self::Preference(pair) => match &pair.sides {
                Sides::Texts { prompt, chosen, rejected } => vec![prompt.clone(), chosen.clone(), rejected.clone()],
                Sides::Messages { prompt, chosen, rejected } => {
                    contents(&prompt.followed_by(chosen).followed_by(rejected))
                }
            },
        }
    }
}

/// An example and where it stands.
#[derive(Debug, Clone)]
pub struct Row {
    /// The file.
    pub path: Arc<Path>,
    /// Line in it, or row where it has no lines; from 1.
    pub line: usize,
    /// What it says.
    pub example: Example,
}

impl Row {
    fn problem(&self, problem: String) -> RowProblem {
        RowProblem { path: self.path.to_path_buf(), line: self.line, problem }
    }
}

/// How rows are read.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Which part of a folder: `train` takes the folder `train`, or `train.jsonl`, `train-00000.parquet`, … Absent: every
    /// file.
    pub split: Option<Vec<Part>>,
    /// How columns become a text; absent: the data's own format.
    pub prompt_template: Option<PromptTemplate>,
    /// The data's names of columns that have another name here: `prompt` → `question`.
    pub columns: BTreeMap<String, String>,
    /// The column of plain texts; `text` when absent.
    pub text_column: Option<String>,
    /// Whether rows are pairs of a chosen and a rejected answer.
    pub preferences: bool,
}

/// How far reading has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadSoFar {
    /// Rows, those left out by a slice not counted.
    pub rows: u64,
    /// Bytes of the files, packed as they are. One of Parquet counts from where it is opened.
    pub bytes: u64,
}

/// Reads a file, or the files of a folder in the order of their names: JSON lines, JSON, CSV and Parquet, the first two
/// and CSV also compressed (`.gz`, `.zst`). Before each row `stop` is asked whether to give up. All rows are held: see
/// [`for_each`] for data that memory does not.
///
/// # Errors
/// Every row that is not as it must be, with file and line; or that there is nothing to read.
pub fn load(path: &Path, options: &LoadOptions, stop: &dyn Fn() -> bool) -> Result<Vec<Row>, DatasetError> {
    let mut rows = Vec::new();
    for_each(path, options, &mut |_| stop(), &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// As [`load`], a row at a time: none is held here. Each is taken by `take`, which may complain about it; before each
/// `stop` hears how far it is and may end it all.
///
/// # Errors
/// As [`load`], complaints of `take` among those about rows.
pub fn for_each(
    path: &Path,
    options: &LoadOptions,
    stop: &mut dyn FnMut(ReadSoFar) -> bool,
    take: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<ReadSoFar, DatasetError> {
    let bytes = Arc::new(AtomicU64::new(0));
    let mut reading = Reading { options, stop, take, bytes, rows: 0, problems: Vec::new(), total: 0 };
    for (files, wanted) in files::wanted(path, options.split.as_deref())? {
        reading.read(&files, wanted)?;
    }
    if reading.total > 0 {
        return Err(DatasetError::Rows { problems: reading.problems, total: reading.total });
    }
    if reading.rows == 0 {
        return Err(DatasetError::Empty(path.to_owned()));
    }
    Ok(reading.so_far())
}

struct Reading<'a> {
    options: &'a LoadOptions,
    stop: &'a mut dyn FnMut(ReadSoFar) -> bool,
    take: &'a mut dyn FnMut(Row) -> Result<(), String>,
    bytes: Arc<AtomicU64>,
    rows: u64,
    problems: Vec<RowProblem>,
    total: usize,
}

impl Reading<'_> {
    fn so_far(&self) -> ReadSoFar {
        ReadSoFar { rows: self.rows, bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// The rows of some files, those of these numbers over all of them.
    fn read(&mut self, files: &[PathBuf], wanted: std::ops::Range<usize>) -> Result<(), DatasetError> {
        let mut at = 0;
        for file in files {
            let path: Arc<Path> = file.as_path().into();
            for raw in read::rows(file, &self.bytes)? {
                let so_far = self.so_far();
                if (self.stop)(so_far) {
                    return Err(DatasetError::Interrupted);
                }
                let raw = raw?;
                let here = at;
                at += 1;
                if here >= wanted.end {
                    return Ok(());
                }
                if here < wanted.start {
                    continue;
                }
                self.rows += 1;
                let line = raw.line;
                let read = |value| match self.options.preferences {
                    true => preference::of(&value, self.options).map(Example::Preference),
                    false => example::of(&value, self.options),
                };
                let example = raw.value.and_then(read);
                let taken = example.and_then(|example| (self.take)(Row { path: path.clone(), line, example }));
                if let Err(problem) = taken {
                    self.total += 1;
                    if self.problems.len() < MAX_PROBLEMS {
                        self.problems.push(RowProblem { path: file.clone(), line, problem });
                    }
                }
            }
        }
        Ok(())
    }
}
