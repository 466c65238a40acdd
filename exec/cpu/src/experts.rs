//! A step's experts: which compute which tokens, and their products.
//!
//! Rows are gathered by expert, so that an expert's weights are read once a step whatever number of tokens it computes, and
//! those of experts without a token not at all. A token's outputs are added in the order of its experts' numbers: what else
//! is in the step changes nothing.
#![expect(unsafe_code, reason = "kernels; chunks of a phase write rows of different tokens, or disjoint columns")]

use std::ops::Range;

use crate::{
    decoder::Site,
    kernels::product::{BLOCK, PANEL, Product},
    plan::SEGMENT,
    step::Step,
    workspace::ExpertSpace,
};

/// Who computes what in one layer.
pub(crate) struct Routes {
    per_token: usize,
    /// The row of each of a token's experts, `[tokens, per_token]`.
    rows: Vec<usize>,
    /// Experts and rows of theirs, none longer than a segment.
    runs: Vec<(usize, Range<usize>)>,
}

impl Routes {
    /// Of experts that compute tokens, `[tokens, per_token]`.
    fn new(chosen: &[u32], per_token: usize, experts: usize) -> Self {
        let mut ends = vec![0; experts];
        chosen.iter().for_each(|expert| ends[*expert as usize] += 1);
        let mut runs = Vec::new();
        let mut first = 0;
        // From counts to where each begins.
        for (expert, count) in ends.iter_mut().enumerate() {
            let end = first + *count;
            runs.extend((first..end).step_by(SEGMENT).map(|from| (expert, from..(from + SEGMENT).min(end))));
            (*count, first) = (first, end);
        }
        let place = |expert: &u32| {
            let next = &mut ends[*expert as usize];
            *next += 1;
            *next - 1
        };
        Self { per_token, rows: chosen.iter().map(place).collect(), runs }
    }

    /// A token's rows, in the order of its experts.
    pub(crate) fn of(&self, token: usize) -> &[usize] {
        &self.rows[token * self.per_token..][..self.per_token]
    }
}

impl Step {
    /// Where a layer's experts compute, and for whom, once that is known.
    pub(crate) fn routes_of(&self, layer: usize) -> Option<(&ExpertSpace, &Routes)> {
        self.work.experts.as_ref().zip(self.routes[layer].get())
    }

