//! Training data: files become rows, rows become examples, examples become token ids and labels.
//!
//! ```text
//! files    which files of a folder, which of a split     read     JSON lines, JSON, CSV, Parquet → rows
//! example  a row → what is learnt (template: of any columns)      tokens   examples → ids and labels
//! preference   a row of a chosen and a rejected answer → the pair → its tokens
//! ```
//! A row is `messages`, or `prompt` and `completion` (texts or lists of messages), or `text`; with a prompt template any
//! columns will do. All rows are checked before anything is returned, and every complaint names file and line (or row,
//! where a format has no lines). Order is the file's; shuffling and batching are left to the trainer.

mod example;
mod files;
mod parquet;
mod preference;
mod prompts;
mod read;
mod split;
mod template;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chat_template::Conversation;

pub use self::preference::{Preference, Sides, TokenizedPair, TokenizedPairs, tokenize_pairs};
pub use self::prompts::{Prompt, PromptRow, load_prompts};
pub use self::split::{Part, Slice};
pub use self::template::PromptTemplate;
pub use self::tokens::{TokenizeOptions, TokenizedDataset, TokenizedExample, tokenize, tokenize_all};
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
    /// Whether rows are pairs of a chosen and a rejected answer.
    pub preferences: bool,
}

/// Reads a file, or the files of a folder in the order of their names: JSON lines, JSON, CSV and Parquet, the first two
/// and CSV also compressed (`.gz`, `.zst`). Before each row `stop` is asked whether to give up.
///
/// # Errors
/// Every row that is not as it must be, with file and line; or that there is nothing to read.
pub fn load(path: &Path, options: &LoadOptions, stop: &dyn Fn() -> bool) -> Result<Vec<Row>, DatasetError> {
    let mut loading = Loading { options, stop, rows: Vec::new(), problems: Vec::new(), total: 0 };
    for (files, wanted) in files::wanted(path, options.split.as_deref())? {
        loading.take(&files, wanted)?;
    }
    if loading.total > 0 {
        return Err(DatasetError::Rows { problems: loading.problems, total: loading.total });
    }
    if loading.rows.is_empty() {
        return Err(DatasetError::Empty(path.to_owned()));
    }
    Ok(loading.rows)
}

struct Loading<'a> {
    options: &'a LoadOptions,
    stop: &'a dyn Fn() -> bool,
    rows: Vec<Row>,
    problems: Vec<RowProblem>,
    total: usize,
}

impl Loading<'_> {
    /// The rows of some files, those of these numbers over all of them.
    fn take(&mut self, files: &[PathBuf], wanted: std::ops::Range<usize>) -> Result<(), DatasetError> {
        let mut at = 0;
        for file in files {
            let path: Arc<Path> = file.as_path().into();
            for raw in read::rows(file)? {
                if (self.stop)() {
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
                let read = |value| match self.options.preferences {
                    true => preference::of(&value).map(Example::Preference),
                    false => example::of(&value, self.options.prompt_template.as_ref()),
                };
                match raw.value.and_then(read) {
                    Ok(example) => self.rows.push(Row { path: path.clone(), line: raw.line, example }),
                    Err(problem) => {
                        self.total += 1;
                        if self.problems.len() < MAX_PROBLEMS {
                            self.problems.push(RowProblem { path: file.clone(), line: raw.line, problem });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
