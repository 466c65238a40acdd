//! Keys and values of the tokens a generation has already seen.

use burn::tensor::Tensor;

use super::packed::{Packed, int_tensor};
use super::paged::PagedLayer;

/// Keys and values in every layer, of one text or of several groups of texts; those of a group have equal lengths.
#[derive(Debug, Clone, Default)]
pub struct KeyValueCache {
    /// Of each layer, each group.
    layers: Vec<Vec<LayerCache>>,
    /// Of each group, the tokens of one of its texts.
    tokens: Vec<usize>,
}

/// Keys and values of one group in one layer, `[texts, kv heads, tokens, head_dim]`.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    kept: Option<(Tensor<4>, Tensor<4>)>,
}

/// What a layer's tokens see besides each other. A forward with any of it cannot be followed by a backward.
#[derive(Debug)]
pub enum Past<'a> {
    /// Nothing.
    None,
    /// What came before in each group.
    Groups(&'a mut [LayerCache]),
    /// What lies in blocks, by the packed tokens' [`Reading`](super::paged::Reading).
    Paged(&'a mut PagedLayer),
}

impl KeyValueCache {
    /// An empty cache of one text for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self::of_groups(layers, 1)
    }

    /// An empty cache of `groups` groups.
    pub fn of_groups(layers: usize, groups: usize) -> Self {
        Self { layers: vec![vec![LayerCache::default(); groups]; layers], tokens: vec![0; groups] }
    }

    /// Tokens seen so far of a text of the first group.
    pub fn tokens(&self) -> usize {
        self.tokens_of(0)
    }

    /// Tokens seen so far of each text of a group.
    pub fn tokens_of(&self, group: usize) -> usize {
        self.tokens.get(group).copied().unwrap_or(0)
    }

    /// Keeps the texts with these indices of a group, in their order; an index may occur several times, as where several
    /// texts go on from one. Without any the group is gone, and those behind it move up.
    pub fn keep(&mut self, group: usize, texts: &[usize]) {
        if texts.is_empty() {
            self.tokens.remove(group);
            self.layers.iter_mut().for_each(|layer| drop(layer.remove(group)));
            return;
        }
        for cache in self.layers.iter_mut().filter_map(|layer| layer.get_mut(group)) {
            if let Some((k, v)) = cache.kept.take() {
                let chosen = int_tensor(texts.iter().map(|index| *index as i64).collect(), &k.device());
                cache.kept = Some((k.select(0, chosen.clone()), v.select(0, chosen)));
            }
        }
    }

    pub(super) fn layer(&mut self, index: usize) -> &mut [LayerCache] {
        &mut self.layers[index]
    }

    pub(super) fn advance(&mut self, packed: &Packed) {
        for (tokens, group) in self.tokens.iter_mut().zip(&packed.groups) {
            *tokens += group.length;
        }
    }
}

impl LayerCache {
    /// Appends new keys and values and returns all.
    pub(super) fn extend(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.kept.take() {
            Some((past_k, past_v)) => (Tensor::cat(vec![past_k, k], 2), Tensor::cat(vec![past_v, v], 2)),
            None => (k, v),
        };
        self.kept = Some(all.clone());
        all
    }
}
