//! Weights in 4 bits: NF4 and FP4 in blocks, as bitsandbytes has them.
//!
//! A block of neighbouring elements of the flattened matrix shares one scale, its largest magnitude; each element is the
//! code of the nearest of 16 levels times that scale. With double quantisation the scales are themselves 8-bit codes in
//! blocks of 256, around their mean (Dettmers et al. 2023, QLoRA). Held are the packed bytes and the scales: 4.5 bits an
//! element at a block size of 64, 4.13 with double quantisation. The matrix in f32 exists only while it is multiplied.

pub(crate) mod levels;

use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

use self::levels::{FP4, NF4, Rounding, dynamic_map};
#[cfg(feature = "kernels")]
use crate::kernels;
use crate::model::parameter::{host_values, matrix, on_device};

/// The block sizes that there are, in elements.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];
/// Scales that share a scale of their own.
const SCALES_BLOCK: usize = 256;
/// What a block of zeros is divided by.
const TINY: f32 = 1e-38;

/// Which 16 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantType {
    /// Quantiles of a normal distribution.
    Nf4,
    /// A tiny floating-point number.
    Fp4,
}

impl QuantType {
    fn levels(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }
}

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourBitSettings {
    /// The levels.
    pub quant_type: QuantType,
    /// Elements that share a scale; one of [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether the scales are quantised too.
    pub double_quant: bool,
}

impl FourBitSettings {
    /// Bytes that so many elements take.
    pub fn bytes_of(self, elements: usize) -> usize {
        let blocks = elements.div_ceil(self.block_size);
        let scales = match self.double_quant {
            true => blocks + 4 * (1 + blocks.div_ceil(SCALES_BLOCK)),
            false => 4 * blocks,
        };
        elements.div_ceil(2) + scales
    }
}

/// A matrix in 4 bits.
#[derive(Debug, Clone)]
pub struct FourBitMatrix {
    dims: [usize; 2],
    settings: FourBitSettings,
    /// Two codes a byte, the first in the high half: u8, `[elements / 2]`, rounded up.
    packed: Tensor<1, Int>,
    scales: Scales,
    device: Device,
}

/// One scale a block.
#[derive(Debug, Clone)]
enum Scales {
    /// f32, `[blocks]` as one row.
    Plain(Tensor<2>),
    /// `map[code] · scale + offset`, a scale for 256 codes.
    Double {
        /// u8, `[blocks]`.
        codes: Tensor<1, Int>,
        /// f32, `[blocks / 256]`, rounded up, as one row.
        scales: Tensor<2>,
        offset: f32,
    },
}

