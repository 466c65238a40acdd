//! What kernels need to know of a step over blocks, in place of masks and of copies of what single tokens see.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, FloatDType, Int, Tensor};
use mloc_kernels::attention::{MOST_DIM, Sight};
use mloc_kernels::paged::MOST_SHARED;

use super::{PagedChunk, cache::PagedLayer};
use crate::kernels::{self, AttentionSizes, PagedTexts, SightTensors};
use crate::model::config::DecoderConfig;
use crate::model::dot_product::DotProduct;
use crate::model::packed::int_tensor;

/// The texts of a step, as kernels see them: first those with one new token, then the others.
#[derive(Debug, Clone)]
pub(super) struct KernelReading {
    block_tokens: usize,
    /// Where the step's tokens are written, `[tokens]`, of 32 bits.
    places: Tensor<1, Int>,
    /// Texts with one new token.
    singles: usize,
    /// Of those, by window.
    of_singles: BTreeMap<Option<usize>, PagedTexts>,
    /// What the others see, text by text, `[keys]`.
    keys: Tensor<1, Int>,
    /// Of those, by window.
    of_others: BTreeMap<Option<usize>, SightTensors>,
}

impl KernelReading {
    /// `None` where kernels can't, or must not be asked.
    pub fn new(
        chunks: &[&PagedChunk<'_>],
        place: impl Fn(&PagedChunk<'_>, usize) -> i64,
        block_tokens: usize,
        config: &DecoderConfig,
        device: &Device,
    ) -> Option<Self> {
        let shared = config.num_heads / config.num_kv_heads;
        let able = config.attention_softcap.is_none() && config.head_dim <= MOST_DIM && shared <= MOST_SHARED;
        if *device == Device::flex() || !able {
            return None;
        }
        let singles = chunks.iter().take_while(|chunk| chunk.tokens.len() == 1).count();
        let (single, others) = chunks.split_at(singles);
        let windows: BTreeSet<Option<usize>> = config.windows.iter().copied().collect();
        let of_singles = windows.iter().filter(|_| singles > 0).map(|window| (*window, texts(single, *window, device)));
        let of_others =
            windows.iter().filter(|_| !others.is_empty()).map(|window| (*window, sight(others, *window, device)));
        let written = chunks.iter().flat_map(|chunk| (chunk.start..chunk.end()).map(|p| place(chunk, p) as i32));
        let seen = others.iter().flat_map(|chunk| (0..chunk.end()).map(|position| place(chunk, position)));
        Some(Self {
            block_tokens,
            places: kernels::words(&written.collect::<Vec<_>>(), device),
            singles,
            of_singles: of_singles.collect(),
            keys: int_tensor(seen.collect(), device),
            of_others: of_others.collect(),
        })
    }

    /// As [`PagedLayer::attend`].
    pub fn attend(
        &self,
        layer: &mut PagedLayer,
        heads: &DotProduct,
        [q, k, v]: [Tensor<2>; 3],
        window: Option<usize>,
    ) -> Tensor<2> {
        let [keys, values] = kernels::write_paged([k, v], &self.places, layer.take());
        let sizes = AttentionSizes { kv_heads: heads.kv, dim: heads.dim, scale: heads.scale as f32 };
        let [tokens, width] = q.dims();
        let mut mixed = Vec::new();
        if let Some(texts) = self.of_singles.get(&window) {
            let q = q.clone().narrow(0, 0, self.singles);
            mixed.push(kernels::paged_attention(q, [&keys, &values], texts, self.block_tokens, sizes));
        }
        if let Some(sight) = self.of_others.get(&window) {
            let q = q.narrow(0, self.singles, tokens - self.singles);
            let [k, v] = [&keys, &values].map(|kept| kept.clone().select(0, self.keys.clone()).cast(FloatDType::F32));
            mixed.push(kernels::attention([&q, &k, &v], sight, sizes).0);
        }
        layer.put([keys, values]);
        match mixed.len() {
            1 => mixed.remove(0),
            _ => Tensor::cat(mixed, 0).reshape([tokens, width]),
        }
    }
}

/// The first key that a token sees.
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

fn texts(chunks: &[&PagedChunk<'_>], window: Option<usize>, device: &Device) -> PagedTexts {
    let width = chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(1);
    let table = |chunk: &&PagedChunk<'_>| {
        let blocks = chunk.blocks.iter().map(|block| *block as i32);
        blocks.chain(std::iter::repeat(0)).take(width).collect::<Vec<_>>()
    };
    let ranges = chunks.iter().map(|chunk| [first_seen(chunk.start, window) as i32, chunk.end() as i32]);
    let ranges: Vec<[i32; 2]> = ranges.collect();
    PagedTexts {
        tables: kernels::words(&chunks.iter().flat_map(table).collect::<Vec<_>>(), device),
        longest: ranges.iter().map(|[first, end]| (end - first) as usize).max().unwrap_or(0),
        seen: kernels::words(ranges.as_flattened(), device),
    }
}

/// Of texts whose keys, past and new, lie one text after another.
fn sight(chunks: &[&PagedChunk<'_>], window: Option<usize>, device: &Device) -> SightTensors {
    let mut queries = Vec::new();
    let mut before = 0;
    for chunk in chunks {
        let range = |position| [(before + first_seen(position, window)) as u32, (before + position + 1) as u32];
        queries.extend((chunk.start..chunk.end()).map(range));
        before += chunk.end();
    }
    SightTensors::of(&Sight::new(queries, before), device)
}
