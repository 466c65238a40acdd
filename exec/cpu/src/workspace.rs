//! What a step computes between its products. Kept from step to step.

use crate::{
    architecture::{Architecture, Experts},
    buffer::Buffer,
    kernels::{
        attention::{MOST_ROWS, SPAN},
        product::{BLOCK, PANEL, Rows},
    },
    plan::SEGMENT,
};

/// Rows of activations, in f32 and, where the next product takes integers, quantised. What lies past a row's width is 0.
pub(crate) struct Activations {
    pub x: Buffer<f32>,
    pub quantised: Buffer<i8>,
    pub scales: Buffer<f32>,
    pub sums: Buffer<i32>,
    pub stride: usize,
}

impl Activations {
    fn new(tokens: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(PANEL);
        let blocks = tokens * stride / BLOCK;
        Self {
            x: Buffer::new(tokens * stride),
            quantised: Buffer::new(tokens * stride),
            scales: Buffer::new(blocks),
            sums: Buffer::new(blocks),
            stride,
        }
    }

    pub(crate) fn rows(&self) -> Rows {
        Rows {
            x: self.x.ptr(),
            quantised: self.quantised.ptr(),
            scales: self.scales.ptr(),
            sums: self.sums.ptr(),
            stride: self.stride,
        }
    }
}

/// What experts compute. A row is a token at one of its experts; rows of an expert lie one after the other.
pub(crate) struct ExpertSpace {
    /// The router's, `[tokens, padded experts]`.
    pub logits: Buffer<f32>,
    pub logits_stride: usize,
    /// Each token's experts, ascending: `[tokens, per_token]`.
    pub chosen: Buffer<u32>,
    /// What their outputs are multiplied by, in the same order.
    pub weights: Buffer<f32>,
    /// Input of gate-up.
    pub gathered: Activations,
    /// Input of down.
    pub gated: Activations,
    /// Outputs, `[rows, padded hidden]`.
    pub out: Buffer<f32>,
}

impl ExpertSpace {
    fn new(a: &Architecture, experts: &Experts, tokens: usize) -> Self {
        let rows = tokens * experts.per_token;
        let logits_stride = experts.count.next_multiple_of(PANEL);
        Self {
            logits: Buffer::new(tokens * logits_stride),
            logits_stride,
            chosen: Buffer::new(rows),
            weights: Buffer::new(rows),
            gathered: Activations::new(rows, a.hidden),
            gated: Activations::new(rows, experts.intermediate),
            out: Buffer::new(rows * a.hidden.next_multiple_of(PANEL)),
        }
    }
}

/// What one thread needs to itself.
pub(crate) struct Scratch {
    /// A product's output: `[SEGMENT, PANEL]`.
    pub product: Buffer<f32>,
    /// `[MOST_ROWS, head_dim]`.
    pub queries: Buffer<f32>,
    /// `[MOST_ROWS, SPAN]`.
    pub scores: Buffer<f32>,
    /// `[MOST_ROWS, padded head_dim]`.
    pub part: Buffer<f32>,
    /// One state of attention.
    pub state: Buffer<f32>,
}

/// All buffers for steps of up to `tokens` tokens.
pub(crate) struct Workspace {
    pub tokens: usize,
    /// The residual stream, `[tokens, padded hidden]`.
    pub residual: Buffer<f32>,
    /// What attention or feed-forward gave, before its post norm.
    pub branch: Buffer<f32>,
    /// Queries, keys and values, `[tokens, padded rows]`.
    pub qkv: Buffer<f32>,
    pub qkv_stride: usize,
    /// Turned and scaled queries, `[tokens, heads · head_dim]`.
    pub queries: Buffer<f32>,
    /// Input of query-key-value, gate-up and head.
    pub normed: Activations,
    /// Input of the output product.
    pub attended: Activations,
    /// Input of the down product.
    pub gated: Activations,
    pub experts: Option<ExpertSpace>,
    pub scratch: Vec<Scratch>,
}

impl Workspace {
    pub(crate) fn new(a: &Architecture, tokens: usize, threads: usize) -> Self {
        let (hidden, head) = (a.hidden.next_multiple_of(PANEL), a.head_dim.next_multiple_of(PANEL));
        let qkv_stride = ((a.heads + 2 * a.kv_heads) * a.head_dim).next_multiple_of(PANEL);
        let scratch = || Scratch {
            product: Buffer::new(SEGMENT * PANEL),
            queries: Buffer::new(MOST_ROWS * a.head_dim),
            scores: Buffer::new(MOST_ROWS * SPAN),
            part: Buffer::new(MOST_ROWS * head),
            state: Buffer::new(state_len(MOST_ROWS, head)),
        };
        Self {
            tokens,
            residual: Buffer::new(tokens * hidden),
            branch: Buffer::new(if a.post_norms { tokens * hidden } else { 0 }),
            qkv: Buffer::new(tokens * qkv_stride),
            qkv_stride,
            queries: Buffer::new(tokens * a.heads * a.head_dim),
            normed: Activations::new(tokens, a.hidden),
            attended: Activations::new(tokens, a.heads * a.head_dim),
            gated: Activations::new(tokens, a.intermediate),
            experts: a.experts.as_ref().map(|experts| ExpertSpace::new(a, experts, tokens)),
            scratch: (0..threads).map(|_| scratch()).collect(),
        }
    }
}

/// Values of one state: largest, sum, values.
pub(crate) fn state_len(rows: usize, width: usize) -> usize {
    rows * (width + 2)
}
