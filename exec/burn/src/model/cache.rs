//! Keys and values of the tokens a generation has already seen.

use burn::tensor::Tensor;

/// One text's keys and values in every layer.
#[derive(Debug, Clone, Default)]
pub struct KeyValueCache {
    layers: Vec<LayerCache>,
    tokens: usize,
}

/// Keys and values of one layer, `[1, kv heads, tokens, head_dim]`.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    kept: Option<(Tensor<4>, Tensor<4>)>,
}

impl KeyValueCache {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![LayerCache::default(); layers], tokens: 0 }
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
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
