//! What `tokenizer_config.json` says.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::{TokenizerError, used};

/// Tokenizer classes for which the reference library obeys `add_bos_token` and `add_eos_token`; for all others the
/// post-processor in tokenizer.json is the only rule.
const CLASSES_WITH_BOS_FLAG: [&str; 6] = [
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
];

/// Whether special tokens around a text come from tokenizer.json or from flags that override it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    File,
    Flags { bos: bool, eos: bool },
}

/// A token in a configuration is its text, or an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A template is a string, or a list of named ones of which `default` is meant for chat.
pub(super) fn template_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let first = || list.first()?.get("template")?.as_str().map(str::to_owned);
            named_template(value, "default").or_else(first)
        }
        _ => None,
    }
}

/// One of a list of named templates.
pub(super) fn named_template(value: &Value, name: &str) -> Option<String> {
    let named = value.as_array()?.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name))?;
    named.get("template")?.as_str().map(str::to_owned)
}

pub(super) fn frame_of(config: &Map<String, Value>) -> Frame {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    match (flag("add_bos_token"), flag("add_eos_token")) {
        (None, None) => Frame::File,
        (bos, eos) if CLASSES_WITH_BOS_FLAG.contains(&class) => {
            Frame::Flags { bos: bos.unwrap_or(true), eos: eos.unwrap_or(false) }
        }
        _ => Frame::File,
    }
}

/// Some models list tokens in `added_tokens_decoder` that tokenizer.json lacks; the reference library adds them.
pub(super) fn add_missing_tokens(inner: &mut Tokenizer, config: &Map<String, Value>) -> Result<(), TokenizerError> {
    let Some(Value::Object(listed)) = config.get("added_tokens_decoder") else {
        return Ok(());
    };
    let mut by_id: BTreeMap<u32, &Value> = BTreeMap::new();
    for (id, token) in listed {
        let id = id.parse().map_err(|_| TokenizerError::Use(format!("added_tokens_decoder: `{id}` is not an id")))?;
        by_id.insert(id, token);
    }
    for (id, token) in by_id {
        let Some(content) = token_text(token) else {
            continue;
        };
        if inner.token_to_id(&content).is_some() {
            continue;
        }
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let added = AddedToken::from(content.as_str(), flag("special"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .single_word(flag("single_word"))
            .normalized(flag("normalized"));
        inner.add_tokens([added]).map_err(used)?;
        if let Some(got) = inner.token_to_id(&content).filter(|got| *got != id) {
            let problem = format!("added token `{content}` is listed with id {id} but its place is {got}");
            return Err(TokenizerError::Use(problem));
        }
    }
    Ok(())
}
