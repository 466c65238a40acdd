//! Keys and values of all texts, in blocks.

use std::collections::BTreeSet;

use burn::tensor::{DType, Device, FloatDType, IndexingUpdateOp, Tensor};

use super::reading::Reading;
use crate::model::config::DecoderConfig;
use crate::model::dot_product::DotProduct;
use crate::model::packed::{Packed, int_tensor};
use crate::model::weight::Compute;

const GONE: &str = "a layer's keys and values went with a step that failed";

/// Keys and values of every layer. Block b has the places from `b · block_tokens` on.
#[derive(Debug)]
pub struct PagedCache {
    layers: Vec<PagedLayer>,
    blocks: usize,
    block_tokens: usize,
}

/// Keys and values of one layer: a row for each place, `[places, kv heads · head_dim]`.
#[derive(Debug)]
pub struct PagedLayer {
    /// Taken out while it is written to: memory that nobody else holds is written in place.
    kept: Option<[Tensor<2>; 2]>,
}

impl PagedCache {
    /// Room for `blocks` blocks of `block_tokens` tokens, with zeros.
    pub fn new(
        config: &DecoderConfig,
        blocks: usize,
        block_tokens: usize,
        format: FloatDType,
        device: &Device,
    ) -> Self {
        let shape = [blocks * block_tokens, config.num_kv_heads * config.head_dim];
        let layer = |_| {
            let zeros = || Tensor::zeros(shape, (device, DType::from(format)));
            PagedLayer { kept: Some([zeros(), zeros()]) }
        };
        Self { layers: (0..config.num_layers).map(layer).collect(), blocks, block_tokens }
    }

    /// Blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Tokens a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    pub(in crate::model) fn layer(&mut self, index: usize) -> &mut PagedLayer {
        &mut self.layers[index]
    }

    /// Copies whole blocks, `(from, to)`, as if one after another.
    pub(super) fn copy(&mut self, pairs: &[(u32, u32)]) {
        let mut rest = pairs;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(apart(rest));
            self.copy_apart(now);
            rest = later;
        }
    }

    fn copy_apart(&mut self, pairs: &[(u32, u32)]) {
        let tokens = self.block_tokens as i64;
        let places = |block: u32| (0..tokens).map(move |token| i64::from(block) * tokens + token);
        let from: Vec<i64> = pairs.iter().flat_map(|(from, _)| places(*from)).collect();
        let to: Vec<i64> = pairs.iter().flat_map(|(_, to)| places(*to)).collect();
        for layer in &mut self.layers {
            layer.change(|kept| {
                let [from, to] = [&from, &to].map(|places| int_tensor(places.clone(), &kept.device()));
                let rows = kept.clone().select(0, from);
                kept.select_assign(0, to, rows, IndexingUpdateOp::Assign)
            });
        }
    }
}

/// How many of the first pairs neither read nor write what one of them has written: they can be copied at once.
fn apart(pairs: &[(u32, u32)]) -> usize {
    let mut written = BTreeSet::new();
    pairs.iter().take_while(|(from, to)| !written.contains(from) && written.insert(*to)).count()
}

impl PagedLayer {
    /// Writes the keys and values of a step's tokens, `[tokens, kv heads · head_dim]`, to their places and mixes for each
    /// token's queries, `[tokens, heads · head_dim]`, the values that it sees.
    ///
    /// # Panics
    /// If `packed` was not made for a step over blocks.
    pub(in crate::model) fn attend(
        &mut self,
        heads: &DotProduct,
        [q, k, v]: [Tensor<2>; 3],
        packed: &Packed,
        window: Option<usize>,
        compute: Compute,
    ) -> Tensor<2> {
        let Some(reading) = &packed.reading else { panic!("these tokens have no places in a cache") };
        #[cfg(feature = "kernels")]
        if let Some(kernel) = &reading.kernel {
            return kernel.attend(self, heads, [q, k, v], window);
        }
        let mut new = [k.clone(), v.clone()].into_iter();
        self.change(|kept| {
            let format = FloatDType::from(kept.dtype());
            match new.next() {
                Some(rows) => {
                    let places = reading.places.clone();
                    kept.select_assign(0, places, rows.cast(format), IndexingUpdateOp::Assign)
                }
                None => kept,
            }
        });
        let Some([keys, values]) = &self.kept else { panic!("{GONE}") };
        let joined = |index: usize, _, _| (reading.gather(index, keys, heads), reading.gather(index, values, heads));
        let mask = |index: usize| reading.mask(index, window);
        heads.forward([q, k, v], &packed.groups, mask, compute, joined).0
    }

    /// Keys, then values.
    fn change(&mut self, mut change: impl FnMut(Tensor<2>) -> Tensor<2>) {
        let [keys, values] = self.take();
        let keys = change(keys);
        self.put([keys, change(values)]);
    }

    /// Keys and values, to be written to and put back.
    ///
    /// # Panics
    /// After a step that the device gave up in between.
    pub(super) fn take(&mut self) -> [Tensor<2>; 2] {
        self.kept.take().unwrap_or_else(|| panic!("{GONE}"))
    }

    pub(super) fn put(&mut self, kept: [Tensor<2>; 2]) {
        self.kept = Some(kept);
    }
}

impl Reading {
    /// The rows that a group sees, `[texts, kv, keys, head_dim]`, in f32.
    fn gather(&self, group: usize, kept: &Tensor<2>, heads: &DotProduct) -> Tensor<4> {
        let seen = &self.seen[group];
        kept.clone()
            .select(0, seen.places.clone())
            .cast(FloatDType::F32)
            .reshape([seen.texts, seen.keys, heads.kv, heads.dim])
            .permute([0, 2, 1, 3])
    }
}
