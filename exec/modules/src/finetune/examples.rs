//! Rows in tokens, as language models are trained on them: `sft` and `pretrain`.

use std::{collections::BTreeMap, sync::Arc};

use mloc_burn::{
    batch::Batch,
    formats::{
        dataset::{self, DatasetError, Packing, Selection, TokenizeOptions, TokenizedExample, Truncation},
        tokenizer::TextTokenizer,
    },
    model::Decoder,
    objective::CrossEntropy,
};
use mloc_core::task::settings::{self, Training};
use mloc_exec::{ModuleError, Output, RunContext};
use serde_json::Value;

use super::{
    TEMPLATE_NOW_UNIX,
    data::{self, Form, HELD_OUT, Source, TRAINING},
    over_data::{Data, Recipe, Sample, Samples},
};
use crate::unless_stopping;

/// Samples of examples in a file.
pub struct Stored(dataset::Samples);

/// The sequences of a sample: one, or those packed into it.
pub struct Sequences(Vec<TokenizedExample>);

impl Samples for Stored {
    type Sample = Sequences;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn get(&self, number: usize) -> Result<Sequences, ModuleError> {
        // The file is this attempt's own: what cannot be read now may be read by the next one.
        self.0.read(number).map(Sequences).map_err(|e| ModuleError::Retryable(e.to_string()))
    }
}

impl Sample for Sequences {
    fn rows(&self) -> Vec<usize> {
        self.0.iter().map(TokenizedExample::len).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for sequence in &self.0 {
            // The length first: where a row ends matters too.
            bytes.extend((sequence.len() as u64).to_le_bytes());
            bytes.extend(sequence.input_ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(sequence.labels.iter().flat_map(|label| label.to_le_bytes()));
        }
        bytes
    }
}

/// The recipe of language models: cross-entropy over the targets of examples. `export` writes what is published.
pub struct Examples<E> {
    pad_id: i64,
    objective: CrossEntropy,
    export: E,
}

impl<E> Examples<E>
where
    E: Fn(&mut RunContext, &Decoder) -> Result<Vec<Output>, ModuleError>,
{
    /// Batches are padded as the tokenizer pads.
    pub fn new(tokenizer: &TextTokenizer, settings: &Training, export: E) -> Self {
        let objective = CrossEntropy { label_smoothing: settings.label_smoothing_factor };
        Self { pad_id: tokenizer.pad_id().map_or(0, i64::from), objective, export }
    }
}

impl<E> Recipe for Examples<E>
where
    E: Fn(&mut RunContext, &Decoder) -> Result<Vec<Output>, ModuleError>,
{
    type Samples = Stored;
    type Objective = CrossEntropy;

    fn objective(&self) -> &CrossEntropy {
        &self.objective
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        [("label_smoothing_factor".to_owned(), self.objective.label_smoothing.into())].into()
    }

    fn batch(&self, samples: &[Sequences]) -> Batch {
        // Packed ones are rows of their own: no token sees one of another row, and padding is never computed on.
        let rows = samples.iter().flat_map(|sample| &sample.0).map(TokenizedExample::row);
        Batch::collate(&rows.collect::<Vec<_>>(), self.pad_id)
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        (self.export)(ctx, model)
    }
}

/// Reads and tokenizes the data to train on and to measure on, into files of this attempt's own: neither is held. `model` is
/// the one that is to learn them.
///
/// # Errors
/// The data's own errors, with file and line; that nothing is left to train on; and that it was asked to stop.
pub fn data(
    ctx: &mut RunContext,
    tokenizer: &TextTokenizer,
    model: &Decoder,
    settings: &Training,
) -> Result<Data<Stored>, ModuleError> {
    let reading = Reading { tokenizer, settings, vocab_size: model.config.vocab_size };
    let source = data::training_source(ctx, Form::Examples)?;
    let all = reading.tokenize(ctx, &source, TRAINING)?;
    let (train, held_out) = match data::held_out_of(ctx, all.len())? {
        Some(held_out) => {
            let (train, held_out) = all.split(held_out, settings.seed);
            ctx.log(format!("{HELD_OUT} data: {} of {} samples, picked by the seed", held_out.len(), all.len()));
            (train, Some(held_out))
        }
        None => {
            let source = data::held_out_source(ctx, Form::Examples)?;
            let held_out = source.map(|source| reading.tokenize(ctx, &source, HELD_OUT)).transpose()?;
            (all, held_out)
        }
    };
    let eval = match held_out {
        Some(held_out) => reading.arrange(ctx, held_out, HELD_OUT, settings.eval_packing)?,
        // Samples of no example.
        None => Stored(train.split(0, settings.seed).1.samples()),
    };
    Ok(Data { train: reading.arrange(ctx, train, TRAINING, settings.packing)?, eval })
}

/// How rows become samples.
struct Reading<'a> {
    tokenizer: &'a TextTokenizer,
    settings: &'a Training,
    vocab_size: usize,
}

