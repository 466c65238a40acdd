//! What a model does before training and after: the loss on held-out data, and answers to prompts.

use mloc_burn::{
    formats::{
        chat_template::{Conversation, RenderOptions},
        tokenizer::TextTokenizer,
    },
    generate::{self, Limits, Sampling},
    model::Decoder,
    objective::{Evaluate, Evaluation, Figures},
};
use mloc_core::task::settings::Training;
use mloc_exec::{ModuleError, RunContext};

use super::{TEMPLATE_NOW_UNIX, method::When, session::training_error};
use crate::fatal;

/// Loss and figures over held-out batches, each the mean of the batches' means, as the reference has it.
///
/// # Errors
/// What `batches` says, a loss that is no number, and that it was asked to stop.
pub fn held_out<O: Evaluate>(
    ctx: &mut RunContext,
    objective: &O,
    model: &O::Model,
    batches: impl Iterator<Item = Result<O::Batch, ModuleError>>,
    when: When,
) -> Result<(f64, Figures), ModuleError> {
    let mut sums = Evaluation::default();
    for batch in batches {
        ctx.check()?;
        let batch = objective.evaluate(model, &batch?).map_err(training_error)?;
        // What had nothing to be measured on counts for nothing.
        if batch.weight > 0.0 {
            let (loss, figures) = batch.means();
            sums.add(Evaluation::of_mean(1.0, loss, figures));
        }
    }
    let (loss, figures) = sums.means();
    let words = when.words();
    if !loss.is_finite() {
        return Err(ModuleError::Fatal(format!(
            "the loss on held-out data {words} is {loss}: the model's weights are out of range (hint: {})",
            match when {
                When::Step(_) | When::After => "lower the learning rate",
                When::Before => "look at model.source: it is broken as it stands",
            }
        )));
    }
    ctx.log(format!("loss on held-out data {words}: {loss:.4}"));
    Ok((loss, figures))
}

/// The likeliest answer to each of the task's prompts.
///
/// # Errors
/// A prompt that the template or the tokenizer refuses, and that it was asked to stop.
pub fn answers(
    ctx: &mut RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
    settings: &Training,
    when: When,
) -> Result<Vec<String>, ModuleError> {
    let mut answers = Vec::new();
    for prompt in &settings.generation_prompts {
        let answer = answer(ctx, model, tokenizer, prompt, settings.generation_max_new_tokens)?;
        ctx.log(format!("{prompt} → {}: {answer}", when.words()));
        answers.push(answer);
    }
    Ok(answers)
}

fn answer(
    ctx: &RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
    prompt: &str,
    max_new_tokens: usize,
) -> Result<String, ModuleError> {
    let ids = if tokenizer.chat_template().is_some() {
        let talk = Conversation::from_turns([("user", prompt)]);
        tokenizer.encode_chat(&talk, RenderOptions { add_generation_prompt: true, now_unix: TEMPLATE_NOW_UNIX })
    } else {
        tokenizer.encode(prompt, true)
    };
    let ids: Vec<i64> = ids.map_err(fatal)?.into_iter().map(i64::from).collect();
    let mut stop_ids = model.config.eos_token_ids.clone();
    stop_ids.extend(tokenizer.eos_id().map(i64::from));
    stop_ids.extend(tokenizer.token_id("<|im_end|>").map(i64::from));
    let limits = Limits { max_new_tokens, stop_ids: stop_ids.clone() };
    let new = generate::generate(model, &ids, Sampling::Greedy, &limits, |_| !ctx.stopping());
    ctx.check()?;
    let text: Vec<u32> =
        new.iter().filter(|id| !stop_ids.contains(id)).filter_map(|id| u32::try_from(*id).ok()).collect();
    tokenizer.decode(&text, true).map_err(fatal)
}
