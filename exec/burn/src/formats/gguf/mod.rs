//! GGUF files: one file with weights (often quantised), configuration, tokenizer and chat template.
//!
//! `reader` finds its way in the bytes and trusts nothing in them, `blocks` turns quantised blocks into floats, `config` and
//! `model` speak Hugging Face's names and shapes, `vocabulary` rebuilds the tokenizer; `writer` and `vocabulary_out` go the other way.
//! Which tensors of a model are written how is [`crate::export`]'s.

mod blocks;
mod config;
#[cfg(test)]
mod golden;
mod model;
mod reader;
#[cfg(test)]
pub(crate) mod testing;
mod vocabulary;
mod vocabulary_out;
mod writer;

use std::path::PathBuf;

pub use blocks::TensorType;
pub use config::{GgufConfig, RopeScaling};
pub use model::GgufModel;
pub(crate) use model::gguf_name;
pub use reader::{GgufFile, MetaValue, TensorInfo};
pub(crate) use vocabulary_out::write as write_tokenizer;
pub use writer::{GgufWriter, OutTensor};

/// What can be wrong with a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not a GGUF file of a version that can be read.
    #[error("not a GGUF file this build reads: {0}")]
    Format(String),
    /// The file ends before what it announces, or announces more than it can hold.
    #[error("GGUF file is cut short or corrupt at byte {at}: {what}")]
    Corrupt {
        /// Offset from the start of the file.
        at: usize,
        /// What was being read.
        what: String,
    },
    /// A metadata key is missing or has another type than it must have.
    #[error("GGUF metadata `{key}`: {problem}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor is missing or cannot be read.
    #[error("GGUF tensor `{name}`: {problem}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The caller did not want to go on.
    #[error("stopped as asked")]
    Interrupted,
    /// The model or tokenizer is of a kind that this build does not know.
    #[error("GGUF model is not supported: {0}")]
    Unsupported(String),
    /// The tokenizer built from the metadata is refused.
    #[error("GGUF tokenizer: {0}")]
    Tokenizer(#[from] super::tokenizer::TokenizerError),
}
