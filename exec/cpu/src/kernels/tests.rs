//! Kernels against f64 and against each other, on every instruction set there is.

use half::f16;
use proptest::prelude::*;

use super::{
    Kernels,
    product::{BLOCK, PANEL, Product, Rows},
};
use crate::{
    architecture::Activation,
    isa::Isa,
    matrix::{Format, PackedMatrix},
    weights::Values,
};

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

struct Quantised {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

fn quantise(kernels: &Kernels, x: &[f32]) -> Quantised {
    let blocks = x.len() / BLOCK;
    let mut to = Quantised { values: vec![0; x.len()], scales: vec![0.0; blocks], sums: vec![0; blocks] };
    // SAFETY: all have the room.
    unsafe {
        let (values, scales) = (to.values.as_mut_ptr(), to.scales.as_mut_ptr());
        (kernels.quantise)(x.as_ptr(), x.len(), values, scales, to.sums.as_mut_ptr());
    }
    to
}

/// `[tokens, PANEL]` of one panel, tokens at once or one by one.
fn multiply(isa: Isa, matrix: &PackedMatrix, x: &[f32], stride: usize, one_by_one: bool) -> Vec<f32> {
    let (kernels, tokens) = (Kernels::of(isa), x.len() / stride);
    let quantised = quantise(kernels, x);
    let mut out = vec![0.0_f32; tokens * PANEL];
    let rows = Rows {
        x: x.as_ptr(),
        quantised: quantised.values.as_ptr(),
        scales: quantised.scales.as_ptr(),
        sums: quantised.sums.as_ptr(),
        stride,
    };
    for token in (0..tokens).step_by(if one_by_one { 1 } else { tokens }) {
        let product = Product {
            panel: matrix.panel(0).as_ptr(),
            depth: matrix.depth,
            rows: rows.skip_rows(token),
            tokens: if one_by_one { 1 } else { tokens },
            out: out[token * PANEL..].as_mut_ptr(),
            out_stride: PANEL,
            accumulate: false,
        };
        // SAFETY: one whole panel, rows and outputs as long as it says.
        unsafe { kernels.product(matrix.format)(&product) }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_right_and_the_same_bits_everywhere(tokens in 1_usize..30, depth in 1_usize..150, seed in any::<u64>()) {
        let stride = depth.next_multiple_of(BLOCK);
        let weights = noise(PANEL * depth, seed);
        let mut x = noise(tokens * stride, seed ^ 1);
        x.chunks_mut(stride).for_each(|row| row[depth..].fill(0.0));
        for format in Format::ALL {
            let place = |row| Some((0, row));
            let matrix = PackedMatrix::pack(format, PANEL, depth, 1, place, &[&Values::F32((&weights[..]).into())]).expect("memory");
            let portable = multiply(Isa::Portable, &matrix, &x, stride, true);
            for isa in Isa::available() {
                for one_by_one in [false, true] {
                    prop_assert!(multiply(isa, &matrix, &x, stride, one_by_one) == portable, "{format} {isa:?} {one_by_one}");
                }
            }
            let quantised = quantise(Kernels::of(Isa::Portable), &x);
            let mut row = vec![0.0; depth];
            for lane in 0..PANEL {
                matrix.row(lane, &mut row);
                for token in 0..tokens {
                    let activation = |k: usize| {
                        let at = token * stride + k;
                        let rounded = f64::from(quantised.values[at]) * f64::from(quantised.scales[at / BLOCK]);
                        if format.is_integer() { rounded } else { f64::from(x[at]) }
                    };
                    let expected: f64 = row.iter().enumerate().map(|(k, w)| f64::from(*w) * activation(k)).sum();
                    let found = f64::from(portable[token * PANEL + lane]);
                    prop_assert!((found - expected).abs() < 1e-5 * depth as f64, "{format}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn activations_are_rounded_to_the_nearest_byte(seed in any::<u64>(), power in -30_i32..30) {
        let x: Vec<f32> = noise(96, seed).iter().map(|v| v * 2_f32.powi(power)).collect();
        let expected = quantise(Kernels::of(Isa::Portable), &x);
        for isa in Isa::available() {
            let found = quantise(Kernels::of(isa), &x);
            prop_assert_eq!(&found.values, &expected.values);
            prop_assert_eq!(&found.sums, &expected.sums);
            prop_assert_eq!(&found.scales, &expected.scales);
        }
        for (at, x) in x.iter().enumerate() {
            let (value, scale) = (f32::from(expected.values[at]), expected.scales[at / BLOCK]);
            prop_assert!((x - value * scale).abs() <= scale * 0.5001);
        }
        for (values, sum) in expected.values.chunks(BLOCK).zip(&expected.sums) {
            prop_assert_eq!(values.iter().map(|v| i32::from(*v)).sum::<i32>(), *sum);
        }
    }
}

#[test]
fn zeros_and_tiny_activations_quantise_to_zero() {
    for isa in Isa::available() {
        let mut x = vec![0.0; 64];
        x[40] = f32::from_bits(3);
        let found = quantise(Kernels::of(isa), &x);
        assert!(found.values.iter().all(|v| *v == 0) && found.sums == [0, 0], "{isa:?}");
        assert!(found.scales.iter().all(|s| s.is_finite()));
    }
}

#[test]
fn gates_and_caps_are_right_and_the_same_bits_everywhere() {
    // Gates from -120 to 120, far past where the exponential is clamped.
    let rows: Vec<f32> = (0..240)
        .flat_map(|i| {
            let gate = move |lane: usize| (i as f32 - 120.0) + lane as f32 / 16.0;
            (0..32).map(move |lane| if lane < 16 { gate(lane) } else { 1.5 })
        })
        .collect();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let run = |isa: Isa| {
            let mut out = vec![0.0; 240 * 16];
            // SAFETY: 240 rows of 32, 240 rows of 16.
            unsafe { (Kernels::of(isa).gate)(activation, 240, rows.as_ptr(), out.as_mut_ptr(), 16) };
            out
        };
        let portable = run(Isa::Portable);
        for isa in Isa::available() {
            assert!(run(isa) == portable, "{isa:?}");
        }
        for (at, found) in portable.iter().enumerate() {
            let x = f64::from(rows[at / 16 * 32 + at % 16]);
            let u = match activation {
                Activation::Silu => x,
                Activation::GeluTanh => 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x),
            };
            let expected = x / (1.0 + (-u).exp()) * 1.5;
            let most = 1e-6 * expected.abs().max(1e-3);
            assert!((f64::from(*found) - expected).abs() < most, "{activation:?} of {x}: {found} for {expected}");
        }
    }
    let capped = |isa: Isa| {
        let mut x: Vec<f32> = (-160..160).map(|i| i as f32 * 0.7).collect();
        // SAFETY: 320 values.
        unsafe { (Kernels::of(isa).soft_cap)(30.0, x.as_mut_ptr(), x.len()) };
        x
    };
    let portable = capped(Isa::Portable);
    assert!(Isa::available().into_iter().all(|isa| capped(isa) == portable));
    for (found, i) in portable.iter().zip(-160..160) {
        let expected = 30.0 * (f64::from(i as f32 * 0.7) / 30.0).tanh();
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{i}: {found} for {expected}");
    }
}

#[test]
fn halves_widen_exactly_everywhere() {
    let halves: Vec<f16> = (0..16).map(|i| f16::from_bits(i * 1999 + 7)).collect();
    let weights: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
    assert!(weights.iter().all(|w| w.is_finite()));
    // Through the scales of a block of bytes, each 1 at the first weight and 0 elsewhere, by a first activation of 1.
    let blocks: Vec<crate::weights::Block8> = (0..PANEL)
        .map(|lane| {
            let mut values = [0; 32];
            values[0] = 1;
            crate::weights::Block8 { scale: halves[lane % 16], values }
        })
        .collect();
    let place = |row| Some((0, row));
    let matrix = PackedMatrix::pack(Format::Int8, PANEL, BLOCK, 1, place, &[&Values::Int8((&blocks[..]).into())])
        .expect("memory");
    let mut x = vec![0.0; BLOCK];
    x[0] = 127.0;
    for isa in Isa::available() {
        let found = multiply(isa, &matrix, &x, BLOCK, true);
        for (lane, found) in found.iter().enumerate() {
            assert_eq!(*found, weights[lane % 16] * 127.0, "{isa:?} {lane}");
        }
    }
}
