//! Pairs of a chosen and a rejected answer in tokens: `rm` and `dpo`.

use std::sync::Arc;

use mloc_burn::{
    batch::{Batch, IGNORED},
    formats::{
        dataset::{self, Pair, PairFile, PairText, SCORES, TokenizedPair},
        tokenizer::TextTokenizer,
    },
};
use mloc_core::task::settings::Training;
use mloc_exec::{ModuleError, RunContext};

use super::{
    TEMPLATE_NOW_UNIX,
    data::{self, Form, HELD_OUT, Source, TRAINING},
    over_data::{Data, Sample, Samples},
};
use crate::unless_stopping;

/// A pair, and what was computed of it before the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Its texts.
    pub pair: Pair,
    /// Log-probabilities of the two answers under the reference, where they were computed.
    pub reference: Option<[f32; 2]>,
}

impl Sample for Judged {
    fn rows(&self) -> Vec<usize> {
        vec![self.pair.chosen.ids.len(), self.pair.rejected.ids.len()]
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in [&self.pair.chosen, &self.pair.rejected] {
            // The lengths first: where a text ends, and its prompt, matters too.
            bytes.extend((text.ids.len() as u64).to_le_bytes());
            bytes.extend((text.given as u64).to_le_bytes());
            bytes.extend(text.ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes.extend(self.pair.margin.unwrap_or(f64::NAN).to_bits().to_le_bytes());
        bytes
    }
}

/// Pairs in a file. Held are their numbers, four bytes each, where it is a part of the file, and what was computed of them.
pub struct StoredPairs {
    file: Arc<PairFile>,
    /// Their numbers in the file; all of them when absent.
    numbers: Option<Vec<u32>>,
    /// Log-probabilities under the reference, of all of them or of none.
    pub reference: Vec<[f32; 2]>,
}

impl StoredPairs {
    fn of(file: &Arc<PairFile>, numbers: Option<Vec<u32>>) -> Self {
        Self { file: file.clone(), numbers, reference: Vec::new() }
    }

    fn in_file(&self, number: usize) -> usize {
        self.numbers.as_ref().map_or(number, |numbers| numbers[number] as usize)
    }

    /// How many have a margin.
    pub fn with_margin(&self) -> usize {
        (0..self.count()).filter(|number| self.file.margin(self.in_file(*number)).is_some()).count()
    }
}

impl Samples for StoredPairs {
    type Sample = Judged;

    fn count(&self) -> usize {
        self.numbers.as_ref().map_or(self.file.len(), Vec::len)
    }

    fn get(&self, number: usize) -> Result<Judged, ModuleError> {
        // The file is this attempt's own: what cannot be read now may be read by the next one.
        let pair = self.file.read(self.in_file(number)).map_err(|e| ModuleError::Retryable(e.to_string()))?;
        Ok(Judged { pair, reference: self.reference.get(number).copied() })
    }
}

/// What to do with a pair's tokens; `None` leaves the pair out.
pub trait Cut {
    /// The pair as it is trained on.
    fn apply(&self, pair: TokenizedPair) -> Option<Pair>;
    /// Why pairs were left out, and what would help: for people.
    fn why(&self) -> String;
}

/// Reads and tokenizes pairs to train on and to measure on, into files of this attempt's own: neither is held.
///
/// # Errors
/// The data's own errors, with file and line; that no pair is left; and that it was asked to stop.
pub fn data(ctx: &mut RunContext, tokenizer: &TextTokenizer, cut: &impl Cut) -> Result<Data<StoredPairs>, ModuleError> {
    let source = data::training_source(ctx, Form::Preferences)?;
    let all = tokenize(ctx, &source, TRAINING, tokenizer, cut)?;
    if let Some(held_out) = data::held_out_of(ctx, all.len())? {
        let picked = dataset::held_out_of(all.len(), held_out, Training::of(&ctx.run().spec).seed);
        let part = |held: bool| (0..).zip(&picked).filter(|(_, of)| **of == held).map(|(number, _)| number).collect();
        ctx.log(format!("{HELD_OUT} data: {held_out} of {} pairs, picked by the seed", all.len()));
        return Ok(Data {
            train: StoredPairs::of(&all, Some(part(false))),
            eval: StoredPairs::of(&all, Some(part(true))),
        });
    }
    let eval = match data::held_out_source(ctx, Form::Preferences)? {
        Some(source) => StoredPairs::of(&tokenize(ctx, &source, HELD_OUT, tokenizer, cut)?, None),
        // Of no pair.
        None => StoredPairs::of(&all, Some(Vec::new())),
    };
    Ok(Data { train: StoredPairs::of(&all, None), eval })
}

fn tokenize(
    ctx: &mut RunContext,
    source: &Source,
    what: &str,
    tokenizer: &TextTokenizer,
    cut: &impl Cut,
) -> Result<Arc<PairFile>, ModuleError> {
    let folder = ctx.run().work.join(format!("{what}-tokens"));
    let apply = |pair| cut.apply(pair);
    let (path, options) = (&source.path, &source.options);
    let tokenized = dataset::tokenize_pair_files(
        path,
        options,
        tokenizer,
        TEMPLATE_NOW_UNIX,
        &apply,
        &folder,
        &mut data::watch(ctx, what),
    );
    let (pairs, counts, read) = tokenized.map_err(|e| unless_stopping(ctx, e))?;
    data::log_read(ctx, what, options, &counts.forms, read);
    let all = counts.rows;
    if pairs.is_empty() {
        return Err(ModuleError::Fatal(format!(
            "{}: none of {all} pairs is left: {}; the shortest has {} tokens",
            path.display(),
            cut.why(),
            counts.shortest
        )));
    }
    ctx.log(format!("{what} data: {} pairs, {} tokens", pairs.len(), pairs.tokens()));
    if counts.left_out > 0 {
        ctx.warn(format!("{what} data: {} of {all} pairs are left out: {}", counts.left_out, cut.why()));
    }
    if counts.merged > 0 {
        ctx.warn(format!(
            "{what} data: in {} of {all} pairs the prompt has other tokens by itself than before an answer: there the \
             answer begins where they part (hint: end prompts where a token ends)",
            counts.merged
        ));
    }
    if counts.same > 0 {
        ctx.warn(format!(
            "{what} data: {} of {} pairs are the same on both sides after they were cut, and teach nothing\nhint: a larger \
             max_length leaves room for what is different",
            counts.same,
            pairs.len()
        ));
    }
    if counts.scored > 0 {
        let [chosen, rejected] = SCORES;
        ctx.warn(format!(
            "{what} data: the columns `{chosen}` and `{rejected}` have no part in training, as in the reference\nhint: rm \
             reads a column `margin`: where it is their difference that you want, give that"
        ));
    }
    Ok(Arc::new(pairs))
}

/// The rows of pairs: the chosen ones, then the rejected ones. Labels are the answers' tokens.
pub fn rows(pairs: &[Judged], pad_id: i64) -> Batch {
    let row = |text: &PairText| {
        let ids: Vec<i64> = text.ids.iter().map(|id| i64::from(*id)).collect();
        let labels = ids.iter().enumerate().map(|(at, id)| if at < text.given { IGNORED } else { *id }).collect();
        (ids, labels)
    };
    let chosen = pairs.iter().map(|judged| row(&judged.pair.chosen));
    let rejected = pairs.iter().map(|judged| row(&judged.pair.rejected));
    Batch::collate(&chosen.chain(rejected).collect::<Vec<_>>(), pad_id)
}

/// What padding is filled with.
pub fn pad_id(tokenizer: &TextTokenizer) -> i64 {
    tokenizer.pad_id().map_or(0, i64::from)
}
