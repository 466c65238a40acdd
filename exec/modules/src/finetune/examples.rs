//! Rows in tokens, as language models are trained on them: `sft` and `pretrain`.

use std::collections::BTreeMap;

use mloc_burn::{
    batch::Batch,
    formats::{
        dataset::{self, Row, TokenizeOptions, TokenizedExample},
        tokenizer::TextTokenizer,
    },
    model::Decoder,
    objective::CrossEntropy,
};
use mloc_core::task::settings::Training;
use mloc_exec::{ModuleError, Output, RunContext};
use serde_json::Value;

use super::{
    TEMPLATE_NOW_UNIX,
    data::{Form, HELD_OUT, TRAINING, held_out_rows},
    over_data::{Data, Recipe, Sample},
};
use crate::unless_stopping;

impl Sample for TokenizedExample {
    fn tokens(&self) -> usize {
        self.len()
    }

    fn bytes(&self) -> Vec<u8> {
        // The length first: where a row ends matters too.
        let mut bytes = Vec::with_capacity(8 + 12 * self.len());
        bytes.extend((self.len() as u64).to_le_bytes());
        bytes.extend(self.input_ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(self.labels.iter().flat_map(|label| label.to_le_bytes()));
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
    type Samples = Vec<TokenizedExample>;
    type Objective = CrossEntropy;

    fn objective(&self) -> &CrossEntropy {
        &self.objective
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        [("label_smoothing_factor".to_owned(), self.objective.label_smoothing.into())].into()
    }

    fn batch(&self, samples: &[TokenizedExample]) -> Batch {
        Batch::collate(&samples.iter().map(TokenizedExample::row).collect::<Vec<_>>(), self.pad_id)
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        (self.export)(ctx, model)
    }
}

/// Tokenizes the rows to train on; reads and tokenizes held-out data.
///
/// # Errors
/// The data's own errors, with file and line, and that it was asked to stop.
pub fn data(
    ctx: &mut RunContext,
    rows: &[Row],
    tokenizer: &TextTokenizer,
    settings: &Training,
) -> Result<Data<Vec<TokenizedExample>>, ModuleError> {
    let train = tokenize(ctx, rows, TRAINING, tokenizer, settings)?;
    let held_out = held_out_rows(ctx, Form::Examples)?;
    let eval = match held_out.is_empty() {
        true => Vec::new(),
        false => tokenize(ctx, &held_out, HELD_OUT, tokenizer, settings)?,
    };
    Ok(Data { train, eval })
}

fn tokenize(
    ctx: &mut RunContext,
    rows: &[Row],
    what: &str,
    tokenizer: &TextTokenizer,
    settings: &Training,
) -> Result<Vec<TokenizedExample>, ModuleError> {
    let options = TokenizeOptions {
        max_length: settings.max_length,
        completion_only: settings.completion_only_loss,
        now_unix: TEMPLATE_NOW_UNIX,
    };
    let tokenized = dataset::tokenize_all(rows, tokenizer, options, &|| ctx.stopping());
    let mut tokens = tokenized.map_err(|e| unless_stopping(ctx, e))?;
    let all = tokens.examples.len();
    // A step of nothing but them would have no loss: 0 in the log, as if all had been learnt.
    tokens.examples.retain(|example| example.num_targets() > 0);
    let why = "all their tokens are given and none is to be learnt, as where a prompt alone fills max_length, or there are \
               fewer than two";
    if tokens.examples.is_empty() {
        let path = rows.first().map(|row| row.path.display().to_string()).unwrap_or_default();
        return Err(ModuleError::Fatal(format!(
            "{path}: none of {all} samples has a target: {why}{}",
            length_hint(settings)
        )));
    }
    let count: usize = tokens.examples.iter().map(TokenizedExample::len).sum();
    ctx.log(format!("{what} data: {} samples, {count} tokens", tokens.examples.len()));
    if tokens.truncated > 0 {
        let longest = settings.max_length.unwrap_or_default();
        ctx.warn(format!("{what} data: {} samples were cut to max_length {longest}", tokens.truncated));
    }
    if tokens.without_target > 0 {
        ctx.warn(format!(
            "{what} data: {} of {all} samples have no target and are left out: {why}{}",
            tokens.without_target,
            length_hint(settings)
        ));
    }
    Ok(tokens.examples)
}

fn length_hint(settings: &Training) -> String {
    let hint = |longest| format!("\nhint: max_length is {longest}: a larger one leaves room for what is to be learnt");
    settings.max_length.map(hint).unwrap_or_default()
}
