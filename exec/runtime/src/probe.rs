//! What this machine is, as its container sees it.

use std::{
    fs,
    path::{Path, PathBuf},
};

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
    let kernel = Kernel::here();
    let cores = kernel.cpu_millis();
    Capability {
        node: settings.node.clone(),
        name: String::new(),
        version: mloc_exec::VERSION.into(),
        cpu_model: cpu_model(&kernel.proc("cpuinfo")),
        cpu_features: mloc_exec::cpu_features(),
        cpu_millis: cores - kept_for_the_mesh(cores),
        memory_bytes: kernel.memory_bytes(),
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

/// Where the kernel says what this process may use.
pub(crate) struct Kernel {
    /// `/proc`
    proc: PathBuf,
    /// `/sys/fs/cgroup`
    cgroup: PathBuf,
}

impl Kernel {
    pub fn here() -> Self {
        Self::at("/proc".into(), "/sys/fs/cgroup".into())
    }

    pub fn at(proc: PathBuf, cgroup: PathBuf) -> Self {
        Self { proc, cgroup }
    }

    pub fn proc(&self, name: &str) -> String {
        fs::read_to_string(self.proc.join(name)).unwrap_or_default()
    }

    /// Thousandths of cores: what affinity leaves, or what the quota leaves if that is less.
    pub fn cpu_millis(&self) -> u64 {
        let status = self.proc("self/status");
        let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).and_then(count_list);
        let cores = allowed.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
        let v2 = self.each_cgroup(None, |dir| quota(&read(dir, "cpu.max")?));
        let v1 = self.each_cgroup(Some("cpu"), |dir| {
            quota(&format!("{} {}", read(dir, "cpu.cfs_quota_us")?.trim(), read(dir, "cpu.cfs_period_us")?.trim()))
        });
        v2.into_iter().chain(v1).chain([cores * 1000]).min().unwrap_or(1000).max(1)
    }

    /// Bytes of memory: the machine's, or what the container may use if that is less.
    pub fn memory_bytes(&self) -> u64 {
        let meminfo = self.proc("meminfo");
        let total =
            meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        // Version 2 says `max` where there is no bound, version 1 some number beyond all memory.
        let v2 = self.each_cgroup(None, |dir| read(dir, "memory.max")?.trim().parse().ok());
        let v1 = self.each_cgroup(Some("memory"), |dir| read(dir, "memory.limit_in_bytes")?.trim().parse().ok());
        v2.into_iter().chain(v1).chain(total.map(|kib| kib * 1024)).min().unwrap_or(0)
    }

    /// What a file of this process's cgroup says, and of those above it: each may bound it. Of version 2, or of one
    /// controller of version 1. Inside a container the path that is told may be the host's: then only its end, the
    /// mount itself, is there.
    pub fn each_cgroup<T>(&self, controller: Option<&str>, read: impl Fn(&Path) -> Option<T>) -> Vec<T> {
        let all = self.proc("self/cgroup");
        let own = all.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let ours = match controller {
                None => controllers.is_empty(),
                Some(name) => controllers.split(',').any(|c| c == name),
            };
            ours.then_some(path)
        });
        let root = controller.map_or_else(|| self.cgroup.clone(), |name| self.cgroup.join(name));
        let mut at = root.join(own.unwrap_or("").trim_start_matches('/'));
        let mut found = Vec::new();
        while at.starts_with(&root) {
            found.extend(read(&at));
            at.pop();
        }
        found
    }
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

/// `0-3,8` has five.
fn count_list(list: &str) -> Option<u64> {
    let count = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(to.trim().parse::<u64>().ok()?.checked_sub(from.trim().parse().ok()?)? + 1)
    };
    list.trim().split(',').map(count).sum()
}

/// `150000 100000` is one and a half cores; `max` and `-1` are no bound.
fn quota(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some((quota * 1000).checked_div(period)?.max(1))
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

    /// A kernel of so many cores and 64 GiB, as a process with these cgroups sees it.
    fn kernel(top: &Path, cores: u32, cgroup: &str, files: &[(&str, &str)]) -> Kernel {
        let kernel = Kernel::at(top.join("proc"), top.join("cgroup"));
        let status = format!("Name:\tmloc\nCpus_allowed_list:\t0-{}\n", cores - 1);
        let meminfo = "MemTotal:       67108864 kB\nMemFree: 1 kB\n";
        for (path, text) in
            [("proc/self/status", status.as_str()), ("proc/self/cgroup", cgroup), ("proc/meminfo", meminfo)]
                .into_iter()
                .chain(files.iter().copied())
        {
            let path = top.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        kernel
    }

    fn sees(cgroup: &str, files: &[(&str, &str)]) -> (u64, u64) {
        let top = tempfile::tempdir().unwrap();
        let kernel = kernel(top.path(), 16, cgroup, files);
        (kernel.cpu_millis(), kernel.memory_bytes() >> 20)
    }

    #[test]
    fn what_a_container_may_use_counts_and_not_what_the_machine_has() {
        let whole = (16_000, 64 << 10);
        assert_eq!(sees("", &[]), whole, "no cgroups at all");
        // Version 2: a container sees its own cgroup as the root.
        let v2 = [("cgroup/cpu.max", "250000 100000\n"), ("cgroup/memory.max", "8589934592\n")];
        assert_eq!(sees("0::/\n", &v2), (2_500, 8 << 10));
        let unbounded = [("cgroup/cpu.max", "max 100000\n"), ("cgroup/memory.max", "max\n")];
        assert_eq!(sees("0::/\n", &unbounded), whole);
        // A service of systemd, whose slice is bounded more tightly.
        let nested = [
            ("cgroup/system.slice/mloc.service/memory.max", "8589934592\n"),
            ("cgroup/system.slice/mloc.service/cpu.max", "max 100000\n"),
            ("cgroup/system.slice/memory.max", "4294967296\n"),
            ("cgroup/system.slice/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(sees("0::/system.slice/mloc.service\n", &nested), (4_000, 4 << 10));
        // Version 1 in a container: the path is the host's, the mount is the container's own.
        let docker = "12:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/system.slice/docker.service\n";
        let v1 = [
            ("cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("cgroup/cpu/cpu.cfs_quota_us", "150000\n"),
            ("cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(sees(docker, &v1), (1_500, 2 << 10));
        // Version 1 on a host, and what it says for no bound.
        let service = "12:memory:/system.slice/mloc.service\n4:cpu,cpuacct:/system.slice/mloc.service\n";
        let v1 = [
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/system.slice/mloc.service/memory.limit_in_bytes", "1073741824\n"),
            ("cgroup/cpu/system.slice/mloc.service/cpu.cfs_quota_us", "-1\n"),
            ("cgroup/cpu/system.slice/mloc.service/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(sees(service, &v1), (16_000, 1 << 10));
    }

    #[test]
    fn this_machine_has_a_processor_memory_and_disk() {
        let found = probe(&ProbeSettings { node: NodeId::new("n"), data_dir: std::env::temp_dir() });
        assert!(found.cpu_millis > 0 && found.memory_bytes > 1 << 20 && found.disk_bytes > 0, "{found:?}");
    }
}
