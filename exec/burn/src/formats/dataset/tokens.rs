//! Examples become token ids and labels.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use super::{
    DatasetError, Example, IGNORED, LoadOptions, MAX_PROBLEMS, Preference, ReadSoFar, Row, Sides, TokenFile,
    TokenWriter, for_each,
};
use crate::formats::chat_template::{Conversation, RenderOptions};
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};

/// Which end of an example stays when it is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// Its beginning.
    #[default]
    KeepStart,
    /// Its end.
    KeepEnd,
}

/// How examples become tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizeOptions {
    /// Longest row in tokens; what is past it is cut off.
    pub max_length: Option<usize>,
    /// Where it is cut off.
    pub truncation: Truncation,
    /// Learn only the completion (for `messages`: the last message). Absent: yes for prompt and completion, no for
    /// `messages` and `text`.
    pub completion_only: Option<bool>,
    /// Learn only what the chat template marks as the assistant's with `{% generation %}`.
    pub assistant_only: bool,
    /// Rows of the model's embedding: an id past them is an error of the row that has it.
    pub vocab_size: Option<usize>,
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

/// What happened on the way from rows to tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many rows there were.
    pub rows: usize,
    /// How many rows were cut to the longest length.
    pub truncated: usize,
    /// How many rows have no target left, and so teach nothing.
    pub without_target: usize,
    /// How many prompts have other tokens by themselves than before their completion: what is learnt begins where the
    /// two differ, a little before the completion.
    pub diverging: usize,
    /// What forms the rows had, for people.
    pub forms: BTreeSet<&'static str>,
}

/// A data set in tokens, and what happened on the way.
#[derive(Debug, Clone, Default)]
pub struct TokenizedDataset {
    /// One a row, in order.
    pub examples: Vec<TokenizedExample>,
    /// What happened.
    pub counts: Counts,
}

/// Tokenizes all rows, and holds them. Before each `stop` is asked whether to give up.
///
/// # Errors
/// [`DatasetError::Rows`] for rows that the chat template or the tokenizer refuses.
pub fn tokenize_all(
    rows: &[Row],
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
    stop: &dyn Fn() -> bool,
) -> Result<TokenizedDataset, DatasetError> {
    check(tokenizer, options)?;
    let mut out = TokenizedDataset::default();
    let mut problems = Vec::new();
    let mut total = 0;
    for row in rows {
        if stop() {
            return Err(DatasetError::Interrupted);
        }
        match counted(&row.example, tokenizer, options, &mut out.counts) {
            Ok(example) => out.examples.push(example),
            Err(problem) => {
                total += 1;
                if problems.len() < MAX_PROBLEMS {
                    problems.push(row.problem(problem));
                }
            }
        }
    }
    if total > 0 {
        return Err(DatasetError::Rows { problems, total });
    }
    Ok(out)
}

