//! What a model is rewarded for: the functions of a task's `reward`, in their order.
//!
//! | file | holds |
//! |---|---|
//! | `judge` | functions that look at a text |
//! | `program` | a program of the user's own, asked a batch at a time |

mod judge;
mod program;

use mloc_burn::{
    formats::{dataset::PromptRow, tokenizer::TextTokenizer},
    model::{Decoder, weight::Held},
    rl::completions::{self, Text},
};
use mloc_core::task::reward::{Judge, Reward};
use mloc_exec::{ModuleError, RunContext};
use serde_json::{Value, json};

use self::program::Program;
use crate::{base_model, fatal, finetune::session::training_error};

/// A completion to be judged.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Its prompt with the other columns of its row.
    pub row: &'a PromptRow,
    /// The prompt's tokens.
    pub prompt: &'a [i64],
    /// Its own tokens; the one that ended it is the last.
    pub completion: &'a [i64],
    /// Its text, without special tokens.
    pub text: &'a str,
}

/// A row for each completion, a number for each function; `None` where a function has nothing to say.
pub type Rows = Vec<Vec<Option<f64>>>;

/// The reward functions of a task.
pub struct Judges {
    each: Vec<(String, Function)>,
    /// The reward model, where the task has one.
    model: Option<Decoder>,
    /// Completions in one of its forward passes.
    at_once: usize,
}

enum Function {
    Text(judge::OfText),
    Model,
    Program(Program),
}

impl Judges {
    /// Gets the functions ready: loads the reward model, whose tokens must be those of `tokenizer`, and starts programs.
    ///
    /// # Errors
    /// A model that is none for rewards or speaks other tokens, a node that runs no programs, and that it was asked to
    /// stop.
    pub fn of(
        ctx: &mut RunContext,
        reward: &Reward,
        tokenizer: &TextTokenizer,
        at_once: usize,
    ) -> Result<Self, ModuleError> {
        let mut each = Vec::with_capacity(reward.funcs.len());
        for func in &reward.funcs {
            let function = match &func.judge {
                Judge::Model => Function::Model,
                Judge::Command { argv } => Function::Program(Program::start(ctx, &func.name, argv, reward)?),
                text => Function::Text(judge::OfText::of(text).map_err(fatal)?),
            };
            each.push((func.name.clone(), function));
        }
        let model = match reward.model {
            Some(_) => Some(load_model(ctx, tokenizer)?),
            None => None,
        };
        Ok(Self { each, model, at_once })
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.each.iter().map(|(name, _)| name.as_str())
    }

    /// The reward model.
    pub fn model(&self) -> Option<&Decoder> {
        self.model.as_ref()
    }

