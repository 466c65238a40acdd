//! The seam to a model: one step of many sequences at once.

/// A block of the key-value cache, from 0. A block holds the keys and values of [`Shape::block_tokens`] tokens in
/// every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// An adapter that was loaded into a model, from 0. Ids are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// What a model says of itself, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Logits a row.
    pub vocabulary: usize,
    /// Tokens, prompt and answer together, that one sequence can have.
    pub max_length: usize,
    /// Tokens a cache block.
    pub block_tokens: usize,
    /// Cache blocks there are.
    pub blocks: usize,
}

/// Of which tokens of a chunk the logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Of none: a piece of a prompt that goes on.
    None,
    /// Of the last one: what comes next.
    Last,
    /// Of each: prompt log-probabilities, or guessed tokens to be checked.
    All,
}

/// Consecutive tokens of one sequence, to be computed in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The tokens, at least one.
    pub tokens: Vec<u32>,
    /// The position of the first of them: as many tokens of this sequence are in the cache already.
    pub start: usize,
    /// The sequence's blocks from its first token on: position p is in `blocks[p / block_tokens]`. Those that this
    /// chunk writes to belong to this sequence alone.
    pub blocks: Vec<BlockId>,
    /// The adapter it runs with; `None` = the base model.
    pub adapter: Option<AdapterId>,
    /// Of which tokens the logits are wanted.
    pub wanted: Wanted,
}

/// Rows of logits in the order of the chunks, within a chunk in the order of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// `[rows, vocabulary]`, row by row.
    pub values: Vec<f32>,
    /// Values a row.
    pub width: usize,
}

impl Logits {
    /// One row. Panics past the last one, as a slice does.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// Rows there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

/// Why a step failed. The cache blocks it would have written hold nothing of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The device has no memory left for a step of this size; a smaller one may pass.
    #[error("out of memory in a step of {tokens} tokens: {detail}")]
    OutOfMemory {
        /// Tokens of the step.
        tokens: usize,
        /// The device's words.
        detail: String,
    },
    /// The device is no longer usable: the process should end and start again.
    #[error("device failed: {0}")]
    Device(String),
}

/// A model that computes steps. A sequence's logits don't depend on what else is in its step, nor on how its tokens
/// were cut into chunks, but for the last bits of floats; where even those are the same the implementation says so.
pub trait Forward: Send {
    /// Its sizes.
    fn shape(&self) -> Shape;

    /// Computes all chunks, writes their keys and values to the cache, and returns the logits that are wanted.
    ///
    /// # Errors
    /// [`ForwardError`]
    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError>;

    /// Copies whole blocks, `(from, to)`, in this order: before a shared block is written to.
    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]);
}
