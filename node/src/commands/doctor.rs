//! `mloc doctor`: what this machine is to MLOC, what it lacks, and what would mend it. Asks no daemon, changes nothing.

use std::path::Path;

use mloc_core::{
    capability::Gpu,
    id::NodeId,
    quantity::{show_bytes, show_cpu},
};
use mloc_modules::GpuCheck;
use mloc_runtime::{Cuda, ProbeSettings};
use serde::Serialize;

use super::up::data_dir_of;
use crate::{
    cli::{DoctorArgs, Format},
    client::Refusal,
    gpu_check,
    show::say,
};

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Something is not there that some work needs.
    Lacks,
    /// Something is there and does not work.
    Broken,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    found: String,
}

impl Finding {
    fn new(what: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict, found: found.into() }
    }

    fn of(what: &str, found: Result<String, String>, otherwise: Verdict) -> Self {
        match found {
            Ok(found) => Self::new(what, Verdict::Ok, found),
            Err(why) => Self::new(what, otherwise, why),
        }
    }
}

/// `mloc doctor`. Exit code 1 when something is broken.
pub async fn doctor(args: DoctorArgs) -> Result<(), Refusal> {
    let data_dir = data_dir_of(args.data_dir.as_deref(), args.config.as_deref())?;
    let mut findings = machine(&data_dir);
    let cards = mloc_runtime::nvidia_cards();
    let gpus = tokio::task::spawn_blocking(mloc_runtime::gpus).await.unwrap_or_default();
    findings.extend(cuda(cards, gpus.len(), &Cuda::find()));
    for gpu in &gpus {
        let tried = match &gpu.unusable {
            None => Some(gpu_check::check(gpu.index).await),
            Some(_) => None,
        };
        findings.push(of_gpu(gpu, tried));
    }
    match args.output {
        Format::Json => say!("{}", serde_json::to_string_pretty(&findings).unwrap_or_default()),
        Format::Table => show(&findings),
    }
    let broken = findings.iter().filter(|f| f.verdict == Verdict::Broken).count();
    match broken {
        0 => Ok(()),
        n => Err(Refusal::new(1, format!("{n} of {} findings: broken", findings.len()))),
    }
}

fn show(findings: &[Finding]) {
    let width = findings.iter().map(|f| f.what.chars().count()).max().unwrap_or(0);
    for Finding { what, verdict, found } in findings {
        let mark = match verdict {
            Verdict::Ok => "ok",
            Verdict::Lacks => "lacks",
            Verdict::Broken => "BROKEN",
        };
        say!("{mark:<7}{what:<width$}  {found}");
    }
}

/// What every machine has.
fn machine(data_dir: &Path) -> Vec<Finding> {
    // Free space is that of the file system the folder will be on.
    let there = data_dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let probed = mloc_runtime::probe(&ProbeSettings { node: NodeId::new("doctor"), data_dir: there });
    let cuda = if cfg!(feature = "cuda") { "with CUDA" } else { "without CUDA" };
    let rate = mloc_modules::measure_matmul();
    vec![
        Finding::new("build", Verdict::Ok, format!("mloc {}, {cuda}", env!("CARGO_PKG_VERSION"))),
        Finding::new(
            "processor",
            Verdict::Ok,
            format!(
                "{}: {} cores for tasks; {}",
                probed.cpu_model,
                show_cpu(probed.cpu_millis),
                if probed.cpu_features.is_empty() { "no vector units known" } else { &probed.cpu_features }
            ),
        ),
        Finding::new("processor's products", Verdict::Ok, format!("{rate} GFLOP/s in f32, 512×512")),
        Finding::new("memory", Verdict::Ok, show_bytes(probed.memory_bytes)),
        Finding::new("disk", Verdict::Ok, format!("{} free for {}", show_bytes(probed.disk_bytes), data_dir.display())),
        Finding::of(
            "programs of users",
            mloc_modules::sandbox_available().map(|()| "can be held to their folders".to_owned()),
            Verdict::Lacks,
        ),
    ]
}

