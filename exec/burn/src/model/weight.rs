//! The weight of a linear layer, and how it is held: in f32, in half of it, or in 4 bits.
//!
//! Only frozen weights are held in less than f32: what is trained has its master copy in f32, whatever products are
//! computed in. Embeddings, norms and the head stay in f32, as bitsandbytes leaves them.

use burn::tensor::{Device, FloatDType, Tensor};

use super::parameter::Parameter;
use crate::processor;
use crate::quant::{FourBitMatrix, FourBitSettings};
use crate::spent::{self, Work};

/// What matrix products are computed in. Their results, sums over a row, norms, softmax and losses are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16: the range of f32, 8 bits of precision.
    Bf16,
    /// IEEE half precision: 11 bits of precision, nothing above 65504.
    F16,
}

impl Compute {
    /// `a · b`, rounded to this format on the way in and out.
    pub fn product<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        spent::on(Work::Products, || match self {
            Self::F32 => processor::product(a, b),
            Self::Bf16 | Self::F16 => {
                let format = self.format();
                a.cast(format).matmul(b.cast(format)).cast(FloatDType::F32)
            }
        })
    }

    /// As a type of elements.
    pub(super) fn format(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }
}

/// How a model's frozen linear weights are held on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Held {
    /// 4 bytes an element.
    #[default]
    F32,
    /// 2 bytes an element, rounded to nearest.
    Bf16,
    /// 2 bytes an element, rounded to nearest.
    F16,
    /// Half a byte an element and the scales.
    FourBit(FourBitSettings),
}

/// `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Every element by itself; in f32 where it is trainable.
    Plain(Parameter),
    /// In blocks of 4-bit codes; never trainable.
    FourBit {
        /// Hugging Face's name, with `.weight`.
        name: String,
        /// The elements.
        matrix: FourBitMatrix,
    },
}

impl Weight {
    /// A weight from row-major values, held as asked. The values in f32 are gone when it returns.
    pub fn new(name: String, dims: [usize; 2], values: Vec<f32>, held: Held, device: &Device) -> Self {
        let format = match held {
            Held::F32 => FloatDType::F32,
            Held::Bf16 => FloatDType::BF16,
            Held::F16 => FloatDType::F16,
            Held::FourBit(settings) => {
                return Self::FourBit { name, matrix: FourBitMatrix::quantize(&values, dims, settings, device) };
            }
        };
        let exact = Parameter::new(name, &dims, values, device);
        Self::Plain(Parameter { value: exact.value.clone().cast(format), ..exact })
    }

    /// Hugging Face's name, with `.weight`.
    pub fn name(&self) -> &str {
        match self {
            Self::Plain(parameter) => &parameter.name,
            Self::FourBit { name, .. } => name,
        }
    }

    /// Outputs and inputs.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            // Of an outline only the shape is there.
            Self::Plain(parameter) => [parameter.shape[0], parameter.shape[1]],
            Self::FourBit { matrix, .. } => matrix.dims(),
        }
    }

    /// Whether it is moved in training.
    pub fn trainable(&self) -> bool {
        self.parameter().is_some_and(|p| p.trainable)
    }

    /// The parameter, where every element stands by itself.
    pub fn parameter(&self) -> Option<&Parameter> {
        match self {
            Self::Plain(parameter) => Some(parameter),
            Self::FourBit { .. } => None,
        }
    }

    /// As [`Self::parameter`], to be changed.
    pub fn parameter_mut(&mut self) -> Option<&mut Parameter> {
        match self {
            Self::Plain(parameter) => Some(parameter),
            Self::FourBit { .. } => None,
        }
    }

    /// The matrix for one product: where it is held in fewer bits, made anew each time and dropped after it.
    pub fn matrix(&self) -> Tensor<2> {
        match self {
            Self::Plain(parameter) => parameter.value.clone(),
            Self::FourBit { matrix, .. } => matrix.dequantize(),
        }
    }

    /// [`Self::matrix`] in f32.
    pub fn matrix_f32(&self) -> Tensor<2> {
        self.matrix().cast(FloatDType::F32)
    }

    /// Holds it in f32 from now on.
    pub fn unpack(&mut self) {
        let value = self.matrix_f32();
        match self {
            Self::Plain(parameter) => parameter.value = value,
            Self::FourBit { name, matrix } => {
                let (name, shape) = (std::mem::take(name), matrix.dims().to_vec());
                *self = Self::Plain(Parameter { name, shape, value, trainable: false });
            }
        }
    }

    /// Bytes that it holds on the device.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(parameter) => parameter.value.dtype().size() * parameter.value.shape().num_elements(),
            Self::FourBit { matrix, .. } => matrix.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameter::{host_values, matrix};

    #[test]
    fn products_round_to_the_format_and_come_back_in_f32() {
        let device = Device::flex();
        // 1 + 2⁻⁹ is no bf16, 1 + 2⁻¹¹ no f16.
        let a = matrix(vec![1.0 + 2f32.powi(-9), 1.0 + 2f32.powi(-11)], &[2, 1], &device);
        let one = matrix(vec![1.0], &[1, 1], &device);
        let product = |compute: Compute| {
            let product = compute.product(a.clone(), one.clone());
            assert_eq!(product.dtype(), burn::tensor::DType::F32);
            host_values(product)
        };
        assert_eq!(product(Compute::F32), [1.0 + 2f32.powi(-9), 1.0 + 2f32.powi(-11)]);
        assert_eq!(product(Compute::Bf16), [1.0, 1.0]);
        assert_eq!(product(Compute::F16), [1.0 + 2f32.powi(-9), 1.0]);
    }

    #[test]
    fn half_formats_take_half_the_bytes() {
        let device = Device::flex();
        let held = |held| Weight::new("w".into(), [8, 64], vec![0.5; 512], held, &device);
        assert_eq!([Held::F32, Held::Bf16, Held::F16].map(|h| held(h).bytes()), [2048, 1024, 1024]);
        assert_eq!(host_values(held(Held::Bf16).matrix_f32()), vec![0.5; 512]);
    }
}
