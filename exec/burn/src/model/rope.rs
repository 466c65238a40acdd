//! Rotary positions, in the half-split form of Hugging Face's checkpoints.

use std::f64::consts::TAU;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::{DecoderConfig, Rope, RopeScaling};
#[cfg(feature = "kernels")]
use crate::kernels;
use crate::processor;
use crate::spent::{self, Work};

/// How fast what turns, and how far.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// The `head_dim / 2` angular frequencies, in radians a token.
    pub radians: Vec<f64>,
    /// What cosines and sines are multiplied by.
    pub scale: f64,
}

/// Those of all layers of a model; or, where layers with a window turn otherwise, first those of layers without and then
/// those of layers with one.
pub fn frequencies(config: &DecoderConfig) -> Vec<Frequencies> {
    let all = Rope { theta: config.rope_theta, scaling: config.rope_scaling };
    [Some(all), config.windowed_rope].into_iter().flatten().map(|rope| of(rope, config.head_dim)).collect()
}

fn of(Rope { theta, scaling }: Rope, head_dim: usize) -> Frequencies {
    let half = head_dim / 2;
    let scale = match scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
    };
    let radians = (0..half)
        .map(|i| {
            let plain = theta.powf(-(i as f64) / half as f64);
            match scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_length } => {
                    let wavelength = TAU / plain;
                    if wavelength < original_length / high_freq_factor {
                        plain
                    } else if wavelength > original_length / low_freq_factor {
                        plain / factor
                    } else {
                        let smooth =
                            (original_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    }
                }
                RopeScaling::Yarn { factor, beta_fast, beta_slow, original_length, truncate, .. } => {
                    // The dimension, of head_dim, whose frequency turns so often in the first training's length.
                    let dimension = |turns: f64| half as f64 * (original_length / (turns * TAU)).ln() / theta.ln();
                    let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                    if truncate {
                        (low, high) = (low.floor(), high.ceil());
                    }
                    (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                    // As the reference: a ramp without length would divide by zero.
                    let length = if low == high { 0.001 } else { high - low };
                    let divided = ((i as f64 - low) / length).clamp(0.0, 1.0);
                    plain / factor * divided + plain * (1.0 - divided)
                }
            }
        })
        .collect();
    Frequencies { radians, scale }
}

/// Cosines and sines for tokens at given positions, `[tokens, 1, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Rotation {
    /// The rotation of tokens at `positions` (counted from 0 within each text).
    pub fn new(frequencies: &Frequencies, positions: &[usize], device: &Device) -> Self {
        let Frequencies { radians, scale } = frequencies;
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> =
                positions.iter().flat_map(|&p| radians.iter().map(move |w| (scale * f(p as f64 * w)) as f32)).collect();
            let dims = [positions.len(), 1, radians.len()];
            Tensor::from_data(TensorData::new(values, dims), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotates each head of `x`, `[tokens, heads · head_dim]`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        spent::on(Work::Rotations, || self.turned(x, false))
    }

    fn turned(&self, x: Tensor<2>, back: bool) -> Tensor<2> {
        if processor::take([&x]) {
            return processor::rotation::rotate(x, &self.cos, &self.sin, back);
        }
        #[cfg(feature = "kernels")]
        if kernels::take([&x]) {
            return kernels::rotate(x, &self.cos, &self.sin, back);
        }
        let sin = self.sin.clone();
        rotate(x, &self.cos, if back { sin.neg() } else { sin })
    }

    /// The gradient at the input of [`Self::apply`]: the rotation backwards, by the same scale.
    pub fn backward(&self, dy: Tensor<2>) -> Tensor<2> {
        spent::on(Work::Rotations, || self.turned(dy, true))
    }
}

/// The rotations at all positions up to some, on the device: a step takes rows of it.
#[derive(Debug, Clone)]
pub struct RotationTable(Rotation);

impl RotationTable {
    /// Of the positions below `length`.
    pub fn new(frequencies: &Frequencies, length: usize, device: &Device) -> Self {
        Self(Rotation::new(frequencies, &(0..length).collect::<Vec<_>>(), device))
    }

    /// The rotation of tokens at `positions`.
    pub fn at(&self, positions: Tensor<1, Int>) -> Rotation {
        let rows = |table: &Tensor<3>| table.clone().select(0, positions.clone());
        Rotation { cos: rows(&self.0.cos), sin: rows(&self.0.sin) }
    }
}

fn rotate(x: Tensor<2>, cos: &Tensor<3>, sin: Tensor<3>) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let half = cos.dims()[2];
    let x = x.reshape([tokens, width / (2 * half), 2 * half]);
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    let new_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let new_second = second * cos.clone() + first * sin;
    Tensor::cat(vec![new_first, new_second], 2).reshape([tokens, width])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn frequencies_of(theta: f64, scaling: Value) -> Frequencies {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
            "rope_theta": theta, "rope_scaling": scaling,
        });
        frequencies(&DecoderConfig::from_json(config).unwrap()).remove(0)
    }

    /// Against the numbers of `_compute_yarn_parameters` of transformers 5.23.0 for the same settings.
    #[test]
    fn yarn_is_the_references() {
        let check = |found: Frequencies, radians: [f64; 8], scale: f64| {
            assert!((found.scale - scale).abs() < 1e-12, "{} for {scale}", found.scale);
            for (found, wanted) in found.radians.iter().zip(radians) {
                assert!((found / wanted - 1.0).abs() < 1e-9, "{found} for {wanted}");
            }
        };
        check(
            frequencies_of(1e6, json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768})),
            [
                1.0,
                0.177_827_941,
                0.031_622_776_6,
                0.004_217_559_939,
                0.000_5,
                4.445_698_525e-5,
                7.905_694_15e-6,
                1.405_853_313e-6,
            ],
            1.138_629_436_111_989,
        );
        let all = json!({
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 2,
            "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": false,
        });
        check(
            frequencies_of(1e4, all),
            [
                1.0,
                0.134_649_363,
                0.012_5,
                0.003_952_847_075,
                0.001_25,
                0.000_395_284_707_5,
                0.000_125,
                3.952_847_075e-5,
            ],
            1.056_507_992_860_809_2,
        );
    }

    #[test]
    fn what_a_config_leaves_out_of_yarn_is_inferred() {
        let given = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768});
        let inferred = json!({"type": "yarn", "original_max_position_embeddings": 32_768});
        assert_eq!(frequencies_of(1e6, given), frequencies_of(1e6, inferred), "131072 is 4 times as long");
        let sharp = json!({"type": "yarn", "factor": 4.0, "attention_factor": 1.5});
        assert_eq!(frequencies_of(1e6, sharp).scale, 1.5);
    }
}
