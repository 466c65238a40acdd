//! Pairs in tokens in a file, as [`super::store`] has examples: what is held of a pair is its margin, eight bytes, and that
//! only where the data has margins.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use super::preference::tokenize;
use super::{
    DatasetError, Example, IGNORED, LoadOptions, ReadSoFar, TokenFile, TokenWriter, TokenizedExample, TokenizedPair,
    for_each,
};
use crate::formats::tokenizer::TextTokenizer;

/// A text in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairText {
    /// Token ids.
    pub ids: Vec<u32>,
    /// How many of the first are the prompt's.
    pub given: usize,
}

/// A pair as it is learnt from.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Prompt and better answer.
    pub chosen: PairText,
    /// Prompt and worse answer.
    pub rejected: PairText,
    /// By how much the better one is better, where the data says so.
    pub margin: Option<f64>,
}

/// What happened on the way from rows to pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairCounts {
    /// How many rows there were.
    pub rows: usize,
    /// How many were left out.
    pub left_out: usize,
    /// Tokens of the shortest row, its longer side counted.
    pub shortest: usize,
    /// In how many the prompt by itself has other last tokens than before an answer: completions begin earlier there.
    pub merged: usize,
    /// How many are the same on both sides after they were cut.
    pub same: usize,
    /// How many rows have scores of their answers, which nothing is made of.
    pub scored: usize,
    /// What forms the rows had, for people.
    pub forms: BTreeSet<&'static str>,
}

/// Pairs in a file, read by their numbers.
#[derive(Debug)]
pub struct PairFile {
    /// Each pair's chosen text, then its rejected one; what is given has no label.
    texts: TokenFile,
    /// No number where a pair has none; empty where no pair has one.
    margins: Vec<f64>,
}

impl PairFile {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.texts.len() / 2
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of both sides of all pairs.
    pub fn tokens(&self) -> u64 {
        self.texts.tokens()
    }

    /// A pair's margin.
    pub fn margin(&self, pair: usize) -> Option<f64> {
        self.margins.get(pair).copied().filter(|margin| !margin.is_nan())
    }

    /// A pair.
    ///
    /// # Errors
    /// Those of the disk; a number that is not there.
    pub fn read(&self, pair: usize) -> Result<Pair, DatasetError> {
        let text = |number| {
            let TokenizedExample { input_ids, labels } = self.texts.read(number, None)?;
            let given = labels.iter().take_while(|label| **label == IGNORED).count();
            Ok(PairText { ids: input_ids, given })
        };
        Ok(Pair { chosen: text(2 * pair)?, rejected: text(2 * pair + 1)?, margin: self.margin(pair) })
    }
}

/// Tokenizes a file or folder of pairs of any size into `folder`, a row at a time. `cut` brings each to length, or leaves it
/// out. Before each row `stop` hears how far it is and may end it all.
///
/// # Errors
/// Those of [`for_each`], rows among them that the chat template or the tokenizer refuses, or whose two sides have the same
/// tokens; and those of the disk.
pub fn tokenize_pair_files(
    path: &Path,
    load: &LoadOptions,
    tokenizer: &TextTokenizer,
    now_unix: i64,
    cut: &dyn Fn(TokenizedPair) -> Option<Pair>,
    folder: &Path,
    stop: &mut dyn FnMut(ReadSoFar) -> bool,
) -> Result<(PairFile, PairCounts, ReadSoFar), DatasetError> {
    let load = LoadOptions { preferences: true, ..load.clone() };
    let mut writer = TokenWriter::create(folder)?;
    let (mut counts, mut margins) = (PairCounts { shortest: usize::MAX, ..PairCounts::default() }, Vec::new());
    let mut has_margins = false;
    // The disk's error is no complaint about the row: it ends the reading.
    let failed = RefCell::new(None);
    let mut over = |so_far| failed.borrow().is_some() || stop(so_far);
    let read = for_each(path, &load, &mut over, &mut |row| {
        let (pair, merged) = tokenize(&row.example, tokenizer, now_unix)?;
        counts.rows += 1;
        counts.forms.insert(row.example.form());
        counts.merged += usize::from(merged);
        counts.shortest = counts.shortest.min(pair.prompt.len() + pair.chosen.len().max(pair.rejected.len()));
        counts.scored += usize::from(matches!(row.example, Example::Preference(preference) if preference.scored));
        let Some(pair) = cut(pair) else {
            counts.left_out += 1;
            return Ok(());
        };
        counts.same += usize::from(pair.chosen == pair.rejected);
        has_margins |= pair.margin.is_some();
        margins.push(pair.margin.unwrap_or(f64::NAN));
        *failed.borrow_mut() = push(&mut writer, pair).err();
        Ok(())
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let read = read?;
    if !has_margins {
        margins = Vec::new();
    }
    Ok((PairFile { texts: writer.finish()?, margins }, counts, read))
}

fn push(writer: &mut TokenWriter, pair: Pair) -> Result<(), DatasetError> {
    for PairText { ids, given } in [pair.chosen, pair.rejected] {
        let label = |(at, id): (usize, &u32)| if at < given { IGNORED } else { i64::from(*id) };
        let labels = ids.iter().enumerate().map(label).collect();
        writer.push(&TokenizedExample { input_ids: ids, labels })?;
    }
    Ok(())
}
