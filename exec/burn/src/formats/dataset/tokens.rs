//! Examples become token ids and labels.

use super::{DatasetError, Example, IGNORED, MAX_PROBLEMS, Preference, Row, Sides};
use crate::formats::chat_template::{Conversation, RenderOptions};
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};

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
        // As a text that is preferred: what a pair's chosen side is by itself.
        Example::Preference(Preference { sides: Sides::Texts { prompt, chosen, .. }, .. }) => {
            let whole = with_end(&format!("{prompt}{chosen}"), tokenizer);
            (tokenizer.encode(prompt, true)?.len(), tokenizer.encode(&whole, true)?)
        }
        Example::Preference(Preference { sides: Sides::Messages { prompt, chosen, .. }, .. }) => {
            (chat(prompt, true)?.len(), chat(&prompt.followed_by(chosen), false)?)
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
pub(super) fn with_end(text: &str, tokenizer: &TextTokenizer) -> String {
    match tokenizer.special_token("eos_token") {
        Some(end) if !text.ends_with(end) => format!("{text}{end}"),
        _ => text.to_owned(),
    }
}
