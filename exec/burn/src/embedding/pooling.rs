//! A text's vector from its tokens' hidden states, forward and backward.

use burn::tensor::{IndexingUpdateOp, Tensor};

use crate::model::Packed;
use crate::model::packed::{Group, int_tensor};

/// How the tokens of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The mean over its tokens.
    #[default]
    Mean,
    /// Their sum, divided by the root of their number.
    MeanSqrtLength,
    /// The first token.
    Cls,
    /// The last token.
    Last,
    /// The largest value of each element.
    Max,
}

impl Pooling {
    /// `[tokens, width]` to `[rows, width]`.
    pub fn forward(self, hidden: &Tensor<2>, packed: &Packed) -> Tensor<2> {
        self.of_groups(hidden, &packed.groups)
    }

    /// The same, of rows in these groups.
    pub fn of_groups(self, hidden: &Tensor<2>, groups: &[Group]) -> Tensor<2> {
        let of_group = |group: &Group| {
            let [_, width] = hidden.dims();
            let tokens = by_row(hidden, group);
            let pooled = match self {
                Self::Mean | Self::MeanSqrtLength => tokens.mean_dim(1).mul_scalar(self.factor(group)),
                Self::Cls => tokens.narrow(1, 0, 1),
                Self::Last => tokens.narrow(1, group.length - 1, 1),
                Self::Max => tokens.max_dim(1),
            };
            pooled.reshape([group.rows, width])
        };
        Tensor::cat(groups.iter().map(of_group).collect(), 0)
    }

    /// The gradient at the hidden states, given that at the vectors.
    pub fn backward(self, hidden: &Tensor<2>, packed: &Packed, d: Tensor<2>) -> Tensor<2> {
        let [_, width] = hidden.dims();
        let mut first_row = 0;
        let mut parts = Vec::with_capacity(packed.groups.len());
        for group in &packed.groups {
            let shape = [group.rows, group.length, width];
            let d = d.clone().narrow(0, first_row, group.rows).reshape([group.rows, 1, width]);
            first_row += group.rows;
            let nothing = Tensor::<3>::zeros(shape, &hidden.device());
            let part = match self {
                Self::Mean | Self::MeanSqrtLength => {
                    d.mul_scalar(self.factor(group) / group.length as f64).expand(shape)
                }
                Self::Cls | Self::Last => {
                    let index = if self == Self::Last { group.length as i64 - 1 } else { 0 };
                    nothing.select_assign(1, int_tensor(vec![index], &hidden.device()), d, IndexingUpdateOp::Add)
                }
                Self::Max => nothing.scatter(1, by_row(hidden, group).argmax(1), d, IndexingUpdateOp::Add),
            };
            parts.push(part.reshape([group.tokens(), width]));
        }
        Tensor::cat(parts, 0)
    }

    /// What the mean is multiplied by.
    fn factor(self, group: &Group) -> f64 {
        match self {
            Self::MeanSqrtLength => (group.length as f64).sqrt(),
            Self::Mean | Self::Cls | Self::Last | Self::Max => 1.0,
        }
    }
}

/// `[rows, tokens of each, width]`.
fn by_row(hidden: &Tensor<2>, group: &Group) -> Tensor<3> {
    let [_, width] = hidden.dims();
    hidden.clone().narrow(0, group.start, group.tokens()).reshape([group.rows, group.length, width])
}

/// Each row divided by its length.
pub fn normalised(rows: &Tensor<2>) -> Tensor<2> {
    rows.clone() / lengths(rows)
}

/// The gradient at what [`normalised`] was given.
pub fn normalised_backward(rows: &Tensor<2>, d: Tensor<2>) -> Tensor<2> {
    let unit = normalised(rows);
    let along = (d.clone() * unit.clone()).sum_dim(1);
    (d - unit * along) / lengths(rows)
}

/// `[rows, 1]`; the reference's smallest.
fn lengths(rows: &Tensor<2>) -> Tensor<2> {
    rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::parameter::{host_values, matrix};
    use crate::model::{Encoder, EncoderConfig, EncoderRow};
    use crate::random::Random;

    #[test]
    fn gradients_are_the_slopes_of_every_pooling() {
        let raw = serde_json::json!({
            "model_type": "bert", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 1, "max_position_embeddings": 8,
        });
        let encoder = Encoder::random(EncoderConfig::from_json(raw).unwrap(), 1, &Device::flex());
        // Two of one length side by side, then others.
        let row = |length: usize| EncoderRow { ids: vec![1; length], type_ids: vec![0; length] };
        let packed = encoder.input(&[row(2), row(2), row(3), row(1)]).unwrap().packed;
        let mut random = Random::new(3);
        let mut drawn = |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
        let (hidden, slopes) = (drawn(8 * 4), drawn(4 * 4));
        let tensor = |values: &[f32], rows: usize| matrix(values.to_vec(), &[rows, 4], &Device::flex());
        for pooling in [Pooling::Mean, Pooling::MeanSqrtLength, Pooling::Cls, Pooling::Last, Pooling::Max] {
            let loss = |hidden: &[f32]| -> f64 {
                let unit = host_values(normalised(&pooling.forward(&tensor(hidden, 8), &packed)));
                unit.iter().zip(&slopes).map(|(value, slope)| f64::from(value * slope)).sum()
            };
            let given = tensor(&hidden, 8);
            let d = normalised_backward(&pooling.forward(&given, &packed), tensor(&slopes, 4));
            let found = host_values(pooling.backward(&given, &packed, d));
            for (index, found) in found.into_iter().enumerate() {
                let moved = |by: f32| {
                    let mut hidden = hidden.clone();
                    hidden[index] += by;
                    loss(&hidden)
                };
                let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
                assert!((slope - f64::from(found)).abs() < 1e-3, "{pooling:?} {index}: {found}, slope {slope}");
            }
        }
    }
}