impl Reading<'_> {
    /// Whether samples are brought to length when they are arranged, and not before.
    fn cut_later(&self) -> bool {
        self.settings.packing.is_some() || self.settings.eval_packing.is_some()
    }

    /// All rows of some data in tokens; those without a target are left out.
    fn tokenize(&self, ctx: &mut RunContext, source: &Source, what: &str) -> Result<Selection, ModuleError> {
        let options = TokenizeOptions {
            max_length: self.settings.max_length.filter(|_| !self.cut_later()),
            truncation: truncation(self.settings),
            completion_only: self.settings.completion_only_loss,
            assistant_only: self.settings.assistant_only_loss,
            vocab_size: Some(self.vocab_size),
            now_unix: TEMPLATE_NOW_UNIX,
        };
        let folder = ctx.run().work.join(format!("{what}-tokens"));
        let tokenized = dataset::tokenize_files(
            &source.path,
            &source.options,
            self.tokenizer,
            options,
            &folder,
            &mut data::watch(ctx, what),
        );
        let (file, counts, read) = tokenized.map_err(|e| unless_stopping(ctx, e))?;
        data::log_read(ctx, what, &source.options, &counts.forms, read);
        let why = "all their tokens are given and none is to be learnt, as where a prompt alone fills max_length, or there \
                   are fewer than two";
        if file.is_empty() {
            return Err(ModuleError::Fatal(format!(
                "{}: none of {} samples has a target: {why}{}",
                source.path.display(),
                counts.rows,
                length_hint(self.settings)
            )));
        }
        ctx.log(format!("{what} data: {} samples, {} tokens", file.len(), file.tokens()));
        self.warn_of_cut(ctx, what, counts.truncated);
        if counts.without_target > 0 {
            ctx.warn(format!(
                "{what} data: {} of {} samples have no target and are left out: {why}{}",
                counts.without_target,
                counts.rows,
                length_hint(self.settings)
            ));
        }
        if counts.diverging > 0 {
            ctx.warn(format!(
                "{what} data: {} prompts have other tokens by themselves than before their completion: what is learnt \
                 begins where the two differ, a little before the completion\nhint: end prompts where a token ends, or use \
                 a chat template that begins an answer as it continues one",
                counts.diverging
            ));
        }
        Ok(Selection::of(Arc::new(file)))
    }

    /// What is stored as samples, packed or not.
    fn arrange(
        &self,
        ctx: &mut RunContext,
        examples: Selection,
        what: &str,
        packing: Option<settings::Packing>,
    ) -> Result<Stored, ModuleError> {
        let examples = if self.settings.shuffle_dataset { examples.shuffled(self.settings.seed) } else { examples };
        let (Some(longest), true) = (self.settings.max_length, self.cut_later()) else {
            return Ok(Stored(examples.samples()));
        };
        let count = examples.len();
        let disk = |e: DatasetError| ModuleError::Retryable(e.to_string());
        let Some(packing) = packing else {
            let (samples, cut) = examples.cut(longest, truncation(self.settings)).map_err(disk)?;
            self.warn_of_cut(ctx, what, cut);
            return Ok(Stored(samples));
        };
        let packing = match packing {
            settings::Packing::Bfd => Packing::BestFit,
            settings::Packing::BfdSplit => Packing::BestFitSplit,
            settings::Packing::Wrapped => Packing::Wrapped,
        };
        let (samples, cut) = examples.packed(packing, longest).map_err(disk)?;
        ctx.log(format!("{what} data: {count} samples are packed into {} of at most {longest} tokens", samples.len()));
        self.warn_of_cut(ctx, what, cut);
        Ok(Stored(samples))
    }

    fn warn_of_cut(&self, ctx: &mut RunContext, what: &str, cut: usize) {
        if cut > 0 {
            let longest = self.settings.max_length.unwrap_or_default();
            ctx.warn(format!("{what} data: {cut} samples were cut to max_length {longest}"));
        }
    }
}

fn truncation(settings: &Training) -> Truncation {
    match settings.truncation {
        settings::Truncation::KeepStart => Truncation::KeepStart,
        settings::Truncation::KeepEnd => Truncation::KeepEnd,
    }
}

fn length_hint(settings: &Training) -> String {
    let hint = |longest| format!("\nhint: max_length is {longest}: a larger one leaves room for what is to be learnt");
    settings.max_length.map(hint).unwrap_or_default()
}
