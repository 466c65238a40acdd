//! What of the store is kept in memory: vectors, the graph, and what filters ask for. Read whole when the index is opened.

use std::{collections::HashMap, sync::Arc};

use redb::{ReadableDatabase, ReadableTable};

use super::{
    Dense, Filter, IndexError,
    graph::{Graph, Near},
    store::{CHUNKS, DOCUMENTS, LINKS, Row, Store, StoredChunk, VECTORS, decoded, document_of, fails},
    vectors::{Vectors, from_bytes},
};
use crate::parse::Metadata;

/// A document as filters see it.
pub(super) struct Held {
    pub(super) id: String,
    pub(super) metadata: Metadata,
    pub(super) slots: Vec<u32>,
}

/// What lies in a slot.
pub(super) struct Slot {
    pub(super) chunk: u64,
    pub(super) record: Option<Arc<Metadata>>,
}

pub(super) struct Memory {
    pub(super) vectors: Vectors,
    pub(super) graph: Option<Graph>,
    pub(super) documents: HashMap<u64, Held>,
    pub(super) keys: HashMap<String, u64>,
    /// By slot; a free one holds nothing.
    pub(super) slots: Vec<Option<Slot>>,
    /// Shared with searches that are under way.
    pub(super) by_chunk: Arc<HashMap<u64, u32>>,
    pub(super) free: Vec<u32>,
    pub(super) next_key: u64,
}

/// With what a filter may ask for besides.
pub(super) fn asked_of(row: &Row) -> Metadata {
    let mut metadata = row.metadata.clone();
    metadata.entry("document_id").or_insert_with(|| row.id.clone().into());
    metadata.entry("document_name").or_insert_with(|| row.name.clone().into());
    metadata
}

impl Memory {
    pub(super) fn load(store: &Store, dimension: usize, dense: Dense) -> Result<Self, IndexError> {
        let read = store.database.begin_read().map_err(fails)?;
        let mut memory = Self {
            vectors: Vectors::new(dimension),
            graph: None,
            documents: HashMap::new(),
            keys: HashMap::new(),
            slots: Vec::new(),
            by_chunk: Arc::default(),
            free: Vec::new(),
            next_key: 1,
        };
        for row in read.open_table(DOCUMENTS).map_err(fails)?.iter().map_err(fails)? {
            let (key, row) = row.map_err(fails)?;
            let row: Row = decoded("documents", row.value())?;
            memory.hold(key.value(), &row);
        }
        for row in read.open_table(CHUNKS).map_err(fails)?.iter().map_err(fails)? {
            let (key, row) = row.map_err(fails)?;
            let stored: StoredChunk = decoded("chunks", row.value())?;
            memory.fill(stored.slot, key.value(), stored.chunk.metadata.map(Arc::new));
        }
        for row in read.open_table(VECTORS).map_err(fails)?.iter().map_err(fails)? {
            let (slot, bytes) = row.map_err(fails)?;
            let vector = from_bytes(bytes.value());
            if vector.len() != dimension {
                return Err(IndexError::Damaged(format!(
                    "a vector has {} numbers, expected {dimension}",
                    vector.len()
                )));
            }
            memory.vectors.set(slot.value(), &vector);
        }
        let count = u32::try_from(memory.slots.len()).unwrap_or(u32::MAX);
        memory.free = (0..count).rev().filter(|slot| memory.slots[*slot as usize].is_none()).collect();
        if let Dense::Hnsw(measures) = dense {
            let mut graph = Graph::new(measures);
            for row in read.open_table(LINKS).map_err(fails)?.iter().map_err(fails)? {
                let (slot, links) = row.map_err(fails)?;
                graph.restore(slot.value(), links.value());
            }
            memory.graph = Some(graph);
        }
        Ok(memory)
    }

    pub(super) fn hold(&mut self, key: u64, row: &Row) {
        self.keys.insert(row.id.clone(), key);
        let held = Held { id: row.id.clone(), metadata: asked_of(row), slots: Vec::new() };
        self.documents.insert(key, held);
        self.next_key = self.next_key.max(key + 1);
    }

    pub(super) fn fill(&mut self, slot: u32, chunk: u64, record: Option<Arc<Metadata>>) {
        let at = slot as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(Slot { chunk, record });
        Arc::make_mut(&mut self.by_chunk).insert(chunk, slot);
        if let Some(held) = self.documents.get_mut(&document_of(chunk)) {
            held.slots.push(slot);
        }
    }

    /// Slots for new chunks: free ones first.
    pub(super) fn take_slots(&mut self, count: usize) -> Vec<u32> {
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let next = self.slots.len();
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                u32::try_from(next).unwrap_or(u32::MAX)
            });
            slots.push(slot);
        }
        slots
    }

    /// Forgets a document; its slots are given away again by the caller, once nothing leads to them.
    pub(super) fn drop_document(&mut self, key: u64) -> Vec<u32> {
        let Some(held) = self.documents.remove(&key) else {
            return Vec::new();
        };
        if self.keys.get(&held.id) == Some(&key) {
            self.keys.remove(&held.id);
        }
        let by_chunk = Arc::make_mut(&mut self.by_chunk);
        for slot in &held.slots {
            if let Some(slot) = self.slots[*slot as usize].take() {
                by_chunk.remove(&slot.chunk);
            }
        }
        held.slots
    }

    /// Which slots a filter leaves, a bit each, and how many they are.
    pub(super) fn accepted(&self, filter: &Filter) -> Accepted {
        let mut bits = vec![0_u64; self.slots.len().div_ceil(64)];
        let mut count = 0;
        for held in self.documents.values() {
            for &slot in &held.slots {
                let record = self.slots[slot as usize].as_ref().and_then(|slot| slot.record.as_deref());
                if filter.holds(&held.metadata, record) {
                    bits[slot as usize / 64] |= 1 << (slot % 64);
                    count += 1;
                }
            }
        }
        Accepted { bits, count }
    }

    /// The nearest of what is accepted, best first. Few are looked at one by one, which misses none.
    pub(super) fn nearest(&self, query: &[f32], count: usize, accepted: &Accepted) -> Vec<Near> {
        /// As fast as the graph, about, and exact.
        const FEW: usize = 4096;
        match &self.graph {
            Some(graph) if accepted.count > FEW => graph.search(query, count, &self.vectors, |slot| accepted.has(slot)),
            _ => {
                let all = 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                let near = |slot| Near { score: self.vectors.score(query, slot), slot };
                let mut near: Vec<Near> = all.filter(|slot| accepted.has(*slot)).map(near).collect();
                if near.len() > count && count > 0 {
                    near.select_nth_unstable_by(count - 1, |one, other| other.cmp(one));
                }
                near.truncate(count);
                near.sort_by(|one, other| other.cmp(one));
                near
            }
        }
    }
}

/// Slots that a filter leaves.
pub(super) struct Accepted {
    bits: Vec<u64>,
    pub(super) count: usize,
}

impl Accepted {
    pub(super) fn has(&self, slot: u32) -> bool {
        self.bits.get(slot as usize / 64).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }
}
