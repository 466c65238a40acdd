//! Training data: JSONL files become examples, examples become token ids and labels.
//!
//! A row is `messages`, or `prompt` and `completion` (texts or lists of messages), or `text`; with a prompt template any
//! columns will do. All rows are checked before anything is returned, and every complaint names file and line. Order is
//! the file's; shuffling and batching are left to the trainer.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::ValueKind;

use super::chat_template::{Conversation, RenderOptions};
use super::tokenizer::{TextTokenizer, TokenizerError};

pub use crate::batch::IGNORED;

/// Rows are all checked, but no more complaints than this are kept: the rest are counted.
const MAX_PROBLEMS: usize = 20;

/// A complaint about one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowProblem {
    /// The file.
    pub path: PathBuf,
    /// Line in it, from 1.
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
}

impl Example {
    /// What form it has, for people.
    pub fn form(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Messages(_) => "messages",
            Self::Continuation { .. } => "prompt and completion, as texts",
            Self::Answer { .. } => "prompt and completion, as messages",
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
        }
    }
}

/// An example and where it stands.
#[derive(Debug, Clone)]
pub struct Row {
    /// The file.
    pub path: Arc<Path>,
    /// Line in it, from 1.
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
    /// Which part of a folder: `train` takes `train.jsonl`, `train-00000.jsonl`, … Absent: every file.
    pub split: Option<String>,
    /// How columns become a text; absent: the data's own format.
    pub prompt_template: Option<PromptTemplate>,
}

/// A text with `{column}` placeholders. `{{` and `}}` stand for plain braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Plain(String),
    Column(String),
}

impl PromptTemplate {
    /// Reads a template. `...` and an empty text mean the data's own format: None.
    ///
    /// # Errors
    /// [`DatasetError::Template`]: no placeholder, or a brace without its partner.
    pub fn parse(source: &str) -> Result<Option<Self>, DatasetError> {
        if matches!(source.trim(), "" | "..." | "…") {
            return Ok(None);
        }
        let wrong = |text: String| Err(DatasetError::Template(text));
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let tail = &rest[at..];
            if tail.starts_with("{{") || tail.starts_with("}}") {
                plain.push_str(&tail[..1]);
                rest = &tail[2..];
            } else if tail.starts_with('}') {
                return wrong(format!(
                    "a `}}` without `{{` at character {} (hint: write `}}}}` for a plain brace)",
                    source.len() - tail.len()
                ));
            } else {
                let Some(end) = tail.find('}') else {
                    return wrong(format!("`{tail}` is never closed (hint: write `{{{{` for a plain brace)"));
                };
                let column = tail[1..end].trim();
                if column.is_empty() || column.contains('{') {
                    return wrong(format!("`{}` names no column", &tail[..=end]));
                }
                pieces.extend([Piece::Plain(std::mem::take(&mut plain)), Piece::Column(column.to_owned())]);
                rest = &tail[end + 1..];
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Plain(plain));
        if !pieces.iter().any(|p| matches!(p, Piece::Column(_))) {
            return wrong("it has no `{column}` placeholder, so every row would give the same text".into());
        }
        Ok(Some(Self { pieces }))
    }

