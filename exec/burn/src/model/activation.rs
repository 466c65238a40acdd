//! What stands between the linear layers of a feed-forward block.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x·σ(x)`.
    #[default]
    Silu,
    /// `x·Φ(x)`, Φ the normal distribution.
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
}

/// √(2/π).
const SLOPE_AT_0: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const CUBIC: f64 = 0.044_715;

impl Activation {
    /// By the words of config.json.
    pub const WORDS: [(&str, Self); 3] =
        [("silu", Self::Silu), ("gelu", Self::Gelu), ("gelu_pytorch_tanh", Self::GeluTanh)];

    /// The function.
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Silu => sigmoid(x.clone()) * x,
            Self::Gelu => normal_distribution(&x) * x,
            Self::GeluTanh => inner(&x).tanh().add_scalar(1.0).mul_scalar(0.5) * x,
        }
    }

    /// The function and its derivative.
    pub fn with_slope(self, x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match self {
            Self::Silu => {
                let s = sigmoid(x.clone());
                let value = s.clone() * x;
                // s + silu·(1 − s)
                let slope = s.clone() + value.clone() - value.clone() * s;
                (value, slope)
            }
            Self::Gelu => {
                let below = normal_distribution(&x);
                // Φ + x·φ
                let density = x.clone().square().mul_scalar(-0.5).exp().mul_scalar(0.5 * SLOPE_AT_0);
                let slope = below.clone() + x.clone() * density;
                (below * x, slope)
            }
            Self::GeluTanh => {
                let t = inner(&x).tanh();
                let half = t.clone().add_scalar(1.0).mul_scalar(0.5);
                let inner_slope = x.clone().square().mul_scalar(3.0 * CUBIC).add_scalar(1.0).mul_scalar(SLOPE_AT_0);
                let tanh_slope = t.square().neg().add_scalar(1.0);
                let slope = half.clone() + x.clone().mul_scalar(0.5) * tanh_slope * inner_slope;
                (half * x, slope)
            }
        }
    }
}

fn normal_distribution(x: &Tensor<2>) -> Tensor<2> {
    x.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5)
}

fn inner(x: &Tensor<2>) -> Tensor<2> {
    (x.clone().square().mul_scalar(CUBIC).add_scalar(1.0) * x.clone()).mul_scalar(SLOPE_AT_0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::parameter::{host_values, matrix};

    /// At −3, −1, −0.1, 0, 0.5, 2, 6: numbers of torch 2.9.1 in f64 (`F.silu`, `F.gelu`, `F.gelu(approximate="tanh")`).
    #[test]
    fn values_are_the_references_and_slopes_are_those_of_the_values() {
        let at = [-3.0f32, -1.0, -0.1, 0.0, 0.5, 2.0, 6.0];
        let values = [
            [-0.142_277_62, -0.268_941_42, -0.047_502_08, 0.000_000_00, 0.311_229_67, 1.761_594_2, 5.985_164],
            [-0.004_049_69, -0.158_655_25, -0.046_017_22, 0.000_000_00, 0.345_731_23, 1.954_499_7, 6.0],
            [-0.003_637_39, -0.158_808_01, -0.046_017_25, 0.000_000_00, 0.345_714, 1.954_597_7, 6.000_000_00],
        ];
        let device = Device::flex();
        let row = |by: f32| matrix(at.iter().map(|x| x + by).collect(), &[1, at.len()], &device);
        for ((word, activation), wanted) in Activation::WORDS.into_iter().zip(values) {
            let (value, slope) = activation.with_slope(row(0.0));
            let (value, slope) = (host_values(value), host_values(slope));
            assert_eq!(host_values(activation.apply(row(0.0))), value, "{word}");
            let step = 1e-2;
            let above = host_values(activation.apply(row(step)));
            let below = host_values(activation.apply(row(-step)));
            for (index, wanted) in wanted.into_iter().enumerate() {
                assert!((value[index] - wanted).abs() < 1e-6, "{word} of {}: {}", at[index], value[index]);
                let numeric = (above[index] - below[index]) / (2.0 * step);
                assert!((slope[index] - numeric).abs() < 1e-4, "{word} at {}: slope {}", at[index], slope[index]);
            }
        }
    }
}
