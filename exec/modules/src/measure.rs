//! How fast this machine multiplies, for a node's description of itself.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};

/// Rows and columns of the matrices: large enough to be bound by arithmetic, 1 MiB each in f32.
const SIZE: usize = 512;
/// The best of these is the machine's; the others shared it with somebody.
const TRIES: usize = 8;
/// No more tries after this: it is measured while a node starts.
const ENOUGH: Duration = Duration::from_millis(500);

/// Multiplies two 512×512 matrices in f32 on the CPU a few times and gives the best rate in GFLOP/s, at least 1.
pub fn measure_matmul() -> u32 {
    let device = Device::flex();
    let matrix = || Tensor::<2>::random([SIZE, SIZE], Distribution::Uniform(-1.0, 1.0), &device);
    let (a, b) = (matrix(), matrix());
    let began = Instant::now();
    let mut best = Duration::MAX;
    for attempt in 0..=TRIES {
        let from = Instant::now();
        // Reading the result ends the computation.
        let _ = a.clone().matmul(b.clone()).into_data();
        // The first one starts threads and is not counted, unless the machine is so slow that it is the only one.
        let late = began.elapsed() > ENOUGH;
        if attempt > 0 || late {
            best = best.min(from.elapsed());
        }
        if late {
            break;
        }
    }
    let operations = 2.0 * (SIZE as f64).powi(3);
    (operations / best.as_secs_f64() / 1e9).round().max(1.0) as u32
}
