//! What `ppo` and `grpo` share: both learn from what the model itself writes.
//!
//! | file | holds |
//! |---|---|
//! | `prompts` | the data's rows as tokens, and which of them are answered when |
//!
//! What a model writes depends on its weights and a seed alone: each completion's is drawn from the task's seed, the
//! number of the generation and its place in it. So a checkpoint needs no random state, only what was generated and is
//! still to be learnt from.

pub mod prompts;

use std::path::Path;

use mloc_burn::{
    formats::tokenizer::TextTokenizer,
    generate::{
        Limits, Sampler,
        many::{self, Continuation, GenerateError},
    },
    lora,
    model::{Decoder, weight::Held},
    random::Random,
};
use mloc_exec::{ModuleError, RunContext};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    base_model, fatal,
    reward::{self, Asked, Judges},
};
use prompts::Asking;

/// What is still to be learnt from, in each checkpoint.
const ROLLOUT: &str = "rollout.json";

/// What the trained model is held to, on its device: `model.reference`, or the model as it is before the first step. The
/// latter shares all weights that are not trained.
///
/// # Errors
/// Another vocabulary, and that it was asked to stop.
pub fn reference(ctx: &RunContext, policy: &Decoder, tokenizer: &TextTokenizer) -> Result<Decoder, ModuleError> {
    let Some(path) = ctx.run().inputs.reference.clone() else {
        // An adapter that was trained before is held to what it was; a fresh one changes nothing yet.
        return Ok(match ctx.run().inputs.adapter {
            None => lora::base_of(policy),
            Some(_) => policy.clone(),
        });
    };
    let found = base_model::load_held(ctx, &path, Held::F32, policy.device())?;
    found.must_be_a_language_model()?;
    if let Some(difference) = reward::other_tokens(tokenizer, &found.tokenizer) {
        return Err(fatal(format!(
            "model.reference: it is given the tokens of the trained model, and its vocabulary is another: {difference}"
        )));
    }
    Ok(found.model)
}

/// Continues prompts, `at_once` of them together.
///
/// # Errors
/// A prompt that the model cannot read, weights out of range, and that it was asked to stop.
pub fn generate(
    ctx: &RunContext,
    model: &Decoder,
    asking: &[Asking<'_>],
    sampler: Sampler,
    limits: &Limits,
    at_once: usize,
) -> Result<Vec<Continuation>, ModuleError> {
    let mut made = Vec::with_capacity(asking.len());
    for some in asking.chunks(at_once.max(1)) {
        let prompts: Vec<many::Prompt<'_>> =
            some.iter().map(|asking| many::Prompt { ids: &asking.prompt.ids, seed: asking.seed }).collect();
        let texts = many::generate_many(model, &prompts, sampler, limits, &|| ctx.stopping());
        made.extend(texts.map_err(|error| match error {
            GenerateError::Interrupted => ModuleError::Cancelled,
            GenerateError::NotFinite { .. } => fatal(format!("{error} (hint: lower the learning rate)")),
            GenerateError::Prompt { .. } => fatal(error),
        })?);
    }
    Ok(made)
}

/// What was written, as text without special tokens.
///
/// # Errors
/// The tokenizer's.
pub fn text_of(tokenizer: &TextTokenizer, completion: &[i64]) -> Result<String, ModuleError> {
    let ids: Vec<u32> = completion.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
    tokenizer.decode(&ids, true).map_err(fatal)
}

/// Has the completions of some prompts judged: their rewards, and their texts.
///
/// # Errors
/// Those of the functions, and that it was asked to stop.
pub fn judged(
    ctx: &RunContext,
    judges: &mut Judges,
    tokenizer: &TextTokenizer,
    asking: &[Asking<'_>],
    made: &[Continuation],
) -> Result<(reward::Rows, Vec<String>), ModuleError> {
    let texts = made.iter().map(|made| text_of(tokenizer, &made.ids)).collect::<Result<Vec<_>, _>>()?;
    let asked: Vec<Asked<'_>> = asking
        .iter()
        .zip(made.iter().zip(&texts))
        .map(|(asking, (made, text))| Asked {
            row: &asking.prompt.row,
            prompt: &asking.prompt.ids,
            completion: &made.ids,
            text,
        })
        .collect();
    Ok((judges.judge(ctx, &asked)?, texts))
}

/// The tokens that end a text of this model.
pub fn end_tokens(model: &Decoder, tokenizer: &TextTokenizer) -> Vec<i64> {
    let mut ends = model.config.eos_token_ids.clone();
    ends.extend(tokenizer.eos_id().map(i64::from).filter(|id| !ends.contains(id)));
    ends
}

/// The seed of the completion at a place of a generation.
pub fn seed_of(seed: u64, generation: u64, place: usize) -> u64 {
    Random::stream(seed, &format!("completion {place} of generation {generation}")).next_u64()
}

/// Puts what is still to be learnt from into a checkpoint's folder.
///
/// # Errors
/// Those of the disk.
pub fn save<T: Serialize>(folder: &Path, rollout: &Option<T>) -> Result<(), ModuleError> {
    let file = folder.join(ROLLOUT);
    let text = serde_json::to_vec(rollout).map_err(fatal)?;
    std::fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))
}

/// What [`save`] wrote.
///
/// # Errors
/// Those of the disk, and a file that is none of it.
pub fn load<T: DeserializeOwned>(folder: &Path) -> Result<Option<T>, ModuleError> {
    let file = folder.join(ROLLOUT);
    let text = std::fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
    serde_json::from_slice(&text).map_err(|e| fatal(format!("{}: {e}", file.display())))
}

/// Mean and unbiased standard deviation of the numbers that are there, for logs; 0 of too few.
pub fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count();
    let mean = values.clone().sum::<f64>() / count.max(1) as f64;
    let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / count.saturating_sub(1).max(1) as f64).sqrt())
}
