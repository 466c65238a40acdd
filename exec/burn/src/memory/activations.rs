//! Bytes of activations: what a layer's tape keeps of its forward pass, and what is there beside it for a moment.
//!
//! With T tokens in rows of n each, width H, feed-forward width I, heads of d elements (Q of queries in all, K of keys),
//! h heads, a layer's tape has
//!
//! ```text
//! x, middle                    2·T·H     and the reciprocals of their norms, 2·T
//! gate, up                     2·T·I
//! q, k, v and the heads' mix   T·(2·Q + 2·K)
//! q and k before norms         T·(Q + K), where there are such
//! attention's probabilities    h·Σ n²
//! outputs before norms         2·T·(H + 1), where there are such
//! ```
//!
//! In a mixture of E experts, k of which compute a token, I is k times an expert's width, and there are the experts'
//! outputs, T·k·H, and what the router says of each token, T·(3·E + 1). Where some layers are dense all count as the
//! larger kind.

use super::Rows;
use crate::loss::CHUNK_ELEMENTS;
use crate::model::{Activation, DecoderConfig};

/// Of an f32.
const FLOAT: u64 = 4;

/// A model's layers, all alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers {
    pub count: u64,
    hidden: u64,
    inner: u64,
    /// Experts, and outputs of them for each token; 0 where there are none.
    experts: u64,
    chosen: u64,
    /// Norms behind a layer's two blocks.
    output_norms: bool,
    queries: u64,
    keys: u64,
    heads: u64,
    /// Query heads for each key head.
    shared: u64,
    head: u64,
    qk_norm: bool,
    /// Different windows.
    windows: u64,
    /// Whether what stands between products is computed in the memory of what it is made of: `processor`.
    in_place: bool,
}

impl Layers {
    pub fn of(config: &DecoderConfig, on_gpu: bool) -> Self {
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let of = |size: usize| size as u64;
        let experts = config.experts.as_ref().filter(|experts| experts.sparse.contains(&true));
        let dense = experts.is_none_or(|experts| experts.sparse.contains(&false));
        let mixed = experts.map_or(0, |experts| experts.per_token * experts.intermediate_size);
        Self {
            count: of(config.num_layers),
            hidden: of(config.hidden_size),
            inner: of(mixed.max(if dense { config.intermediate_size } else { 0 })),
            experts: experts.map_or(0, |experts| of(experts.count)),
            chosen: experts.map_or(0, |experts| of(experts.per_token)),
            output_norms: config.output_norms,
            queries: of(config.num_heads * config.head_dim),
            keys: of(config.num_kv_heads * config.head_dim),
            heads: of(config.num_heads),
            shared: of(config.num_heads / config.num_kv_heads.max(1)),
            head: of(config.head_dim),
            qk_norm: config.qk_norm,
            windows: of(windows.len()),
            in_place: !on_gpu && experts.is_none() && config.activation == Activation::Silu,
        }
    }

    /// Hidden states of all tokens.
    pub fn hidden(&self, rows: Rows) -> u64 {
        FLOAT * rows.tokens as u64 * self.hidden
    }

    /// Of one layer.
    pub fn tape(&self, rows: Rows) -> u64 {
        let wide = 2 * (self.hidden + self.inner + self.queries + self.keys) + 2;
        let before_norms = (self.queries + self.keys) + (self.queries + self.keys) / self.head.max(1);
        let routed = if self.experts > 0 { self.chosen * self.hidden + 3 * self.experts + 1 } else { 0 };
        let outputs = if self.output_norms { 2 * (self.hidden + 1) } else { 0 };
        let each = wide + if self.qk_norm { before_norms } else { 0 } + routed + outputs;
        FLOAT * rows.tokens as u64 * each + self.scores(rows)
    }

    /// Of all heads, once.
    fn scores(&self, rows: Rows) -> u64 {
        FLOAT * self.heads * rows.squares as u64
    }

    /// Rotations and masks, for all layers together.
    pub fn packed(&self, rows: Rows) -> u64 {
        FLOAT * (rows.tokens as u64 * self.head + self.windows * self.shared * rows.squares as u64)
    }

    /// Beside the tape in a forward pass: what the activation function passes through, or the scores before their softmax.
    pub fn forward(&self, rows: Rows) -> u64 {
        let tokens = FLOAT * rows.tokens as u64;
        if self.in_place {
            return tokens * (self.inner + 2 * self.hidden).max(self.queries + 2 * self.keys + self.hidden);
        }
        (tokens * (2 * self.inner + 2 * self.hidden)).max(2 * self.scores(rows) + tokens * (self.queries + self.keys))
    }

    /// Beside the tape in a backward pass: the gradients at gate and up with what they are made of, or those at the
    /// scores.
    pub fn backward(&self, rows: Rows) -> u64 {
        let tokens = FLOAT * rows.tokens as u64;
        if self.in_place {
            return (tokens * (2 * self.inner + 3 * self.hidden))
                .max(self.scores(rows) + tokens * (4 * self.queries + 3 * self.keys + 2 * self.hidden));
        }
        (tokens * (5 * self.inner + 3 * self.hidden))
            .max(2 * self.scores(rows) + tokens * (4 * self.queries + 3 * self.keys + 2 * self.hidden))
    }

    /// Keys and values of whole texts in all layers.
    pub fn cache(&self, texts: Rows) -> u64 {
        2 * FLOAT * self.count * texts.tokens as u64 * self.keys
    }
}

/// Logits of as many targets as are looked at together, and what is made of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logits {
    pub peak: u64,
}

impl Logits {
    /// Where no vocabulary is.
    pub const NONE: Self = Self { peak: 0 };

    /// At most so many targets: logits that become their gradient, on a GPU in memory of its own.
    pub fn of(config: &DecoderConfig, targets: usize, on_gpu: bool) -> Self {
        Self { peak: if on_gpu { 2 } else { 1 } * Self::chunk(config, targets) }
    }

    /// With the gradient of entropies: logits, log-probabilities and probabilities.
    pub fn with_entropies(config: &DecoderConfig, targets: usize) -> Self {
        Self { peak: 3 * Self::chunk(config, targets) }
    }

    fn chunk(config: &DecoderConfig, targets: usize) -> u64 {
        let together = (CHUNK_ELEMENTS / config.vocab_size.max(1)).max(1).min(targets);
        FLOAT * together as u64 * config.vocab_size as u64
    }
}