    /// The text for a row: a column that is null gives nothing, numbers and truth values their usual text.
    fn fill(&self, row: &Value) -> Result<String, String> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(text) => out.push_str(text),
                Piece::Column(name) => {
                    let value = row.get_attr(name).unwrap_or_default();
                    match value.kind() {
                        ValueKind::Undefined => return Err(missing(name, row)),
                        ValueKind::None => {}
                        ValueKind::String | ValueKind::Number | ValueKind::Bool => out.push_str(&value.to_string()),
                        _ => {
                            return Err(format!("column `{name}` is {}, expected a text or a number", kind_of(&value)));
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Reads a JSONL file, or the JSONL files of a folder (and of its `data` folder) in the order of their names. Before each
/// line `stop` is asked whether to give up.
///
/// # Errors
/// Every row that is not as it must be, with file and line; or that there is nothing to read.
pub fn load(path: &Path, options: &LoadOptions, stop: &dyn Fn() -> bool) -> Result<Vec<Row>, DatasetError> {
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    let mut total = 0;
    for file in files_of(path, options.split.as_deref())? {
        let shared: Arc<Path> = file.as_path().into();
        let io = |source| DatasetError::Io { path: file.clone(), source };
        let reader = BufReader::new(std::fs::File::open(&file).map_err(io)?);
        for (index, bytes) in reader.split(b'\n').enumerate() {
            if stop() {
                return Err(DatasetError::Interrupted);
            }
            let bytes = bytes.map_err(io)?;
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            match read_row(&bytes, options) {
                Ok(example) => rows.push(Row { path: shared.clone(), line: index + 1, example }),
                Err(problem) => {
                    total += 1;
                    if problems.len() < MAX_PROBLEMS {
                        problems.push(RowProblem { path: file.clone(), line: index + 1, problem });
                    }
                }
            }
        }
    }
    if total > 0 {
        return Err(DatasetError::Rows { problems, total });
    }
    if rows.is_empty() {
        return Err(DatasetError::Empty(path.to_owned()));
    }
    Ok(rows)
}

fn files_of(path: &Path, split: Option<&str>) -> Result<Vec<PathBuf>, DatasetError> {
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut others = Vec::new();
    for folder in [path.to_owned(), path.join("data")] {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let file = entry.map_err(io)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".jsonl") {
                files.push(file);
            } else if file.is_file() {
                others.push(name);
            }
        }
    }
    files.sort();
    others.sort();
    let none = |problem: String| Err(DatasetError::NoFiles { path: path.to_owned(), problem });
    if files.is_empty() {
        others.truncate(10);
        let there = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        return none(format!("no .jsonl file in this folder, there is {there} (hint: convert the data to JSON lines)"));
    }
    let Some(split) = split else { return Ok(files) };
    let stem = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let of_split = |file: &&PathBuf, split: &str| match stem(file).strip_prefix(split) {
        Some(rest) => rest.is_empty() || rest.starts_with(['-', '_', '.']),
        None => false,
    };
    let chosen: Vec<PathBuf> = files.iter().filter(|f| of_split(f, split)).cloned().collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    // Files whose names speak of no part are all for training.
    let parts = ["train", "test", "valid", "validation", "eval", "dev", "heldout"];
    if split == "train" && !files.iter().any(|f| parts.iter().any(|p| of_split(&f, p))) {
        return Ok(files);
    }
    none(format!("no file for split `{split}`, there are {}", files.iter().map(stem).collect::<Vec<_>>().join(", ")))
}

fn read_row(bytes: &[u8], options: &LoadOptions) -> Result<Example, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 text after byte {}", e.valid_up_to()))?;
    let row: Value = serde_json::from_str(text).map_err(|e| {
        // The line number is the file's, which the caller adds; serde's is always 1 here.
        let what = e.to_string();
        format!("not JSON: {}", what.replace(" at line 1 column", " at character"))
    })?;
    if row.kind() != ValueKind::Map {
        return Err(format!("expected a JSON object, found {}", kind_of(&row)));
    }
    if let Some(template) = &options.prompt_template {
        return template.fill(&row).map(Example::Text);
    }
    let column = |name: &str| row.get_attr(name).unwrap_or_default();
    if !column("messages").is_undefined() {
        let mut talk = conversation("messages", &column("messages"))?;
        let tools = column("tools");
        if tools.kind() == ValueKind::Seq {
            talk = talk.with_tools(tools);
        }
        return Ok(Example::Messages(talk));
    }
    if !column("prompt").is_undefined() {
        return prompt_and_completion(&row);
    }
    let text = column("text");
    match text.as_str() {
        Some(text) => Ok(Example::Text(text.to_owned())),
        None if text.is_undefined() => Err(format!(
            "{}; a row has `messages`, or `prompt` and `completion`, or `text` (hint: set prompt_template to build a \
             text from other columns)",
            missing("messages", &row)
        )),
        None => Err(format!("column `text` is {}, expected a string", kind_of(&text))),
    }
}

fn prompt_and_completion(row: &Value) -> Result<Example, String> {
    let prompt = row.get_attr("prompt").unwrap_or_default();
    let completion = row.get_attr("completion").unwrap_or_default();
    if completion.is_undefined() {
        return Err(missing("completion", row));
    }
    match (prompt.as_str(), completion.as_str()) {
        (Some(prompt), Some(completion)) => {
            Ok(Example::Continuation { prompt: prompt.to_owned(), completion: completion.to_owned() })
        }
        (None, None) => Ok(Example::Answer {
            prompt: conversation("prompt", &prompt)?,
            completion: conversation("completion", &completion)?,
        }),
        _ => Err(format!(
            "column `prompt` is {} but `completion` is {}: both must be strings or both lists of messages",
            kind_of(&prompt),
            kind_of(&completion)
        )),
    }
}

fn conversation(column: &str, value: &Value) -> Result<Conversation, String> {
    Conversation::from_value(value).map_err(|e| {
        let text = e.to_string();
        format!("column `{column}`: {}", text.strip_prefix("messages: ").unwrap_or(&text))
    })
}

fn missing(column: &str, row: &Value) -> String {
    let there: Vec<String> = row.try_iter().map(|keys| keys.map(|k| k.to_string()).collect()).unwrap_or_default();
    format!("no column `{column}`, found {}", if there.is_empty() { "none".to_owned() } else { there.join(", ") })
}

fn kind_of(value: &Value) -> &'static str {
    super::chat_template::plain_kind(value)
}