/// CUDA's pieces. A machine without a card lacks nothing.
fn cuda(cards: usize, gpus: usize, cuda: &Cuda) -> Vec<Finding> {
    if cards == 0 && gpus == 0 {
        return vec![Finding::new("NVIDIA cards", Verdict::Ok, "none: this machine computes on its processor")];
    }
    let shown = match gpus {
        0 => Finding::new(
            "NVIDIA cards",
            Verdict::Broken,
            format!(
                "{cards} on the bus, and no driver to reach them: install it; in a container, start it with the GPUs \
                 (`--gpus all`, a device plugin)"
            ),
        ),
        _ => Finding::new("NVIDIA cards", Verdict::Ok, format!("{cards} on the bus, {gpus} shown by the driver")),
    };
    let version = |found: &Result<String, String>| found.clone().map(|version| format!("CUDA {version}"));
    let headers = cuda.headers.clone().map(|root| root.join("include").display().to_string());
    vec![
        shown,
        Finding::of("driver's library", version(&cuda.driver), Verdict::Lacks),
        Finding::of("run-time compiler", version(&cuda.nvrtc), Verdict::Lacks),
        Finding::of("CUDA's headers", headers, Verdict::Lacks),
    ]
}

/// A GPU, and what it computed if it was tried.
fn of_gpu(gpu: &Gpu, tried: Option<Result<GpuCheck, String>>) -> Finding {
    let what = format!("GPU {}", gpu.index);
    let is = format!("{}, {}, driver {}", gpu.kind, show_bytes(gpu.memory_bytes), gpu.driver);
    match (tried, &gpu.unusable) {
        (Some(Ok(GpuCheck { error, gflops_f32, gflops_bf16 })), _) => Finding::new(
            what,
            Verdict::Ok,
            format!(
                "{is}: products right to {error:.1e}; {gflops_f32} GFLOP/s in f32, {gflops_bf16} in bf16, 4096×4096"
            ),
        ),
        (Some(Err(why)), _) => Finding::new(what, Verdict::Broken, format!("{is}: {why}")),
        (None, why) => Finding::new(what, Verdict::Lacks, format!("{is}: {}", why.as_deref().unwrap_or("not tried"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(driver: Result<&str, &str>, headers: Result<&str, &str>) -> Cuda {
        let text = |found: Result<&str, &str>| found.map(str::to_owned).map_err(str::to_owned);
        Cuda { driver: text(driver), nvrtc: Ok("12.8".into()), headers: text(headers).map(Into::into) }
    }

    #[test]
    fn a_machine_without_cards_lacks_nothing() {
        let found = cuda(0, 0, &pieces(Err("no libcuda"), Err("no headers")));
        assert!(found.iter().all(|f| f.verdict == Verdict::Ok), "{found:?}");
    }

    #[test]
    fn cards_without_a_driver_are_broken_and_missing_pieces_are_named() {
        let found = cuda(2, 0, &pieces(Err("no libcuda"), Ok("/opt/cuda")));
        assert_eq!(found[0].verdict, Verdict::Broken);
        assert_eq!((found[1].verdict, found[1].found.as_str()), (Verdict::Lacks, "no libcuda"));
        assert_eq!((found[3].verdict, found[3].found.as_str()), (Verdict::Ok, "/opt/cuda/include"));
    }

    #[test]
    fn a_gpu_that_computes_wrong_is_broken() {
        let gpu = Gpu {
            index: 1,
            kind: "nvidia-l40".into(),
            memory_bytes: 48 << 30,
            driver: "570".into(),
            utilisation_percent: 0,
            unusable: None,
            unusable_for_good: false,
        };
        let good = GpuCheck { error: 1e-4, gflops_f32: 40_000, gflops_bf16: 160_000 };
        assert_eq!(of_gpu(&gpu, Some(Ok(good))).verdict, Verdict::Ok);
        let wrong = of_gpu(&gpu, Some(Err("it differs".into())));
        assert_eq!(wrong.verdict, Verdict::Broken);
        assert!(wrong.found.contains("nvidia-l40, 48.0 GiB, driver 570: it differs"), "{}", wrong.found);
        let busy = Gpu { unusable: Some("used by process 7".into()), ..gpu };
        assert!(of_gpu(&busy, None).found.ends_with("used by process 7"));
    }
}