impl FourBitMatrix {
    /// Quantises a row-major matrix. The last block may be short.
    pub fn quantize(values: &[f32], dims: [usize; 2], settings: FourBitSettings, device: &Device) -> Self {
        let rounding = Rounding::to(settings.quant_type.levels());
        let mut packed = vec![0_u8; values.len().div_ceil(2)];
        let largest = largest_of_blocks(values, settings.block_size);
        for (block, scale) in largest.iter().enumerate() {
            let from = block * settings.block_size;
            let to = (from + settings.block_size).min(values.len());
            let factor = 1.0 / scale.max(TINY);
            for (index, value) in (from..to).zip(&values[from..to]) {
                let code = rounding.code((value * factor).clamp(-1.0, 1.0));
                packed[index / 2] |= if index % 2 == 0 { code << 4 } else { code };
            }
        }
        let scales = match settings.double_quant {
            true => Scales::quantize(&largest, device),
            false => Scales::Plain(row(largest, device)),
        };
        Self { dims, settings, packed: bytes_tensor(packed, device), scales, device: device.clone() }
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same on a device.
    #[must_use]
    pub fn on_device(&self, device: &Device) -> Self {
        if self.device == *device {
            return self.clone();
        }
        let scales = match &self.scales {
            Scales::Plain(scales) => Scales::Plain(on_device(scales, device)),
            Scales::Double { codes, scales, offset } => Scales::Double {
                codes: bytes_tensor(host_bytes(codes), device),
                scales: on_device(scales, device),
                offset: *offset,
            },
        };
        Self { packed: bytes_tensor(host_bytes(&self.packed), device), scales, device: device.clone(), ..*self }
    }

    /// How it was quantised.
    pub fn settings(&self) -> FourBitSettings {
        self.settings
    }

    /// Bytes that it holds on the device.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(scales) => 4 * scales.shape().num_elements(),
            Scales::Double { codes, scales, .. } => {
                codes.shape().num_elements() + 4 * (1 + scales.shape().num_elements())
            }
        };
        self.packed.shape().num_elements() + scales
    }

    /// The matrix in f32.
    pub fn dequantize(&self) -> Tensor<2> {
        #[cfg(feature = "kernels")]
        if self.device != Device::flex() && mloc_kernels::four_bit::Matrix::fits(self.dims[1], self.settings.block_size)
        {
            let levels = row(self.settings.quant_type.levels().to_vec(), &self.device);
            let scales = self.scales.by_tensors(&self.device);
            return kernels::unpack_four_bit(&self.packed, levels, scales, self.dims, self.settings.block_size);
        }
        match self.device == Device::flex() {
            true => matrix(self.to_vec(), &self.dims, &self.device),
            false => self.dequantize_by_tensors(),
        }
    }

    /// `x · matrixᵀ` without unpacking, by a kernel: of a few rows of f32 on a GPU. `None` elsewhere, and of more rows, which
    /// are bound by arithmetic.
    #[cfg(feature = "kernels")]
    pub fn product(&self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let Self { dims: [outputs, inputs], settings, packed, scales, device } = self;
        let fits = mloc_kernels::four_bit::Matrix::fits(*inputs, settings.block_size);
        if !fits || x.dims()[0] > kernels::MOST_ROWS || !kernels::take([x]) {
            return None;
        }
        let scales = match scales {
            Scales::Plain(scales) => kernels::FourBitScales::Plain(scales),
            Scales::Double { codes, scales, offset } => {
                let map = row(dynamic_map(true).to_vec(), device);
                kernels::FourBitScales::Double { codes, map, scales, offset: *offset }
            }
        };
        let levels = row(settings.quant_type.levels().to_vec(), device);
        let matrix = kernels::FourBit { packed, levels, scales, outputs: *outputs, block: settings.block_size };
        Some(kernels::product_four_bit(x, matrix))
    }

    /// The values, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        // Two levels a byte at a time: one look-up for both.
        let levels = self.settings.quant_type.levels();
        let pairs: Vec<[f32; 2]> = (0..=255_usize).map(|byte| [levels[byte >> 4], levels[byte & 15]]).collect();
        let count = self.dims[0] * self.dims[1];
        let mut values = Vec::with_capacity(count + 1);
        let packed = host_bytes(&self.packed);
        // A block is a whole number of bytes.
        for (block, scale) in packed.chunks(self.settings.block_size / 2).zip(self.scales.to_vec()) {
            values.extend(block.iter().flat_map(|byte| pairs[usize::from(*byte)].map(|level| level * scale)));
        }
        values.truncate(count);
        values
    }

    /// As [`Self::dequantize`], where memory is the device's: with its own operations only.
    fn dequantize_by_tensors(&self) -> Tensor<2> {
        let count = self.dims[0] * self.dims[1];
        let bytes = self.packed.clone().cast(IntDType::I32);
        let pairs = bytes.shape().num_elements();
        let high = bytes.clone().bitwise_right_shift_scalar(4).reshape([pairs, 1]);
        let low = bytes.bitwise_and_scalar(15).reshape([pairs, 1]);
        let codes = Tensor::cat(vec![high, low], 1).reshape([2 * pairs]);
        let levels = row(self.settings.quant_type.levels().to_vec(), &self.device).reshape([16]);
        let scales = self.scales.by_tensors(&self.device);
        let each: Tensor<1> = levels.select(0, codes).narrow(0, 0, count);
        scaled(each, scales, self.settings.block_size).reshape(self.dims)
    }

    /// All that it is, as bytes: for digests.
    pub fn content(&self) -> Vec<u8> {
        let mut content = host_bytes(&self.packed);
        let mut put = |floats: Vec<f32>| content.extend(floats.iter().flat_map(|v| v.to_le_bytes()));
        match &self.scales {
            Scales::Plain(scales) => put(host_values(scales.clone())),
            Scales::Double { codes, scales, offset } => {
                put(host_values(scales.clone()));
                put(vec![*offset]);
                content.extend(host_bytes(codes));
            }
        }
        content
    }
}

