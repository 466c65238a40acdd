//! What this machine does right now, as its container sees it: figures for whoever watches it.

use std::path::Path;

use mloc_exec::Memory;
use nix::sys::statvfs::statvfs;

use crate::{gpu, probe::Kernel};

/// Ticks a second in /proc/stat: USER_HZ, which is 100 on every Linux this is built for.
const TICK_US: u64 = 10_000;

/// Figures of this machine, or of the container this process is in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFigures {
    /// What this process may use, in thousandths of a core.
    pub cpu_millis: u64,
    /// Processor time used, in microseconds: by the container, or by the machine since it booted.
    pub cpu_used_us: u64,
    /// What this process may use.
    pub memory_bytes: u64,
    /// What is used of it, what the kernel would give back at once left out.
    pub memory_used_bytes: u64,
    /// Size of the data directory's file system.
    pub disk_bytes: u64,
    /// What is free of it to this process.
    pub disk_free_bytes: u64,
    /// Memory that this process itself holds.
    pub own_memory_bytes: u64,
    /// GPUs that the driver shows.
    pub gpus: Vec<GpuFigures>,
}

/// Figures of one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFigures {
    /// Its index.
    pub index: u32,
    /// Its type, as tasks name it.
    pub kind: String,
    /// How busy, in percent.
    pub utilisation_percent: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// What is used of it, by whomever.
    pub memory_used_bytes: u64,
}

/// Looks. Blocks for some milliseconds.
pub fn host(data_dir: &Path) -> HostFigures {
    let kernel = Kernel::here();
    let disk = statvfs(data_dir).ok();
    let disk =
        |blocks: fn(&nix::sys::statvfs::Statvfs) -> u64| disk.as_ref().map_or(0, |s| blocks(s) * s.fragment_size());
    HostFigures {
        cpu_millis: kernel.cpu_millis(),
        cpu_used_us: kernel.cpu_used_us(),
        memory_bytes: kernel.memory_bytes(),
        memory_used_bytes: kernel.memory_used_bytes(),
        disk_bytes: disk(|s| s.blocks()),
        disk_free_bytes: disk(|s| s.blocks_available()),
        own_memory_bytes: kernel.kib("self/status", "VmRSS:").unwrap_or(0) * 1024,
        gpus: gpu::figures(),
    }
}

/// Memory for an attempt that starts now on these GPUs. Blocks for some milliseconds.
pub(crate) fn memory(gpus: &[u32]) -> Memory {
    let kernel = Kernel::here();
    let host_bytes = kernel.memory_bytes();
    let free = |gpu: &GpuFigures| gpu.memory_bytes.saturating_sub(gpu.memory_used_bytes);
    let granted = gpu::figures().into_iter().filter(|gpu| gpus.contains(&gpu.index));
    Memory {
        host_bytes,
        host_free_bytes: host_bytes.saturating_sub(kernel.memory_used_bytes()),
        gpu_free_bytes: granted.map(|gpu| free(&gpu)).min().unwrap_or(0),
    }
}

impl Kernel {
    fn cpu_used_us(&self) -> u64 {
        let of_line = |text: &str, name: &str| number_after(text, name);
        let v2 = self.own_cgroup(None, |dir| of_line(&read(dir, "cpu.stat")?, "usage_usec"));
        let v1 = || self.own_cgroup(Some("cpuacct"), |dir| Some(number(&read(dir, "cpuacct.usage")?)? / 1000));
        v2.or_else(v1).unwrap_or_else(|| {
            // user nice system idle iowait irq softirq steal: all but waiting.
            let stat = self.proc("stat");
            let all = stat.lines().find_map(|line| line.strip_prefix("cpu "));
            let ticks = all.into_iter().flat_map(|line| line.split_whitespace().take(8).enumerate());
            ticks.filter(|(n, _)| !matches!(n, 3 | 4)).filter_map(|(_, text)| number(text)).sum::<u64>() * TICK_US
        })
    }

    fn memory_used_bytes(&self) -> u64 {
        let used = |dir: &Path, current: &str, cache: &str| {
            let cache = number_after(&read(dir, "memory.stat")?, cache).unwrap_or(0);
            Some(number(&read(dir, current)?)?.saturating_sub(cache))
        };
        let v2 = self.own_cgroup(None, |dir| used(dir, "memory.current", "inactive_file"));
        let v1 = || self.own_cgroup(Some("memory"), |dir| used(dir, "memory.usage_in_bytes", "total_inactive_file"));
        v2.or_else(v1).unwrap_or_else(|| {
            let [all, free] = ["MemTotal:", "MemAvailable:"].map(|name| self.kib("meminfo", name).unwrap_or(0));
            all.saturating_sub(free) * 1024
        })
    }

    /// What the innermost cgroup that has it says.
    fn own_cgroup(&self, controller: Option<&str>, look: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
        self.each_cgroup(controller, look).into_iter().next()
    }

    /// A line `NAME  12 kB` of a file in /proc.
    fn kib(&self, file: &str, name: &str) -> Option<u64> {
        number_after(&self.proc(file), name)
    }
}

fn read(dir: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(name)).ok()
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number that follows this name at the beginning of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '\t'])))?;
    number(rest.split_whitespace().next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(cgroup: &str, files: &[(&str, &str)]) -> (u64, u64) {
        let top = tempfile::tempdir().unwrap();
        let always = [
            ("proc/self/cgroup", cgroup),
            ("proc/stat", "cpu  100 0 50 9999 7 1 2 3 0 0\ncpu0 1 1 1 1\n"),
            ("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\n"),
        ];
        for (path, text) in always.iter().chain(files) {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let kernel = Kernel::at(top.path().join("proc"), top.path().join("cgroup"));
        (kernel.cpu_used_us(), kernel.memory_used_bytes())
    }

    #[test]
    fn use_is_the_containers_where_there_is_one_and_else_the_machines() {
        let machine = (1_560_000, 600 * 1024);
        assert_eq!(sees("", &[]), machine);
        let v2 = [
            ("cgroup/pod/cpu.stat", "usage_usec 42\nuser_usec 40\n"),
            ("cgroup/pod/memory.current", "1000\n"),
            ("cgroup/pod/memory.stat", "anon 1\nfile 600\ninactive_file 300\n"),
            ("cgroup/cpu.stat", "usage_usec 777\n"),
        ];
        assert_eq!(sees("0::/pod\n", &v2), (42, 700));
        // On a host's own top there is no memory.current, and cpu.stat is the machine's.
        assert_eq!(sees("0::/\n", &v2), (777, machine.1));
        let v1 = [
            ("cgroup/cpuacct/cpuacct.usage", "5000\n"),
            ("cgroup/memory/memory.usage_in_bytes", "900\n"),
            ("cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 100\n"),
        ];
        assert_eq!(sees("4:cpu,cpuacct:/docker/0123\n12:memory:/docker/0123\n", &v1), (5, 800));
    }

    #[test]
    fn this_machine_has_figures() {
        let found = host(&std::env::temp_dir());
        assert!(found.cpu_used_us > 0 && found.own_memory_bytes > 1 << 20, "{found:?}");
        assert!(found.memory_used_bytes > 0 && found.memory_used_bytes <= found.memory_bytes, "{found:?}");
        assert!(found.disk_free_bytes > 0 && found.disk_free_bytes <= found.disk_bytes, "{found:?}");
    }
}
