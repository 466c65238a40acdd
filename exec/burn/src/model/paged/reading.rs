//! Where a step's tokens lie in the cache, and what each of them sees.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::PagedChunk;
#[cfg(feature = "kernels")]
use super::by_kernel::KernelReading;
use crate::model::config::DecoderConfig;
use crate::model::packed::{Group, int_tensor};

/// Where tokens are written, and what is read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The place of each token of the step, `[tokens]`.
    pub(super) places: Tensor<1, Int>,
    /// Of each group of the step; none where kernels do it.
    pub(super) seen: Vec<Seen>,
    /// What kernels need in its place.
    #[cfg(feature = "kernels")]
    pub(super) kernel: Option<KernelReading>,
}

/// What the texts of a group see. Shorter ones are filled up with places whose scores are masked.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub texts: usize,
    /// Places of each text, the step's own tokens included.
    pub keys: usize,
    /// `[texts · keys]`.
    pub places: Tensor<1, Int>,
    /// By window: what is added to scores, `[texts, 1, shared · queries, keys]`; none where all is seen.
    masks: BTreeMap<Option<usize>, Tensor<4>>,
}

impl Reading {
    /// Of chunks in the order of their tokens: all neighbours of one token are a group, each other one is its own.
    pub(in crate::model) fn new(
        chunks: &[&PagedChunk<'_>],
        block_tokens: usize,
        config: &DecoderConfig,
        device: &Device,
    ) -> (Self, Vec<Group>) {
        let place = |chunk: &PagedChunk<'_>, position: usize| {
            chunk.blocks[position / block_tokens] as i64 * block_tokens as i64 + (position % block_tokens) as i64
        };
        #[cfg(feature = "kernels")]
        let kernel = KernelReading::new(chunks, place, block_tokens, config, device);
        #[cfg(feature = "kernels")]
        let by_kernel = kernel.is_some();
        #[cfg(not(feature = "kernels"))]
        let by_kernel = false;
        let written = chunks.iter().flat_map(|chunk| (chunk.start..chunk.end()).map(|p| place(chunk, p))).collect();
        let (mut seen, mut groups) = (Vec::new(), Vec::new());
        let mut start = 0;
        for members in chunks.chunk_by(|a, b| a.tokens.len() == 1 && b.tokens.len() == 1) {
            let length = members[0].tokens.len();
            let keys = members.iter().map(|chunk| chunk.end()).max().unwrap_or(0);
            groups.push(Group { start, rows: members.len(), length, past: keys - length });
            start += members.len() * length;
            if by_kernel {
                continue;
            }
            let places = members.iter().flat_map(|chunk| {
                let own = (0..chunk.end()).map(|position| place(chunk, position));
                // Any place will do: it is masked.
                own.chain(std::iter::repeat(place(chunk, 0))).take(keys)
            });
            let places = int_tensor(places.collect(), device);
            let masks = masks(members, keys, config, device);
            seen.push(Seen { texts: members.len(), keys, places, masks });
        }
        let reading = Self {
            places: int_tensor(written, device),
            seen,
            #[cfg(feature = "kernels")]
            kernel,
        };
        (reading, groups)
    }

    pub(super) fn mask(&self, group: usize, window: Option<usize>) -> Option<&Tensor<4>> {
        self.seen[group].masks.get(&window)
    }
}

/// The masks that some layer needs.
fn masks(
    members: &[&PagedChunk<'_>],
    keys: usize,
    config: &DecoderConfig,
    device: &Device,
) -> BTreeMap<Option<usize>, Tensor<4>> {
    let shared = config.num_heads / config.num_kv_heads;
    let mut masks = BTreeMap::new();
    for &window in &config.windows {
        let sees_all = |chunk: &&PagedChunk<'_>| {
            chunk.tokens.len() == 1 && chunk.end() == keys && window.is_none_or(|window| keys <= window)
        };
        if !members.iter().all(sees_all) {
            masks.entry(window).or_insert_with(|| mask(members, keys, window, shared, device));
        }
    }
    masks
}

/// 0 where a query may look, a very negative number elsewhere; once for each of the query heads that share a key head.
fn mask(members: &[&PagedChunk<'_>], keys: usize, window: Option<usize>, shared: usize, device: &Device) -> Tensor<4> {
    // Finite: a difference of two infinities would be no number.
    const HIDDEN: f32 = -1e30;
    let queries = members.first().map_or(0, |chunk| chunk.tokens.len());
    let mut values = Vec::with_capacity(members.len() * shared * queries * keys);
    for chunk in members {
        let mut one = vec![HIDDEN; queries * keys];
        for (query, row) in one.chunks_mut(keys.max(1)).enumerate() {
            let last = chunk.start + query;
            let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
            row[first..=last].fill(0.0);
        }
        (0..shared).for_each(|_| values.extend_from_slice(&one));
    }
    Tensor::from_data(TensorData::new(values, [members.len(), 1, shared * queries, keys]), device)
}
