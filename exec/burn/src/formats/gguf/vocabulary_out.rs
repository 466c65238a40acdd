//! A tokenizer as GGUF metadata: tokens, their kinds, merges or scores, and the name of the split that comes before.
//!
//! The format has no room for a split of one's own: one that has no name there is refused rather than called by another's.

use std::collections::HashMap;

use serde_json::Value;

use super::vocabulary::Split;
use super::{GgufError, GgufWriter};
use crate::formats::tokenizer::TextTokenizer;

/// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// The score of a token that no merge makes: below all of those that one does.
const NEVER_MERGED: f32 = -1e6;
/// Splits that are written, the first that fits: name, and what it is known by.
const SPLITS: [&str; 4] = ["llama-bpe", "qwen2", "smollm", "gpt-2"];

/// Adds a tokenizer to a file's metadata, for a model with so many rows in its embedding.
///
/// # Errors
/// [`GgufError::Unsupported`] for a kind of tokenizer, or a split, that the format has no name for.
pub fn write(file: &mut GgufWriter, tokenizer: &TextTokenizer, rows: usize) -> Result<(), GgufError> {
    let parts: Value = serde_json::from_str(&tokenizer.to_json()?).map_err(|e| unsupported(&e.to_string()))?;
    let model = &parts["model"];
    let (Some("BPE"), Some(vocab)) = (model["type"].as_str(), model["vocab"].as_object()) else {
        return Err(unsupported(&format!("a tokenizer of type {}; BPE can be written", model["type"])));
    };
    let merges: Vec<(String, String)> = model["merges"].as_array().into_iter().flatten().filter_map(pair).collect();
    let byte_fallback = model["byte_fallback"] == true;
    let tokens = tokens(vocab, &parts["added_tokens"], model["unk_token"].as_str(), rows, byte_fallback);
    if byte_fallback {
        file.text("tokenizer.ggml.model", "llama");
        file.text("tokenizer.ggml.pre", "default");
        // The rank of the first merge that makes a token: earlier is better.
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let score = |token: &String| ranks.get(token).map_or(NEVER_MERGED, |rank| -(*rank as f32));
        file.floats("tokenizer.ggml.scores", &tokens.iter().map(|(token, _)| score(token)).collect::<Vec<_>>());
        file.truth("tokenizer.ggml.add_space_prefix", has_space_prefix(&parts));
    } else {
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", split_of(&parts)?);
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        file.texts("tokenizer.ggml.merges", &merges);
    }
    file.texts("tokenizer.ggml.tokens", &tokens.iter().map(|(token, _)| token).collect::<Vec<_>>());
    file.ints("tokenizer.ggml.token_type", &tokens.iter().map(|(_, kind)| *kind).collect::<Vec<_>>());
    let ids = [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")];
    for (key, name) in ids {
        if let Some(id) = tokenizer.special_token(name).and_then(|token| tokenizer.token_id(token)) {
            file.uint(&format!("tokenizer.ggml.{key}_token_id"), id as usize);
        }
    }
    // What a text gets around it, whichever of the tokenizer's files says so.
    let (bare, framed) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let added = framed.len() > bare.len();
    file.truth("tokenizer.ggml.add_bos_token", added && framed.first().copied() == tokenizer.bos_id());
    file.truth("tokenizer.ggml.add_eos_token", added && framed.last().copied() == tokenizer.eos_id());
    if let Some(template) = tokenizer.chat_template() {
        file.text("tokenizer.chat_template", template.source());
    }
    Ok(())
}

fn unsupported(what: &str) -> GgufError {
    GgufError::Unsupported(format!("{what} (hint: ask for the model as safetensors, which keeps any tokenizer)"))
}

/// A merge is two texts, or one with a space between in older files.
fn pair(merge: &Value) -> Option<(String, String)> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        other => Some((other[0].as_str()?.to_owned(), other[1].as_str()?.to_owned())),
    }
}

/// Every row of the embedding with its token and kind; those without a token are unused ones.
fn tokens(
    vocab: &serde_json::Map<String, Value>,
    added: &Value,
    unknown: Option<&str>,
    rows: usize,
    bytes: bool,
) -> Vec<(String, i32)> {
    let mut tokens: Vec<(String, i32)> = (0..rows).map(|row| (format!("[PAD{row}]"), UNUSED)).collect();
    let is_byte = |token: &str| bytes && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
    let mut put = |id: &Value, token: &str, kind| {
        if let Some(place) = id.as_u64().and_then(|id| tokens.get_mut(id as usize)) {
            *place = (token.to_owned(), kind);
        }
    };
    for (token, id) in vocab {
        let kind = if is_byte(token) { BYTE } else { NORMAL };
        put(id, token, if unknown == Some(token) { UNKNOWN } else { kind });
    }
    for token in added.as_array().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        put(&token["id"], content, if unknown == Some(content) { UNKNOWN } else { kind });
    }
    tokens
}

/// Whether a text is read as if a space stood before it.
fn has_space_prefix(parts: &Value) -> bool {
    let prepends =
        |part: &Value| part["type"] == "Prepend" || (part["type"] == "Metaspace" && part["prepend_scheme"] != "never");
    flat(&parts["normalizer"], "normalizers")
        .into_iter()
        .chain(flat(&parts["pre_tokenizer"], "pretokenizers"))
        .any(prepends)
}

/// A part, or the parts of a sequence.
fn flat<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part[list].as_array() {
        Some(parts) => parts.iter().collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

/// The name of the split that the tokenizer does before it merges.
fn split_of(parts: &Value) -> Result<&'static str, GgufError> {
    let before = flat(&parts["pre_tokenizer"], "pretokenizers");
    let pattern = before.iter().find_map(|part| part["pattern"]["Regex"].as_str());
    let digits = before.iter().any(|part| part["type"] == "Digits" && part["individual_digits"] == true);
    let nfc = flat(&parts["normalizer"], "normalizers").iter().any(|part| part["type"] == "NFC");
    let others = before.iter().find(|part| !["ByteLevel", "Digits", "Split"].map(Value::from).contains(&part["type"]));
    for name in SPLITS {
        let split = Split::by_name(name)?;
        if others.is_none() && (split.pattern, split.single_digits, split.nfc) == (pattern, digits, nfc) {
            return Ok(name);
        }
    }
    let what = pattern.map_or_else(|| parts["pre_tokenizer"].to_string(), str::to_owned);
    Err(unsupported(&format!("a tokenizer that splits texts by {what}; those of {} have a name", SPLITS.join(", "))))
}