    /// Chooses a token's experts by the router's logits.
    pub(crate) fn route(&self, layer: usize, token: usize) {
        let (Some(experts), Some(space)) = (self.architecture.experts_of(layer), &self.work.experts) else { return };
        let k = experts.per_token;
        // SAFETY: the router's product was a phase before; this token's choices alone are written.
        let (logits, chosen, weights) = unsafe {
            (
                space.logits.slice(token * space.logits_stride, experts.count),
                space.chosen.slice_mut(token * k, k),
                space.weights.slice_mut(token * k, k),
            )
        };
        for place in 0..k {
            let (before, rest) = chosen.split_at_mut(place);
            let free = (0..experts.count as u32).filter(|expert| !before.contains(expert));
            // Of equals the one with the lower number.
            let best = free.reduce(|a, b| if logits[b as usize] > logits[a as usize] { b } else { a });
            rest[0] = best.unwrap_or(0);
        }
        let most = f64::from(logits[chosen[0] as usize]);
        chosen.sort_unstable();
        let share = |logit: f32| (f64::from(logit) - most).exp();
        let all: f64 = logits.iter().map(|logit| share(*logit)).sum();
        for (weight, expert) in weights.iter_mut().zip(&*chosen) {
            *weight = (share(logits[*expert as usize]) / all) as f32;
        }
        if experts.normalised {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }

    /// Gathers tokens by expert, once all have chosen.
    pub(crate) fn group(&self, layer: usize) {
        let (Some(experts), Some(space)) = (self.architecture.experts_of(layer), &self.work.experts) else { return };
        // SAFETY: the choices were made in this phase, which is over.
        let chosen = unsafe { space.chosen.slice(0, self.plan.tokens.len() * experts.per_token) };
        self.routes[layer].get_or_init(|| Routes::new(chosen, experts.per_token, experts.count));
    }

    /// Copies a token's input to its rows.
    pub(crate) fn gather(&self, layer: usize, token: usize) {
        let Some((space, routes)) = self.routes_of(layer) else { return };
        let (from, to, stride) = (&self.work.normed, &space.gathered, self.work.normed.stride);
        let blocks = stride / BLOCK;
        for row in routes.of(token) {
            // SAFETY: rows of this token alone; its input was written in a phase before.
            unsafe {
                if self.format(layer, Site::GateUp).is_integer() {
                    let quantised = to.quantised.slice_mut(row * stride, stride);
                    quantised.copy_from_slice(from.quantised.slice(token * stride, stride));
                    to.scales
                        .slice_mut(row * blocks, blocks)
                        .copy_from_slice(from.scales.slice(token * blocks, blocks));
                    to.sums.slice_mut(row * blocks, blocks).copy_from_slice(from.sums.slice(token * blocks, blocks));
                } else {
                    to.x.slice_mut(row * stride, stride).copy_from_slice(from.x.slice(token * stride, stride));
                }
            }
        }
    }

    /// Panels that one expert has, and chunks of so many of them.
    fn expert_panels(&self, layer: usize, site: Site, panels: usize) -> (usize, usize) {
        let experts = self.architecture.experts_of(layer).map_or(1, |experts| experts.count);
        let each = self.decoder.linear(layer, site).matrix.panels / experts;
        (each, each.div_ceil(panels))
    }

    pub(crate) fn expert_chunks(&self, layer: usize, site: Site, panels: usize) -> usize {
        let runs = self.routes_of(layer).map_or(0, |(_, routes)| routes.runs.len());
        runs * self.expert_panels(layer, site, panels).1
    }

    /// Some panels of one expert over a run of its rows.
    pub(crate) fn run_experts(&self, layer: usize, site: Site, panels: usize, chunk: usize, worker: usize) {
        let Some((space, routes)) = self.routes_of(layer) else { return };
        let (each, chunks) = self.expert_panels(layer, site, panels);
        let (expert, rows) = &routes.runs[chunk / chunks];
        let first = chunk % chunks * panels;
        let matrix = &self.decoder.linear(layer, site).matrix;
        let input = if site == Site::GateUp { &space.gathered } else { &space.gated };
        let scratch = &self.work.scratch[worker].product;
        for panel in first..(first + panels).min(each) {
            self.multiply(
                matrix,
                &Product {
                    panel: matrix.panel(expert * each + panel).as_ptr(),
                    depth: matrix.depth,
                    rows: input.rows().skip_rows(rows.start),
                    tokens: rows.len(),
                    out: scratch.ptr(),
                    out_stride: PANEL,
                    accumulate: false,
                },
            );
            // SAFETY: a worker's scratch is its own; the chunk owns these columns of these rows; kernels as in `multiply`.
            unsafe {
                if site == Site::GateUp {
                    let to = space.gated.x.at(rows.start * space.gated.stride + panel * (PANEL / 2));
                    let activation = self.architecture.activation;
                    (self.kernels.gate)(activation, rows.len(), scratch.ptr(), to, space.gated.stride);
                } else {
                    let stride = self.work.normed.stride;
                    for (values, row) in scratch.slice(0, rows.len() * PANEL).chunks(PANEL).zip(rows.clone()) {
                        space.out.slice_mut(row * stride + panel * PANEL, PANEL).copy_from_slice(values);
                    }
                }
            }
        }
    }

    /// Adds what a token's experts gave, each by its weight, to where the feed-forward block's output goes.
    pub(crate) fn combine(&self, layer: usize, token: usize) {
        let Some((space, routes)) = self.routes_of(layer) else { return };
        let (rows, stride) = (routes.of(token), self.work.normed.stride);
        // SAFETY: rows of this token alone.
        unsafe {
            let weights = space.weights.slice(token * rows.len(), rows.len());
            let sum = space.out.slice_mut(rows[0] * stride, stride);
            sum.iter_mut().for_each(|value| *value *= weights[0]);
            for (row, weight) in rows.iter().zip(weights).skip(1) {
                let more = space.out.slice(row * stride, stride);
                sum.iter_mut().zip(more).for_each(|(sum, value)| *sum += value * weight);
            }
            if self.architecture.post_norms {
                self.work.branch.slice_mut(token * stride, stride).copy_from_slice(sum);
            } else {
                let residual = self.work.residual.slice_mut(token * stride, stride);
                residual.iter_mut().zip(&*sum).for_each(|(residual, value)| *residual += value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_gathered_by_expert_and_know_their_rows() {
        let chosen = [0, 3, 1, 3, 0, 1];
        let routes = Routes::new(&chosen, 2, 5);
        assert_eq!(routes.runs, [(0, 0..2), (1, 2..4), (3, 4..6)]);
        assert_eq!([0, 1, 2].map(|token| routes.of(token).to_vec()), [[0, 4], [2, 5], [1, 3]]);
        let many = Routes::new(&vec![2; SEGMENT + 3], 1, 3);
        assert_eq!(many.runs, [(2, 0..SEGMENT), (2, SEGMENT..SEGMENT + 3)]);
    }
}
