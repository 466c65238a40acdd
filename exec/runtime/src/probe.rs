//! What this machine is, as its container sees it.

use std::{fs, path::PathBuf};

use mloc_core::{capability::Capability, id::NodeId};
use nix::sys::statvfs::statvfs;

use crate::gpu;

/// What is probed, and for whom.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    /// This node.
    pub node: NodeId,
    /// Its disk is the one that counts.
    pub data_dir: PathBuf,
}

/// Looks at CPU, memory, disk and GPUs. Names, features, labels and the matmul rate are the caller's to fill in.
/// Blocks for some milliseconds.
pub fn probe(settings: &ProbeSettings) -> Capability {
    let cores = cpu_millis();
    Capability {
        node: settings.node.clone(),
        name: String::new(),
        version: mloc_exec::VERSION.into(),
        cpu_model: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        cpu_features: mloc_exec::cpu_features(),
        cpu_millis: cores - kept_for_the_mesh(cores),
        memory_bytes: memory_bytes(),
        disk_bytes: statvfs(&settings.data_dir).map_or(0, |s| s.blocks_available() * s.fragment_size()),
        gpus: gpu::gpus(),
        matmul_gflops: None,
        features: Default::default(),
        labels: Default::default(),
        work: true,
        vote: true,
        reachable: true,
    }
}

/// Gossip, raft and REST go on while everything else computes.
fn kept_for_the_mesh(cores_millis: u64) -> u64 {
    if cores_millis >= 2000 { 250 } else { cores_millis / 10 }
}

/// Thousandths of cores: what affinity leaves, or what the quota leaves if that is less.
fn cpu_millis() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).and_then(count_list);
    let cores = allowed.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    [Some(cores * 1000), quota_millis()].into_iter().flatten().min().unwrap_or(1000).max(1)
}

/// `0-3,8` has five.
fn count_list(list: &str) -> Option<u64> {
    let count = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(to.trim().parse::<u64>().ok()?.checked_sub(from.trim().parse().ok()?)? + 1)
    };
    list.trim().split(',').map(count).sum()
}

fn quota_millis() -> Option<u64> {
    let v2 = cgroup_files("cpu.max").iter().filter_map(|text| quota(text)).min();
    let v1 = || {
        let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/cpu/{name}")).ok();
        quota(&format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim()))
    };
    v2.or_else(v1)
}

/// `150000 100000` is one and a half cores; `max` and `-1` are no bound.
fn quota(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some((quota * 1000).checked_div(period)?.max(1))
}

fn memory_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let v1 = fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes").ok();
    let limits = cgroup_files("memory.max").into_iter().chain(v1).filter_map(|text| text.trim().parse().ok());
    limits.chain(total.map(|kib| kib * 1024)).min().unwrap_or(0)
}

/// A file of this process's cgroup and of those above it (version 2): each may bound it.
fn cgroup_files(name: &str) -> Vec<String> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or("").to_owned();
    let mut found = Vec::new();
    let mut at = PathBuf::from("/sys/fs/cgroup").join(own);
    while at.starts_with("/sys/fs/cgroup") {
        found.extend(fs::read_to_string(at.join(name)));
        at.pop();
    }
    found
}

fn cpu_model(cpuinfo: &str) -> String {
    let named = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.trim_start().strip_prefix(':'));
    named.map_or_else(|| std::env::consts::ARCH.into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_the_kernel_writes_them() {
        assert_eq!(count_list("\t0-3,8\n"), Some(5));
        assert_eq!(count_list("7"), Some(1));
        assert_eq!(count_list("x"), None);
        assert_eq!(quota("150000 100000\n"), Some(1500));
        assert_eq!(quota("max 100000"), None);
        assert_eq!(quota("-1 100000"), None);
        assert_eq!(quota("1000 0"), None);
        assert_eq!(cpu_model("processor : 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
    }

    #[test]
    fn this_machine_has_a_processor_memory_and_disk() {
        let found = probe(&ProbeSettings { node: NodeId::new("n"), data_dir: std::env::temp_dir() });
        assert!(found.cpu_millis > 0 && found.memory_bytes > 1 << 20 && found.disk_bytes > 0, "{found:?}");
    }
}
