//! A folder of sentence-transformers: `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::Value;

use super::Pooling;
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};
use crate::model::encoder::RowError;
use crate::model::{ConfigError, Encoder, EncoderConfig};
use crate::weights::{SafetensorsSource, WeightsError};

/// Why a model cannot embed or score.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// config.json.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A text.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Another file of the folder.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What was found and what would work.
        problem: String,
    },
    /// A reranker needs a score head.
    #[error("config.json: architectures: {0} gives no scores; a reranker is a BertForSequenceClassification")]
    NoScores(String),
}

/// What `modules.json` says.
pub(super) struct Modules {
    /// The folder of the encoder within the folder.
    pub model: String,
    pub pooling: Pooling,
    pub normalise: bool,
}

/// Reads it; without it the encoder is in the folder itself, and the mean of its tokens is the vector.
pub(super) fn modules(folder: &Path) -> Result<Modules, EmbeddingError> {
    let mut found = Modules { model: String::new(), pooling: Pooling::Mean, normalise: false };
    let path = folder.join("modules.json");
    let Some(json) = read(&path)? else { return Ok(found) };
    for (index, module) in json.as_array().map(Vec::as_slice).unwrap_or_default().iter().enumerate() {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = text("type").rsplit('.').next().unwrap_or_default();
        match (index, kind) {
            (0, "Transformer") => found.model = within(&path, text("path"))?,
            (1, "Pooling") => found.pooling = pooling(&folder.join(within(&path, text("path"))?).join("config.json"))?,
            (2, "Normalize") => found.normalise = true,
            _ => {
                let problem = format!(
                    "module {index} is {:?}; known are a Transformer, then a Pooling, then a Normalize",
                    text("type")
                );
                return Err(EmbeddingError::File { path, problem });
            }
        }
    }
    Ok(found)
}

/// A path from a file must not lead out of its folder.
fn within(file: &Path, path: &str) -> Result<String, EmbeddingError> {
    match path.contains(['/', '\\']) || path == ".." {
        true => Err(EmbeddingError::File {
            path: file.to_owned(),
            problem: format!("path {path:?} must be the name of a folder"),
        }),
        false => Ok(path.to_owned()),
    }
}

const MODES: [(&str, &str, Pooling); 4] = [
    ("pooling_mode_cls_token", "cls", Pooling::Cls),
    ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
    ("pooling_mode_max_tokens", "max", Pooling::Max),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
];

/// One flag for each way, or in newer files one word.
fn pooling(path: &Path) -> Result<Pooling, EmbeddingError> {
    let wrong = |problem| EmbeddingError::File { path: path.to_owned(), problem };
    let json = read(path)?.ok_or_else(|| wrong("is missing".to_owned()))?;
    let set: Vec<&str> = match json.get("pooling_mode").and_then(Value::as_str) {
        Some(word) => vec![word],
        None => {
            let flags = json.as_object().into_iter().flatten();
            let on = flags.filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
            on.map(|(key, _)| key.as_str()).collect()
        }
    };
    let meant = |found: &str| MODES.into_iter().find(|(flag, word, _)| [*flag, *word].contains(&found));
    match set[..] {
        [one] if let Some((.., pooling)) = meant(one) => Ok(pooling),
        _ => {
            let known = MODES.map(|(flag, ..)| flag).join(", ");
            Err(wrong(format!("{set:?} set; exactly one is expected of {known}")))
        }
    }
}

/// An encoder and its tokenizer, which cuts at the longest that either takes.
pub(super) fn encoder(folder: &Path, device: &Device) -> Result<(Encoder, TextTokenizer), EmbeddingError> {
    let config = EncoderConfig::from_folder(folder)?;
    let source = SafetensorsSource::open_folder(folder)?;
    let said = read(&folder.join("sentence_bert_config.json"))?;
    let said = said.and_then(|json| json.get("max_seq_length").and_then(Value::as_u64)).map(|length| length as usize);
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let longest = config.max_position_embeddings;
    let length = said.or(tokenizer.model_max_length()).map_or(longest, |length| length.min(longest));
    let tokenizer = tokenizer.cutting_at(length)?;
    Ok((Encoder::load(config, &source, device)?, tokenizer))
}

fn read(path: &Path) -> Result<Option<Value>, EmbeddingError> {
    let wrong = |problem: String| EmbeddingError::File { path: path.to_owned(), problem };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
    }
}