/// How examples become tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizeOptions {
    /// Longest row in tokens; what is past it is cut off.
    pub max_length: Option<usize>,
    /// Learn only the completion (for `messages`: the last message). Absent: yes for prompt and completion, no for
    /// `messages` and `text`.
    pub completion_only: Option<bool>,
    /// The time that templates print, in seconds since 1970 UTC. Give a fixed one: a resumed run must see the same text.
    pub now_unix: i64,
}

/// Token ids and, for each, the label: itself, or [`IGNORED`]. Labels are not shifted; the loss compares position t's
/// prediction with label t + 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizedExample {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// One label a token.
    pub labels: Vec<i64>,
}

impl TokenizedExample {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// (token ids, labels) as the rows of a [`crate::batch::Batch`] take them.
    pub fn row(&self) -> (Vec<i64>, Vec<i64>) {
        (self.input_ids.iter().map(|id| i64::from(*id)).collect(), self.labels.clone())
    }

    /// How many predictions count: labels after the first that are not ignored.
    pub fn num_targets(&self) -> usize {
        self.labels.iter().skip(1).filter(|l| **l != IGNORED).count()
    }
}

/// A data set in tokens, and what happened on the way.
#[derive(Debug, Clone, Default)]
pub struct TokenizedDataset {
    /// One a row, in order.
    pub examples: Vec<TokenizedExample>,
    /// How many rows were cut to the longest length.
    pub truncated: usize,
    /// How many rows have no target left, and so teach nothing.
    pub without_target: usize,
}

/// Tokenizes all rows. Before each `stop` is asked whether to give up.
///
/// # Errors
/// [`DatasetError::Rows`] for rows that the chat template or the tokenizer refuses.
pub fn tokenize_all(
    rows: &[Row],
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
    stop: &dyn Fn() -> bool,
) -> Result<TokenizedDataset, DatasetError> {
    let mut out = TokenizedDataset::default();
    let mut problems = Vec::new();
    let mut total = 0;
    for row in rows {
        if stop() {
            return Err(DatasetError::Interrupted);
        }
        match tokenize(&row.example, tokenizer, TokenizeOptions { max_length: None, ..options }) {
            Ok(mut example) => {
                if let Some(longest) = options.max_length.filter(|longest| example.len() > *longest) {
                    cut(&mut example, longest);
                    out.truncated += 1;
                }
                out.without_target += usize::from(example.num_targets() == 0);
                out.examples.push(example);
            }
            Err(error) => {
                total += 1;
                if problems.len() < MAX_PROBLEMS {
                    problems.push(row.problem(error.to_string()));
                }
            }
        }
    }
    if total > 0 {
        return Err(DatasetError::Rows { problems, total });
    }
    Ok(out)
}

