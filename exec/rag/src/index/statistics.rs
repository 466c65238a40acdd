//! What BM25 counts: how many chunks there are, how long they are, and how many have a word. Counted over all shards of an
//! index, each weighs its chunks as one index of all would.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tantivy::{Term, query::Bm25StatisticsProvider, schema::Field};

/// Of an index, or of several together, for the words of one question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Chunks.
    pub chunks: u64,
    /// Words of all chunks.
    pub tokens: u64,
    /// Chunks that have a word.
    pub words: BTreeMap<String, u64>,
}

impl Statistics {
    /// Takes in another index's.
    pub fn add(&mut self, other: Self) {
        self.chunks = self.chunks.saturating_add(other.chunks);
        self.tokens = self.tokens.saturating_add(other.tokens);
        for (word, chunks) in other.words {
            let all = self.words.entry(word).or_default();
            *all = all.saturating_add(chunks);
        }
    }
}

impl Bm25StatisticsProvider for Statistics {
    fn total_num_tokens(&self, _: Field) -> tantivy::Result<u64> {
        Ok(self.tokens)
    }

    fn total_num_docs(&self) -> tantivy::Result<u64> {
        // It is divided by.
        Ok(self.chunks.max(1))
    }

    fn doc_freq(&self, term: &Term) -> tantivy::Result<u64> {
        let known = term.value().as_str().and_then(|word| self.words.get(word).copied());
        // More than there are would be a panic of tantivy's.
        Ok(known.unwrap_or(0).min(self.chunks.max(1)))
    }
}
