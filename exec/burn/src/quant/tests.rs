use super::*;
use crate::random::Random;

fn settings(quant_type: QuantType, block_size: usize, double_quant: bool) -> FourBitSettings {
    FourBitSettings { quant_type, block_size, double_quant }
}

fn every_kind() -> impl Iterator<Item = FourBitSettings> {
    let types = [QuantType::Nf4, QuantType::Fp4];
    let kinds = types.into_iter().flat_map(|t| [32, 64, 4096].map(|block| (t, block)));
    kinds.flat_map(|(t, block)| [false, true].map(|double| settings(t, block, double)))
}

fn normals(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| 0.02 * random.normal()).collect()
}

#[test]
fn what_comes_back_is_within_half_a_gap_of_the_levels() {
    let device = Device::flex();
    // With short last blocks, and an odd number of elements.
    for dims in [[48, 128], [7, 13], [1, 1], [300, 333]] {
        let values = normals(dims[0] * dims[1], 5);
        for kind in every_kind() {
            let matrix = FourBitMatrix::quantize(&values, dims, kind, &device);
            let back = matrix.to_vec();
            assert_eq!(back.len(), values.len());
            let levels = kind.quant_type.levels();
            let mut sorted = levels.to_vec();
            sorted.sort_by(f32::total_cmp);
            let half_gap = sorted.windows(2).map(|w| (w[1] - w[0]) / 2.0).fold(0.0, f32::max);
            let largest = largest_of_blocks(&values, kind.block_size);
            // An 8-bit scale is off by less than 2 % of the largest distance from the mean.
            let mean = largest.iter().sum::<f32>() / largest.len() as f32;
            let spread = largest.iter().map(|s| (s - mean).abs()).fold(0.0, f32::max);
            let scale_off = if kind.double_quant { 0.02 * spread + 1e-6 } else { 0.0 };
            for (i, (value, back)) in values.iter().zip(&back).enumerate() {
                let bound = half_gap * largest[i / kind.block_size] + scale_off + 1e-7;
                assert!((value - back).abs() <= bound, "{kind:?} {dims:?} element {i}: {value} came back as {back}");
            }
        }
    }
}

#[test]
fn quantising_again_changes_nothing() {
    let device = Device::flex();
    for kind in every_kind().filter(|kind| !kind.double_quant) {
        let first = FourBitMatrix::quantize(&normals(64 * 96, 9), [64, 96], kind, &device);
        let again = FourBitMatrix::quantize(&first.to_vec(), [64, 96], kind, &device);
        assert_eq!(again.to_vec(), first.to_vec(), "{kind:?}");
    }
}

#[test]
fn a_block_of_zeros_stays_zero_and_one_large_element_stays_exact() {
    let device = Device::flex();
    for kind in every_kind().filter(|kind| !kind.double_quant) {
        let mut values = vec![0.0; 2 * kind.block_size];
        values[kind.block_size + 3] = -7.5;
        let matrix = FourBitMatrix::quantize(&values, [2, kind.block_size], kind, &device);
        assert_eq!(matrix.to_vec(), values, "{kind:?}");
    }
}

#[test]
fn bytes_are_those_of_four_bits_and_scales() {
    let device = Device::flex();
    let bytes = |double| {
        let kind = settings(QuantType::Nf4, 64, double);
        FourBitMatrix::quantize(&vec![0.1; 256 * 1024], [256, 1024], kind, &device).bytes()
    };
    assert_eq!(bytes(false), 128 * 1024 + 4 * 4096);
    assert_eq!(bytes(true), 128 * 1024 + 4096 + 4 * (16 + 1));
}

/// The path of devices with memory of their own computes the same as the processor's loop.
#[test]
fn tensor_operations_give_the_same_bits() {
    let device = Device::flex();
    for dims in [[48, 128], [7, 13], [130, 270]] {
        for kind in every_kind() {
            let matrix = FourBitMatrix::quantize(&normals(dims[0] * dims[1], 3), dims, kind, &device);
            let by_tensors = matrix.dequantize_by_tensors();
            assert_eq!(by_tensors.dims(), dims);
            assert_eq!(host_values(by_tensors), matrix.to_vec(), "{kind:?} {dims:?}");
            assert_eq!(host_values(matrix.dequantize()), matrix.to_vec());
        }
    }
}
