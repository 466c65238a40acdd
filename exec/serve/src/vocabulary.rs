//! A tokenizer as the engine sees it: which bytes a token stands for, told from how tokenizer.json says that tokens are
//! put together (`decoder`).

use std::{collections::BTreeSet, sync::Arc};

use mloc_burn::formats::tokenizer::TextTokenizer;
use mloc_engine::vocabulary::Vocabulary;
use serde_json::Value;

/// A tokenizer with the bytes of each of its tokens.
pub struct TokenizerVocabulary {
    tokenizer: Arc<TextTokenizer>,
    /// By id; `None` = special, or no such token.
    bytes: Vec<Option<Vec<u8>>>,
    ends: Vec<u32>,
}

impl TokenizerVocabulary {
    /// Of a tokenizer, for a model with `size` logits, of which `ends` end an answer.
    ///
    /// # Errors
    /// A tokenizer that can't be written down, or whose tokens are put together in a way that is not known here.
    pub fn new(tokenizer: Arc<TextTokenizer>, size: usize, ends: Vec<u32>) -> Result<Self, String> {
        let json = tokenizer.to_json().map_err(|error| error.to_string())?;
        let json: Value = serde_json::from_str(&json).map_err(|error| format!("tokenizer.json: {error}"))?;
        let spelling = Spelling::of(json.get("decoder"))?;
        let special = specials(&json);
        let bytes = (0..size as u32).map(|id| {
            let text = tokenizer.token_text(id).filter(|_| !special.contains(&id))?;
            Some(spelling.bytes(&text))
        });
        let bytes = bytes.collect();
        Ok(Self { tokenizer, bytes, ends })
    }
}

impl Vocabulary for TokenizerVocabulary {
    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn decode(&self, ids: &[u32]) -> String {
        // Ids that the tokenizer does not have are left out; nothing else fails.
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.bytes.get(id as usize)?.clone()
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, false).unwrap_or_default()
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }
}

fn specials(tokenizer: &Value) -> BTreeSet<u32> {
    let added = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let special = added.filter(|token| token.get("special") == Some(&Value::Bool(true)));
    special.filter_map(|token| token.get("id")?.as_u64()).map(|id| id as u32).collect()
}

/// How tokens become text: what `decoder` does to each, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spelling(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Each character stands for a byte (GPT-2).
    ByteLevel,
    /// A text is written as another.
    Replace(String, String),
    /// `<0x41>` is a byte.
    ByteFallback,
    /// Words with spaces before them, but for what begins so, which is a word's further part.
    Words { further: Option<String> },
}

impl Spelling {
    fn of(decoder: Option<&Value>) -> Result<Self, String> {
        let mut steps = Vec::new();
        match decoder.filter(|decoder| !decoder.is_null()) {
            Some(decoder) => Self::add(decoder, &mut steps)?,
            // The library then puts a space between any two.
            None => steps.push(Step::Words { further: None }),
        }
        Ok(Self(steps))
    }

    fn add(decoder: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
        let text = |key: &str| decoder.get(key).and_then(Value::as_str);
        match text("type").unwrap_or_default() {
            "Sequence" => {
                for one in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    Self::add(one, steps)?;
                }
            }
            "ByteLevel" => steps.push(Step::ByteLevel),
            "ByteFallback" => steps.push(Step::ByteFallback),
            "Replace" => {
                let pattern = decoder.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                let pattern = pattern
                    .ok_or("tokenizer.json: decoder: Replace with a pattern that is no plain text is not known")?;
                steps.push(Step::Replace(pattern.to_owned(), text("content").unwrap_or_default().to_owned()));
            }
            "Metaspace" => {
                steps.push(Step::Replace(text("replacement").unwrap_or("\u{2581}").to_owned(), " ".to_owned()));
            }
            "WordPiece" => steps.push(Step::Words { further: Some(text("prefix").unwrap_or("##").to_owned()) }),
            "BPEDecoder" => steps.push(Step::Replace(text("suffix").unwrap_or("</w>").to_owned(), " ".to_owned())),
            // They put together what was taken apart, or cut the text's first space: neither is of a single token.
            "Fuse" | "Strip" => {}
            other => {
                return Err(format!(
                    "tokenizer.json: decoder: {other} is not known; known are ByteLevel, ByteFallback, Replace, Metaspace, \
                     WordPiece, BPEDecoder, Fuse, Strip and a Sequence of them"
                ));
            }
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.0 {
            match step {
                Step::ByteLevel => return byte_level(&text).unwrap_or_else(|| text.into_bytes()),
                Step::Replace(from, to) => text = text.replace(from, to),
                Step::ByteFallback => {
                    if let Some(byte) = byte_of(&text) {
                        return vec![byte];
                    }
                }
                Step::Words { further } => {
                    text = match further.as_ref().and_then(|further| text.strip_prefix(further.as_str())) {
                        Some(rest) => rest.to_owned(),
                        None => format!(" {text}"),
                    };
                }
            }
        }
        text.into_bytes()
    }
}

/// `<0x41>` → 0x41.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The bytes that GPT-2's characters stand for; `None` = one of them stands for none, and the text is meant as it is.
fn byte_level(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of_character).collect()
}

/// Bytes that print are characters of their own number; all others are counted from 256 on.
fn byte_of_character(character: char) -> Option<u8> {
    let number = u32::from(character);
    match number {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(number as u8),
        // 0x00 to 0x20, 0x7F to 0xA0, 0xAD.
        0x100..=0x120 => Some((number - 0x100) as u8),
        0x121..=0x142 => Some((number - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..0x150).filter_map(char::from_u32).filter_map(byte_of_character).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        // As every GPT-2 tokenizer writes them.
        assert_eq!(byte_level("Ġhe"), Some(b" he".to_vec()));
        assert_eq!(byte_level("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(byte_level("Ã©"), Some("é".as_bytes().to_vec()));
        assert_eq!(byte_level("日"), None);
    }

    #[test]
    fn tokens_are_spelled_as_the_decoder_says() {
        let spelled = |decoder: Value, token: &str| {
            let bytes = Spelling::of(Some(&decoder)).expect("known").bytes(token);
            String::from_utf8(bytes).expect("text")
        };
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(spelled(llama.clone(), "▁he▁she"), " he she");
        assert_eq!(spelled(llama.clone(), "<0x41>"), "A");
        assert_eq!(spelled(llama, "<0x4>"), "<0x4>");
        assert_eq!(spelled(json!({"type": "ByteLevel"}), "<think>"), "<think>");
        assert_eq!(spelled(json!({"type": "WordPiece", "prefix": "##"}), "##ing"), "ing");
        assert_eq!(spelled(json!({"type": "WordPiece", "prefix": "##"}), "go"), " go");
        assert_eq!(spelled(Value::Null, "go"), " go");
        let error = Spelling::of(Some(&json!({"type": "CTC"}))).expect_err("not known");
        assert!(error.starts_with("tokenizer.json: decoder: CTC is not known; known are "), "{error}");
    }
}