    /// What the functions say of completions.
    ///
    /// # Errors
    /// A reward that is no number, a program that fails, and that it was asked to stop.
    pub fn judge(&mut self, ctx: &RunContext, asked: &[Asked<'_>]) -> Result<Rows, ModuleError> {
        let mut rows = vec![Vec::with_capacity(self.each.len()); asked.len()];
        for (name, function) in &mut self.each {
            ctx.check()?;
            let rewards = match function {
                Function::Text(of_text) => asked.iter().map(|asked| of_text.judge(asked)).collect::<Result<_, _>>(),
                Function::Model => model_says(ctx, self.model.as_ref(), asked, self.at_once),
                Function::Program(program) => program.ask(ctx, &question(asked), asked.len()),
            };
            let rewards: Vec<Option<f64>> = rewards.map_err(|error| match error {
                ModuleError::Fatal(said) => ModuleError::Fatal(format!("reward function `{name}`: {said}")),
                other => other,
            })?;
            for ((row, reward), asked) in rows.iter_mut().zip(rewards).zip(asked) {
                if reward.is_some_and(|reward| !reward.is_finite()) {
                    return Err(ModuleError::Fatal(format!(
                        "reward function `{name}`: it says {} of the completion {:?}: a reward is a finite number, or null \
                         where the function has nothing to say",
                        reward.unwrap_or_default(),
                        asked.text
                    )));
                }
                row.push(reward);
            }
        }
        Ok(rows)
    }
}

/// What a program is asked: names as TRL hands them to a reward function.
fn question(asked: &[Asked<'_>]) -> Value {
    let mut columns = serde_json::Map::new();
    for name in asked.iter().flat_map(|asked| asked.row.columns.keys()) {
        if !columns.contains_key(name) {
            let of = |asked: &Asked<'_>| asked.row.columns.get(name).cloned().unwrap_or_default();
            columns.insert(name.clone(), asked.iter().map(of).collect());
        }
    }
    let prompts: Vec<Value> = asked.iter().map(|asked| asked.row.prompt.to_json()).collect();
    // Who asked in messages is answered in messages.
    let completion = |(asked, prompt): (&Asked<'_>, &Value)| match prompt {
        Value::Array(_) => json!([{ "role": "assistant", "content": asked.text }]),
        _ => json!(asked.text),
    };
    let completions: Vec<Value> = asked.iter().zip(&prompts).map(completion).collect();
    let ids: Vec<&[i64]> = asked.iter().map(|asked| asked.completion).collect();
    json!({ "prompts": prompts, "completions": completions, "completion_ids": ids, "columns": columns })
}

fn model_says(
    ctx: &RunContext,
    model: Option<&Decoder>,
    asked: &[Asked<'_>],
    at_once: usize,
) -> Result<Vec<Option<f64>>, ModuleError> {
    let model = model.ok_or_else(|| fatal("there is no reward model"))?;
    let texts: Vec<Text<'_>> =
        asked.iter().map(|asked| Text { prompt: asked.prompt, completion: asked.completion }).collect();
    let rewards = completions::rewards(model, &texts, at_once, &|| ctx.stopping()).map_err(training_error)?;
    Ok(rewards.into_iter().map(Some).collect())
}

/// The reward model, which is given the policy's own tokens.
fn load_model(ctx: &mut RunContext, tokenizer: &TextTokenizer) -> Result<Decoder, ModuleError> {
    let path = ctx.run().inputs.reward.clone();
    let path = path.ok_or_else(|| fatal("reward.model.source was not pulled"))?;
    classifier(ctx, "reward.model", &path, tokenizer)
}

/// A classifier of one label that reads the tokens of `tokenizer`. `what` names it in messages.
///
/// # Errors
/// Another kind of model, other tokens, and that it was asked to stop.
pub fn classifier(
    ctx: &RunContext,
    what: &str,
    path: &std::path::Path,
    tokenizer: &TextTokenizer,
) -> Result<Decoder, ModuleError> {
    let device = base_model::open_device(ctx)?;
    let found = base_model::load_held(ctx, path, Held::F32, &device).map_err(|error| match error {
        ModuleError::Fatal(said) => ModuleError::Fatal(format!("{what}: {said}")),
        other => other,
    })?;
    let config = &found.model.config;
    if config.num_labels != Some(1) {
        let has = match config.num_labels {
            Some(labels) => format!("{labels} labels"),
            None => "a head over the vocabulary".to_owned(),
        };
        return Err(ModuleError::Fatal(format!(
            "{what}: {} has {has}, expected a score head of one label (hint: `taskType: rm` makes one)",
            config.architecture
        )));
    }
    if let Some(difference) = other_tokens(tokenizer, &found.tokenizer) {
        return Err(ModuleError::Fatal(format!(
            "{what}: it is given the tokens of the trained model, and its vocabulary is another: {difference}\nhint: use one \
             that was made from the same base model"
        )));
    }
    Ok(found.model)
}

/// The first token that two tokenizers read differently, for people.
pub fn other_tokens(ours: &TextTokenizer, theirs: &TextTokenizer) -> Option<String> {
    let (our_size, their_size) = (ours.vocab_size(), theirs.vocab_size());
    for id in 0..u32::try_from(our_size.min(their_size)).unwrap_or(u32::MAX) {
        let (our, their) = (ours.token_text(id), theirs.token_text(id));
        if our != their {
            let shown = |text: Option<String>| text.map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"));
            return Some(format!("token {id} is {} there and {} here", shown(their), shown(our)));
        }
    }
    (our_size > their_size).then(|| format!("it has {their_size} tokens, the trained model has {our_size}"))
}
