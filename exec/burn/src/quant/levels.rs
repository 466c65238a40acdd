//! The values that codes stand for, and the code nearest to a value.

/// The 16 levels of NF4: quantiles of a normal distribution, scaled to ±1 (Dettmers et al. 2023, appendix E).
pub(super) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_04,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The 16 levels of FP4 as bitsandbytes has them: a sign, two bits of exponent, one of mantissa, scaled to ±1.
pub(super) const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Levels in ascending order, for rounding.
#[derive(Debug, Clone)]
pub(super) struct Rounding {
    /// Halfway between neighbours; a value on it goes down.
    bounds: Vec<f32>,
    codes: Vec<u8>,
}

impl Rounding {
    /// For at most 256 levels. Of two equal ones (FP4 has two zeros) values up to it take the first.
    pub fn to(levels: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..levels.len()).collect();
        order.sort_by(|a, b| levels[*a].total_cmp(&levels[*b]));
        let bounds = order.windows(2).map(|pair| (levels[pair[0]] + levels[pair[1]]) / 2.0).collect();
        Self { bounds, codes: order.into_iter().map(|code| code as u8).collect() }
    }

    /// The code of the level nearest to `value`.
    pub fn code(&self, value: f32) -> u8 {
        self.codes[self.bounds.partition_point(|bound| *bound < value)]
    }
}

/// The 256 levels of bitsandbytes' dynamic map (Dettmers 2015, 8-Bit Approximations for Parallelism), in order: a decade
/// of the exponent each has twice as many levels as the one below it, evenly spread, so that small values keep their
/// magnitude and large ones their digits; 0 and 1 stand beside them. Without signs each has twice the levels.
pub(crate) fn dynamic_map(signed: bool) -> [f32; 256] {
    const DECADES: i32 = 7;
    let mut levels = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let steps = if signed { 1 << decade } else { 2 << decade };
        let scale = 10f64.powi(decade + 1 - DECADES) as f32;
        let step = 0.9 / steps as f32;
        // From each end to the middle, as the reference spaces them.
        let edge = |i: i32| if 2 * i <= steps { 0.1 + step * i as f32 } else { 1.0 - step * (steps - i) as f32 };
        for i in 0..steps {
            let level = scale * ((edge(i) + edge(i + 1)) / 2.0);
            levels.push(level);
            if signed {
                levels.push(-level);
            }
        }
    }
    levels.sort_by(f32::total_cmp);
    std::array::from_fn(|i| levels[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_is_symmetric_but_for_its_one() {
        let levels = dynamic_map(true);
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]), "256 different ones");
        assert_eq!((levels[127], levels[255]), (0.0, 1.0));
        assert!(levels[..127].iter().zip(levels[128..255].iter().rev()).all(|(a, b)| *a == -b));
        // The smallest and the largest decade.
        assert!((levels[128] - 0.55e-6).abs() < 1e-12 && (levels[254] - 0.992_968_75).abs() < 1e-6, "{levels:?}");
    }

    #[test]
    fn without_signs_there_are_twice_as_many_in_each_decade() {
        let levels = dynamic_map(false);
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]), "256 different ones");
        assert_eq!((levels[0], levels[255]), (0.0, 1.0));
        let in_decade = |from: f32| levels.iter().filter(|level| **level > from && **level < 10.0 * from).count();
        assert_eq!([1e-7, 1e-6, 1e-1].map(in_decade), [2, 4, 128]);
    }

    #[test]
    fn rounding_goes_to_the_nearest_level() {
        for levels in [&NF4[..], &FP4[..], &dynamic_map(true)] {
            let rounding = Rounding::to(levels);
            for i in -1000..=1000 {
                let value = i as f32 / 1000.0;
                let nearest = levels.iter().map(|l| (l - value).abs()).fold(f32::MAX, f32::min);
                let found = levels[usize::from(rounding.code(value))];
                assert!((found - value).abs() <= nearest + 1e-7, "{value} → {found}");
            }
        }
        // As the reference has it: FP4's second zero is for small values above 0.
        let fp4 = Rounding::to(&FP4);
        assert_eq!([-0.001, 0.0, 0.001].map(|v| fp4.code(v)), [0, 0, 8]);
    }
}
