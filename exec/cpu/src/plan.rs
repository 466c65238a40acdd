//! What one step computes, decided before any thread starts.

use std::{ops::Range, sync::Arc};

use mloc_engine::forward::{Chunk, Wanted};

use crate::{
    adapter::Adapter,
    architecture::Architecture,
    kernels::attention::{MOST_ROWS, SPAN},
};

/// Tokens of a product's chunk: a panel stays in the nearest cache over them, a whole number of the largest tiles.
pub(crate) const SEGMENT: usize = 96;
/// Query rows of one unit of attention: what its scores and values leave in the nearest cache.
const UNIT_ROWS: usize = 48;

/// One chunk of the step: consecutive tokens of a sequence.
pub(crate) struct Sequence {
    /// The chunk's first token among the step's.
    pub first: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Position of the first.
    pub start: usize,
    pub blocks: Vec<u32>,
    pub adapter: Option<Arc<Adapter>>,
}

/// Some queries of a sequence on one key-value head.
pub(crate) struct Unit {
    pub sequence: usize,
    /// Queries, counted within the sequence's chunk.
    pub queries: Range<usize>,
    pub kv_head: usize,
    /// Spans of positions.
    pub spans: Range<usize>,
}

/// A step.
pub(crate) struct Plan {
    pub tokens: Vec<u32>,
    pub positions: Vec<usize>,
    /// Which sequence a token belongs to.
    pub owners: Vec<usize>,
    pub sequences: Vec<Sequence>,
    pub units: Vec<Unit>,
    /// Whether a unit is one span, its part to be merged with the others of its queries.
    pub split: bool,
    /// The row of logits that a token gets.
    pub wanted: Vec<Option<usize>>,
    /// Rows of logits.
    pub rows: usize,
    /// Sine and cosine per rope: `[tokens, 2, frequencies]`.
    pub turns: Vec<Vec<f32>>,
    /// Tokens with adapters, in runs of one sequence, none longer than a segment.
    pub adapted: Vec<(usize, Range<usize>)>,
}

impl Plan {
    /// `adapter` finds a chunk's adapter, `threads` is how many will share the work.
    pub(crate) fn new(
        a: &Architecture,
        step: &[Chunk],
        threads: usize,
        adapter: impl Fn(&Chunk) -> Option<Arc<Adapter>>,
    ) -> Self {
        let mut plan = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            owners: Vec::new(),
            sequences: Vec::new(),
            units: Vec::new(),
            split: false,
            wanted: Vec::new(),
            rows: 0,
            turns: Vec::new(),
            adapted: Vec::new(),
        };
        for (index, chunk) in step.iter().enumerate() {
            let (first, tokens) = (plan.tokens.len(), chunk.tokens.len());
            plan.tokens.extend_from_slice(&chunk.tokens);
            plan.positions.extend(chunk.start..chunk.start + tokens);
            plan.owners.extend(std::iter::repeat_n(index, tokens));
            for at in 0..tokens {
                let wanted = match chunk.wanted {
                    Wanted::None => false,
                    Wanted::Last => at + 1 == tokens,
                    Wanted::All => true,
                };
                plan.wanted.push(wanted.then_some(plan.rows));
                plan.rows += usize::from(wanted);
            }
            let sequence = Sequence {
                first,
                tokens,
                start: chunk.start,
                blocks: chunk.blocks.iter().map(|block| block.0).collect(),
                adapter: adapter(chunk),
            };
            if sequence.adapter.is_some() {
                let runs = (0..tokens).step_by(SEGMENT).map(|at| first + at..first + (at + SEGMENT).min(tokens));
                plan.adapted.extend(runs.map(|run| (index, run)));
            }
            plan.sequences.push(sequence);
        }
        plan.turns = a.ropes.iter().map(|rope| turns(rope, &plan.positions)).collect();
        plan.divide(a, threads);
        plan
    }

    /// Attention into units: by queries and heads, and by spans too where that would leave threads without work.
    fn divide(&mut self, a: &Architecture, threads: usize) {
        let group = a.heads / a.kv_heads;
        let most = (UNIT_ROWS.min(MOST_ROWS) / group).max(1);
        for (index, sequence) in self.sequences.iter().enumerate() {
            for from in (0..sequence.tokens).step_by(most) {
                let queries = from..(from + most).min(sequence.tokens);
                let spans = 0..(sequence.start + queries.end).div_ceil(SPAN);
                for kv_head in 0..a.kv_heads {
                    let (queries, spans) = (queries.clone(), spans.clone());
                    self.units.push(Unit { sequence: index, queries, kv_head, spans });
                }
            }
        }
        self.split = self.units.len() < 4 * threads && self.units.iter().any(|unit| unit.spans.len() > 1);
        if self.split {
            let whole = std::mem::take(&mut self.units);
            for unit in whole {
                for span in unit.spans {
                    let queries = unit.queries.clone();
                    self.units.push(Unit { queries, spans: span..span + 1, ..unit });
                }
            }
        }
        // The longest first, so that the last to end is short.
        if !self.split {
            self.units.sort_by_key(|unit| std::cmp::Reverse(unit.spans.len() * unit.queries.len()));
        }
    }
}

/// Sines and cosines of some positions. The angle is an f32 product, as in the reference implementations.
fn turns(rope: &crate::architecture::Rope, positions: &[usize]) -> Vec<f32> {
    let mut turns = Vec::with_capacity(positions.len() * rope.inverse_frequencies.len() * 2);
    for &position in positions {
        let angles = || rope.inverse_frequencies.iter().map(|f| f64::from(position as f32 * f));
        turns.extend(angles().map(|angle| angle.sin() as f32 * rope.scale));
        turns.extend(angles().map(|angle| angle.cos() as f32 * rope.scale));
    }
    turns
}
