//! Texts as vectors, and scores of pairs of texts, by an encoder.
//!
//! ```text
//! files        a folder of sentence-transformers: its modules, or a plain encoder
//! pooling      a text's vector from its tokens' hidden states
//! contrastive  the loss that embedders are trained by
//! ```

mod contrastive;
mod files;
mod pooling;

use std::path::Path;

use burn::tensor::{Device, Tensor};

pub use self::contrastive::in_batch_contrastive;
pub use self::files::EmbeddingError;
pub use self::pooling::{Pooling, normalised, normalised_backward};
use crate::formats::tokenizer::TextTokenizer;
use crate::model::parameter::host_values;
use crate::model::{Encoder, EncoderInput, EncoderRow};

/// Tokens that are encoded at a time.
const BATCH_TOKENS: usize = 4096;

/// An encoder with its tokenizer and what makes a vector of its hidden states.
#[derive(Debug, Clone)]
pub struct Embedder {
    /// The encoder.
    pub encoder: Encoder,
    /// Cuts texts at the longest the model takes.
    pub tokenizer: TextTokenizer,
    /// How tokens become a vector.
    pub pooling: Pooling,
    /// Whether vectors have length 1.
    pub normalise: bool,
}

impl Embedder {
    /// Opens a folder of sentence-transformers. One without `modules.json` is an encoder whose tokens are averaged.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; modules that are not known.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, EmbeddingError> {
        let files::Modules { model, pooling, normalise } = files::modules(folder)?;
        let (encoder, tokenizer) = files::encoder(&folder.join(model), device)?;
        Ok(Self { encoder, tokenizer, pooling, normalise })
    }

    /// How many elements a vector has.
    pub fn width(&self) -> usize {
        self.encoder.config.hidden_size
    }

    /// The vector of each text, in their order.
    ///
    /// # Errors
    /// A text that the tokenizer cannot represent.
    pub fn embed(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let rows = texts.iter().map(|text| row(&self.tokenizer, text.as_ref(), None)).collect::<Result<_, _>>()?;
        self.embed_rows(rows)
    }

    /// The same of texts that are tokens already, with what the tokenizer puts around a text.
    ///
    /// # Errors
    /// Ids that the model does not have, and more of them than it takes.
    pub fn embed_ids(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let rows = texts
            .iter()
            .map(|ids| EncoderRow { ids: ids.iter().map(|id| i64::from(*id)).collect(), type_ids: vec![0; ids.len()] });
        self.embed_rows(rows.collect())
    }

    fn embed_rows(&self, rows: Vec<EncoderRow>) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        by_batch(&self.encoder, rows, |input| {
            let pooled = self.pooling.forward(&self.encoder.hidden(input), &input.packed);
            Ok(if self.normalise { normalised(&pooled) } else { pooled })
        })
    }
}

/// An encoder with a score head and its tokenizer: how well a passage answers a query.
#[derive(Debug, Clone)]
pub struct Reranker {
    /// The encoder.
    pub encoder: Encoder,
    /// Cuts pairs at the longest the model takes, the longer of the two first.
    pub tokenizer: TextTokenizer,
}

impl Reranker {
    /// Opens a folder with a `BertForSequenceClassification`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; a model without a score head.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, EmbeddingError> {
        let (encoder, tokenizer) = files::encoder(folder, device)?;
        match encoder.classifier {
            Some(_) => Ok(Self { encoder, tokenizer }),
            None => Err(EmbeddingError::NoScores(encoder.config.architecture)),
        }
    }

    /// The scores of each pair, in their order: as many as the model has labels, as they leave the head.
    ///
    /// # Errors
    /// A text that the tokenizer cannot represent.
    pub fn score<Q: AsRef<str>, P: AsRef<str>>(&self, pairs: &[(Q, P)]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let pair = |(query, passage): &(Q, P)| row(&self.tokenizer, query.as_ref(), Some(passage.as_ref()));
        let rows = pairs.iter().map(pair).collect::<Result<_, _>>()?;
        by_batch(&self.encoder, rows, |input| {
            let scores = self.encoder.scores(input, &self.encoder.hidden(input));
            let without_head = || EmbeddingError::NoScores(self.encoder.config.architecture.clone());
            scores.map(|(scores, _)| scores).ok_or_else(without_head)
        })
    }
}

fn row(tokenizer: &TextTokenizer, first: &str, second: Option<&str>) -> Result<EncoderRow, EmbeddingError> {
    let (ids, type_ids) = tokenizer.encode_pair(first, second)?;
    let wide = |ids: Vec<u32>| ids.into_iter().map(i64::from).collect();
    Ok(EncoderRow { ids: wide(ids), type_ids: wide(type_ids) })
}

/// What `compute` makes of each row. Rows of equal length come together, so that they are attended over together.
fn by_batch(
    encoder: &Encoder,
    rows: Vec<EncoderRow>,
    compute: impl Fn(&EncoderInput) -> Result<Tensor<2>, EmbeddingError>,
) -> Result<Vec<Vec<f32>>, EmbeddingError> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|index| rows[*index].ids.len());
    let mut out = vec![Vec::new(); rows.len()];
    let mut rest = order.as_slice();
    while let Some(first) = rest.first() {
        let most = (BATCH_TOKENS / rows[*first].ids.len().max(1)).clamp(1, rest.len());
        // The last is the longest.
        let fits = |count: &usize| count * rows[rest[count - 1]].ids.len() <= BATCH_TOKENS;
        let count = (1..=most).rev().find(fits).unwrap_or(1);
        let (batch, others) = rest.split_at(count);
        rest = others;
        let chosen: Vec<EncoderRow> = batch.iter().map(|index| rows[*index].clone()).collect();
        let values = host_values(compute(&encoder.input(&chosen)?)?);
        let width = values.len() / batch.len();
        for (index, values) in batch.iter().zip(values.chunks(width.max(1))) {
            out[*index] = values.to_vec();
        }
    }
    Ok(out)
}
