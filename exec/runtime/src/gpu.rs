//! GPUs by NVML, loaded at run time: a machine without it has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::LazyLock,
};

use mloc_core::capability::{Gpu, normalise_gpu};
use mloc_exec::tree;
use nvml_wrapper::{
    Device, Nvml, enums::device::UsedGpuMemory, error::NvmlError, struct_wrappers::device::ProcessInfo,
};

use crate::{cuda::Cuda, host::GpuFigures};

/// Loading takes long and leaks a little: once.
static NVML: LazyLock<Option<Nvml>> = LazyLock::new(|| match Nvml::init() {
    Ok(nvml) => Some(nvml),
    Err(error @ (NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded)) => {
        let cards = cards();
        if cards > 0 {
            tracing::warn!(
                cards, %error,
                "this machine has NVIDIA cards and no driver to reach them: this node offers no GPUs\nhint: install the \
                 driver; in a container, start it with the GPUs (`--gpus all`, a device plugin)"
            );
        }
        None
    }
    Err(error) => {
        tracing::warn!(%error, "NVML is there and does not start: this node offers no GPUs");
        None
    }
});

/// Where the kernel lists what is on the PCI bus.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// A desktop lives on a sixteenth of a GPU's memory; what draws with more than that would be in a task's way.
const DESKTOP_SHARE: u64 = 16;

/// The GPUs of this machine, in the order of their PCI bus, as `CUDA_DEVICE_ORDER=PCI_BUS_ID` counts.
pub fn gpus() -> Vec<Gpu> {
    let Some(nvml) = &*NVML else { return Vec::new() };
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    let missing = Cuda::find().missing();
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => {
            tracing::warn!(%error, "NVML cannot count the GPUs: this node offers none");
            return Vec::new();
        }
    };
    let uuids: BTreeMap<u32, String> =
        (0..count).filter_map(|index| Some((index, nvml.device_by_index(index).ok()?.uuid().ok()?))).collect();
    let shown = std::env::var("CUDA_VISIBLE_DEVICES").ok().map(|list| visible(&list, count, &uuids));
    (0..count)
        .map(|index| {
            let mut gpu = match nvml.device_by_index(index).and_then(|device| read(&device, index, &driver)) {
                Ok(gpu) => gpu,
                Err(error) => Gpu {
                    index,
                    kind: "nvidia-unknown".into(),
                    memory_bytes: 0,
                    driver: driver.clone(),
                    utilisation_percent: 0,
                    unusable: Some(format!("NVML cannot read it: {error}")),
                    unusable_for_good: true,
                },
            };
            let hidden = shown.as_ref().is_some_and(|shown| !shown.contains(&index));
            let hidden = hidden.then(|| "hidden from this daemon by its CUDA_VISIBLE_DEVICES".to_owned());
            if let Some(why) = hidden.or_else(|| missing.clone()) {
                (gpu.unusable, gpu.unusable_for_good) = (Some(why), true);
            }
            gpu
        })
        .collect()
}

/// What the GPUs do right now.
pub(crate) fn figures() -> Vec<GpuFigures> {
    let Some(nvml) = &*NVML else { return Vec::new() };
    let one = |index: u32| {
        let device = nvml.device_by_index(index).ok()?;
        let memory = device.memory_info().ok()?;
        Some(GpuFigures {
            index,
            kind: normalise_gpu(&device.name().ok()?),
            utilisation_percent: device.utilization_rates().map_or(0, |u| u.gpu),
            memory_bytes: memory.total,
            memory_used_bytes: memory.used,
        })
    };
    (0..nvml.device_count().unwrap_or(0)).filter_map(one).collect()
}

/// NVIDIA's cards in this machine, with a driver or without.
pub fn cards() -> usize {
    nvidia_cards(Path::new(PCI_DEVICES))
}

/// NVIDIA's display and 3D controllers on the PCI bus, which the kernel lists with a driver or without.
fn nvidia_cards(devices: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(devices) else { return 0 };
    let is = |dir: &Path, file: &str, begins: &str| {
        std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim().starts_with(begins))
    };
    entries.flatten().map(|e| e.path()).filter(|dir| is(dir, "vendor", "0x10de") && is(dir, "class", "0x03")).count()
}

fn read(device: &Device<'_>, index: u32, driver: &str) -> Result<Gpu, NvmlError> {
    let memory_bytes = device.memory_info()?.total;
    let users = |listed: Result<Vec<ProcessInfo>, NvmlError>| match listed {
        Ok(processes) => Ok(processes.iter().map(User::of).collect()),
        // This driver never lets one look: nothing is known of others, and waiting would not help.
        Err(NvmlError::NotSupported | NvmlError::NoPermission) => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    };
    let unusable = in_the_way(
        users(device.running_compute_processes()),
        users(device.running_graphics_processes()),
        memory_bytes,
        &tree::own_pids(),
    );
    Ok(Gpu {
        index,
        kind: normalise_gpu(&device.name()?),
        memory_bytes,
        driver: driver.to_owned(),
        utilisation_percent: device.utilization_rates().map_or(0, |u| u.gpu),
        unusable,
        unusable_for_good: false,
    })
}

