//! An index cut into shards by its documents' ids: which belongs where, and one order out of several.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::index::{Hit, hit::rank_anew};

/// One shard of several. Another count is another place for nearly every document: they are ingested anew then. The one
/// after it keeps copies of the files that came to it, so that whoever takes its place has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharding {
    /// This one, from 0.
    pub index: u32,
    /// All of them.
    pub count: u32,
}

impl Default for Sharding {
    /// The only one.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

/// Where a document belongs.
pub fn shard_of(document_id: &str, count: u32) -> u32 {
    let hash = Sha256::digest(document_id.as_bytes());
    let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u32::try_from(number % u64::from(count.max(1))).unwrap_or(0)
}

impl Sharding {
    /// Whether a document belongs here.
    pub fn holds(self, document_id: &str) -> bool {
        shard_of(document_id, self.count) == self.index
    }

    /// Who keeps copies of what belongs here; `None` = there is nobody else.
    pub fn keeper(self) -> Option<u32> {
        (self.count > 1).then(|| (self.index + 1) % self.count)
    }

    /// Of whose documents copies are kept here.
    pub fn kept_for(self) -> Option<u32> {
        (self.count > 1).then(|| (self.index + self.count - 1) % self.count)
    }

    /// The others.
    pub fn others(self) -> impl Iterator<Item = u32> {
        (0..self.count).filter(move |shard| *shard != self.index)
    }
}

/// What all shards found together, and which of them said nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// In one order.
    pub hits: Vec<Hit>,
    /// Shards without an answer, rising.
    pub missing: Vec<u32>,
}

/// Hits of several shards in one order; `None` = that shard did not answer. `depth`: candidates of each arm, of all together
/// as of one index.
///
/// The arms' scores are compared across shards and ranks given anew. Cosines mean the same everywhere, and so does BM25
/// where all shards weighed by the statistics of all: then this is the order of one index.
pub fn merge(answers: Vec<(u32, Option<Vec<Hit>>)>, depth: usize) -> Merged {
    let mut merged = Merged { hits: Vec::new(), missing: Vec::new() };
    for (shard, answer) in answers {
        match answer {
            Some(hits) => merged.hits.extend(hits),
            None => merged.missing.push(shard),
        }
    }
    merged.missing.sort_unstable();
    rank_anew(&mut merged.hits, depth);
    merged
}
