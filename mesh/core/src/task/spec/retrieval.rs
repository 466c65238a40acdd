//! What of documents a question is answered from.

use serde::{Deserialize, Serialize};

use super::Location;

/// How passages are found for a question. The documents themselves are the task's `dataset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrieval {
    /// The model that makes vectors of texts: a folder in Hugging Face layout.
    pub embedder: Location,
    /// The model that puts what was found in order, question and passage read together; the order of the search when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reranker: Option<Location>,
    /// What is searched by.
    pub mode: RetrievalMode,
    /// Passages that a question is answered from, at most.
    pub top_k: u32,
    /// Passages that each way of searching finds, before they are put together and in order; no fewer than `top_k`.
    pub candidates: u32,
    /// Tokens of a passage, at most.
    pub chunk_tokens: u32,
    /// Tokens at the end of a passage with which the next one begins; fewer than `chunk_tokens`.
    pub chunk_overlap: u32,
    /// Score below which a passage says nothing of the question, in thousandths so that the ledger has no floats: the
    /// reranker's where there is one, else the nearness of vectors. With none above it the answer is that the documents do
    /// not say. All that was found counts when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_floor_milli: Option<u32>,
    /// The folder of documents is looked at again so often, in milliseconds; it is read once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_ms: Option<u64>,
}

/// What is searched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetrievalMode {
    /// Both, their ranks fused.
    Hybrid,
    /// The nearness of vectors.
    Dense,
    /// Words in common, the rare ones first.
    Bm25,
}

impl RetrievalMode {
    /// The words in a file.
    pub const NAMES: [&str; 3] = ["hybrid", "dense", "bm25"];

    /// By its word.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "hybrid" => Some(Self::Hybrid),
            "dense" => Some(Self::Dense),
            "bm25" => Some(Self::Bm25),
            _ => None,
        }
    }
}
