//! Whether a task fits a node, and every reason why not.

use std::fmt;

use serde::Serialize;

use crate::{
    capability::{Capability, Gpu, GpuRequest, Grant, SIMULATED},
    id::AttemptId,
    quantity::{show_bytes, show_cpu},
    task::{TaskSpec, TaskType, agent::UNFENCED, spec::SEVERAL_GPUS},
};

/// What an attempt holds on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The attempt.
    pub attempt: AttemptId,
    /// What it holds.
    pub grant: Grant,
    /// Whether it has started: what it has written is missing from the node's free disk already.
    pub started: bool,
}

/// One reason why a task does not fit a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Misfit {
    /// The node takes no work at all.
    TakesNoWork,
    /// `placement.nodes` names others.
    NotNamed {
        /// What it names.
        nodes: Vec<String>,
    },
    /// A label of `placement.nodeSelector` is missing or different.
    Label {
        /// The label.
        key: String,
        /// What was asked.
        wanted: String,
        /// What the node has.
        found: Option<String>,
    },
    /// The node's build or configuration does not offer it.
    Feature {
        /// The feature, such as `sft` or `source:s3`.
        name: String,
    },
    /// It asks for more of something than the node has at all.
    TooBig {
        /// `cpu` or `memory`.
        what: &'static str,
        /// Asked, with its unit.
        asked: String,
        /// There in all.
        in_all: String,
    },
    /// The node has it, and others hold it.
    Held {
        /// `cpu` or `memory`.
        what: &'static str,
        /// Asked, with its unit.
        asked: String,
        /// Free now.
        free: String,
        /// Who holds the rest.
        by: Vec<AttemptId>,
    },
    /// Too little is free on the node's disk now.
    Disk {
        /// Asked, with its unit.
        asked: String,
        /// Free now, less what was granted to attempts that have not started.
        free: String,
        /// Attempts that give back enough when they end, if they have written what they were granted; else none.
        by: Vec<AttemptId>,
    },
    /// The node has no GPU.
    NoGpu,
    /// It has GPUs, of other types.
    GpuType {
        /// What was asked.
        wanted: String,
        /// What is there.
        found: Vec<String>,
        /// Whether the task computes on it, so that a simulated one would not do.
        computes: bool,
    },
    /// GPUs of the type have too little memory.
    GpuMemory {
        /// Asked of each, with its unit.
        asked: String,
        /// What the largest has.
        largest: String,
    },
    /// It has fewer such GPUs than asked.
    GpuCount {
        /// Asked.
        asked: u32,
        /// There.
        there: usize,
    },
    /// It has enough such GPUs, and too few are free.
    GpusHeld {
        /// Asked.
        asked: u32,
        /// There.
        there: usize,
        /// Free.
        free: usize,
        /// Held by attempts; the rest cannot be used.
        held: usize,
        /// Who holds them.
        by: Vec<AttemptId>,
    },
    /// A GPU cannot be used now: a foreign process, a failed probe.
    GpuUnusable {
        /// Which.
        index: u32,
        /// Why.
        why: String,
        /// Whether that stays so until somebody mends it.
        for_good: bool,
    },
    /// The task computes on its device, and a simulated one cannot.
    Simulated,
}

impl Misfit {
    /// Whether it passes by itself, when others finish or a GPU is given back.
    pub fn passes(&self) -> bool {
        match self {
            Misfit::Held { .. } | Misfit::GpusHeld { .. } => true,
            Misfit::GpuUnusable { for_good, .. } => !for_good,
            Misfit::Disk { by, .. } => !by.is_empty(),
            Misfit::TakesNoWork
            | Misfit::NotNamed { .. }
            | Misfit::Label { .. }
            | Misfit::Feature { .. }
            | Misfit::TooBig { .. }
            | Misfit::NoGpu
            | Misfit::GpuType { .. }
            | Misfit::GpuMemory { .. }
            | Misfit::GpuCount { .. }
            | Misfit::Simulated => false,
        }
    }

