//! What a step does to each token between products: norms, rotations, the cache, quantisation.
#![expect(unsafe_code, reason = "kernels; chunks of a phase write rows of different tokens")]

use std::ops::Range;

use crate::{
    decoder::Site,
    step::{Stage, Step},
    workspace::Activations,
};

/// Values a head at most: what is turned on the stack.
pub(crate) const MOST_HEAD_DIM: usize = 512;

impl Step {
    pub(crate) fn run_stage(&self, stage: Stage, tokens: Range<usize>) {
        for token in tokens {
            match stage {
                Stage::Begin => {
                    self.embed(token);
                    self.norm(
                        token,
                        token,
                        &self.decoder.layers[0].attention_norm,
                        self.format(0, Site::QueryKeyValue).is_integer(),
                    );
                }
                Stage::Place(layer) => self.place(layer, token),
                Stage::Attended(_) => self.quantise(&self.work.attended, token),
                Stage::Between(layer) => {
                    let weights = &self.decoder.layers[layer];
                    self.end_branch(token, weights.post_norms.as_ref().map(|norms| &norms[0][..]));
                    self.norm(token, token, &weights.feed_forward_norm, self.format(layer, Site::GateUp).is_integer());
                }
                Stage::Route(layer) => self.route(layer, token),
                Stage::Gather(layer) => self.gather(layer, token),
                Stage::Gated(layer) => match self.routes_of(layer) {
                    Some((space, rows)) => rows.of(token).iter().for_each(|row| self.quantise(&space.gated, *row)),
                    None => self.quantise(&self.work.gated, token),
                },
                Stage::End(layer) => self.end(layer, token),
            }
        }
    }

    fn embed(&self, token: usize) {
        // SAFETY: this token's row, in a phase by itself.
        let row = unsafe { self.work.residual.slice_mut(token * self.work.normed.stride, self.architecture.hidden) };
        self.decoder.embed(self.plan.tokens[token], row);
        let scale = self.architecture.embedding_scale;
        if scale != 1.0 {
            row.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// Norms a token's residual into a row of the next product's input.
    fn norm(&self, token: usize, row: usize, weight: &[f32], quantised: bool) {
        let (work, a) = (&self.work, &self.architecture);
        let stride = work.normed.stride;
        assert_eq!(weight.len(), stride);
        // SAFETY: rows of this token, or of its logits, alone.
        unsafe {
            let (x, out) = (work.residual.at(token * stride), work.normed.x.at(row * stride));
            (self.kernels.rms_norm)(x, weight.as_ptr(), a.norm_epsilon, out, a.hidden, stride);
        }
        if quantised {
            self.quantise(&work.normed, row);
        }
    }

    pub(crate) fn quantise(&self, to: &Activations, row: usize) {
        let blocks = row * to.stride / crate::kernels::product::BLOCK;
        // SAFETY: this row alone.
        unsafe {
            let (x, quantised) = (to.x.at(row * to.stride), to.quantised.at(row * to.stride));
            (self.kernels.quantise)(x, to.stride, quantised, to.scales.at(blocks), to.sums.at(blocks));
        }
    }

    /// Adds what a branch gave to the residual, where the architecture norms it first.
    fn end_branch(&self, token: usize, post_norm: Option<&[f32]>) {
        let Some(weight) = post_norm else { return };
        let (work, a) = (&self.work, &self.architecture);
        let stride = work.normed.stride;
        // SAFETY: rows of this token alone.
        unsafe {
            let branch = work.branch.at(token * stride);
            (self.kernels.rms_norm)(branch, weight.as_ptr(), a.norm_epsilon, branch, a.hidden, stride);
            let (branch, residual) =
                (work.branch.slice(token * stride, stride), work.residual.slice_mut(token * stride, stride));
            residual.iter_mut().zip(branch).for_each(|(sum, value)| *sum += value);
        }
    }

    fn end(&self, layer: usize, token: usize) {
        let weights = &self.decoder.layers[layer];
        self.combine(layer, token);
        self.end_branch(token, weights.post_norms.as_ref().map(|norms| &norms[1][..]));
        match self.decoder.layers.get(layer + 1) {
            Some(next) => {
                let quantised = self.format(layer + 1, Site::QueryKeyValue).is_integer();
                self.norm(token, token, &next.attention_norm, quantised);
            }
            None => {
                if let Some(row) = self.plan.wanted[token] {
                    self.norm(token, row, &self.decoder.final_norm, self.format(0, Site::Head).is_integer());
                }
            }
        }
    }

    /// Norms, turns and scales a token's queries; norms and turns its keys and writes them with its values to the cache.
    fn place(&self, layer: usize, token: usize) {
        let (work, a) = (&self.work, &self.architecture);
        let norms = self.decoder.layers[layer].qk_norms.as_ref();
        let d = a.head_dim;
        let sequence = &self.plan.sequences[self.plan.owners[token]];
        let position = self.plan.positions[token];
        let (block, offset) = (sequence.blocks[position / self.cache.block_tokens], position % self.cache.block_tokens);
        // SAFETY: this token's rows, and its place in the cache, which is its sequence's alone.
        let (row, queries) = unsafe {
            (
                work.qkv.slice(token * work.qkv_stride, (a.heads + 2 * a.kv_heads) * d),
                work.queries.slice_mut(token * a.heads * d, a.heads * d),
            )
        };
        for (from, to) in row.chunks(d).zip(queries.chunks_mut(d)) {
            self.turn(layer, token, from, norms.map(|norms| &norms[0][..]), to);
            to.iter_mut().for_each(|value| *value *= a.attention_scale);
        }
        let mut key = [0.0; MOST_HEAD_DIM];
        for head in 0..a.kv_heads {
            let (from, value) = (&row[(a.heads + head) * d..][..d], &row[(a.heads + a.kv_heads + head) * d..][..d]);
            self.turn(layer, token, from, norms.map(|norms| &norms[1][..]), &mut key[..d]);
            // SAFETY: as above.
            unsafe { self.cache.write(layer, head, block, offset, &key[..d], value) };
        }
    }

    /// Norms and turns one head.
    fn turn(&self, layer: usize, token: usize, from: &[f32], norm: Option<&[f32]>, to: &mut [f32]) {
        let (a, d) = (&self.architecture, from.len());
        to.copy_from_slice(from);
        if let Some(weight) = norm {
            let mut padded = [0.0; MOST_HEAD_DIM];
            padded[..d].copy_from_slice(from);
            let n = d.next_multiple_of(16);
            assert!(weight.len() >= n);
            // SAFETY: both have n values, the output may be the input; kernels as elsewhere.
            unsafe {
                let x = padded.as_mut_ptr();
                (self.kernels.rms_norm)(x, weight.as_ptr(), a.norm_epsilon, x, d, n);
            }
            to.copy_from_slice(&padded[..d]);
        }
        let rope = a.layers[layer].rope;
        let half = a.ropes[rope].inverse_frequencies.len();
        let (sines, cosines) = self.plan.turns[rope][token * 2 * half..][..2 * half].split_at(half);
        let (first, second) = to[..2 * half].split_at_mut(half);
        for (((x, y), sine), cosine) in first.iter_mut().zip(second).zip(sines).zip(cosines) {
            (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
        }
    }
}