/// A process on a GPU.
struct User {
    pid: u32,
    /// What it holds, where the driver says so.
    bytes: Option<u64>,
}

impl User {
    fn of(process: &ProcessInfo) -> Self {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        Self { pid: process.pid, bytes }
    }
}

/// Why a GPU cannot be used for what NVML says of its processes. An error is no free GPU.
fn in_the_way(
    compute: Result<Vec<User>, String>,
    graphics: Result<Vec<User>, String>,
    memory_bytes: u64,
    own: &BTreeSet<i32>,
) -> Option<String> {
    let (compute, graphics) = match (compute, graphics) {
        (Ok(compute), Ok(graphics)) => (compute, graphics),
        (Err(error), _) | (_, Err(error)) => return Some(format!("NVML cannot say who uses it: {error}")),
    };
    let foreign = |user: &&User| !i32::try_from(user.pid).is_ok_and(|pid| own.contains(&pid));
    let draws_much = |user: &&User| user.bytes.is_some_and(|bytes| bytes > memory_bytes / DESKTOP_SHARE);
    let drawing = graphics.iter().filter(draws_much);
    let pids: BTreeSet<u32> = compute.iter().chain(drawing).filter(foreign).map(|user| user.pid).collect();
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    (!pids.is_empty()).then(|| format!("used by process {}, which mloc did not start", pids.join(", ")))
}

/// Indices that a `CUDA_VISIBLE_DEVICES` shows: numbers, or beginnings of UUIDs, up to the first that names none, as
/// CUDA reads it. Numbers are taken to count by PCI bus.
fn visible(list: &str, count: u32, uuids: &BTreeMap<u32, String>) -> BTreeSet<u32> {
    let index = |name: &str| match name.parse::<u32>() {
        Ok(index) => (index < count).then_some(index),
        Err(_) if name.starts_with("GPU-") => {
            uuids.iter().find(|(_, uuid)| uuid.starts_with(name)).map(|(index, _)| *index)
        }
        Err(_) => None,
    };
    list.split(',').map_while(|name| index(name.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(all: &[(u32, Option<u64>)]) -> Result<Vec<User>, String> {
        Ok(all.iter().map(|(pid, bytes)| User { pid: *pid, bytes: *bytes }).collect())
    }

    #[test]
    fn a_gpu_is_free_only_when_nvml_says_so() {
        let own = BTreeSet::from([7]);
        let verdict = |compute, graphics| in_the_way(compute, graphics, 16 << 30, &own);
        let none = || users(&[]);
        assert_eq!(verdict(none(), none()), None);
        assert_eq!(verdict(users(&[(7, Some(8 << 30))]), none()), None, "our own");
        let two = verdict(users(&[(9, None), (7, None), (8, Some(1))]), none());
        assert_eq!(two.as_deref(), Some("used by process 8, 9, which mloc did not start"));
        assert_eq!(verdict(none(), users(&[(8, Some(300 << 20)), (9, None)])), None, "a desktop");
        assert!(verdict(none(), users(&[(8, Some(2 << 30))])).is_some(), "a game");
        let lost = || Err("the GPU has fallen off the bus".to_owned());
        let said = "NVML cannot say who uses it: the GPU has fallen off the bus";
        assert_eq!(verdict(lost(), none()).as_deref(), Some(said));
        assert_eq!(verdict(none(), lost()).as_deref(), Some(said));
    }

    #[test]
    fn cards_without_a_driver_are_counted() {
        let top = tempfile::tempdir().unwrap();
        // A GPU, its audio function, a display card of another maker.
        for (name, vendor, class) in
            [("0", "0x10de", "0x030200"), ("1", "0x10de", "0x040300"), ("2", "0x1002", "0x030000")]
        {
            std::fs::create_dir(top.path().join(name)).unwrap();
            std::fs::write(top.path().join(name).join("vendor"), format!("{vendor}\n")).unwrap();
            std::fs::write(top.path().join(name).join("class"), format!("{class}\n")).unwrap();
        }
        assert_eq!(nvidia_cards(top.path()), 1);
        assert_eq!(nvidia_cards(&top.path().join("none")), 0);
    }

    #[test]
    fn what_the_daemon_may_not_see_is_not_offered() {
        let uuids =
            BTreeMap::from([(0, "GPU-aa11".to_owned()), (1, "GPU-bb22".to_owned()), (2, "GPU-cc33".to_owned())]);
        let seen = |list: &str| visible(list, 3, &uuids).into_iter().collect::<Vec<_>>();
        assert_eq!(seen("0,2"), [0, 2]);
        assert_eq!(seen(" 1 , GPU-cc"), [1, 2]);
        assert_eq!(seen("2,9,0"), [2], "CUDA stops at the first that is none");
        assert!(seen("").is_empty() && seen("-1").is_empty() && seen("NoDevFiles").is_empty());
        assert!(seen("MIG-GPU-aa11/1/0").is_empty());
    }
}
