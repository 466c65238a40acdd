//! Pairs of a chosen and a rejected answer in tokens: `rm` and `dpo`.

use std::path::Path;

use mloc_burn::{
    batch::{Batch, IGNORED},
    formats::{
        dataset::{self, Row, TokenizedPair},
        tokenizer::TextTokenizer,
    },
};
use mloc_exec::{ModuleError, RunContext};

use super::{
    TEMPLATE_NOW_UNIX,
    data::{self, Form, HELD_OUT, TRAINING},
    over_data::{Data, Sample},
};
use crate::unless_stopping;

/// A text in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Token ids.
    pub ids: Vec<u32>,
    /// How many of the first are the prompt's.
    pub given: usize,
}

/// A pair in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Prompt and better answer.
    pub chosen: Text,
    /// Prompt and worse answer.
    pub rejected: Text,
    /// By how much the better one is better, where the data says so.
    pub margin: Option<f64>,
    /// Log-probabilities of the two answers under the reference, where they were computed before the first step.
    pub reference: Option<[f32; 2]>,
}

impl Sample for Pair {
    fn tokens(&self) -> usize {
        self.chosen.ids.len().max(self.rejected.ids.len())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in [&self.chosen, &self.rejected] {
            // The lengths first: where a text ends, and its prompt, matters too.
            bytes.extend((text.ids.len() as u64).to_le_bytes());
            bytes.extend((text.given as u64).to_le_bytes());
            bytes.extend(text.ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes.extend(self.margin.unwrap_or(f64::NAN).to_bits().to_le_bytes());
        bytes
    }
}

/// What to do with a pair's tokens; `None` leaves the pair out.
pub trait Cut {
    /// The pair as it is trained on.
    fn apply(&self, pair: TokenizedPair) -> Option<Pair>;
    /// Why pairs were left out, and what would help: for people.
    fn why(&self) -> String;
}

/// Rows of pairs to train on, and held-out ones, in tokens.
///
/// # Errors
/// The data's own errors, with file and line; that no pair is left; and that it was asked to stop.
pub fn data(ctx: &mut RunContext, tokenizer: &TextTokenizer, cut: &impl Cut) -> Result<Data<Vec<Pair>>, ModuleError> {
    let rows = data::training_rows(ctx, Form::Preferences)?;
    let train = tokenize(ctx, &rows, TRAINING, tokenizer, cut)?;
    let held_out = data::held_out_rows(ctx, Form::Preferences)?;
    let eval = match held_out.is_empty() {
        true => Vec::new(),
        false => tokenize(ctx, &held_out, HELD_OUT, tokenizer, cut)?,
    };
    Ok(Data { train, eval })
}

fn tokenize(
    ctx: &mut RunContext,
    rows: &[Row],
    what: &str,
    tokenizer: &TextTokenizer,
    cut: &impl Cut,
) -> Result<Vec<Pair>, ModuleError> {
    let tokenized = dataset::tokenize_pairs(rows, tokenizer, TEMPLATE_NOW_UNIX, &|| ctx.stopping());
    let tokenized = tokenized.map_err(|e| unless_stopping(ctx, e))?;
    let all = tokenized.pairs.len();
    let longest = |pair: &TokenizedPair| pair.prompt.len() + pair.chosen.len().max(pair.rejected.len());
    let lengths: Vec<usize> = tokenized.pairs.iter().map(longest).collect();
    let pairs: Vec<Pair> = tokenized.pairs.into_iter().filter_map(|pair| cut.apply(pair)).collect();
    let path: &Path = rows.first().map_or(Path::new(""), |row| &row.path);
    if pairs.is_empty() {
        let shortest = lengths.iter().min().copied().unwrap_or_default();
        return Err(ModuleError::Fatal(format!(
            "{}: none of {all} pairs is left: {}; the shortest has {shortest} tokens",
            path.display(),
            cut.why()
        )));
    }
    let tokens: usize = pairs.iter().map(|pair| pair.chosen.ids.len() + pair.rejected.ids.len()).sum();
    ctx.log(format!("{what} data: {} pairs, {tokens} tokens", pairs.len()));
    if pairs.len() < all {
        ctx.warn(format!("{what} data: {} of {all} pairs are left out: {}", all - pairs.len(), cut.why()));
    }
    if tokenized.merged > 0 {
        ctx.warn(format!(
            "{what} data: in {} of {all} pairs the prompt has other tokens by itself than before an answer: there the \
             answer begins where they part (hint: end prompts where a token ends)",
            tokenized.merged
        ));
    }
    let same = pairs.iter().filter(|pair| pair.chosen == pair.rejected).count();
    if same > 0 {
        ctx.warn(format!(
            "{what} data: {same} of {} pairs are the same on both sides after they were cut, and teach nothing\nhint: a \
             larger max_length leaves room for what is different",
            pairs.len()
        ));
    }
    Ok(pairs)
}

/// The rows of pairs: the chosen ones, then the rejected ones. Labels are the answers' tokens.
pub fn rows(pairs: &[Pair], pad_id: i64) -> Batch {
    let row = |text: &Text| {
        let ids: Vec<i64> = text.ids.iter().map(|id| i64::from(*id)).collect();
        let labels = ids.iter().enumerate().map(|(at, id)| if at < text.given { IGNORED } else { *id }).collect();
        (ids, labels)
    };
    let chosen = pairs.iter().map(|pair| row(&pair.chosen));
    let rejected = pairs.iter().map(|pair| row(&pair.rejected));
    Batch::collate(&chosen.chain(rejected).collect::<Vec<_>>(), pad_id)
}

/// What padding is filled with.
pub fn pad_id(tokenizer: &TextTokenizer) -> i64 {
    tokenizer.pad_id().map_or(0, i64::from)
}
