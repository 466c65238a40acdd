//! Rotary positions, in the half-split form of Hugging Face's checkpoints.

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};

use super::config::{DecoderConfig, RopeScaling};

/// The `head_dim / 2` angular frequencies, in radians a token.
pub fn frequencies(config: &DecoderConfig) -> Vec<f64> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            let plain = config.rope_theta.powf(-(i as f64) / half as f64);
            match config.rope_scaling {
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
            }
        })
        .collect()
}

/// Cosines and sines for tokens at given positions, `[tokens, 1, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Rotation {
    /// The rotation of tokens at `positions` (counted from 0 within each text).
    pub fn new(frequencies: &[f64], positions: &[usize], device: &Device) -> Self {
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> =
                positions.iter().flat_map(|&p| frequencies.iter().map(move |w| f(p as f64 * w) as f32)).collect();
            let dims = [positions.len(), 1, frequencies.len()];
            Tensor::from_data(TensorData::new(values, dims), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotates each head of `x`, `[tokens, heads · head_dim]`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        rotate(x, &self.cos, self.sin.clone())
    }

    /// The gradient at the input of [`Self::apply`]: the rotation backwards.
    pub fn backward(&self, dy: Tensor<2>) -> Tensor<2> {
        rotate(dy, &self.cos, self.sin.clone().neg())
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
