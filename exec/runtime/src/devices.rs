//! From a grant to what a child sees: which devices, how many threads. Who holds which slot is the ledger's to say.

use mloc_core::capability::Grant;
use mloc_exec::DeviceChoice;

use crate::cuda::Cuda;

/// Threads for a grant's share of the CPU.
pub(crate) fn threads(grant: &Grant) -> usize {
    usize::try_from(grant.cpu_millis.div_ceil(1000)).unwrap_or(1).max(1)
}

/// Environment variables that hold a child to its grant; they stand above the task's own.
pub(crate) fn environment(grant: &Grant) -> Vec<(&'static str, String)> {
    let gpus = match DeviceChoice::of(grant) {
        DeviceChoice::Cuda { .. } => grant.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        // Empty hides them all: what was not granted is not seen.
        DeviceChoice::Cpu { .. } | DeviceChoice::Simulated { .. } => String::new(),
    };
    let threads = threads(grant).to_string();
    // Kernels look for headers in one folder only: the one where they were found.
    let headers = matches!(DeviceChoice::of(grant), DeviceChoice::Cuda { .. }).then(|| Cuda::find().headers.ok());
    let headers = headers.flatten().map(|root| ("CUDA_PATH", root.display().to_string()));
    let own = [
        ("CUDA_VISIBLE_DEVICES", gpus),
        // As NVML counts, whose indices the grant has.
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()),
        ("RAYON_NUM_THREADS", threads.clone()),
        ("OMP_NUM_THREADS", threads),
    ];
    own.into_iter().chain(headers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_sees_what_it_was_granted() {
        let seen = |grant: &Grant| environment(grant)[0].1.clone();
        let real = Grant { cpu_millis: 1500, gpus: vec![1, 3], gpu_kind: "nvidia-l40".into(), ..Default::default() };
        assert_eq!((seen(&real).as_str(), threads(&real)), ("1,3", 2));
        let simulated = Grant { gpu_kind: "simulated:nvidia-l40".into(), ..real };
        assert_eq!(seen(&simulated), "");
        assert_eq!((seen(&Grant::default()).as_str(), threads(&Grant::default())), ("", 1));
    }
}
