//! GPUs by NVML, loaded at run time: a machine without it has none.

use std::sync::LazyLock;

use mloc_core::capability::{Gpu, normalise_gpu};
use nvml_wrapper::{Device, Nvml, error::NvmlError};

use crate::tree;

/// Loading takes long and leaks a little: once.
static NVML: LazyLock<Option<Nvml>> = LazyLock::new(|| match Nvml::init() {
    Ok(nvml) => Some(nvml),
    Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => None,
    Err(error) => {
        tracing::warn!(%error, "NVML is there and does not start: this node offers no GPUs");
        None
    }
});

/// The GPUs of this machine, in the order of their PCI bus, as `CUDA_DEVICE_ORDER=PCI_BUS_ID` counts.
pub(crate) fn gpus() -> Vec<Gpu> {
    let Some(nvml) = &*NVML else { return Vec::new() };
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    let missing = missing_libraries();
    (0..nvml.device_count().unwrap_or(0))
        .map(|index| match nvml.device_by_index(index).and_then(|device| read(&device, index, &driver)) {
            Ok(mut gpu) => {
                if let Some(missing) = &missing {
                    (gpu.unusable, gpu.unusable_for_good) = (Some(missing.clone()), true);
                }
                gpu
            }
            Err(error) => Gpu {
                index,
                kind: "nvidia-unknown".into(),
                memory_bytes: 0,
                driver: driver.clone(),
                utilisation_percent: 0,
                unusable: Some(format!("NVML cannot read it: {error}")),
                unusable_for_good: true,
            },
        })
        .collect()
}

fn read(device: &Device<'_>, index: u32, driver: &str) -> Result<Gpu, NvmlError> {
    let own = tree::own_pids();
    // Not every driver and container lets one look; then nothing is known of others.
    let foreign: Vec<String> = device
        .running_compute_processes()
        .unwrap_or_default()
        .iter()
        .filter(|p| !i32::try_from(p.pid).is_ok_and(|pid| own.contains(&pid)))
        .map(|p| p.pid.to_string())
        .collect();
    let unusable =
        (!foreign.is_empty()).then(|| format!("used by process {}, which mloc did not start", foreign.join(", ")));
    Ok(Gpu {
        index,
        kind: normalise_gpu(&device.name()?),
        memory_bytes: device.memory_info()?.total,
        driver: driver.to_owned(),
        utilisation_percent: device.utilization_rates().map_or(0, |u| u.gpu),
        unusable,
        unusable_for_good: false,
    })
}

/// What this build lacks on this machine to compute on a GPU.
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "cudarc marks its probes so because loading a library runs its initialisers")]
fn missing_libraries() -> Option<String> {
    let (driver, nvrtc) = unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    let missing = match (driver, nvrtc) {
        (true, true) => return None,
        (false, _) => "libcuda (the driver's library)",
        (true, false) => "libnvrtc (CUDA's run-time compiler)",
    };
    Some(format!("{missing} cannot be loaded: install it or set LD_LIBRARY_PATH"))
}

/// A build without CUDA computes on no GPU.
#[cfg(not(feature = "cuda"))]
fn missing_libraries() -> Option<String> {
    Some("this build of mloc has no CUDA: use one with the feature `cuda`".into())
}
