//! Where tensors live and compute: chosen once per run, by name, never by preference of a library.

use std::any::Any;

/// What tensors lie on.
pub use burn::tensor::Device;

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

/// How the library beneath says that a device has no memory left, in words and as its error types are printed. It says so
/// by a panic: the text is all there is to go by.
const FULL: [&str; 5] = [
    "out of device memory",
    "can't allocate buffer of size",
    "An out-of-memory error",
    "OutOfMemory {",
    "BufferTooBig {",
];

/// The line of a panic that says that a device has no memory left; `None` = it was about something else.
pub fn full(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))?;
    // Backtraces follow.
    text.lines().find(|line| FULL.iter().any(|said| line.contains(said))).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::full;

    #[test]
    fn the_librarys_words_are_known_and_others_are_not() {
        for said in [
            "called `Result::unwrap()` on an `Err` value: Io(OutOfMemory { size: 4096, backtrace: .. })",
            "Error in server\nout of device memory allocating 67108864 bytes\n   0: a backtrace",
            "can't allocate buffer of size: 99",
        ] {
            assert!(full(&said.to_owned()).is_some_and(|line| !line.contains("backtrace\n")), "{said}");
        }
        assert_eq!(full(&"index out of bounds: the len is 3"), None);
    }
}
