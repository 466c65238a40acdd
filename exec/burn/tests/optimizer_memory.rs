//! That 8-bit moments take a byte each is seen from outside: by what this process holds. Alone in its file, for another
//! test's memory would be counted too.

use burn::tensor::Device;
use mloc_burn::model::parameter::matrix;
use mloc_burn::model::{Gradients, Parameter};
use mloc_burn::optim::{AdamWSettings, Optimizer, OptimizerSettings};

/// What is resident, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn eight_bit_moments_take_a_quarter_of_the_memory() {
    // 16 Mi elements: 64 MiB as floats.
    const SHAPE: [usize; 2] = [4096, 4096];
    const COUNT: u64 = (SHAPE[0] * SHAPE[1]) as u64;
    let device = Device::flex();
    let mut parameter = Parameter::new("w".into(), &SHAPE, vec![0.5; COUNT as usize], &device);
    let mut grown = |settings| {
        let mut optimizer = Optimizer::new(settings);
        let before = resident();
        for _ in 0..2 {
            let mut gradients = Gradients::default();
            gradients.add("w", matrix(vec![1e-3; COUNT as usize], &SHAPE, &device));
            optimizer.update(std::iter::once(&mut parameter), &mut gradients, 1.0, 1e-3);
        }
        let grown = resident().saturating_sub(before);
        (grown, optimizer.state_bytes() as u64)
    };
    let slack = 8 << 20;
    let (in_floats, said) = grown(OptimizerSettings::AdamW(AdamWSettings::default()));
    assert!(said == 8 * COUNT && in_floats.abs_diff(said) < slack, "{in_floats} bytes, said to be {said}");
    let (in_bytes, said) = grown(OptimizerSettings::AdamW8bit(AdamWSettings::default()));
    assert!(
        said == 2 * COUNT + 8 * COUNT / 256 && in_bytes.abs_diff(said) < slack,
        "{in_bytes} bytes, said to be {said}"
    );
}