    /// What would make it fit.
    pub fn remedy(&self) -> String {
        match self {
            Misfit::TakesNoWork => "set role.work: true in its configuration".into(),
            Misfit::NotNamed { .. } => "add it to placement.nodes, or leave that out".into(),
            Misfit::Label { key, wanted, .. } => {
                format!("label the node {key}={wanted}, or change placement.nodeSelector")
            }
            Misfit::Feature { name } => match name.split_once(':') {
                Some(("secret", what)) => {
                    format!("add {what} under `secrets` in its node.yaml, or leave it out of secretsFrom")
                }
                Some(("volume", what)) => {
                    format!("add {what} under `volumes` in its node.yaml, or name another volume")
                }
                Some(_) if name == SEVERAL_GPUS => "ask for gpu.count 1".into(),
                Some(_) if name == UNFENCED => {
                    "set modules.command.sandbox: off in its node.yaml, when agents may start any program there".into()
                }
                Some((kind, what)) => format!("use a node whose build and configuration offer {kind} {what}"),
                None if name == TaskType::Command.name() => {
                    "set modules.command.enabled: true in its node.yaml, when its users may run what they like there"
                        .into()
                }
                None => format!("use a build of mloc that has the module {name}"),
            },
            Misfit::TooBig { what, in_all, .. } => format!("ask for at most {in_all} of {what}, or add a larger node"),
            Misfit::Held { .. } | Misfit::GpusHeld { .. } => "wait for those to end, or cancel one".into(),
            Misfit::Disk { free, .. } => format!("ask for at most {free} of disk, or free some on the node"),
            Misfit::NoGpu => "leave resources.hardware.gpu out, or add a node with a GPU".into(),
            Misfit::GpuType { wanted, found, computes } => another_type(wanted, found, *computes),
            Misfit::GpuMemory { largest, .. } => format!("ask for at most {largest} of gpu.memory"),
            Misfit::GpuCount { there, .. } => format!("ask for at most {there}"),
            Misfit::GpuUnusable { for_good: false, .. } => "free the GPU: it is taken in again by itself".into(),
            Misfit::GpuUnusable { for_good: true, index, .. } => format!("mend GPU {index} there, or use another node"),
            Misfit::Simulated => "use a node with a real GPU, and ask for a real gpu.type".into(),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::TakesNoWork => f.write_str("this node takes no work"),
            Misfit::NotNamed { nodes } => write!(f, "placement.nodes names {}", nodes.join(", ")),
            Misfit::Label { key, wanted, found: Some(found) } => {
                write!(f, "label {key}={wanted} asked: this node has {key}={found}")
            }
            Misfit::Label { key, wanted, found: None } => {
                write!(f, "label {key}={wanted} asked: this node has no label {key}")
            }
            Misfit::Feature { name } => match name.split_once(':') {
                Some(_) if name == SEVERAL_GPUS => {
                    write!(f, "several GPUs asked: this node's build trains on one (feature {name})")
                }
                Some(_) if name == UNFENCED => {
                    write!(f, "programs are held to their folders on this node, and those that speak MCP would not be")
                }
                Some((kind, what)) => write!(f, "no {kind} `{what}` on this node (feature {name})"),
                None if name == TaskType::Command.name() => write!(f, "programs of users are not run on this node"),
                None => write!(f, "no module `{name}` in this build"),
            },
            Misfit::TooBig { what, asked, in_all } => write!(f, "{what} {asked} asked: {in_all} in all"),
            Misfit::Held { what, asked, free, by } => {
                write!(f, "{what} {asked} asked: {free} free")?;
                if by.is_empty() { Ok(()) } else { write!(f, ", the rest held by {}", tasks(by)) }
            }
            Misfit::Disk { asked, free, by } => {
                write!(f, "disk {asked} asked: {free} free now")?;
                if by.is_empty() { Ok(()) } else { write!(f, ", with {} on it", tasks(by)) }
            }
            Misfit::NoGpu => f.write_str("no GPU at all"),
            Misfit::GpuType { wanted, found, .. } => {
                write!(f, "gpu.type {wanted}: this node has {}", found.join(", "))
            }
            Misfit::GpuMemory { asked, largest } => {
                write!(f, "gpu.memory {asked} asked: the largest here has {largest}")
            }
            Misfit::GpuCount { asked, there } => write!(f, "{asked} GPUs asked: {there} of that type in all"),
            Misfit::GpusHeld { asked, there, free, held, by } => {
                write!(f, "{asked} GPUs asked: free {free} of {there} GPUs")?;
                if by.is_empty() { Ok(()) } else { write!(f, ": {held} held by {}", tasks(by)) }
            }
            Misfit::GpuUnusable { index, why, .. } => write!(f, "GPU {index} cannot be used: {why}"),
            Misfit::Simulated => f.write_str("simulated GPUs cannot compute"),
        }
    }
}

