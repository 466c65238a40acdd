//! What a decoder looks like, in plain numbers.

/// What gates the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Rotary positions: which frequencies, and what queries and keys are multiplied by (YaRN's attention scale, else 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians a position. The first `2 × len` values of a head are turned, value i together with value i + len; the
    /// rest stay.
    pub inverse_frequencies: Vec<f32>,
    /// Factor of both sine and cosine.
    pub scale: f32,
}

/// What layers may have of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// How many positions a token sees, itself included; `None` = all before it.
    pub window: Option<usize>,
    /// Index into [`Architecture::ropes`].
    pub rope: usize,
}

/// A router and experts in place of some layers' feed-forward block (Jiang et al. 2024): the few that the router finds
/// most probable compute a token, each weighted by its probability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// How many a layer has.
    pub count: usize,
    /// How many of them compute a token.
    pub per_token: usize,
    /// Width between an expert's two products.
    pub intermediate: usize,
    /// Whether the weights of those that compute a token are divided by their sum.
    pub normalised: bool,
    /// Per layer: whether it has them.
    pub sparse: Vec<bool>,
}

/// A decoder of the Llama kind: RMS norms, rotary positions, grouped queries, a gated feed-forward layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Tokens there are.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the feed-forward's two products.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values a head, even; apart from hidden / heads.
    pub head_dim: usize,
    /// Each layer.
    pub layers: Vec<Layer>,
    /// The kinds of rotation there are.
    pub ropes: Vec<Rope>,
    /// ε of all RMS norms.
    pub norm_epsilon: f32,
    /// Factor of the scores, usually 1/√head_dim.
    pub attention_scale: f32,
    /// Gate of the feed-forward layer.
    pub activation: Activation,
    /// Whether queries and keys are normed per head before they are turned.
    pub qk_norm: bool,
    /// Whether what attention and feed-forward give is normed before it is added to the residual stream (Gemma 2, 3).
    pub post_norms: bool,
    /// Factor of the embeddings, usually 1 (Gemma: √hidden).
    pub embedding_scale: f32,
    /// Cap of the scores: cap · tanh(x / cap).
    pub attention_soft_cap: Option<f32>,
    /// Cap of the logits.
    pub logit_soft_cap: Option<f32>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// What some layers have in place of a feed-forward block.
    pub experts: Option<Experts>,
}

impl Architecture {
    /// A layer's experts.
    pub(crate) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.sparse[layer])
    }

    /// A decoder whose feed-forward block is one of the experts: its matrices have their shapes.
    pub(crate) fn of_expert(&self, experts: &Experts) -> Self {
        Self { intermediate: experts.intermediate, ..self.clone() }
    }

    /// Every number that doesn't fit the others.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |fine: bool, problem: String| {
            if !fine {
                problems.push(problem);
            }
        };
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("layers", self.layers.len()),
        ];
        for (name, size) in sizes {
            check(size > 0, format!("{name} is 0"));
        }
        if self.kv_heads > 0 {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            check(heads.is_multiple_of(kv_heads), format!("kv_heads {kv_heads} does not divide heads {heads}"));
            check(
                heads / kv_heads <= crate::kernels::attention::MOST_ROWS,
                format!("{heads} heads share {kv_heads} keys"),
            );
        }
        check(self.head_dim.is_multiple_of(2), format!("head_dim {} is odd", self.head_dim));
        if let Some(Experts { count, per_token, intermediate, sparse, .. }) = &self.experts {
            check((1..=*count).contains(per_token), format!("{per_token} of {count} experts compute a token"));
            check(*intermediate > 0, "experts' intermediate is 0".to_owned());
            let (said, layers) = (sparse.len(), self.layers.len());
            check(said == layers, format!("experts are said of {said} layers of {layers}"));
        }
        for (index, rope) in self.ropes.iter().enumerate() {
            let turned = 2 * rope.inverse_frequencies.len();
            check(
                turned <= self.head_dim,
                format!("rope {index} turns {turned} values of a head of {}", self.head_dim),
            );
        }
        for (index, layer) in self.layers.iter().enumerate() {
            check(
                layer.rope < self.ropes.len(),
                format!("layer {index} names rope {} of {}", layer.rope, self.ropes.len()),
            );
            check(layer.window != Some(0), format!("layer {index} has a window of 0"));
        }
        problems
    }
}
