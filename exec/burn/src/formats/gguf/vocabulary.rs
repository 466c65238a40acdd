//! The tokenizer in a GGUF file's metadata, rebuilt as a `tokenizer.json`.
//!
//! The file has the tokens, their kinds, and merges or scores. How text is split before merging it only names, so the
//! splits that belong to the names are written down here; an unknown name is refused rather than guessed, because a
//! wrong split makes a model slightly stupid without any error.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::GgufError;
use super::reader::{GgufFile, MetaValue};
use crate::formats::tokenizer::TextTokenizer;

/// Token kinds that are matched in the text before anything is split.
const KIND_CONTROL: i128 = 3;
const KIND_USER_DEFINED: i128 = 4;

/// A token's merges are found by trying all ways to cut it; real tokens have a few dozen bytes.
const MAX_SENTENCE_PIECE_BYTES: usize = 1024;

/// The begin and end markers, and whether texts get them.
struct Frame {
    bos: Option<String>,
    eos: Option<String>,
    add_bos: bool,
    add_eos: bool,
}

pub(super) fn build(file: &GgufFile) -> Result<TextTokenizer, GgufError> {
    let tokens = texts(file, "tokenizer.ggml.tokens")?;
    let kinds = ints(file, "tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if kinds.len() != tokens.len() {
        let problem = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
        return Err(GgufError::Metadata { key: "tokenizer.ggml.token_type".into(), problem });
    }
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let mut parts = match model {
        "gpt2" => byte_level(file, &tokens)?,
        "llama" => sentence_piece(file, &tokens)?,
        other => {
            return Err(GgufError::Unsupported(format!("tokenizer model `{other}`; known are gpt2 and llama")));
        }
    };
    let frame = read_frame(file, &tokens, model == "llama")?;
    let added: Vec<Value> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, KIND_CONTROL | KIND_USER_DEFINED))
        .map(|(id, (content, kind))| {
            json!({ "id": id, "content": content, "special": *kind == KIND_CONTROL, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    parts.insert("version".into(), json!("1.0"));
    parts.insert("added_tokens".into(), json!(added));
    parts.insert("post_processor".into(), post_processor(&frame, &tokens));
    let bytes = Value::Object(parts).to_string();
    Ok(TextTokenizer::from_parts(bytes.as_bytes(), configuration(file, &frame, &tokens)?)?)
}

fn read_frame(file: &GgufFile, tokens: &[String], bos_by_default: bool) -> Result<Frame, GgufError> {
    let marker = |key: &str| -> Result<Option<String>, GgufError> { token_at(file, tokens, key) };
    // llama.cpp's rule for files that do not say: SentencePiece models and Llama 3 get a begin token.
    let llama3 = matches!(file.text("tokenizer.ggml.pre")?, Some("llama-bpe" | "llama3" | "llama-v3"));
    Ok(Frame {
        bos: marker("tokenizer.ggml.bos_token_id")?,
        eos: marker("tokenizer.ggml.eos_token_id")?,
        add_bos: file.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default || llama3),
        add_eos: file.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
    })
}

fn token_at(file: &GgufFile, tokens: &[String], key: &str) -> Result<Option<String>, GgufError> {
    let Some(id) = file.uint(key)? else {
        return Ok(None);
    };
    let problem = || format!("{id} is outside the {} tokens", tokens.len());
    match tokens.get(id) {
        Some(token) => Ok(Some(token.clone())),
        None => Err(GgufError::Metadata { key: key.into(), problem: problem() }),
    }
}

/// What `tokenizer_config.json` would say.
fn configuration(file: &GgufFile, frame: &Frame, tokens: &[String]) -> Result<Map<String, Value>, GgufError> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    let unknown = token_at(file, tokens, "tokenizer.ggml.unknown_token_id")?;
    let padding = token_at(file, tokens, "tokenizer.ggml.padding_token_id")?;
    let named =
        [("bos_token", &frame.bos), ("eos_token", &frame.eos), ("unk_token", &unknown), ("pad_token", &padding)];
    for (name, token) in named {
        if let Some(token) = token {
            config.insert(name.into(), json!(token));
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(config)
}

fn post_processor(frame: &Frame, tokens: &[String]) -> Value {
    let mut single = Vec::new();
    let mut special = Map::new();
    let mut add = |single: &mut Vec<Value>, token: &Option<String>| {
        let Some(token) = token else { return };
        let Some(id) = tokens.iter().position(|t| t == token) else {
            return;
        };
        single.push(json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
        special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    };
    if frame.add_bos {
        add(&mut single, &frame.bos);
    }
    single.push(json!({ "Sequence": { "id": "A", "type_id": 0 } }));
    if frame.add_eos {
        add(&mut single, &frame.eos);
    }
    if special.is_empty() {
        return Value::Null;
    }
    let mut pair = single.clone();
    pair.push(json!({ "Sequence": { "id": "B", "type_id": 1 } }));
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special })
}

/// GPT-2's kind: bytes as printable characters, merges in order of rank.
fn byte_level(file: &GgufFile, tokens: &[String]) -> Result<Map<String, Value>, GgufError> {
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let split = Split::by_name(name)?;
    let merges = texts(file, "tokenizer.ggml.merges")?;
    let merges = merges.iter().enumerate().map(|(i, m)| match m.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(GgufError::Metadata {
            key: "tokenizer.ggml.merges".into(),
            problem: format!("entry {i} (`{m}`) is not two tokens with a space between"),
        }),
    });
    let merges = merges.collect::<Result<Vec<Value>, GgufError>>()?;
    let mut parts = Map::new();
    parts.insert("normalizer".into(), if split.nfc { json!({ "type": "NFC" }) } else { Value::Null });
    parts.insert("pre_tokenizer".into(), split.pre_tokenizer());
    parts.insert("decoder".into(), byte_level_part(true));
    parts.insert(
        "model".into(),
        json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": split.ignore_merges, "vocab": vocabulary(tokens)?, "merges": merges }),
    );
    Ok(parts)
}

fn byte_level_part(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn vocabulary(tokens: &[String]) -> Result<Map<String, Value>, GgufError> {
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            let problem = format!("`{token}` is there twice, the second time as number {id}");
            return Err(GgufError::Metadata { key: "tokenizer.ggml.tokens".into(), problem });
        }
    }
    Ok(vocab)
}