/// Tokenizes one example as the reference trainer does.
///
/// # Errors
/// The chat template's refusal, or the tokenizer's.
pub fn tokenize(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
) -> Result<TokenizedExample, TokenizerError> {
    let chat = |talk: &Conversation, add_generation_prompt: bool| {
        tokenizer.encode_chat(talk, RenderOptions { add_generation_prompt, now_unix: options.now_unix })
    };
    // Number of leading tokens that are given and not learnt, and all tokens.
    let (given, input_ids) = match example {
        Example::Text(text) => (0, tokenizer.encode(&with_end(text, tokenizer), true)?),
        Example::Messages(talk) => {
            let prompt = match talk.split_last() {
                Some((prompt, _)) if options.completion_only == Some(true) => chat(&prompt, true)?.len(),
                _ => 0,
            };
            (prompt, chat(talk, false)?)
        }
        Example::Continuation { prompt, completion } => {
            let whole = with_end(&format!("{prompt}{completion}"), tokenizer);
            (tokenizer.encode(prompt, true)?.len(), tokenizer.encode(&whole, true)?)
        }
        Example::Answer { prompt, completion } => {
            (chat(prompt, true)?.len(), chat(&prompt.followed_by(completion), false)?)
        }
    };
    let given = if options.completion_only == Some(false) { 0 } else { given };
    let labels = input_ids.iter().enumerate();
    let labels = labels.map(|(i, id)| if i < given { IGNORED } else { i64::from(*id) }).collect();
    let mut example = TokenizedExample { input_ids, labels };
    if let Some(longest) = options.max_length {
        cut(&mut example, longest);
    }
    Ok(example)
}

fn cut(example: &mut TokenizedExample, longest: usize) {
    example.input_ids.truncate(longest);
    example.labels.truncate(longest);
}

