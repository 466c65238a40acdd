//! Gradients by finite differences.

/// The gradient of `of` at `at`, by central differences.
pub fn differences(at: &[f64], of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-4;
    let moved = |i: usize, by: f64| {
        let mut at = at.to_vec();
        at[i] += by;
        of(&at)
    };
    (0..at.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
}
