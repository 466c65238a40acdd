//! How fast this machine multiplies, and whether a GPU multiplies right: for a node's description of itself and for
//! `mloc doctor`.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use mloc_burn::{device::DeviceChoice, random::Random};
use serde::{Deserialize, Serialize};

/// Rows and columns of the processor's matrices: large enough to be bound by arithmetic, 1 MiB each in f32.
const CPU_SIZE: usize = 512;
/// Those of a GPU's: 64 MiB each in f32.
const GPU_SIZE: usize = 4096;
/// Those that are compared with the processor's.
const CHECK_SIZE: usize = 256;
/// The best of these is the machine's; the others shared it with somebody.
const TRIES: usize = 8;
/// No more tries after this: it is measured while a node starts.
const ENOUGH: Duration = Duration::from_millis(500);
/// Largest difference to the processor's product, as a share of its largest element. Products in TF32, which GPUs may use
/// for f32, keep 10 bits.
const ERROR_MAX: f64 = 1e-2;

/// Multiplies two 512×512 matrices in f32 on the CPU a few times and gives the best rate in GFLOP/s, at least 1.
pub fn measure_matmul() -> u32 {
    // The processor's device computes at once and reports no errors of its own.
    rate(&Device::flex(), CPU_SIZE, FloatDType::F32).map_or(1, whole)
}

/// What a GPU does with matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuCheck {
    /// Largest difference to the processor's product, as a share of its largest element.
    pub error: f64,
    /// Best rate in f32, in GFLOP/s.
    pub gflops_f32: u32,
    /// Best rate in bf16, in GFLOP/s.
    pub gflops_bf16: u32,
}

/// Has the first visible CUDA device multiply, compares, and measures. A fault of the device may end the process: call it
/// in one of its own.
///
/// # Errors
/// Why there is no such device, or that it computes something else.
pub fn check_gpu() -> Result<GpuCheck, String> {
    let device = DeviceChoice::Cuda(0).open().map_err(|e| e.to_string())?;
    check(&device, GPU_SIZE)
}

fn check(device: &Device, size: usize) -> Result<GpuCheck, String> {
    let product = |on: &Device| {
        let mut random = Random::stream(0, "check");
        let mut matrix = || {
            let values: Vec<f32> = (0..CHECK_SIZE * CHECK_SIZE).map(|_| random.normal()).collect();
            Tensor::<1>::from_floats(values.as_slice(), on).reshape([CHECK_SIZE, CHECK_SIZE])
        };
        let (a, b): (Tensor<2>, Tensor<2>) = (matrix(), matrix());
        a.matmul(b).into_data().iter::<f32>().map(f64::from).collect::<Vec<f64>>()
    };
    let (found, right) = (product(device), product(&Device::flex()));
    let largest = right.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    // NaN is no maximum: a difference that is no number counts as endless.
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    let error = found.iter().zip(&right).map(difference).fold(0.0, f64::max) / largest;
    if error > ERROR_MAX {
        return Err(format!(
            "its product of two {CHECK_SIZE}×{CHECK_SIZE} matrices differs from the processor's by {error:.1e} of the \
             largest element, and {ERROR_MAX:.0e} is the most that rounding explains"
        ));
    }
    Ok(GpuCheck {
        error,
        gflops_f32: whole(rate(device, size, FloatDType::F32)?),
        gflops_bf16: whole(rate(device, size, FloatDType::BF16)?),
    })
}

fn whole(gflops: f64) -> u32 {
    gflops.round().max(1.0) as u32
}

/// The best rate of a few products, in GFLOP/s.
///
/// # Errors
/// The device's own.
pub fn rate(device: &Device, size: usize, dtype: FloatDType) -> Result<f64, String> {
    let matrix = || Tensor::<2>::random([size, size], Distribution::Uniform(-1.0, 1.0), device).cast(dtype);
    let (a, b) = (matrix(), matrix());
    let done = || device.sync().map_err(|e| e.to_string());
    done()?;
    let began = Instant::now();
    let mut best = Duration::MAX;
    for attempt in 0..TRIES {
        let from = Instant::now();
        let product = a.clone().matmul(b.clone());
        done()?;
        drop(product);
        best = best.min(from.elapsed());
        // Two at least: the first one starts threads, or compiles kernels.
        if attempt > 0 && began.elapsed() > ENOUGH {
            break;
        }
    }
    let operations = 2.0 * (size as f64).powi(3);
    Ok(operations / best.as_secs_f64() / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_multiplies() {
        assert!(measure_matmul() > 0);
        let found = check(&Device::flex(), 64).unwrap();
        assert_eq!(found.error, 0.0, "the processor, beside itself");
        assert!(found.gflops_f32 > 0 && found.gflops_bf16 > 0);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(check_gpu().unwrap_err().contains("without the `cuda` feature"));
    }
}
