//! What is trained on: a data set in its order, or rows whose lengths are drawn.

use std::path::Path;

use mloc_burn::{
    batch::Batch,
    formats::{
        dataset::{self, Example, LoadOptions, TokenizeOptions, TokenizedExample},
        tokenizer::TextTokenizer,
    },
    random::Random,
};

use super::SEED;

/// Bytes of a token where nobody knows better: English text has about four.
const TOKEN_BYTES: usize = 4;
/// Rows that are drawn.
const DRAWN: usize = 512;

/// Token ids and labels.
type Row = (Vec<i64>, Vec<i64>);

/// All rows.
pub struct Rows {
    all: Vec<Row>,
    /// For people.
    pub name: String,
}

impl Rows {
    /// Those of a data set, or drawn ones; cut to `max_length`.
    pub fn of(
        data: Option<&Path>,
        tokenizer: Option<&TextTokenizer>,
        vocabulary: usize,
        max_length: usize,
    ) -> Result<Self, String> {
        let Some(path) = data else { return Ok(Self::drawn(vocabulary, max_length)) };
        let rows = dataset::load(path, &LoadOptions::default(), &|| false).map_err(|e| e.to_string())?;
        let file = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let (all, name): (Vec<Row>, String) = match tokenizer {
            Some(tokenizer) => {
                let options = TokenizeOptions { max_length: Some(max_length), ..TokenizeOptions::default() };
                let tokenized = dataset::tokenize_all(&rows, tokenizer, options, &|| false);
                let examples = tokenized.map_err(|e| e.to_string())?.examples;
                (examples.iter().map(TokenizedExample::row).collect(), format!("{file} in its order"))
            }
            None => {
                let row = |row: &dataset::Row| made_up(&row.example, vocabulary, max_length);
                let name = format!("{file} in its order, 4 bytes a token, for random weights have no tokenizer");
                (rows.iter().map(row).filter(|(ids, _)| ids.len() > 1).collect(), name)
            }
        };
        if all.is_empty() {
            return Err(format!("{}: no row of it has two tokens", path.display()));
        }
        Ok(Self { all, name })
    }

    /// Half of the rows are shorter than half of `max_length`; one in eight is as long as may be.
    fn drawn(vocabulary: usize, max_length: usize) -> Self {
        let mut random = Random::stream(SEED, "lengths");
        let longest = max_length.max(2) as f32;
        let mut row = || {
            let length = (longest * (0.5 * (0.6 * random.normal()).exp()).min(1.0)) as usize;
            let ids: Vec<i64> =
                (0..length.max(2)).map(|_| (random.uniform() * vocabulary as f32) as i64 % vocabulary as i64).collect();
            (ids.clone(), ids)
        };
        let all = (0..DRAWN).map(|_| row()).collect();
        Self { all, name: format!("rows of random tokens, at most {max_length}, half of them in half as many") }
    }

    /// Batches in the order of the rows, again and again.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Batch> + '_ {
        self.all.chunks(size).cycle().map(|rows| Batch::collate(rows, 0))
    }
}

/// As many tokens as a text of its length would have.
fn made_up(example: &Example, vocabulary: usize, max_length: usize) -> Row {
    let bytes: Vec<u8> = example.texts().into_iter().flat_map(String::into_bytes).collect();
    let id = |token: &[u8]| token.iter().fold(7_usize, |id, byte| id * 31 + usize::from(*byte)) % vocabulary;
    let ids: Vec<i64> = bytes.chunks(TOKEN_BYTES).take(max_length).map(|token| id(token) as i64).collect();
    (ids.clone(), ids)
}
