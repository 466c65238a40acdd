//! The number formats inside GGUF tensors, and how each block of them becomes `f32`.
//!
//! A row is a whole number of blocks. Block layouts are those of ggml; "half" is IEEE binary16, little-endian.

use half::{bf16, f16};

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names under which the format knows them")]
pub enum TensorType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit float with the exponent range of `F32`.
    BF16,
    /// 64-bit float.
    F64,
    /// 32 elements: half scale, 4-bit codes minus 8.
    Q4_0,
    /// 32 elements: half scale and minimum, 4-bit codes.
    Q4_1,
    /// 32 elements: half scale, 5-bit codes minus 16.
    Q5_0,
    /// 32 elements: half scale and minimum, 5-bit codes.
    Q5_1,
    /// 32 elements: half scale, signed bytes.
    Q8_0,
    /// 256 elements: half scale and minimum over eight 6-bit pairs of them, 4-bit codes.
    Q4_K,
    /// 256 elements: as `Q4_K` with 5-bit codes.
    Q5_K,
    /// 256 elements: half scale over sixteen signed bytes, 6-bit codes minus 32.
    Q6_K,
}

impl TensorType {
    /// The type for a code in the file.
    ///
    /// # Errors
    /// The name of the type, where the code means one that is not read here.
    pub fn from_code(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            28 => Self::F64,
            30 => Self::BF16,
            other => {
                let name = match other {
                    9 => "Q8_1",
                    10 => "Q2_K",
                    11 => "Q3_K",
                    15 => "Q8_K",
                    16..=23 | 29 => "IQ (importance-matrix quantisation)",
                    24..=27 => "integer",
                    34 | 35 => "ternary",
                    39 => "MXFP4",
                    _ => "unknown",
                };
                return Err(format!("element type {other} ({name})"));
            }
        })
    }

    /// Its code in a file.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::F64 => 28,
            Self::BF16 => 30,
        }
    }

    /// Elements in a block; a row's length is a multiple of it.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F64 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Turns whole blocks into floats. Bytes after the last whole block are ignored; the reader hands over none.
    pub fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block_len());
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half(block, 0)),
                Self::BF16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what is asked for")]
                Self::F64 => out.push(f64::from_le_bytes(std::array::from_fn(|i| block[i])) as f32),
                Self::Q4_0 => nibbles(&mut out, &block[2..], |q| half(block, 0) * (q - 8.0)),
                Self::Q4_1 => nibbles(&mut out, &block[4..], |q| half(block, 0) * q + half(block, 2)),
                Self::Q5_0 => five_bits(&mut out, &block[2..6], &block[6..], |q| half(block, 0) * (q - 16.0)),
                Self::Q5_1 => five_bits(&mut out, &block[4..8], &block[8..], |q| half(block, 0) * q + half(block, 2)),
                Self::Q8_0 => {
                    let scale = half(block, 0);
                    out.extend(block[2..].iter().map(|q| scale * f32::from(*q as i8)));
                }
                Self::Q4_K => k4_or_k5(&mut out, block, None),
                Self::Q5_K => k4_or_k5(&mut out, block, Some(&block[16..48])),
                Self::Q6_K => k6(&mut out, block),
            }
        }
        out
    }
}

impl TensorType {
    /// Of a block of [`Self::Q4_K`], for each of its eight runs of 32 weights: the scale of its codes, and what is taken off
    /// them then.
    pub fn q4_k_scales(block: &[u8; 144]) -> [(f32, f32); 8] {
        let (scale, minimum) = (half(block, 0), half(block, 2));
        std::array::from_fn(|run| {
            let (s, m) = six_bit_pair(&block[4..16], run);
            (scale * s, minimum * m)
        })
    }