impl Scales {
    fn quantize(scales: &[f32], device: &Device) -> Self {
        // In f64: a sum of a million scales in f32 would be off.
        let offset = (scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let around: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let largest = largest_of_blocks(&around, SCALES_BLOCK);
        let rounding = Rounding::to(&dynamic_map(true));
        let blocks = around.chunks(SCALES_BLOCK).zip(&largest);
        let codes = blocks.flat_map(|(block, scale)| {
            let factor = 1.0 / scale.max(TINY);
            block.iter().map(|v| rounding.code((v * factor).clamp(-1.0, 1.0))).collect::<Vec<u8>>()
        });
        Self::Double { codes: bytes_tensor(codes.collect(), device), scales: row(largest, device), offset }
    }

    fn to_vec(&self) -> Vec<f32> {
        match self {
            Self::Plain(scales) => host_values(scales.clone()),
            Self::Double { codes, scales, offset } => {
                let levels = dynamic_map(true);
                let codes = host_bytes(codes);
                let blocks = codes.chunks(SCALES_BLOCK).zip(host_values(scales.clone()));
                let each = blocks.flat_map(|(block, scale)| block.iter().map(move |code| (usize::from(*code), scale)));
                each.map(|(code, scale)| levels[code] * scale + offset).collect()
            }
        }
    }

    fn by_tensors(&self, device: &Device) -> Tensor<2> {
        match self {
            Self::Plain(scales) => scales.clone(),
            Self::Double { codes, scales, offset } => {
                let levels = row(dynamic_map(true).to_vec(), device).reshape([256]);
                let each: Tensor<1> = levels.select(0, codes.clone().cast(IntDType::I32));
                let count = each.shape().num_elements();
                scaled(each, scales.clone(), SCALES_BLOCK).add_scalar(*offset).reshape([1, count])
            }
        }
    }
}

/// Each block of `values` times its own one of `scales` (a row).
fn scaled(values: Tensor<1>, scales: Tensor<2>, block: usize) -> Tensor<1> {
    let count = values.shape().num_elements();
    let [_, blocks] = scales.dims();
    // The last block may be short.
    let missing = blocks * block - count;
    let values = match missing {
        0 => values,
        _ => Tensor::cat(vec![values.clone(), Tensor::zeros([missing], &values.device())], 0),
    };
    let product = values.reshape([blocks, block]) * scales.reshape([blocks, 1]);
    product.reshape([blocks * block]).narrow(0, 0, count)
}

fn largest_of_blocks(values: &[f32], block: usize) -> Vec<f32> {
    values.chunks(block).map(|block| block.iter().fold(0.0, |most: f32, v| most.max(v.abs()))).collect()
}

fn row(values: Vec<f32>, device: &Device) -> Tensor<2> {
    let shape = [1, values.len()];
    matrix(values, &shape, device)
}

fn bytes_tensor(bytes: Vec<u8>, device: &Device) -> Tensor<1, Int> {
    let shape = [bytes.len()];
    // The type is said, or the bytes would become the device's own integers, of four or eight bytes.
    Tensor::from_data(TensorData::new(bytes, shape), (device, DType::U8))
}

fn host_bytes(tensor: &Tensor<1, Int>) -> Vec<u8> {
    tensor.clone().into_data().as_bytes().to_vec()
}

#[cfg(test)]
mod tests;