/// What to ask for where the type is not there. Simulated GPUs never stand in for real ones unasked, nor they for them.
fn another_type(wanted: &str, found: &[String], computes: bool) -> String {
    let is_simulated = |kind: &str| kind.starts_with(SIMULATED);
    let any = |simulated: bool| if simulated { "simulated:any" } else { "any" };
    let simulated = is_simulated(wanted);
    let alike: Vec<&str> = found.iter().map(String::as_str).filter(|kind| is_simulated(kind) == simulated).collect();
    if !alike.is_empty() {
        return format!("ask for gpu.type {} or {}", alike.join(", "), any(simulated));
    }
    let wanted = match wanted {
        "any" => "a real GPU",
        "simulated:any" => "a simulated GPU",
        exact => exact,
    };
    if computes {
        return format!("use a node that has {wanted}");
    }
    format!("ask for gpu.type {}, or use a node that has {wanted}", any(!simulated))
}

fn tasks(by: &[AttemptId]) -> String {
    by.iter().map(|a| a.task.to_string()).collect::<Vec<_>>().join(", ")
}

/// What the node has for work, as [`crate::ledger::Entry::Assigned`] carries it: every usable GPU.
pub fn capacity(node: &Capability) -> Grant {
    Grant {
        cpu_millis: node.cpu_millis,
        memory_bytes: node.memory_bytes,
        disk_bytes: node.disk_bytes,
        gpus: node.gpus.iter().filter(|gpu| gpu.unusable.is_none()).map(|gpu| gpu.index).collect(),
        gpu_kind: String::new(),
    }
}

/// What one replica of `spec` would hold on `node` beside what is held: GPUs of one type, the smallest that do.
///
/// # Errors
/// Every reason why it does not fit.
pub fn fits(spec: &TaskSpec, node: &Capability, held: &[Held]) -> Result<Grant, Vec<Misfit>> {
    let mut misfits = Vec::new();
    misfits_of_place(spec, node, &mut misfits);
    misfits_of_amounts(spec, node, held, &mut misfits);
    let gpus = match &spec.request.gpu {
        Some(asked) if asked.count > 0 => {
            pick_gpus(asked, spec.task_type.row().needs_real_device, node, held, &mut misfits)
        }
        _ => Some((Vec::new(), String::new())),
    };
    match gpus {
        Some((gpus, gpu_kind)) if misfits.is_empty() => Ok(Grant {
            cpu_millis: spec.request.cpu_millis,
            memory_bytes: spec.request.memory_bytes,
            disk_bytes: spec.request.disk_bytes,
            gpus,
            gpu_kind,
        }),
        _ => Err(misfits),
    }
}

fn misfits_of_place(spec: &TaskSpec, node: &Capability, misfits: &mut Vec<Misfit>) {
    if !node.work {
        misfits.push(Misfit::TakesNoWork);
    }
    let named = &spec.placement.nodes;
    if !named.is_empty() && !named.iter().any(|n| *n == node.name || n == node.node.as_str()) {
        misfits.push(Misfit::NotNamed { nodes: named.clone() });
    }
    for (key, wanted) in &spec.placement.node_selector {
        let found = node.labels.get(key);
        if found != Some(wanted) {
            misfits.push(Misfit::Label { key: key.clone(), wanted: wanted.clone(), found: found.cloned() });
        }
    }
    misfits.extend(spec.needs().difference(&node.features).map(|name| Misfit::Feature { name: name.clone() }));
}

