//! Whether this very binary computes on a GPU: tried in a process of its own, for a CUDA fault must not take a node down.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use mloc_core::capability::{Gpu, SIMULATED};
use mloc_modules::GpuCheck;
use mloc_runtime::Cuda;
use tokio::process::Command;

use crate::show::say;

/// The subcommand of the process.
pub const SUBCOMMAND: &str = "__gpu-check";
/// Kernels are compiled first; a driver that hangs is no free GPU.
const PATIENCE: Duration = Duration::from_secs(180);

/// What was found of each GPU so far, by index.
pub type Checked = BTreeMap<u32, Result<GpuCheck, String>>;

/// The process: says what it found as JSON, or why not.
pub fn main() -> std::process::ExitCode {
    match mloc_modules::check_gpu() {
        Ok(found) => {
            say!("{}", serde_json::to_string(&found).unwrap_or_default());
            std::process::ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Tries the GPU of this index, as NVML counts.
pub async fn check(index: u32) -> Result<GpuCheck, String> {
    tried(index).await.map_err(|error| format!("{error:#}"))
}

async fn tried(index: u32) -> anyhow::Result<GpuCheck> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(SUBCOMMAND).env("CUDA_VISIBLE_DEVICES", index.to_string()).env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    if let Ok(headers) = Cuda::find().headers {
        command.env("CUDA_PATH", headers);
    }
    let started = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(ended) = tokio::time::timeout(PATIENCE, started).await else {
        bail!("a first product was not there after {} s", PATIENCE.as_secs());
    };
    let ended = ended.context("start a process that computes on it")?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let last: Vec<&str> = said.lines().rev().take(4).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("a first product failed ({}): {}", ended.status, last.join(" "));
    }
    serde_json::from_slice(&ended.stdout).context("what the process that computes on it said")
}

/// What is said of a GPU until it was tried.
const NOT_TRIED: &str = "not tested yet: it computes for the first time";

/// The first of them that is to be tried; one that an attempt went on with after a restart is tried when that is over.
pub fn next(gpus: &[Gpu], held: impl Fn(u32) -> bool) -> Option<u32> {
    let untried = gpus.iter().filter(|gpu| gpu.unusable.as_deref() == Some(NOT_TRIED));
    untried.map(|gpu| gpu.index).find(|index| !held(*index))
}

/// Marks GPUs that have not computed yet, or not right. Simulated ones compute nothing.
pub fn mark(gpus: &mut [Gpu], checked: &Checked) {
    for gpu in gpus.iter_mut().filter(|gpu| gpu.unusable.is_none() && !gpu.kind.starts_with(SIMULATED)) {
        (gpu.unusable, gpu.unusable_for_good) = match checked.get(&gpu.index) {
            Some(Ok(_)) => (None, false),
            Some(Err(why)) => (Some(format!("this node's test: {why}")), true),
            None => (Some(NOT_TRIED.to_owned()), false),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, kind: &str) -> Gpu {
        Gpu {
            index,
            kind: kind.into(),
            memory_bytes: 1 << 30,
            driver: "1".into(),
            utilisation_percent: 0,
            unusable: None,
            unusable_for_good: false,
        }
    }

    #[test]
    fn a_gpu_is_offered_once_it_has_computed() {
        let good = GpuCheck { error: 0.0, gflops_f32: 1, gflops_bf16: 1 };
        let checked = Checked::from([(0, Ok(good)), (1, Err("it is broken".to_owned()))]);
        let mut gpus =
            [gpu(0, "nvidia-l40"), gpu(1, "nvidia-l40"), gpu(2, "nvidia-l40"), gpu(3, "simulated:nvidia-l40")];
        mark(&mut gpus, &checked);
        let said: Vec<_> = gpus.iter().map(|gpu| (gpu.unusable.as_deref(), gpu.unusable_for_good)).collect();
        let broken = "this node's test: it is broken";
        assert_eq!(said, [(None, false), (Some(broken), true), (Some(NOT_TRIED), false), (None, false)]);
        assert_eq!((next(&gpus, |_| false), next(&gpus, |index| index == 2)), (Some(2), None));
        // What is known to be wrong stays said.
        gpus[0].unusable = Some("used by process 7, which mloc did not start".to_owned());
        mark(&mut gpus, &checked);
        assert_eq!(gpus[0].unusable.as_deref(), Some("used by process 7, which mloc did not start"));
    }
}
