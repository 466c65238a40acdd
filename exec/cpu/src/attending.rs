//! A step's attention: units of queries over cached positions.
#![expect(unsafe_code, reason = "kernels; units write values of different queries or heads")]

use crate::{
    buffer::Buffer,
    cache::CacheFormat,
    kernels::{
        attention::{Attend, State},
        product::PANEL,
    },
    plan::Unit,
    step::Step,
    workspace::state_len,
};

impl Step {
    fn state(&self, buffer: &Buffer<f32>, at: usize, rows: usize) -> State {
        let width = self.architecture.head_dim.next_multiple_of(PANEL);
        // SAFETY: a unit's state is its own until all units are done.
        unsafe { buffer.slice_mut(at, state_len(rows, width)) }.fill(0.0);
        let state =
            State { largest: buffer.at(at), sum: buffer.at(at + rows), values: buffer.at(at + 2 * rows), width };
        // SAFETY: as above.
        unsafe { buffer.slice_mut(at, rows) }.fill(f32::NEG_INFINITY);
        state
    }

    fn unit_rows(&self, unit: &Unit) -> usize {
        unit.queries.len() * (self.architecture.heads / self.architecture.kv_heads)
    }

    /// Values of one unit's part where attention is split: as many as the largest unit's.
    fn part_len(&self) -> usize {
        self.parts_len / self.plan.units.len()
    }

    pub(crate) fn run_attend(&self, layer: usize, index: usize, worker: usize) {
        let (a, unit, scratch) = (&self.architecture, &self.plan.units[index], &self.work.scratch[worker]);
        let (sequence, group, d) = (&self.plan.sequences[unit.sequence], a.heads / a.kv_heads, a.head_dim);
        let rows = self.unit_rows(unit);
        for (row, query) in unit.queries.clone().enumerate() {
            let from = (sequence.first + query) * a.heads * d + unit.kv_head * group * d;
            // SAFETY: queries were written in a phase before; a worker's scratch is its own.
            unsafe {
                let from = self.work.queries.slice(from, group * d);
                scratch.queries.slice_mut(row * group * d, group * d).copy_from_slice(from);
            }
        }
        let state = if self.plan.split {
            self.state(&self.parts, index * self.part_len(), rows)
        } else {
            self.state(&scratch.state, 0, rows)
        };
        let attend = Attend {
            queries: scratch.queries.ptr(),
            tokens: unit.queries.len(),
            group,
            head_dim: d,
            start: sequence.start + unit.queries.start,
            window: a.layers[layer].window,
            soft_cap: a.attention_soft_cap,
            spans: unit.spans.clone(),
            blocks: &sequence.blocks,
            block_tokens: self.cache.block_tokens,
            cache: self.cache.head(layer, unit.kv_head),
            block_bytes: self.cache.block_bytes(),
            values_at: self.cache.values_at(),
            scores: scratch.scores.ptr(),
            part: scratch.part.ptr(),
            state,
        };
        // SAFETY: scratch has room for the most rows there are, blocks reach to the last position (`forward` checks),
        // `Kernels::of` checked the processor.
        unsafe {
            match self.cache.format {
                CacheFormat::F32 => (self.kernels.attend_f32)(&attend),
                CacheFormat::F16 => (self.kernels.attend_f16)(&attend),
            }
        }
        if !self.plan.split {
            self.deliver_attention(unit, &state);
        }
    }

    /// Merges the parts of split units, front to back, as a unit of all spans would have.
    pub(crate) fn merge_parts(&self, worker: usize) {
        if !self.plan.split {
            return;
        }
        let mut index = 0;
        while index < self.plan.units.len() {
            let unit = &self.plan.units[index];
            let rows = self.unit_rows(unit);
            let whole = self.state(&self.work.scratch[worker].state, 0, rows);
            while let Some(part) = self.plan.units.get(index) {
                let same = (part.sequence, part.kv_head, &part.queries) == (unit.sequence, unit.kv_head, &unit.queries);
                if !same {
                    break;
                }
                let at = index * self.part_len();
                let part = State {
                    largest: self.parts.at(at),
                    sum: self.parts.at(at + rows),
                    values: self.parts.at(at + 2 * rows),
                    width: whole.width,
                };
                // SAFETY: all units are done; this thread is alone.
                unsafe { (self.kernels.merge)(&whole, &part, rows) };
                index += 1;
            }
            self.deliver_attention(unit, &whole);
        }
    }

    /// Divides by the sum of the weights.
    fn deliver_attention(&self, unit: &Unit, state: &State) {
        let (a, attended) = (&self.architecture, &self.work.attended);
        let (group, d) = (a.heads / a.kv_heads, a.head_dim);
        let first = self.plan.sequences[unit.sequence].first;
        for row in 0..self.unit_rows(unit) {
            let (token, head) = (first + unit.queries.start + row / group, unit.kv_head * group + row % group);
            // SAFETY: the state is this thread's; the values of these queries and heads are this unit's.
            unsafe {
                let sum = *state.sum.add(row);
                let values = std::slice::from_raw_parts(state.values.add(row * state.width), d);
                let to = attended.x.slice_mut(token * attended.stride + head * d, d);
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value / sum);
            }
        }
    }
}