    /// Values as blocks, rounded to the nearest that they can hold, as ggml's reference does it. Only what a whole number
    /// of blocks holds is written: rows are the caller's.
    ///
    /// # Errors
    /// A value past 16 bits' range, and a type that is only read here.
    pub fn quantise(self, values: &[f32]) -> Result<Vec<u8>, String> {
        let blocks = values.chunks_exact(self.block_len());
        let mut out = Vec::with_capacity(blocks.len() * self.block_bytes());
        for block in blocks {
            match self {
                Self::F32 => out.extend(block[0].to_le_bytes()),
                Self::F16 => out.extend(half_of(block[0])?),
                Self::Q8_0 => {
                    let largest = block.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                    let scale = largest / 127.0;
                    out.extend(half_of(scale)?);
                    out.extend(block.iter().map(|x| (x * inverse(scale)).round() as i8 as u8));
                }
                Self::Q4_0 => {
                    // The value furthest from 0 becomes -8, of which there is no positive twin.
                    let furthest = block.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most });
                    let scale = furthest / -8.0;
                    out.extend(half_of(scale)?);
                    let code = |x: f32| ((x * inverse(scale) + 8.5) as u8).min(15);
                    let (low, high) = block.split_at(16);
                    out.extend(low.iter().zip(high).map(|(low, high)| code(*low) | code(*high) << 4));
                }
                other => return Err(format!("{other:?} is read here, not written")),
            }
        }
        Ok(out)
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn half_of(value: f32) -> Result<[u8; 2], String> {
    let half = f16::from_f32(value);
    if half.is_finite() { Ok(half.to_le_bytes()) } else { Err(format!("{value} does not fit into 16 bits")) }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes: the low halves are the first 16 elements, the high halves the last 16.
fn nibbles(out: &mut Vec<f32>, codes: &[u8], value: impl Fn(f32) -> f32) {
    out.extend(codes.iter().map(|b| value(f32::from(b & 15))));
    out.extend(codes.iter().map(|b| value(f32::from(b >> 4))));
}

/// As [`nibbles`], with a fifth bit for element i in bit i of `high`.
fn five_bits(out: &mut Vec<f32>, high: &[u8], codes: &[u8], value: impl Fn(f32) -> f32) {
    let bit = |i: usize| (high[i / 8] >> (i % 8) & 1) << 4;
    out.extend(codes.iter().enumerate().map(|(i, b)| value(f32::from(b & 15 | bit(i)))));
    out.extend(codes.iter().enumerate().map(|(i, b)| value(f32::from(b >> 4 | bit(i + 16)))));
}

/// Scale and minimum number `j` of 8, six bits each, packed into 12 bytes: the first four pairs whole in the low bits,
/// the last four split, their upper two bits in the spare bits of the first eight bytes.
fn six_bit_pair(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// Four groups of 64 elements; each shares 32 bytes of codes, low halves first. With `high`, byte l of it holds the
/// fifth bits of element l of all eight runs of 32.
fn k4_or_k5(out: &mut Vec<f32>, block: &[u8], high: Option<&[u8]>) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let codes = if high.is_some() { &block[48..] } else { &block[16..] };
    for run in 0..8 {
        let (s, m) = six_bit_pair(&block[4..16], run);
        let (s, m) = (scale * s, minimum * m);
        for l in 0..32 {
            let byte = codes[run / 2 * 32 + l];
            let low = if run % 2 == 0 { byte & 15 } else { byte >> 4 };
            let top = high.map_or(0, |h| (h[l] >> run & 1) << 4);
            out.push(s * f32::from(low | top) - m);
        }
    }
}

/// Two groups of 128 elements, each of 64 bytes of low halves and 32 bytes of upper bit pairs.
fn k6(out: &mut Vec<f32>, block: &[u8]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for group in 0..2 {
        for run in 0..4 {
            for l in 0..32 {
                let byte = low[group * 64 + run % 2 * 32 + l];
                let code = if run < 2 { byte & 15 } else { byte >> 4 };
                let code = code | (high[group * 32 + l] >> (2 * run) & 3) << 4;
                let s = scales[group * 8 + run * 2 + l / 16] as i8;
                out.push(scale * f32::from(s) * (f32::from(code) - 32.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_bytes(x: f32) -> [u8; 2] {
        f16::from_f32(x).to_le_bytes()
    }

    #[test]
    fn plain_floats() {
        assert_eq!(TensorType::F32.dequantise(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]), [1.0, -2.0]);
        assert_eq!(TensorType::F16.dequantise(&[0, 0x3c, 0, 0xc0]), [1.0, -2.0]);
        assert_eq!(TensorType::BF16.dequantise(&[0x80, 0x3f, 0, 0xc0]), [1.0, -2.0]);
        assert_eq!(TensorType::F64.dequantise(&(-2.5f64).to_le_bytes()), [-2.5]);
    }

    #[test]
    fn q8_0_and_q4_of_32() {
        let mut block = half_bytes(0.5).to_vec();
        block.extend((0..32).map(|i| (i - 16) as i8 as u8));
        let want: Vec<f32> = (0..32).map(|i| 0.5 * (i - 16) as f32).collect();
        assert_eq!(TensorType::Q8_0.dequantise(&block), want);

        // Element i has code i % 16; the second half counts down.
        let codes: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q = |i: usize| if i < 16 { i as f32 } else { (31 - i) as f32 };
        let block = [half_bytes(0.25).as_slice(), &codes].concat();
        let want: Vec<f32> = (0..32).map(|i| 0.25 * (q(i) - 8.0)).collect();
        assert_eq!(TensorType::Q4_0.dequantise(&block), want);
        let block = [half_bytes(0.25).as_slice(), &half_bytes(-3.0), &codes].concat();
        let want: Vec<f32> = (0..32).map(|i| 0.25 * q(i) - 3.0).collect();
        assert_eq!(TensorType::Q4_1.dequantise(&block), want);
    }

    #[test]
    fn what_is_quantised_comes_back_within_half_a_step() {
        let mut random = crate::random::Random::new(1);
        let values: Vec<f32> = (0..32 * 64).map(|i| random.normal() * (1.0 + (i / 32) as f32)).collect();
        for kind in [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q4_0] {
            let bytes = kind.quantise(&values).unwrap();
            assert_eq!(bytes.len(), values.len() / kind.block_len() * kind.block_bytes());
            let back = kind.dequantise(&bytes);
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                let largest = block.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                // Of a scale rounded to 11 bits there is a little more, and 4 bits have no +8.
                let bound = match kind {
                    TensorType::F32 => 0.0,
                    TensorType::F16 => largest / 2048.0,
                    TensorType::Q8_0 => largest / 127.0 * 0.5 + largest / 1024.0,
                    _ => largest / 8.0 + largest / 1024.0,
                };
                assert!(block.iter().zip(back).all(|(a, b)| (a - b).abs() <= bound), "{kind:?}");
            }
            assert_eq!(TensorType::from_code(kind.code()).unwrap(), kind);
        }
        assert!(TensorType::Q8_0.dequantise(&TensorType::Q8_0.quantise(&[0.0; 32]).unwrap()).iter().all(|x| *x == 0.0));
        assert_eq!(TensorType::F16.quantise(&[1e5]).unwrap_err(), "100000 does not fit into 16 bits");
        assert!(TensorType::Q6_K.quantise(&[0.0; 256]).is_err());
    }

    #[test]
    fn q5_takes_its_fifth_bit_from_the_mask() {
        // Codes 0..=31 in order: low four bits i % 16 twice over, fifth bit set for the last 16.
        let codes: Vec<u8> = (0..16).map(|i| i | i << 4).collect();
        let mask = 0xffff_0000u32.to_le_bytes();
        let block = [half_bytes(2.0).as_slice(), &mask, &codes].concat();
        let want: Vec<f32> = (0..32).map(|i| 2.0 * (i as f32 - 16.0)).collect();
        assert_eq!(TensorType::Q5_0.dequantise(&block), want);
        let block = [half_bytes(2.0).as_slice(), &half_bytes(1.0), &mask, &codes].concat();
        let want: Vec<f32> = (0..32).map(|i| 2.0 * i as f32 + 1.0).collect();
        assert_eq!(TensorType::Q5_1.dequantise(&block), want);
    }

    /// Packs eight (scale, minimum) pairs of six bits: the inverse of `six_bit_pair`, written from the layout's
    /// description as a bit picture and not from the code above.
    fn pack_pairs(pairs: &[(u8, u8); 8]) -> [u8; 12] {
        let mut out = [0u8; 12];
        for j in 0..4 {
            out[j] = pairs[j].0 + (pairs[j + 4].0 / 16) * 64;
            out[j + 4] = pairs[j].1 + (pairs[j + 4].1 / 16) * 64;
            out[j + 8] = pairs[j + 4].0 % 16 + (pairs[j + 4].1 % 16) * 16;
        }
        out
    }

    #[test]
    fn k_quants_of_256() {
        let pairs: [(u8, u8); 8] = [(1, 63), (2, 5), (40, 0), (63, 7), (17, 33), (33, 17), (62, 48), (9, 15)];
        let code4 = |i: usize| (i * 7 + i / 32) % 16;
        let code5 = |i: usize| (i * 11 + i / 32) % 32;
        let head = [half_bytes(0.125).as_slice(), &half_bytes(0.5), &pack_pairs(&pairs)].concat();
        let want = |code: &dyn Fn(usize) -> usize| -> Vec<f32> {
            let value = |i: usize| {
                let (s, m) = pairs[i / 32];
                0.125 * f32::from(s) * code(i) as f32 - 0.5 * f32::from(m)
            };
            (0..256).map(value).collect()
        };
        let mut low4 = [0u8; 128];
        let mut low5 = [0u8; 128];
        let mut high5 = [0u8; 32];
        for i in 0..256 {
            let (byte, shift) = (i / 64 * 32 + i % 32, i / 32 % 2 * 4);
            low4[byte] |= (code4(i) << shift) as u8;
            low5[byte] |= ((code5(i) % 16) << shift) as u8;
            high5[i % 32] |= ((code5(i) / 16) << (i / 32)) as u8;
        }
        assert_eq!(TensorType::Q4_K.dequantise(&[&head[..], &low4].concat()), want(&code4));
        assert_eq!(TensorType::Q5_K.dequantise(&[&head[..], &high5, &low5].concat()), want(&code5));
    }

    #[test]
    fn q6_k_of_256() {
        let scales: [i8; 16] = std::array::from_fn(|i| (i as i8 - 8) * 3);
        let code = |i: usize| (i * 13 + i / 128) % 64;
        let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
        for i in 0..256 {
            let (group, within) = (i / 128, i % 128);
            low[group * 64 + within % 64] |= ((code(i) % 16) << (within / 64 * 4)) as u8;
            high[group * 32 + within % 32] |= ((code(i) / 16) << (within / 32 * 2)) as u8;
        }
        let scale_bytes: Vec<u8> = scales.iter().map(|s| *s as u8).collect();
        let block = [&low[..], &high, &scale_bytes, &half_bytes(0.25)].concat();
        let want: Vec<f32> = (0..256).map(|i| 0.25 * f32::from(scales[i / 16]) * (code(i) as f32 - 32.0)).collect();
        assert_eq!(TensorType::Q6_K.dequantise(&block), want);
    }

    #[test]
    fn unknown_types_are_named() {
        assert_eq!(TensorType::from_code(10).unwrap_err(), "element type 10 (Q2_K)");
        assert_eq!(TensorType::from_code(999).unwrap_err(), "element type 999 (unknown)");
    }
}
