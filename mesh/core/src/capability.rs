//! What a node can do, as it gossips it, and what of that is free.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// The prefix of every simulated GPU type, so that no listing, match or usage row can mix it with a real one.
pub const SIMULATED: &str = "simulated:";

/// One node's hardware and offers. Gossiped as JSON, signed by the node; under 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// The node, by its key.
    pub node: NodeId,
    /// Its name for people: `--name`, or the host's.
    pub name: String,
    /// The binary's version.
    pub version: String,
    /// CPU model as the system names it.
    pub cpu_model: String,
    /// Architecture and vector extensions that change results: a resumed run is bit-identical only where they agree.
    pub cpu_features: String,
    /// Cores the node's container may use, in thousandths, less what is kept for the mesh itself.
    pub cpu_millis: u64,
    /// Memory the node's container may use, in bytes.
    pub memory_bytes: u64,
    /// Bytes free now on the file system of the data directory, unlike cores and memory, which are what there is in all.
    /// What running attempts have written is missing from it already, and what they will still write nobody knows: a
    /// task fits when what it asks is free beside the grants of attempts that have not started. A look, no reservation.
    pub disk_bytes: u64,
    /// GPUs, by index.
    pub gpus: Vec<Gpu>,
    /// Measured f32 matmul rate of the CPU, in GFLOP/s.
    pub matmul_gflops: Option<u32>,
    /// What this build and configuration offer: `sft`, `echo`, `source:s3`, `adapter:lora`, … (see `TaskSpec::needs`).
    pub features: BTreeSet<String>,
    /// Labels from the node's configuration.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes work.
    pub work: bool,
    /// Whether it may become a voter.
    pub vote: bool,
    /// Whether others can dial it.
    pub reachable: bool,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its index on the node, as `CUDA_VISIBLE_DEVICES` counts.
    pub index: u32,
    /// The normalised type, `nvidia-a100-80gb`; simulated ones start with [`SIMULATED`].
    pub kind: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Driver version.
    pub driver: String,
    /// Utilisation in percent when last read.
    pub utilisation_percent: u32,
    /// Why the mesh must not use it now: a foreign process on it, or the probe's own failure on it.
    pub unusable: Option<String>,
    /// Whether that stays so until somebody mends it: no CUDA in this build, no driver. A foreign process ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unusable_for_good: bool,
}

impl Gpu {
    /// Whether it exists in a configuration file only.
    pub fn is_simulated(&self) -> bool {
        self.kind.starts_with(SIMULATED)
    }
}

/// The mesh's name of a GPU type, from NVML's product name and memory: `NVIDIA A100-SXM4-80GB` → `nvidia-a100-80gb`,
/// `NVIDIA L40` → `nvidia-l40`, `NVIDIA H100 80GB HBM3` → `nvidia-h100-80gb`.
pub fn normalise_gpu(product: &str) -> String {
    // Form factors and memory technologies do not change what a task can be given.
    const DROPPED: [&str; 12] =
        ["sxm", "sxm2", "sxm3", "sxm4", "sxm5", "pcie", "pci", "hbm2", "hbm2e", "hbm3", "hbm3e", "nvl"];
    let lower = product.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty() && !DROPPED.contains(w));
    let name = words.collect::<Vec<_>>().join("-");
    if name.starts_with("nvidia-") { name } else { format!("nvidia-{name}") }
}

/// What a task asks of one node for one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk that must be free when it is assigned.
    pub disk_bytes: u64,
    /// GPUs, if any.
    pub gpu: Option<GpuRequest>,
}

/// GPUs of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRequest {
    /// `any` (any real GPU), `simulated:any`, or a type's exact name.
    pub kind: String,
    /// How many, at least 1.
    pub count: u32,
    /// Least memory of each, in bytes; 0 when it does not matter.
    pub memory_bytes: u64,
}

impl GpuRequest {
    /// Whether this GPU's type is one the request takes. `any` never takes a simulated one.
    pub fn takes_kind(&self, gpu: &Gpu) -> bool {
        match self.kind.as_str() {
            "any" => !gpu.is_simulated(),
            "simulated:any" => gpu.is_simulated(),
            exact => gpu.kind == exact,
        }
    }
}

/// What an attempt holds on its node while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk; they count until the attempt has started, see [`Capability::disk_bytes`].
    pub disk_bytes: u64,
    /// Indices of the GPUs.
    pub gpus: Vec<u32>,
    /// Their type; empty without GPUs.
    pub gpu_kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of this version gossiped it without `unusable_for_good` once.
    #[test]
    fn a_gpu_without_the_newer_key_is_read() {
        let old =
            r#"{"index":0,"kind":"nvidia-l40","memory_bytes":1,"driver":"","utilisation_percent":0,"unusable":"used"}"#;
        let gpu: Gpu = serde_json::from_str(old).unwrap();
        assert_eq!((gpu.unusable.as_deref(), gpu.unusable_for_good), (Some("used"), false));
    }

    #[test]
    fn gpu_names_are_normalised() {
        for (product, want) in [
            ("NVIDIA A100-SXM4-80GB", "nvidia-a100-80gb"),
            ("NVIDIA L40", "nvidia-l40"),
            ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb"),
            ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
            ("Tesla T4", "nvidia-tesla-t4"),
            ("NVIDIA H200", "nvidia-h200"),
        ] {
            assert_eq!(normalise_gpu(product), want);
        }
    }
}
