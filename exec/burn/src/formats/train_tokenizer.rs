//! Training a tokenizer from the texts of a data set: byte-level BPE, for models that start from nothing.
//!
//! The same texts and settings give the same files, byte for byte: the trainer breaks ties by token id.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer::{TextTokenizer, TokenizerError};

/// Ends a text, and fills short rows of a batch.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a turn of a conversation.
pub const TURN_START: &str = "<|im_start|>";
/// Ends a turn, and thereby an answer.
pub const TURN_END: &str = "<|im_end|>";

/// The chat format of the ChatML family: `<|im_start|>role\ncontent<|im_end|>\n`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
    '<|im_start|>assistant\\n' }}{% endif %}";

/// Single bytes, always in the vocabulary, so that every text has tokens.
const BYTES: usize = 256;

/// What tokenizer to train.
#[derive(Debug, Clone)]
pub struct TokenizerTraining {
    /// Tokens in all, special ones and the 256 bytes included. Fewer come out when the texts have no more pairs.
    pub vocab_size: usize,
    /// Special tokens besides the three of the chat format.
    pub extra_special_tokens: Vec<String>,
    /// Pairs seen less often than this are not merged.
    pub min_frequency: u64,
    /// The longest text of the model, in tokens, for `tokenizer_config.json`.
    pub model_max_length: usize,
}

impl Default for TokenizerTraining {
    fn default() -> Self {
        Self { vocab_size: 4096, extra_special_tokens: Vec::new(), min_frequency: 2, model_max_length: 512 }
    }
}

/// Trains a tokenizer on texts, which are asked for one by one and not kept: only their words are. Digits are tokens of their own, so that numbers can be copied and counted.
///
/// # Errors
/// [`TokenizerError::Use`] when the vocabulary is too small to hold bytes and special tokens, or there is no text.
pub fn train<S: AsRef<str> + Send>(
    texts: impl IntoIterator<Item = S, IntoIter: Send>,
    settings: &TokenizerTraining,
) -> Result<TextTokenizer, TokenizerError> {
    let special: Vec<&str> = [END_OF_TEXT, TURN_START, TURN_END]
        .into_iter()
        .chain(settings.extra_special_tokens.iter().map(String::as_str))
        .collect();
    let least = BYTES + special.len();
    if settings.vocab_size < least {
        let found = settings.vocab_size;
        let text = format!(
            "a vocabulary of {found} cannot hold the {BYTES} bytes and {} special tokens: at least {least}",
            special.len()
        );
        return Err(TokenizerError::Use(text));
    }
    let used = |e: tokenizers::Error| TokenizerError::Use(e.to_string());
    // No space is added before a text, and splits are GPT-2's.
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    let split: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), byte_level.into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(split)));
    tokenizer.with_decoder(Some(byte_level));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(settings.vocab_size)
        .min_frequency(settings.min_frequency)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.iter().map(|t| AddedToken::from(*t, true)).collect())
        .build()
        .into();
    let any = AtomicBool::new(false);
    let seen = texts.into_iter().inspect(|text| {
        any.fetch_or(!text.as_ref().trim().is_empty(), Ordering::Relaxed);
    });
    tokenizer.train(&mut trainer, seen).map_err(used)?;
    if !any.into_inner() {
        return Err(TokenizerError::Use("there is no text to train a tokenizer on".into()));
    }
    let json = tokenizer.to_string(false).map_err(used)?;

    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "model_max_length": settings.model_max_length,
    });
    let config = config.as_object().cloned().unwrap_or_else(Map::new);
    TextTokenizer::from_parts(json.as_bytes(), config)
}

#[cfg(test)]
mod tests {
    use super::super::chat_template::{Conversation, RenderOptions};
    use super::*;

    const TEXTS: [&str; 4] = [
        "the lease of the node ended, so the task moved to the next node",
        "the leader commits the task and the node runs the task",
        "naïve café, 八块 GPU, 🚀 and 1234 tokens",
        "",
    ];

    fn trained(vocab_size: usize) -> TextTokenizer {
        train(&TEXTS, &TokenizerTraining { vocab_size, ..Default::default() }).unwrap()
    }

    #[test]
    fn every_text_comes_back_and_known_ones_get_short() {
        let tokenizer = trained(276);
        assert_eq!(tokenizer.vocab_size(), 276);
        for text in TEXTS.into_iter().chain(["Ünseen\ttext\r\n  with 42 🦀"]) {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
        assert!(tokenizer.encode(" the task", false).unwrap().len() <= 4);
        assert_eq!(tokenizer.encode("1234", false).unwrap().len(), 4);
    }

    #[test]
    fn training_twice_gives_the_same_files() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = trained(300).save(one.path()).unwrap();
        trained(300).save(two.path()).unwrap();
        assert_eq!(files.len(), 3);
        for file in files {
            let other = two.path().join(file.file_name().unwrap());
            assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(other).unwrap(), "{file:?}");
        }
        let again = TextTokenizer::from_folder(one.path()).unwrap();
        assert_eq!(again.encode(TEXTS[0], true).unwrap(), trained(300).encode(TEXTS[0], true).unwrap());
    }

    #[test]
    fn it_speaks_the_chat_format() {
        let tokenizer = trained(280);
        let talk = Conversation::from_turns([("user", "hi"), ("assistant", "yo")]);
        let options = RenderOptions { add_generation_prompt: true, now_unix: 0 };
        let text = tokenizer.render_chat(&talk, options).unwrap();
        let turns = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, turns);
        let ids = tokenizer.encode_chat(&talk, options).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == tokenizer.eos_id().unwrap()).count(), 2);
        assert_eq!((tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), None, Some(2)));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let small = TokenizerTraining { vocab_size: 200, ..Default::default() };
        let error = train(&TEXTS, &small).unwrap_err().to_string();
        assert_eq!(
            error,
            "tokenizer: a vocabulary of 200 cannot hold the 256 bytes and 3 special tokens: at least 259"
        );
        let error = train(&["", " "], &TokenizerTraining::default()).unwrap_err().to_string();
        assert_eq!(error, "tokenizer: there is no text to train a tokenizer on");
    }
}