/// Tokenizes a file or folder of any size into `folder`, a row at a time. Examples without a target are left out. Before
/// each row `stop` hears how far it is and may end it all.
///
/// # Errors
/// Those of [`for_each`], rows that the chat template or the tokenizer refuses among them, and those of the disk.
pub fn tokenize_files(
    path: &Path,
    load: &LoadOptions,
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
    folder: &Path,
    stop: &mut dyn FnMut(ReadSoFar) -> bool,
) -> Result<(TokenFile, Counts, ReadSoFar), DatasetError> {
    check(tokenizer, options)?;
    let mut writer = TokenWriter::create(folder)?;
    let mut counts = Counts::default();
    // The disk's error is no complaint about the row: it ends the reading.
    let failed = RefCell::new(None);
    let mut over = |so_far| failed.borrow().is_some() || stop(so_far);
    let read = for_each(path, load, &mut over, &mut |row| {
        let example = counted(&row.example, tokenizer, options, &mut counts)?;
        if example.num_targets() > 0 {
            *failed.borrow_mut() = writer.push(&example).err();
        }
        Ok(())
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok((writer.finish()?, counts, read?)),
    }
}

/// What no row can mend.
fn check(tokenizer: &TextTokenizer, options: TokenizeOptions) -> Result<(), DatasetError> {
    let template = tokenizer.chat_template().filter(|_| options.assistant_only);
    match template {
        Some(template) if !template.marks_answers() => Err(DatasetError::Unfit(
            "assistant_only_loss: the chat template does not say which part the assistant's is: it has no `{% generation %}` \
             block (hint: give a template with {% generation %} before and {% endgeneration %} after an answer and the token \
             that ends it as dataset.preprocessing.chat_template; or use prompt and completion with completion_only_loss)"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

fn counted(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
    counts: &mut Counts,
) -> Result<TokenizedExample, String> {
    counts.rows += 1;
    counts.forms.insert(example.form());
    let (mut example, diverges) = whole(example, tokenizer, options).map_err(|e| e.to_string())?;
    if let Some(size) = options.vocab_size
        && let Some(id) = example.input_ids.iter().find(|id| **id as usize >= size)
    {
        let token = tokenizer.token_text(*id).unwrap_or_default();
        return Err(format!(
            "token `{token}` has the id {id}, and the model's vocabulary has {size}: the tokenizer is not this model's"
        ));
    }
    counts.truncated += usize::from(cut(&mut example, options));
    counts.without_target += usize::from(example.num_targets() == 0);
    counts.diverging += usize::from(diverges);
    Ok(example)
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
    let (mut example, _) = whole(example, tokenizer, options)?;
    cut(&mut example, options);
    Ok(example)
}

/// An example at its full length, and whether its prompt has other tokens by itself.
fn whole(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: TokenizeOptions,
) -> Result<(TokenizedExample, bool), TokenizerError> {
    let render = |add_generation_prompt| RenderOptions { add_generation_prompt, now_unix: options.now_unix };
    let chat = |talk: &Conversation| match options.assistant_only {
        true => tokenizer.encode_chat_marked(talk, render(false)),
        false => tokenizer.encode_chat(talk, render(false)).map(|ids| (ids, Vec::new())),
    };
    // The tokens of what is given and not learnt, all tokens, and which of them are the assistant's.
    let (prompt, (input_ids, answers)) = match example {
        Example::Text(text) => (Vec::new(), (tokenizer.encode(&with_end(text, tokenizer), true)?, Vec::new())),
        Example::Messages(talk) => {
            let prompt = match talk.split_last() {
                Some((prompt, _)) if options.completion_only == Some(true) => {
                    tokenizer.encode_chat(&prompt, render(true))?
                }
                _ => Vec::new(),
            };
            (prompt, chat(talk)?)
        }
        // A pair's chosen side by itself.
        Example::Preference(Preference { sides: Sides::Texts { prompt, chosen: completion, .. }, .. })
        | Example::Continuation { prompt, completion } => {
            let whole = with_end(&format!("{prompt}{completion}"), tokenizer);
            (tokenizer.encode(prompt, true)?, (tokenizer.encode(&whole, true)?, Vec::new()))
        }
        Example::Preference(Preference { sides: Sides::Messages { prompt, chosen: completion, .. }, .. })
        | Example::Answer { prompt, completion } => {
            (tokenizer.encode_chat(prompt, render(true))?, chat(&prompt.followed_by(completion))?)
        }
        Example::Instruction { system, instruction, input, output } => {
            return whole(&instructed(tokenizer, [system, instruction, input], output), tokenizer, options);
        }
    };
    let talks = matches!(example, Example::Messages(_) | Example::Answer { .. });
    if options.assistant_only && !answers.contains(&true) {
        return Err(TokenizerError::Use(match talks {
            true => "assistant_only_loss: the chat template marks no token of this row as the assistant's".to_owned(),
            false => format!("assistant_only_loss is for messages, and this row is {}", example.form()),
        }));
    }
    let common = prompt.iter().zip(&input_ids).take_while(|(a, b)| a == b).count();
    let given = if options.completion_only == Some(false) { 0 } else { common };
    let learnt = |i: usize| i >= given && answers.get(i).copied().unwrap_or(true);
    let labels = input_ids.iter().enumerate();
    let labels = labels.map(|(i, id)| if learnt(i) { i64::from(*id) } else { IGNORED }).collect();
    Ok((TokenizedExample { input_ids, labels }, common < prompt.len()))
}

/// Alpaca's columns in the model's own format where it has one, else in the words that they were made for
/// (<https://github.com/tatsu-lab/stanford_alpaca>).
fn instructed(tokenizer: &TextTokenizer, given: [&String; 3], output: &str) -> Example {
    let [system, instruction, input] = given.map(String::as_str);
    if tokenizer.chat_template().is_some() {
        let question = if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n\n{input}") };
        let before = [("system", system), ("user", question.as_str())];
        let prompt =
            Conversation::from_turns(before.into_iter().filter(|(role, text)| *role == "user" || !text.is_empty()));
        return Example::Answer { prompt, completion: Conversation::from_turns([("assistant", output)]) };
    }
    let (paired, input) = match input {
        "" => ("", String::new()),
        input => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
    };
    let opening = match system {
        "" => format!(
            "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
        ),
        system => system.to_owned(),
    };
    let prompt = format!("{opening}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n");
    Example::Continuation { prompt, completion: output.to_owned() }
}

/// Cuts an example to its bound, and says whether it was longer.
fn cut(example: &mut TokenizedExample, options: TokenizeOptions) -> bool {
    let Some(longest) = options.max_length.filter(|longest| example.len() > *longest) else { return false };
    match options.truncation {
        Truncation::KeepStart => {
            example.input_ids.truncate(longest);
            example.labels.truncate(longest);
        }
        Truncation::KeepEnd => {
            let over = example.len() - longest;
            example.input_ids.drain(..over);
            example.labels.drain(..over);
        }
    }
    true
}

/// Plain text has no template to end it, and a model that never saw an end never stops.
pub(super) fn with_end(text: &str, tokenizer: &TextTokenizer) -> String {
    match tokenizer.special_token("eos_token") {
        Some(end) if !text.ends_with(end) => format!("{text}{end}"),
        _ => text.to_owned(),
    }
}
