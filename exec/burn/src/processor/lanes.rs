//! Loops that are compiled once for each instruction set, and what they are made of.
//!
//! Products and their sums are never fused into one rounding: results do not depend on the instruction set.

/// Sums and maxima are taken in so many lanes, whatever the processor's vectors are.
pub(super) const LANES: usize = 16;

/// A function over slices whose body is compiled for each instruction set that there is, and chosen at run time.
macro_rules! wide {
    (
        $(#[$said:meta])*
        $seen:vis fn $name:ident<$life:lifetime>($($argument:ident: $kind:ty),+ $(,)?) $body:block
    ) => {
        $(#[$said])*
        $seen fn $name<$life>($($argument: $kind),+) {
            struct Body<$life> {
                $($argument: $kind),+
            }
            impl<$life> pulp::WithSimd for Body<$life> {
                type Output = ();

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) {
                    let Self { $($argument),+ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Body { $($argument),+ });
        }
    };
}
pub(super) use wide;

/// Below it eˣ is no normal number; it counts as 0.
const LEAST: f32 = -87.0;
/// Above it eˣ is nearly at the end of what f32 has; it counts as infinite.
const MOST: f32 = 88.0;
/// ln 2 in two parts: the first has so few digits that its products with small whole numbers are exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
/// Added and taken away again it leaves a whole number, whose bits are the lowest of the sum.
const ROUNDER: f32 = 1.5 * (1_u32 << 23) as f32;
/// 1/k! for k from 7 down to 2.
const INVERSE_FACTORIALS: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// eˣ to within two units in the last place; what is no number stays none.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Written so that what is no number passes through.
    let within = if x > MOST { MOST } else { x };
    let within = if within < LEAST { LEAST } else { within };
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2, where the series of eʳ needs no more terms.
    let shifted = within * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (within - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = INVERSE_FACTORIALS[0];
    series = series * r + INVERSE_FACTORIALS[1];
    series = series * r + INVERSE_FACTORIALS[2];
    series = series * r + INVERSE_FACTORIALS[3];
    series = series * r + INVERSE_FACTORIALS[4];
    series = series * r + INVERSE_FACTORIALS[5];
    let e = (series * r * r + r) + 1.0;
    // 2ⁿ: n lies in the low bits, and is moved to the exponent's.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let e = if x < LEAST { 0.0 } else { e * power };
    if x > MOST { f32::INFINITY } else { e }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum of all lanes: halves onto halves.
#[inline(always)]
pub(super) fn total(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// What is left over at the end of a row, filled up.
#[inline(always)]
pub(super) fn filled(rest: &[f32], by: f32) -> [f32; LANES] {
    let mut lanes = [by; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// Σ a·b.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    total(sums) + a_rest.iter().zip(b_rest).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// Σ a·b·c.
#[inline(always)]
pub(super) fn dot_3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest), (c, c_rest)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    total(sums) + a_rest.iter().zip(b_rest).zip(c_rest).fold(0.0, |sum, ((a, b), c)| sum + a * b * c)
}

/// The highest; what is no number is passed over.
#[inline(always)]
pub(super) fn highest(row: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            tops[lane] = if values[lane] > tops[lane] { values[lane] } else { tops[lane] };
        }
    }
    tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, value| if *value > top { *value } else { top })
}

/// Each element x becomes e^(x − less); the sum of them.
#[inline(always)]
pub(super) fn exp_and_sum(row: &mut [f32], less: f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            values[lane] = exp(values[lane] - less);
            sums[lane] += values[lane];
        }
    }
    // Filled up, so that what is left over is computed as one.
    let mut last = filled(rest, f32::NEG_INFINITY);
    for lane in 0..LANES {
        last[lane] = exp(last[lane] - less);
        sums[lane] += last[lane];
    }
    rest.copy_from_slice(&last[..rest.len()]);
    total(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_f64() {
        let steps = (0..400_000).map(|step| -87.0 + step as f32 * (175.0 / 400_000.0));
        for x in steps.chain([0.0, -0.0, 1e-30, -1e-30, 0.5 * std::f32::consts::LN_2]) {
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / wanted - 1.0).abs() < 2.4e-7, "e^{x}: {found}, expected {wanted}");
        }
        assert_eq!([exp(0.0), exp(-88.0), exp(-1e30), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0, 0.0]);
        assert!(exp(f32::NAN).is_nan() && exp(1e30) == f32::INFINITY);
        // What is far out is 0 or itself, and no number only where it was none.
        assert_eq!([sigmoid(-1e38), sigmoid(1e38), sigmoid(f32::NEG_INFINITY)], [0.0, 1.0, 0.0]);
    }

    #[test]
    fn sums_have_all_elements_whatever_the_length() {
        wide! {
            fn all<'a>(a: &'a [f32], b: &'a [f32], c: &'a mut [f32], sums: &'a mut [f32; 4]) {
                *sums = [dot(a, b), dot_3(a, b, c), highest(a), exp_and_sum(c, 1.0)];
            }
        }
        for length in [1, 7, 16, 17, 40, 576] {
            let values = |by: f32| (0..length).map(|i| ((i as f32 + 1.0) * by).sin()).collect::<Vec<f32>>();
            let (a, b, mut c) = (values(0.7), values(1.3), values(2.1));
            let each = |f: &dyn Fn(usize) -> f64| (0..length).map(f).sum::<f64>();
            let of = |list: &[f32], i: usize| f64::from(list[i]);
            let top = a.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
            let wanted = [
                each(&|i| of(&a, i) * of(&b, i)),
                each(&|i| of(&a, i) * of(&b, i) * of(&c, i)),
                f64::from(top),
                each(&|i| (of(&c, i) - 1.0).exp()),
            ];
            let mut sums = [0.0; 4];
            all(&a, &b, &mut c, &mut sums);
            for (found, wanted) in sums.into_iter().zip(wanted) {
                assert!((f64::from(found) - wanted).abs() < 1e-4, "{length}: {sums:?}, expected {wanted}");
            }
        }
    }
}
