//! Text that comes token by token.

use super::{TextTokenizer, TokenizerError};

/// Turns ids into text as they come, holding back the bytes of a character that is not complete yet.
///
/// It holds no reference, so that a server can keep one per request; give it the same tokenizer each time.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// The ids of the last text printed (what comes before decides about spaces), then those still held back.
    ids: Vec<u32>,
    /// How many of `ids` are printed already.
    printed: usize,
    skip_special_tokens: bool,
}

impl TextStream {
    /// A stream at its start.
    pub fn new(skip_special_tokens: bool) -> Self {
        Self { skip_special_tokens, ..Self::default() }
    }

    /// Takes the next id and returns the text that is now certain, if any.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the decoder fails.
    pub fn push(&mut self, tokenizer: &TextTokenizer, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        let text = self.pending(tokenizer)?;
        // The replacement character stands for bytes whose rest is still to come.
        if text.is_empty() || text.ends_with('\u{FFFD}') {
            return Ok(None);
        }
        self.ids.drain(..self.printed);
        self.printed = self.ids.len();
        Ok(Some(text))
    }

    /// What is left at the end: text whose bytes never became a whole character, with replacement characters.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the decoder fails.
    pub fn finish(self, tokenizer: &TextTokenizer) -> Result<String, TokenizerError> {
        self.pending(tokenizer)
    }

    fn pending(&self, tokenizer: &TextTokenizer) -> Result<String, TokenizerError> {
        let before = tokenizer.decode(&self.ids[..self.printed], self.skip_special_tokens)?;
        let all = tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }
}
