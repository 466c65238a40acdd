//! A question to the index: the filter first, then each arm its candidates, then both in one order.

use std::{collections::BTreeMap, sync::PoisonError};

use super::{
    Arms, CHUNKS, DOCUMENTS, Filter, Hit, Index, IndexError, Row,
    fuse::{Arm, fused},
    hit::order,
    statistics::Statistics,
    store::{StoredChunk, document_of},
    vectors::unit,
};

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// In words.
    pub text: String,
    /// As a vector; without one the words alone are asked.
    pub vector: Option<Vec<f32>>,
    /// Of what.
    pub filter: Filter,
    /// Candidates of each arm.
    pub depth: usize,
    /// Which arms.
    pub arms: Arms,
    /// What the words are weighed by; `None` = by what this index counts.
    pub statistics: Option<Statistics>,
}

/// Both arms' words about a chunk.
type Named = BTreeMap<u64, (Option<Arm>, Option<Arm>)>;

impl Index {
    /// What the words are weighed by, of this index alone.
    ///
    /// # Errors
    /// The disk's.
    pub fn statistics(&self, text: &str) -> Result<Statistics, IndexError> {
        Ok(self.words.statistics(text)?)
    }

    /// Each arm's candidates, fused, best first.
    ///
    /// # Errors
    /// When the vector is none of this index's, or the disk fails.
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let vector = match &query.vector {
            Some(vector) if vector.len() != self.dimension => {
                let message = format!("made a vector of {} numbers, expected {}", vector.len(), self.dimension);
                return Err(IndexError::Vector(message));
            }
            Some(vector) => {
                let unit = unit(vector);
                Some(unit.ok_or_else(|| IndexError::Vector("made a vector with numbers that are none".into()))?)
            }
            None => None,
        };
        let mut named = Named::new();
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let accepted = memory.accepted(&query.filter);
        if let Some(vector) = vector.as_ref().filter(|_| query.arms.dense) {
            for (near, rank) in memory.nearest(vector, query.depth, &accepted).into_iter().zip(1..) {
                if let Some(slot) = memory.slots.get(near.slot as usize).and_then(Option::as_ref) {
                    named.entry(slot.chunk).or_default().0 = Some(Arm { rank, score: near.score });
                }
            }
        }
        // The words may still know a version that was replaced since: it has no slot any more.
        let slots = memory.by_chunk.clone();
        drop(memory);
        if query.arms.words {
            let accepts = move |chunk| slots.get(&chunk).is_some_and(|slot| accepted.has(*slot));
            let found = self.words.search(&query.text, query.depth, query.statistics.as_ref(), accepts)?;
            for ((chunk, score), rank) in found.into_iter().zip(1..) {
                named.entry(chunk).or_default().1 = Some(Arm { rank, score });
            }
        }
        let mut cosines = BTreeMap::new();
        if let Some(vector) = &vector {
            let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
            for chunk in named.keys() {
                let slot = memory.by_chunk.get(chunk);
                cosines.extend(slot.map(|slot| (*chunk, memory.vectors.score(vector, *slot))));
            }
        }
        self.resolve(named, &cosines)
    }

    fn resolve(&self, named: Named, cosines: &BTreeMap<u64, f32>) -> Result<Vec<Hit>, IndexError> {
        let mut rows: BTreeMap<u64, Option<Row>> = BTreeMap::new();
        let mut hits = Vec::with_capacity(named.len());
        for (key, (dense, words)) in named {
            let document = document_of(key);
            let row = match rows.entry(document) {
                std::collections::btree_map::Entry::Occupied(row) => row.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => place.insert(self.store.row(DOCUMENTS, document)?),
            };
            let stored: Option<StoredChunk> = self.store.row(CHUNKS, key)?;
            // It may have been deleted since it was found.
            let (Some(row), Some(StoredChunk { chunk, text, .. })) = (row, stored) else {
                continue;
            };
            let mut metadata = row.metadata.clone();
            metadata.extend(chunk.metadata.unwrap_or_default());
            hits.push(Hit {
                document_id: row.id.clone(),
                document_name: row.name.clone(),
                document_hash: row.hash.clone(),
                ordinal: chunk.ordinal,
                chars: chunk.chars,
                bytes: chunk.bytes,
                pages: chunk.pages,
                headings: chunk.headings,
                text,
                metadata,
                dense,
                words,
                cosine: cosines.get(&key).copied(),
                fused: fused(&[dense, words]),
                rerank: None,
            });
        }
        order(&mut hits);
        Ok(hits)
    }
}
