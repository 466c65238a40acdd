//! Chance as a function: the number drawn for a token depends on its seed, its answer and its place alone. So it is the
//! same in any batch, after a preemption, and whether the token was guessed or not.

/// Rounds, multipliers and key increments of Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As
/// Easy as 1, 2, 3", SC 2011, sections 3.3 and 4.3.
const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [a, b] =
            [u64::from(MULTIPLIERS[0]) * u64::from(counter[0]), u64::from(MULTIPLIERS[1]) * u64::from(counter[2])];
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(INCREMENTS[0]), key[1].wrapping_add(INCREMENTS[1])];
    }
    counter
}

/// The number in [0, 1) for the token at `position` of answer `choice`, from 0 both.
pub fn uniform(seed: u64, choice: usize, position: usize) -> f64 {
    let position = position as u64;
    let counter = [position as u32, (position >> 32) as u32, choice as u32, 0];
    let [a, b, ..] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// A seed for a request that has none, from the engine's own.
pub fn seed(engine: u64, request: u64) -> u64 {
    let [a, b, ..] = philox([request as u32, (request >> 32) as u32, 0, 1], [engine as u32, (engine >> 32) as u32]);
    u64::from(a) << 32 | u64::from(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that come with the authors' library (Random123, kat_vectors).
    #[test]
    fn philox_gives_its_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let answer = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), answer);
    }

    #[test]
    fn numbers_are_even_and_differ_by_seed_answer_and_place() {
        let mean = (0..4000).map(|position| uniform(7, 1, position)).sum::<f64>() / 4000.0;
        // Four standard errors.
        assert!((mean - 0.5).abs() < 4.0 / (12.0_f64 * 4000.0).sqrt(), "{mean}");
        let one = uniform(7, 1, 5);
        assert!(one != uniform(8, 1, 5) && one != uniform(7, 2, 5) && one != uniform(7, 1, 6));
    }
}
