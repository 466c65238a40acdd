//! Tensors as files store them, in the form that the processor's kernels multiply.
//!
//! | stored as | held as | |
//! |---|---|---|
//! | F32, BF16, F16 | f32, bf16, f16 | to the bit |
//! | Q8_0 | int8 | to the bit: a half for 32 signed bytes in both |
//! | Q4_0 | int4 | to the bit: a half for 32 nibbles less 8 in both |
//! | Q4_1 | uint4 | to the bit: halves for scale and minimum of 32 nibbles in both |
//! | Q5_0 | int8 | to the bit: five bits less 16 are bytes |
//! | Q4_K | uint4 | its scales and minima, which are products of a half and six bits, are rounded to halves: 2⁻¹² of each |
//! | Q5_1, Q5_K, Q6_K | int8 | rounded to a 254th of the largest of 32, half of what a step of six bits is |
//!
//! The last two rows hold only where a model is held as it is stored; where another format is asked for, such tensors are
//! rounded once, from f32 to it.

use half::{bf16, f16};
use mloc_burn::formats::gguf::TensorType;
use mloc_cpu::{
    Format,
    weights::{Block4, Block8, BlockU4, Values},
};

/// What a tensor's values are held in, and whether that loses nothing.
pub fn format(kind: TensorType) -> (Format, bool) {
    match kind {
        TensorType::F32 => (Format::F32, true),
        TensorType::F64 => (Format::F32, false),
        TensorType::F16 => (Format::F16, true),
        TensorType::BF16 => (Format::Bf16, true),
        TensorType::Q8_0 | TensorType::Q5_0 => (Format::Int8, true),
        TensorType::Q4_0 => (Format::Int4, true),
        TensorType::Q4_1 => (Format::Uint4, true),
        TensorType::Q4_K => (Format::Uint4, false),
        TensorType::Q5_1 | TensorType::Q5_K | TensorType::Q6_K => (Format::Int8, false),
    }
}

