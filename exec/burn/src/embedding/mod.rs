//! Texts as vectors, by an encoder or a decoder, and scores of pairs of texts, by an encoder.
//!
//! ```text
//! files        a folder of sentence-transformers: its modules, or a plain encoder
//! backbone     the model: hidden states of an encoder, or of a decoder without its head
//! pooling      a text's vector from its tokens' hidden states
//! contrastive  the loss that embedders are trained by
//! ```

mod backbone;
mod contrastive;
mod files;
mod pooling;

use std::path::Path;

use burn::tensor::{Device, Tensor};

pub use self::backbone::{Backbone, States};
pub use self::contrastive::in_batch_contrastive;
pub use self::files::EmbeddingError;
pub use self::pooling::{Pooling, normalised, normalised_backward};
use crate::formats::tokenizer::TextTokenizer;
use crate::model::encoder::RowError;
use crate::model::parameter::host_values;
use crate::model::{Encoder, EncoderRow};

/// Tokens that are encoded at a time.
const BATCH_TOKENS: usize = 4096;

/// A model of hidden states with its tokenizer and what makes a vector of them.
#[derive(Debug, Clone)]
pub struct Embedder {
    /// What gives hidden states.
    pub backbone: Backbone,
    /// Of the model.
    pub tokenizer: TextTokenizer,
    /// Tokens that a text is cut to, special ones included.
    pub longest: usize,
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
        let (backbone, tokenizer, longest) = files::backbone(&folder.join(model), device)?;
        Ok(Self { backbone, tokenizer, longest, pooling, normalise })
    }

    /// How many elements a vector has.
    pub fn width(&self) -> usize {
        self.backbone.width()
    }

    /// The vector of each text, in their order.
    ///
    /// # Errors
    /// A text that the tokenizer cannot represent.
    pub fn embed(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let row = |text: &str| match &self.backbone {
            Backbone::Encoder(_) => row(&self.tokenizer, text, None),
            Backbone::Decoder(_) => self.framed(text),
        };
        self.embed_rows(texts.iter().map(|text| row(text.as_ref())).collect::<Result<_, _>>()?)
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

    /// A text's tokens, cut so that what is put behind a text stays: the last token is the one that counts.
    fn framed(&self, text: &str) -> Result<EncoderRow, EmbeddingError> {
        let mut ids = self.tokenizer.encode(text, true)?;
        if ids.len() > self.longest {
            let bare = self.tokenizer.encode(text, false)?;
            let around = ids.len().saturating_sub(bare.len());
            let before = (0..=around).find(|at| ids[*at..].starts_with(&bare)).unwrap_or(0);
            let behind = around - before;
            ids.drain((self.longest - behind.min(self.longest))..ids.len() - behind);
        }
        Ok(EncoderRow { type_ids: vec![0; ids.len()], ids: ids.into_iter().map(i64::from).collect() })
    }

    fn embed_rows(&self, rows: Vec<EncoderRow>) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        by_batch(rows, |rows| {
            let States { hidden, groups } = self.backbone.states(rows)?;
            let pooled = self.pooling.of_groups(&hidden, &groups);
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
        let (encoder, tokenizer, _) = files::encoder(folder, device)?;
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
        by_batch(rows, |rows| {
            let input = self.encoder.input(rows)?;
            let scores = self.encoder.scores(&input, &self.encoder.hidden(&input));
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
    rows: Vec<EncoderRow>,
    compute: impl Fn(&[EncoderRow]) -> Result<Tensor<2>, EmbeddingError>,
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
        // Rows are told of by their places among all.
        let computed = compute(&chosen).map_err(|error| match error {
            EmbeddingError::Row(error) => RowError { row: batch[error.row], ..error }.into(),
            other => other,
        });
        let values = host_values(computed?);
        let width = values.len() / batch.len();
        for (index, values) in batch.iter().zip(values.chunks(width.max(1))) {
            out[*index] = values.to_vec();
        }
    }
    Ok(out)
}
