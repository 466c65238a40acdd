//! From a path to a model that serves.

use std::{path::Path, sync::Arc};

use mloc_burn::{
    formats::layout::{Layout, LayoutError},
    model::EncoderConfig,
};
use mloc_openai::Model;
use serde_json::Value;

use crate::{decoder::Decoder, encoders::Encoder, settings::Settings};

/// Why a model can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The disk.
    #[error("{0}")]
    Disk(String),
    /// The model's files: what was found and what would work.
    #[error("{0}")]
    Model(String),
    /// It doesn't fit into memory: the numbers and what would fit.
    #[error("{0}")]
    Memory(String),
    /// It was to stop.
    #[error("stopped as asked")]
    Stopped,
}

/// What was opened.
pub enum Served {
    /// It writes text.
    Decoder(Decoder),
    /// It embeds or ranks.
    Encoder(Arc<Encoder>),
}

impl Served {
    /// As the server sees it.
    pub fn model(&self) -> Arc<dyn Model> {
        match self {
            Self::Decoder(decoder) => decoder.generator.clone(),
            Self::Encoder(encoder) => encoder.clone(),
        }
    }
}

/// Opens a folder in Hugging Face's or sentence-transformers' layout, or a GGUF file, and loads all of it.
///
/// # Errors
/// [`ServeError`]
pub fn open(path: &Path, settings: &Settings, stopping: &(dyn Fn() -> bool + Sync)) -> Result<Served, ServeError> {
    // sentence-transformers may have the encoder in a folder of its own.
    if path.join("modules.json").is_file() {
        return Encoder::open(path, settings).map(|encoder| Served::Encoder(Arc::new(encoder)));
    }
    let layout = Layout::of(path).map_err(|error| match error {
        LayoutError::Io { .. } => ServeError::Disk(error.to_string()),
        LayoutError::NoModel(found) => ServeError::Model(found),
    })?;
    if let Layout::Folder(folder) = &layout
        && is_encoder(folder)
    {
        return Encoder::open(folder, settings).map(|encoder| Served::Encoder(Arc::new(encoder)));
    }
    Decoder::open(&layout, settings, stopping).map(Served::Decoder)
}

/// A config.json that can't be read is whoever's reads it next.
fn is_encoder(folder: &Path) -> bool {
    let text = std::fs::read(folder.join("config.json")).unwrap_or_default();
    serde_json::from_slice::<Value>(&text).is_ok_and(|raw| EncoderConfig::is_meant(&raw))
}
