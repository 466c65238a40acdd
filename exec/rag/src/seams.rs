//! What models do for the index, behind traits: this crate computes no tensors.

use anyhow::Result;

use crate::span::Span;

/// What a text is embedded for: many embedders write the one with other words before it than the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It is asked with.
    Query,
    /// It is searched.
    Passage,
}

/// Texts to vectors.
pub trait Embedder: Send + Sync {
    /// Which model, in which version, with which pooling: an index belongs to exactly one. Two that answer alike may be
    /// called alike, two that don't must not.
    fn identity(&self) -> &str;

    /// Numbers of a vector.
    fn dimension(&self) -> usize;

    /// A vector for each text, in their order. Length is of no matter, they are compared by their angle. Blocks.
    ///
    /// # Errors
    /// Why there are none; the documents they belong to are not indexed.
    fn embed(&self, texts: &[String], side: Side) -> Result<Vec<Vec<f32>>>;
}

/// A text's tokens, as the embedder counts them.
pub trait Tokens: Send + Sync {
    /// Which tokenizer: documents that were cut with another are cut again when they come again.
    fn identity(&self) -> &str;

    /// Bytes of the text that each token stands for, in order, without those that stand for none.
    ///
    /// # Errors
    /// Why it can't be said.
    fn spans(&self, text: &str) -> Result<Vec<Span>>;
}

/// Passages weighed against a query, by a model that sees both at once.
pub trait Reranker: Send + Sync {
    /// A number for each passage: the larger, the better it answers. Blocks.
    ///
    /// # Errors
    /// Why there are none; what was found stays in the order it was found in, and says so.
    fn rank(&self, query: &str, passages: &[String]) -> Result<Vec<f32>>;
}