/// Whole blocks of a kind as values of its [`format`].
pub fn values(kind: TensorType, bytes: &[u8]) -> Values<'static> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match kind {
        TensorType::F32 | TensorType::F64 => Values::F32(kind.dequantise(bytes).into()),
        TensorType::F16 => Values::F16(halves().map(|half| f16::from_le_bytes(*half)).collect()),
        TensorType::BF16 => Values::Bf16(halves().map(|half| bf16::from_le_bytes(*half)).collect()),
        TensorType::Q8_0 => Values::Int8(bytes.as_chunks::<34>().0.iter().map(q8_0).collect()),
        TensorType::Q4_0 => Values::Int4(bytes.as_chunks::<18>().0.iter().map(q4_0).collect()),
        TensorType::Q4_1 => Values::Uint4(bytes.as_chunks::<20>().0.iter().map(q4_1).collect()),
        TensorType::Q5_0 => Values::Int8(bytes.as_chunks::<22>().0.iter().map(q5_0).collect()),
        TensorType::Q4_K => Values::Uint4(bytes.as_chunks::<144>().0.iter().flat_map(q4_k).collect()),
        TensorType::Q5_1 | TensorType::Q5_K | TensorType::Q6_K => {
            // By a few blocks, so that the whole tensor is never there in f32.
            let floats = bytes.chunks(kind.block_bytes()).flat_map(|block| rounded(&kind.dequantise(block)));
            Values::Int8(floats.collect())
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn q8_0(block: &[u8; 34]) -> Block8 {
    Block8 { scale: half(block, 0), values: std::array::from_fn(|i| block[2 + i] as i8) }
}

fn q4_0(block: &[u8; 18]) -> Block4 {
    Block4 { scale: half(block, 0), nibbles: std::array::from_fn(|i| block[2 + i]) }
}

fn q4_1(block: &[u8; 20]) -> BlockU4 {
    let nibbles = std::array::from_fn(|i| block[4 + i]);
    BlockU4 { scale: half(block, 0), minimum: half(block, 2), nibbles }
}

/// Scale, a fifth bit of each weight, nibbles.
fn q5_0(block: &[u8; 22]) -> Block8 {
    let five = |i: usize| block[6 + i % 16] >> (i / 16 * 4) & 15 | (block[2 + i / 8] >> (i % 8) & 1) << 4;
    Block8 { scale: half(block, 0), values: std::array::from_fn(|i| five(i) as i8 - 16) }
}

/// Eight blocks: 64 weights share 32 bytes, the first 32 in the lower halves.
fn q4_k(block: &[u8; 144]) -> [BlockU4; 8] {
    let pairs = TensorType::q4_k_scales(block);
    std::array::from_fn(|run| {
        let (scale, minimum) = pairs[run];
        let nibble = |i: usize| block[16 + run / 2 * 32 + i] >> (run % 2 * 4) & 15;
        BlockU4 {
            scale: f16::from_f32(scale),
            minimum: f16::from_f32(-minimum),
            nibbles: std::array::from_fn(|i| nibble(i) | nibble(i + 16) << 4),
        }
    })
}

fn rounded(values: &[f32]) -> Vec<Block8> {
    values.as_chunks::<32>().0.iter().map(Block8::quantise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TensorType; 12] = [
        TensorType::F32,
        TensorType::F64,
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q8_0,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
    ];

    /// Where a block has halves, for scales that are numbers.
    fn halves(kind: TensorType) -> &'static [usize] {
        match kind {
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
            TensorType::Q6_K => &[208],
            _ => &[0],
        }
    }

    /// Two rows of 512 weights: any bytes, but for scales between 0.03 and 0.12.
    fn blocks(kind: TensorType) -> Vec<u8> {
        let count = 2 * 512 / kind.block_len();
        let floats = || (0..count).map(|i| (i as f32 * 0.37).sin());
        match kind {
            TensorType::F32 => floats().flat_map(f32::to_le_bytes).collect(),
            TensorType::F64 => floats().flat_map(|x| f64::from(x).to_le_bytes()).collect(),
            TensorType::F16 => floats().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            TensorType::BF16 => floats().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => (0..count)
                .flat_map(|block| {
                    let mut bytes: Vec<u8> =
                        (0..kind.block_bytes()).map(|i| ((block * 37 + i * 101 + i * i * 13) % 256) as u8).collect();
                    for at in halves(kind) {
                        let scale = f16::from_f32(0.03 + 0.01 * ((block + at) % 9) as f32);
                        bytes[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                    bytes
                })
                .collect(),
        }
    }

    fn floats(values: &Values<'_>) -> Vec<f32> {
        match values {
            Values::F32(v) => v.to_vec(),
            Values::Bf16(v) => v.iter().map(|v| v.to_f32()).collect(),
            Values::F16(v) => v.iter().map(|v| v.to_f32()).collect(),
            Values::Int8(v) => v.iter().flat_map(Block8::values).collect(),
            Values::Int4(v) => v.iter().flat_map(Block4::values).collect(),
            Values::Uint4(v) => v.iter().flat_map(BlockU4::values).collect(),
        }
    }

    #[test]
    fn what_is_held_is_what_is_stored_to_the_bit_or_as_near_as_is_said() {
        for kind in ALL {
            let bytes = blocks(kind);
            let (wanted, held) = (kind.dequantise(&bytes), values(kind, &bytes));
            let (form, exact) = format(kind);
            assert_eq!(held.format(), form, "{kind:?}");
            let found = floats(&held);
            assert_eq!(found.len(), 1024, "{kind:?}");
            for (at, (found, wanted)) in found.chunks(32).zip(wanted.chunks(32)).enumerate() {
                let largest = wanted.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let most = match kind {
                    _ if exact => 0.0,
                    // 15 scales and a minimum, each to 2⁻¹².
                    TensorType::Q4_K => 16.0 * 0.12 * 63.0 / 2048.0,
                    TensorType::F64 => 0.0,
                    _ => largest * (0.5 / 127.0 + 1.0 / 2048.0),
                };
                for (found, wanted) in found.iter().zip(wanted) {
                    let same = found.to_bits() == wanted.to_bits() || *found == 0.0 && *wanted == 0.0;
                    assert!(same || (found - wanted).abs() <= most, "{kind:?} {at}: {found} for {wanted}");
                }
            }
        }
    }
}
