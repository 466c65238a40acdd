//! What a replica asks of its node, and how many there are.

use super::Validation;
use crate::{
    capability::{self, GpuRequest, Request, SIMULATED},
    quantity,
    task::{
        fields::Typed,
        kind::Kind,
        problem::Problem,
        raw::{RawGpu, RawSpec},
    },
};

/// A core, when a task does not say: a child process needs one to get anywhere.
const DEFAULT_CPU_MILLIS: u64 = 1_000;

impl Validation<'_> {
    pub(super) fn request(&mut self, spec: &RawSpec) -> Request {
        let cpu_millis = self.amount(&spec.cpu, quantity::cpu_millis).unwrap_or(DEFAULT_CPU_MILLIS);
        if let Some(cpu) = &spec.cpu
            && cpu_millis == 0
        {
            self.problems.push(cpu.problem("some share of a core").hint("write 100m"));
        }
        Request {
            cpu_millis,
            memory_bytes: self.amount(&spec.memory, quantity::bytes).unwrap_or(0),
            disk_bytes: self.amount(&spec.disk, quantity::bytes).unwrap_or(0),
            gpu: spec.gpu.as_ref().map(|gpu| self.gpu(gpu)),
        }
    }

    fn gpu(&mut self, raw: &RawGpu) -> GpuRequest {
        const MOST: i64 = 1024;
        let count = raw.count.as_ref().map_or(1, |count| {
            if !(1..=MOST).contains(&count.value) {
                let problem = Problem::new(&count.path, count.at, format!("`{}`", count.value), format!("1 to {MOST}"));
                let none = count.value == 0;
                self.problems.push(if none { problem.hint("leave `gpu` out to ask for none") } else { problem });
            }
            u32::try_from(count.value).unwrap_or(1)
        });
        let kind = raw.kind.as_ref().map_or_else(|| "any".to_owned(), |kind| self.gpu_kind(kind));
        GpuRequest { kind, count, memory_bytes: self.amount(&raw.memory, quantity::bytes).unwrap_or(0) }
    }

    fn gpu_kind(&mut self, text: &Typed<String>) -> String {
        const VENDORS: [&str; 4] = ["nvidia-", "amd-", "intel-", "apple-"];
        let real = text.value.strip_prefix(SIMULATED).unwrap_or(&text.value);
        let normal = capability::normalise_gpu(real);
        let vendor = VENDORS.iter().any(|vendor| real.starts_with(vendor));
        let plain = real.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if real != "any" && !(vendor && plain) {
            let problem = text.problem("`any` or a type as `mloc nodes` lists it, such as nvidia-a100-80gb");
            let simulated = if real.len() < text.value.len() { SIMULATED } else { "" };
            let real = if real.eq_ignore_ascii_case("any") { "any" } else { normal.as_str() };
            self.problems.push(problem.hint(format!("write {simulated}{real}")));
        }
        text.value.clone()
    }

    pub(super) fn replicas(&mut self, spec: &RawSpec, kind: Option<Kind>) -> u32 {
        let Some(replicas) = &spec.replicas else { return 1 };
        let problem =
            |expected: &str| Problem::new(&replicas.path, replicas.at, format!("`{}`", replicas.value), expected);
        if !(1..=1000).contains(&replicas.value) {
            self.problems.push(problem("1 to 1000"));
        } else if replicas.value > 1 && kind == Some(Kind::TrainingTask) {
            let reason = "more replicas would each train a model of their own; for several GPUs of one node write \
                          resources.hardware.gpu.count";
            self.problems.push(problem("1 for a TrainingTask").hint(reason));
        }
        u32::try_from(replicas.value).unwrap_or(1)
    }
}
