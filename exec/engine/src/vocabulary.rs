//! The seam to a tokenizer.

/// What the engine has to know of a tokenizer.
pub trait Vocabulary: Send + Sync {
    /// Ids there are.
    fn size(&self) -> usize;

    /// The text of these tokens, special ones left out; half a character reads as U+FFFD.
    fn decode(&self, ids: &[u32]) -> String;

    /// The bytes one token stands for; `None` for special tokens and for ids that the tokenizer doesn't have.
    fn bytes(&self, id: u32) -> Option<Vec<u8>>;

    /// The ids of a text, without special tokens.
    fn encode(&self, text: &str) -> Vec<u32>;

    /// The tokens that end an answer.
    fn ends(&self) -> &[u32];
}