/// Plain text has no template to end it, and a model that never saw an end never stops.
fn with_end(text: &str, tokenizer: &TextTokenizer) -> String {
    match tokenizer.special_token("eos_token") {
        Some(end) if !text.ends_with(end) => format!("{text}{end}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    /// What `load` says about a file of these lines, without the folder's name.
    fn complaint(content: &str, options: &LoadOptions) -> String {
        let folder = folder(&[("d.jsonl", content)]);
        let error = load(folder.path(), options, &|| false).unwrap_err().to_string();
        error
            .replace(&format!("{}/", folder.path().display()), "")
            .replace(&folder.path().display().to_string(), "data")
    }

    #[test]
    fn all_forms_are_read_in_order() {
        let rows = concat!(
            r#"{"text": "plain"}"#,
            "\n\n",
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            "\r\n",
            r#"{"prompt": "p", "completion": "c"}"#,
            "\n",
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        );
        let folder = folder(&[("b.jsonl", rows), ("a.jsonl", "{\"text\": \"first\"}\n"), ("README.md", "no data")]);
        let rows = load(folder.path(), &LoadOptions::default(), &|| false).unwrap();
        let texts: Vec<_> = rows.iter().map(|r| (r.line, r.example.texts().join("|"))).collect();
        let want = [(1, "first"), (1, "plain"), (3, "q|a"), (4, "p|c"), (5, "q|a")];
        assert_eq!(texts, want.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn a_split_picks_files() {
        let row = |t: &str| format!("{{\"text\": \"{t}\"}}");
        let folder = folder(&[
            ("train-00.jsonl", &row("a")),
            ("data/train-01.jsonl", &row("b")),
            ("test.jsonl", &row("c")),
            ("training.jsonl", &row("d")),
        ]);
        let texts = |split: &str| {
            let options = LoadOptions { split: Some(split.into()), ..Default::default() };
            load(folder.path(), &options, &|| false)
                .map(|rows| rows.iter().flat_map(|r| r.example.texts()).collect::<Vec<_>>())
        };
        assert_eq!(texts("train").unwrap(), ["b", "a"]);
        assert_eq!(texts("test").unwrap(), ["c"]);
        let error = texts("validation").unwrap_err().to_string();
        assert!(
            error.ends_with("no file for split `validation`, there are train-01, test, train-00, training"),
            "{error}"
        );
    }

    #[test]
    fn every_bad_row_is_named_with_its_line() {
        let rows = "{\"text\": \"fine\"}\n{\"text\": \n\"x\"\n{\"instruction\": 1, \"response\": 2}\n{\"text\": 3}\n\
                    {\"messages\": [{\"role\": \"user\"}]}\n{\"prompt\": \"p\"}\n{\"prompt\": \"p\", \"completion\": []}\n";
        let want = "d.jsonl:2: not JSON: EOF while parsing a value at character 9\n\
                    d.jsonl:3: expected a JSON object, found a string\n\
                    d.jsonl:4: no column `messages`, found instruction, response; a row has `messages`, or `prompt` and \
                    `completion`, or `text` (hint: set prompt_template to build a text from other columns)\n\
                    d.jsonl:5: column `text` is a number, expected a string\n\
                    d.jsonl:6: column `messages`: message 0 has no `content`\n\
                    d.jsonl:7: no column `completion`, found prompt\n\
                    d.jsonl:8: column `prompt` is a string but `completion` is a list: both must be strings or both lists \
                    of messages";
        assert_eq!(complaint(rows, &LoadOptions::default()), want);
        let many = "nothing\n".repeat(25);
        assert!(
            complaint(&many, &LoadOptions::default())
                .ends_with("d.jsonl:20: not JSON: expected ident at character 2\nand 5 more rows")
        );
    }

    #[test]
    fn nothing_to_read_is_said() {
        assert_eq!(complaint("\n \n", &LoadOptions::default()), "data: the data set is empty");
        let empty = folder(&[("train.parquet", "PAR1")]);
        let error = load(empty.path(), &LoadOptions::default(), &|| false).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "no .jsonl file in this folder, there is train.parquet (hint: convert the data to JSON lines)"
            )
        );
        let error = load(&empty.path().join("none"), &LoadOptions::default(), &|| false).unwrap_err();
        assert!(matches!(error, DatasetError::Io { .. }));
        let bytes = folder(&[]);
        let file = bytes.path().join("x.jsonl");
        std::fs::write(&file, b"{\"text\": \"\xff\"}").unwrap();
        let error = load(&file, &LoadOptions::default(), &|| false).unwrap_err().to_string();
        assert!(error.ends_with("x.jsonl:1: not UTF-8 text after byte 10"));
    }

    #[test]
    fn a_template_is_filled_from_columns() {
        let template = PromptTemplate::parse("Q: {question}\n{context}A{{{n}}}: {answer}").unwrap();
        let options = LoadOptions { prompt_template: template, ..Default::default() };
        let row = r#"{"question": "why?", "context": null, "n": 2, "answer": "so"}"#;
        let data = folder(&[("d.jsonl", row)]);
        let rows = load(data.path(), &options, &|| false).unwrap();
        assert_eq!(rows[0].example.texts(), ["Q: why?\nA{2}: so"]);
        let missing = complaint(r#"{"question": "q", "context": "", "n": 1}"#, &options);
        assert_eq!(missing, "d.jsonl:1: no column `answer`, found question, context, n");
        let wrong = complaint(r#"{"question": ["q"]}"#, &options);
        assert_eq!(wrong, "d.jsonl:1: column `question` is a list, expected a text or a number");
    }

    #[test]
    fn a_template_must_have_a_placeholder() {
        for own in ["...", "", " … "] {
            assert_eq!(PromptTemplate::parse(own).unwrap(), None);
        }
        let error = |source: &str| PromptTemplate::parse(source).unwrap_err().to_string();
        assert_eq!(
            error("Answer:"),
            "prompt_template: it has no `{column}` placeholder, so every row would give the same text"
        );
        assert!(error("{{text}}").contains("no `{column}` placeholder"));
        assert_eq!(error("{text"), "prompt_template: `{text` is never closed (hint: write `{{` for a plain brace)");
        assert_eq!(
            error("a } {b}"),
            "prompt_template: a `}` without `{` at character 2 (hint: write `}}` for a plain brace)"
        );
        assert_eq!(error("{ }"), "prompt_template: `{ }` names no column");
    }
}
