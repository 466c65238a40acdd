//! Where tensors live and compute: chosen once per run, by name, never by preference of a library.

use burn::tensor::Device;

/// A device by kind and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor, in f32.
    Cpu,
    /// The CUDA device with this index among the visible ones; needs the `cuda` feature.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This binary has no CUDA code.
    #[error(
        "cuda:{0} was asked for, but this binary is built without the `cuda` feature (hint: rebuild with --features cuda)"
    )]
    NotBuilt(usize),
    /// The driver shows fewer devices.
    #[error("cuda:{index} was asked for, but {found} CUDA devices are visible")]
    NotFound {
        /// The index asked for.
        index: usize,
        /// How many devices the driver shows.
        found: usize,
    },
}

impl DeviceChoice {
    /// The Burn device. A missing GPU is an error: work that was granted one never moves to the processor silently.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => {
                let found = Device::enumerate(burn::tensor::DeviceType::Cuda).len();
                if index < found { Ok(Device::cuda(index)) } else { Err(DeviceError::NotFound { index, found }) }
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(index) => Err(DeviceError::NotBuilt(index)),
        }
    }
}

/// Threads that the processor computes with.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
