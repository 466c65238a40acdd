//! Prompts that a model is to answer itself, with the other columns of their rows for whoever judges the answers.

use std::path::Path;
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{DatasetError, LoadOptions, MAX_PROBLEMS, RowProblem, example, files, read};
use crate::formats::chat_template::{Conversation, RenderOptions};
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};

/// A prompt and its row.
#[derive(Debug, Clone)]
pub struct PromptRow {
    /// What is asked.
    pub prompt: Prompt,
    /// Every column but `prompt`.
    pub columns: Map<String, Json>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A text to go on from.
    Text(String),
    /// A conversation to be answered.
    Messages(Conversation),
}

impl Prompt {
    /// Its tokens: of a text with what the tokenizer adds, of a conversation up to where the answer begins.
    ///
    /// # Errors
    /// The chat template's refusal, or the tokenizer's.
    pub fn tokens(&self, tokenizer: &TextTokenizer, now_unix: i64) -> Result<Vec<i64>, TokenizerError> {
        let ids = match self {
            Self::Text(text) => tokenizer.encode(text, true)?,
            Self::Messages(talk) => {
                tokenizer.encode_chat(talk, RenderOptions { add_generation_prompt: true, now_unix })?
            }
        };
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// As a data set has it: a text, or a list of messages.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Text(text) => Json::from(text.as_str()),
            Self::Messages(talk) => {
                let message = |(role, content): (String, String)| serde_json::json!({"role": role, "content": content});
                talk.turns().into_iter().map(message).collect()
            }
        }
    }
}

/// Reads the rows of a file or folder as [`super::load`] does: each has a `prompt`, a text or a list of messages, or with a
/// prompt template the columns that it names.
///
/// # Errors
/// As there.
pub fn load_prompts(
    path: &Path,
    options: &LoadOptions,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<PromptRow>, DatasetError> {
    let (mut rows, mut problems, mut total) = (Vec::new(), Vec::new(), 0);
    for (files, wanted) in files::wanted(path, options.split.as_deref())? {
        let mut at = 0;
        for file in files {
            for raw in read::rows(&file, &Arc::default())? {
                if stop() {
                    return Err(DatasetError::Interrupted);
                }
                let raw = raw?;
                let here = at;
                at += 1;
                if !wanted.contains(&here) {
                    continue;
                }
                match raw.value.and_then(|value| prompt_of(&value, options)) {
                    Ok(row) => rows.push(row),
                    Err(problem) => {
                        total += 1;
                        if problems.len() < MAX_PROBLEMS {
                            problems.push(RowProblem { path: file.clone(), line: raw.line, problem });
                        }
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

fn prompt_of(row: &Value, options: &LoadOptions) -> Result<PromptRow, String> {
    let renamed = example::renamed(row, options)?;
    let row = renamed.as_ref().unwrap_or(row);
    let json = serde_json::to_value(row).map_err(|e| e.to_string())?;
    let Json::Object(mut columns) = json else {
        return Err(format!("expected a JSON object, found {}", example::kind_of(row)));
    };
    if let Some(template) = &options.prompt_template {
        return Ok(PromptRow { prompt: Prompt::Text(template.fill(row)?), columns });
    }
    let value = row.get_attr("prompt").unwrap_or_default();
    let prompt = match value.as_str() {
        Some(text) => Prompt::Text(text.to_owned()),
        None if value.is_undefined() => {
            let hint = "a row has `prompt`, a text or a list of messages (hint: set prompt_template to build one from other \
                        columns)";
            return Err(format!("{}; {hint}", example::missing("prompt", row)));
        }
        None => {
            let talk = Conversation::from_value(&value).map_err(|e| {
                let text = e.to_string();
                format!("column `prompt`: {}", text.strip_prefix("messages: ").unwrap_or(&text))
            })?;
            Prompt::Messages(example::surrounded(talk, row)?)
        }
    };
    columns.shift_remove("prompt");
    Ok(PromptRow { prompt, columns })
}