/// How text is split before merging.
pub(super) struct Split {
    /// A pattern of its own, or None for GPT-2's.
    pub pattern: Option<&'static str>,
    /// Every digit is a piece of its own, before the pattern.
    pub single_digits: bool,
    /// Composes accents first.
    pub nfc: bool,
    /// A piece that is a token as a whole is taken without merging.
    ignore_merges: bool,
}

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    pub fn by_name(name: &str) -> Result<Self, GgufError> {
        let gpt2 = Self { pattern: None, single_digits: false, nfc: false, ignore_merges: false };
        Ok(match name {
            // Files without a name are from before names existed: GPT-2's split was the only one.
            "default" | "gpt-2" | "gpt2" | "phi-2" | "jina-es" | "jina-de" | "olmo" => gpt2,
            "smollm" | "starcoder" | "refact" | "codeshell" | "command-r" | "exaone" => {
                Self { single_digits: true, ..gpt2 }
            }
            "llama-bpe" | "llama3" | "llama-v3" => Self { pattern: Some(LLAMA3_PATTERN), ignore_merges: true, ..gpt2 },
            "qwen2" | "deepseek-r1-qwen" => Self { pattern: Some(QWEN2_PATTERN), nfc: true, ..gpt2 },
            other => {
                return Err(GgufError::Unsupported(format!(
                    "tokenizer split `{other}`; known are default, gpt-2, smollm, llama-bpe, qwen2 (hint: take the \
                     tokenizer from the original model's folder)"
                )));
            }
        })
    }

    fn pre_tokenizer(&self) -> Value {
        let mut parts = Vec::new();
        if self.single_digits {
            parts.push(json!({ "type": "Digits", "individual_digits": true }));
        }
        if let Some(pattern) = self.pattern {
            parts.push(
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }),
            );
        }
        parts.push(byte_level_part(self.pattern.is_none()));
        json!({ "type": "Sequence", "pretokenizers": parts })
    }
}

/// SentencePiece's kind: `▁` for spaces, single bytes as fallback, and scores from which the merges follow: two tokens
/// merge if the result is a token, better scores first.
fn sentence_piece(file: &GgufFile, tokens: &[String]) -> Result<Map<String, Value>, GgufError> {
    let scores = floats(file, "tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let problem = format!("has {} entries for {} tokens", scores.len(), tokens.len());
        return Err(GgufError::Metadata { key: "tokenizer.ggml.scores".into(), problem });
    }
    if let Some(id) = tokens.iter().position(|t| t.len() > MAX_SENTENCE_PIECE_BYTES) {
        let problem = format!("token {id} has {} bytes, at most {MAX_SENTENCE_PIECE_BYTES} are read", tokens[id].len());
        return Err(GgufError::Metadata { key: "tokenizer.ggml.tokens".into(), problem });
    }
    let vocab = vocabulary(tokens)?;
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(&scores) {
        let mut ways: Vec<(usize, usize, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    // Stable, as the reference's sort is: equal ranks keep the order of the vocabulary. Longer parts go first.
    let chars = |s: &str| s.chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (chars(b.1), chars(b.2)).cmp(&(chars(a.1), chars(a.2)))));
    let merges: Vec<Value> = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
    let unknown = token_at(file, tokens, "tokenizer.ggml.unknown_token_id")?;
    let prefix = file.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizers = if prefix { vec![json!({ "type": "Prepend", "prepend": "▁" }), spaces] } else { vec![spaces] };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let mut parts = Map::new();
    parts.insert("normalizer".into(), json!({ "type": "Sequence", "normalizers": normalizers }));
    parts.insert("pre_tokenizer".into(), Value::Null);
    parts.insert("decoder".into(), json!({ "type": "Sequence", "decoders": decoders }));
    parts.insert(
        "model".into(),
        json!({ "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": merges }),
    );
    Ok(parts)
}

fn elements(file: &GgufFile, key: &str) -> Result<Vec<MetaValue>, GgufError> {
    let missing = || GgufError::Metadata { key: key.to_owned(), problem: "is missing".into() };
    file.array(key)?.ok_or_else(missing)
}

fn mistyped(key: &str, expected: &str) -> GgufError {
    GgufError::Metadata { key: key.to_owned(), problem: format!("expected an array of {expected}") }
}

fn texts(file: &GgufFile, key: &str) -> Result<Vec<String>, GgufError> {
    let text = |value| match value {
        MetaValue::Text(text) => Ok(text),
        _ => Err(mistyped(key, "texts")),
    };
    elements(file, key)?.into_iter().map(text).collect()
}

fn floats(file: &GgufFile, key: &str) -> Result<Vec<f64>, GgufError> {
    let float = |value| match value {
        MetaValue::Float(x) => Ok(x),
        _ => Err(mistyped(key, "floats")),
    };
    elements(file, key)?.into_iter().map(float).collect()
}

fn ints(file: &GgufFile, key: &str) -> Result<Option<Vec<i128>>, GgufError> {
    let int = |value| match value {
        MetaValue::Int(n) => Ok(n),
        _ => Err(mistyped(key, "integers")),
    };
    file.array(key)?.map(|values| values.into_iter().map(int).collect()).transpose()
}
