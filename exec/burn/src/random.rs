//! A small seeded generator with a state that can be written down.
//!
//! Training must give the same bits after a resume and with every later version of this crate, so the algorithm is
//! fixed here (xoshiro256++, seeded by SplitMix64) rather than left to a library that may change its own.

/// xoshiro256++.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// A generator whose stream depends on `seed` only.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// A generator for one of several independent streams under the same seed, told apart by `label`.
    pub fn stream(seed: u64, label: &str) -> Self {
        // FNV-1a: any fixed hash would do, std's is not fixed.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in label.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self::new(seed ^ hash)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// Uniform in `[0, 1)`, with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// Uniform in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The multiply-shift reduction; its bias is below 2^-32 for any bound a data set can have.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The order in which `n` samples are visited in `epoch`: Fisher and Yates over xoshiro256++ seeded by
/// (`seed`, `epoch`). The order of the data is a pure function of these three numbers.
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Random::stream(seed, &format!("data order of epoch {epoch}"));
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_fixed_for_all_time() {
        // The first outputs of xoshiro256++ from the state SplitMix64 gives for seed 0.
        let mut random = Random::new(0);
        assert_eq!(random.next_u64(), 0x53175d61490b23df);
    }

    #[test]
    fn a_permutation_visits_everything_once_and_depends_on_the_epoch() {
        let mut seen = permutation(1000, 7, 0);
        assert_ne!(seen, permutation(1000, 7, 1));
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let mut random = Random::new(3);
        let xs: Vec<f32> = (0..20_000).map(|_| random.normal()).collect();
        let mean = xs.iter().sum::<f32>() / xs.len() as f32;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / xs.len() as f32;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
