//! A folder of sentence-transformers: `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`, and the model,
//! which is an encoder or a decoder.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::Value;

use super::{Backbone, Pooling};
use crate::formats::gguf::TensorType;
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};
use crate::model::config::Keys;
use crate::model::encoder::RowError;
use crate::model::{ConfigError, Decoder, DecoderConfig, Encoder, EncoderConfig};
use crate::weights::{SafetensorsSource, TensorSource, WeightsError};

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
    /// The folder of the model within the folder.
    pub model: String,
    pub pooling: Pooling,
    pub normalise: bool,
}

/// Reads it; without it the model is in the folder itself, and the mean of its tokens is the vector.
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

const MODES: [(&str, &str, Pooling); 5] = [
    ("pooling_mode_cls_token", "cls", Pooling::Cls),
    ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
    ("pooling_mode_max_tokens", "max", Pooling::Max),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
    ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
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

/// A model of hidden states, its tokenizer, and the longest text that either takes, in tokens.
pub(super) fn backbone(folder: &Path, device: &Device) -> Result<(Backbone, TextTokenizer, usize), EmbeddingError> {
    let path = folder.join("config.json");
    let raw = read(&path)?.unwrap_or(Value::Null);
    if raw.is_null() || EncoderConfig::is_meant(&raw) {
        let (encoder, tokenizer, longest) = encoder(folder, device)?;
        return Ok((Backbone::Encoder(encoder), tokenizer, longest));
    }
    let config = DecoderConfig::from_json(without_head(raw)?)?;
    let source = SafetensorsSource::open_folder(folder)?;
    let decoder = match source.names().iter().any(|name| name.starts_with(INSIDE)) {
        true => Decoder::load(config, &source, device)?,
        false => Decoder::load(config, &Bare(source), device)?,
    };
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let longest = longest(folder, decoder.config.max_position_embeddings, &tokenizer)?;
    Ok((Backbone::Decoder(Box::new(decoder)), tokenizer, longest))
}

/// An encoder, its tokenizer, which cuts at the longest text that either takes, and that length.
pub(super) fn encoder(folder: &Path, device: &Device) -> Result<(Encoder, TextTokenizer, usize), EmbeddingError> {
    let config = EncoderConfig::from_folder(folder)?;
    let source = SafetensorsSource::open_folder(folder)?;
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let longest = longest(folder, config.max_position_embeddings, &tokenizer)?;
    let tokenizer = tokenizer.cutting_at(longest)?;
    Ok((Encoder::load(config, &source, device)?, tokenizer, longest))
}

/// Tokens of a text at most: as sentence_bert_config.json says, or else the tokenizer, and never more than the model takes.
fn longest(folder: &Path, of_model: usize, tokenizer: &TextTokenizer) -> Result<usize, EmbeddingError> {
    let said = read(&folder.join("sentence_bert_config.json"))?;
    let said = said.and_then(|json| json.get("max_seq_length").and_then(Value::as_u64)).map(|length| length as usize);
    Ok(said.or(tokenizer.model_max_length()).map_or(of_model, |length| length.min(of_model)))
}

/// The config.json of a language model, of one that may have been saved without its head (`Qwen3Model`), and the vectors
/// need none.
fn without_head(mut raw: Value) -> Result<Value, ConfigError> {
    let keys = Keys(&raw);
    let sees_all = "a token of this model sees what comes after it, and decoders here see what is before";
    keys.must_not_be_set("use_bidirectional_attention", sees_all)?;
    if !keys.flag_or("is_causal", true) {
        return Err(ConfigError::Key { key: "is_causal", problem: format!("false; {sees_all}") });
    }
    let bare = keys.class().and_then(|class| class.strip_suffix("Model"));
    let family = bare.map(|family| family.strip_suffix("Text").unwrap_or(family).to_owned());
    if let Some(map) = raw.as_object_mut() {
        if let Some(family) = family {
            map.insert("architectures".to_owned(), vec![format!("{family}ForCausalLM")].into());
        }
        // No weights of a head are asked for.
        map.insert("tie_word_embeddings".to_owned(), true.into());
    }
    Ok(raw)
}

/// What a language model's tensors but its head's are called by.
const INSIDE: &str = "model.";

/// The tensors of a model that was saved without its head, under the names they have in one with it.
struct Bare(SafetensorsSource);

impl Bare {
    fn own(name: &str) -> Result<&str, WeightsError> {
        name.strip_prefix(INSIDE).ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }
}

impl TensorSource for Bare {
    fn names(&self) -> Vec<String> {
        self.0.names().into_iter().map(|name| format!("{INSIDE}{name}")).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name.strip_prefix(INSIDE)?)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.0.read_f32(Self::own(name)?)
    }

    fn stored(&self, name: &str) -> Option<TensorType> {
        self.0.stored(name.strip_prefix(INSIDE)?)
    }

    fn read_stored(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        self.0.read_stored(Self::own(name)?)
    }
}

fn read(path: &Path) -> Result<Option<Value>, EmbeddingError> {
    let wrong = |problem: String| EmbeddingError::File { path: path.to_owned(), problem };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
    }
}