fn misfits_of_amounts(spec: &TaskSpec, node: &Capability, held: &[Held], misfits: &mut Vec<Misfit>) {
    let asked = &spec.request;
    type Of = fn(&Grant) -> u64;
    type Show = fn(u64) -> String;
    let amounts: [(&'static str, u64, u64, Of, Show); 2] = [
        ("cpu", asked.cpu_millis, node.cpu_millis, |g| g.cpu_millis, show_cpu),
        ("memory", asked.memory_bytes, node.memory_bytes, |g| g.memory_bytes, show_bytes),
    ];
    let promised = held.iter().filter(|h| !h.started).fold(0u64, |sum, h| sum.saturating_add(h.grant.disk_bytes));
    let free = node.disk_bytes.saturating_sub(promised);
    if asked.disk_bytes > free {
        let granted = held.iter().fold(free, |sum, h| sum.saturating_add(h.grant.disk_bytes));
        let by = held.iter().filter(|h| h.grant.disk_bytes > 0 && asked.disk_bytes <= granted);
        let by = by.map(|h| h.attempt.clone()).collect();
        misfits.push(Misfit::Disk { asked: show_bytes(asked.disk_bytes), free: show_bytes(free), by });
    }
    for (what, asked, in_all, of, show) in amounts {
        let taken = held.iter().fold(0u64, |sum, h| sum.saturating_add(of(&h.grant)));
        let free = in_all.saturating_sub(taken);
        if asked > in_all {
            misfits.push(Misfit::TooBig { what, asked: show(asked), in_all: show(in_all) });
        } else if asked > free {
            let by = held.iter().filter(|h| of(&h.grant) > 0).map(|h| h.attempt.clone()).collect();
            misfits.push(Misfit::Held { what, asked: show(asked), free: show(free), by });
        }
    }
}

/// Indices of the GPUs and their type: one type, of the smallest memory that does, lowest indices first.
fn pick_gpus(
    asked: &GpuRequest,
    real: bool,
    node: &Capability,
    held: &[Held],
    misfits: &mut Vec<Misfit>,
) -> Option<(Vec<u32>, String)> {
    if node.gpus.is_empty() {
        misfits.push(Misfit::NoGpu);
        return None;
    }
    let of_type: Vec<&Gpu> = node.gpus.iter().filter(|gpu| asked.takes_kind(gpu)).collect();
    if of_type.is_empty() {
        let mut found: Vec<String> = node.gpus.iter().map(|gpu| gpu.kind.clone()).collect();
        found.sort();
        found.dedup();
        misfits.push(Misfit::GpuType { wanted: asked.kind.clone(), found, computes: real });
        return None;
    }
    if real && of_type.iter().all(|gpu| gpu.is_simulated()) {
        misfits.push(Misfit::Simulated);
        return None;
    }
    let enough: Vec<&Gpu> = of_type.iter().copied().filter(|gpu| gpu.memory_bytes >= asked.memory_bytes).collect();
    if enough.is_empty() {
        let largest = of_type.iter().map(|gpu| gpu.memory_bytes).max().unwrap_or(0);
        misfits.push(Misfit::GpuMemory { asked: show_bytes(asked.memory_bytes), largest: show_bytes(largest) });
        return None;
    }
    let holder = |gpu: &Gpu| held.iter().find(|h| h.grant.gpus.contains(&gpu.index));
    let free = |gpu: &&Gpu| gpu.unusable.is_none() && holder(gpu).is_none();
    let mut kinds: Vec<(u64, &str)> = enough.iter().map(|gpu| (gpu.memory_bytes, gpu.kind.as_str())).collect();
    kinds.sort_unstable();
    let count = asked.count as usize;
    let best = kinds.iter().find_map(|(_, kind)| {
        let mut free: Vec<&Gpu> = enough.iter().copied().filter(|gpu| gpu.kind == *kind).filter(free).collect();
        // Of one type with two sizes (MIG slices), the smaller first.
        free.sort_by_key(|gpu| (gpu.memory_bytes, gpu.index));
        (free.len() >= count).then(|| (free[..count].iter().map(|gpu| gpu.index).collect(), (*kind).to_owned()))
    });
    if best.is_none() {
        misfits_of_count(asked.count, &enough, &holder, misfits);
    }
    best
}

fn misfits_of_count<'h>(
    asked: u32,
    enough: &[&Gpu],
    holder: &dyn Fn(&Gpu) -> Option<&'h Held>,
    misfits: &mut Vec<Misfit>,
) {
    let mended = enough.iter().filter(|gpu| !gpu.unusable_for_good);
    let others_do = mended.clone().any(|gpu| mended.clone().filter(|g| g.kind == gpu.kind).count() >= asked as usize);
    for gpu in enough {
        // One that needs mending is no reason where the others will do in time.
        if let Some(why) = gpu.unusable.clone().filter(|_| !(gpu.unusable_for_good && others_do)) {
            misfits.push(Misfit::GpuUnusable { index: gpu.index, why, for_good: gpu.unusable_for_good });
        }
    }
    let of_kind = |kind: &str| enough.iter().filter(|gpu| gpu.kind == kind).count();
    let there = enough.iter().map(|gpu| of_kind(&gpu.kind)).max().unwrap_or(0);
    if there < asked as usize {
        misfits.push(Misfit::GpuCount { asked, there });
        return;
    }
    let mut by: Vec<AttemptId> = enough.iter().filter_map(|gpu| holder(gpu)).map(|h| h.attempt.clone()).collect();
    by.sort();
    by.dedup();
    if !by.is_empty() {
        let there = enough.len();
        let free = enough.iter().filter(|gpu| gpu.unusable.is_none() && holder(gpu).is_none()).count();
        let held = enough.iter().filter(|gpu| holder(gpu).is_some()).count();
        misfits.push(Misfit::GpusHeld { asked, there, free, held, by });
    }
}
