//! The data's rows as prompts in tokens, and which of them are answered when.

use mloc_burn::{
    formats::{
        dataset::{self, PromptRow},
        tokenizer::TextTokenizer,
    },
    model::Decoder,
    random::permutation,
};
use mloc_core::task::settings::Training;
use mloc_exec::{ModuleError, RunContext};
use serde_json::json;

use super::seed_of;
use crate::{
    fatal,
    finetune::{TEMPLATE_NOW_UNIX, data},
    origin::{self, Origin, Rows},
    unless_stopping,
};

/// A prompt in tokens.
pub struct Prompt {
    /// Its row.
    pub row: PromptRow,
    /// At least one token.
    pub ids: Vec<i64>,
}

/// A prompt that is answered once.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// What its answer is drawn with.
    pub seed: u64,
}

/// All prompts of a task, in an order.
pub struct Prompts {
    all: Vec<Prompt>,
    /// Whether each epoch has them in the order of the files.
    given_order: bool,
    seed: u64,
}

impl Prompts {
    /// Reads and tokenizes the task's data; prompts of more than `max_length` tokens are left out.
    ///
    /// # Errors
    /// The data's own, with file and line; too few rows; and that it was asked to stop.
    pub fn read(
        ctx: &mut RunContext,
        tokenizer: &TextTokenizer,
        model: &Decoder,
        settings: &Training,
        given_order: bool,
        longest_answer: usize,
    ) -> Result<Self, ModuleError> {
        let path = ctx.run().inputs.dataset.clone().ok_or_else(|| fatal("dataset.source was not pulled"))?;
        let options = data::load_options(ctx, data::Form::Examples)?;
        let rows = dataset::load_prompts(&path, &options, &|| ctx.stopping()).map_err(|e| unless_stopping(ctx, e))?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            ctx.check()?;
            let ids = row.prompt.tokens(tokenizer, TEMPLATE_NOW_UNIX).map_err(fatal)?;
            if ids.is_empty() {
                return Err(fatal(format!("{}: prompt {} has no tokens", path.display(), all.len() + 1)));
            }
            all.push(Prompt { row, ids });
        }
        if let Some(longest) = settings.max_length {
            let read = all.len();
            all.retain(|prompt| prompt.ids.len() <= longest);
            if all.len() < read {
                ctx.warn(format!(
                    "{} of {read} prompts are longer than max_length {longest} and left out",
                    read - all.len()
                ));
            }
        }
        let tokens: usize = all.iter().map(|prompt| prompt.ids.len()).sum();
        ctx.log(format!("training data: {} prompts, {tokens} tokens", all.len()));
        let made_for = model.config.max_position_embeddings;
        let too_long = all.iter().filter(|prompt| prompt.ids.len() + longest_answer > made_for).count();
        if too_long > 0 {
            ctx.warn(format!(
                "{too_long} prompts with answers of {longest_answer} tokens are longer than the {made_for} tokens that the \
                 model's positions are made for (max_position_embeddings)"
            ));
        }
        Ok(Self { all, given_order, seed: settings.seed })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Tokens of the longest.
    pub fn longest(&self) -> usize {
        self.all.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0)
    }

    /// The prompts of a generation: `count` of them, each `times` times in a row. An epoch has as many generations as there
    /// are whole ones; what is left over waits for another epoch's order.
    ///
    /// # Errors
    /// Fewer prompts than one generation needs.
    pub fn of(&self, generation: u64, count: usize, times: usize) -> Result<Vec<Asking<'_>>, ModuleError> {
        let in_epoch = self.generations(count)?;
        let (epoch, within) = (generation / in_epoch, (generation % in_epoch) as usize);
        let order = match self.given_order {
            true => (0..self.all.len()).collect(),
            false => permutation(self.all.len(), self.seed, epoch),
        };
        let chosen = order[within * count..][..count].iter().flat_map(|row| std::iter::repeat_n(*row, times));
        let asking = chosen
            .enumerate()
            .map(|(place, row)| Asking { prompt: &self.all[row], seed: seed_of(self.seed, generation, place) });
        Ok(asking.collect())
    }

    /// Generations in an epoch.
    ///
    /// # Errors
    /// Fewer prompts than one needs.
    pub fn generations(&self, count: usize) -> Result<u64, ModuleError> {
        match self.all.len() / count.max(1) {
            0 => Err(fatal(format!(
                "dataset.source: {} prompts, and {count} are answered together: give more, or make batches smaller",
                self.all.len()
            ))),
            whole => Ok(whole as u64),
        }
    }

    /// What a resumed run must find as it was.
    ///
    /// # Errors
    /// That it was asked to stop.
    pub fn origin(&self, ctx: &RunContext, model: &Decoder, beside: &[&Decoder]) -> Result<Origin, ModuleError> {
        let bytes = |prompt: &Prompt| Ok(format!("{}\n", json!([prompt.ids, prompt.row.columns])).into_bytes());
        Ok(Origin {
            training: Rows::of(ctx, self.all.iter().map(bytes))?,
            held_out: Rows::of(ctx, std::iter::empty())?,
            model: origin::digest_of(ctx, model)?,
            beside: origin::digest_of_all(ctx, beside)?,
        })
    }
}
