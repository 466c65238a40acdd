//! /metrics: figures in the OpenMetrics text format.
//!
//! Every node says what it sees itself: its own part in the mesh, its host, who it thinks leads. The ledger's figures
//! (queue, tasks, members, usage) are the leader's alone: others are behind it, or have none. So those series move to
//! another instance with the lead; whoever asks for them takes `max by (…)` over instances, never a sum or a rate.

use std::collections::{BTreeMap, BTreeSet};

use mloc_api::view::{NodeView, TASK_STATES};
use mloc_core::{
    ledger::{
        Ledger,
        state::AttemptEnd,
        task_state::TaskState,
    },
    survival::Survival,
    time::Millis,
};
use mloc_mesh::handle::{LeaderView, MeshHealth};
use mloc_runtime::HostFigures;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::{Registry, Unit},
};

/// Pairs of user and project with a series of their own. A server keeps each series for weeks.
const PAYERS_MAX: usize = 100;
/// User and project of all later pairs. No owner can have this name.
const OTHERS: &str = "(others)";

type Labels = Vec<(&'static str, String)>;

/// A value as it is written.
#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
}

/// Series of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    unit: Option<Unit>,
    samples: Vec<(Labels, Value)>,
}

impl Family {
    /// What goes up and down.
    fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::Gauge, unit: None, samples: Vec::new() }
    }

    /// What only rises; its series end in `_total`.
    fn counter(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricType::Counter, ..Self::gauge(name, help) }
    }

    /// In this unit, which ends the name.
    fn of(mut self, unit: Unit) -> Self {
        self.unit = Some(unit);
        self
    }

    fn is(self, value: u64) -> Self {
        self.with(Vec::new(), Value::Whole(value))
    }

    fn is_real(self, value: f64) -> Self {
        self.with(Vec::new(), Value::Real(value))
    }

    fn with(mut self, labels: Labels, value: Value) -> Self {
        self.samples.push((labels, value));
        self
    }

    fn each<'s>(self, label: &'static str, values: impl IntoIterator<Item = (&'s str, u64)>) -> Self {
        let one = |family: Self, (name, value): (&str, u64)| {
            family.with(vec![(label, name.to_owned())], Value::Whole(value))
        };
        values.into_iter().fold(self, one)
    }
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.0 {
            let kind = family.kind;
            let mut metric = encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                if matches!(kind, MetricType::Info) {
                    metric.encode_info(labels)?;
                    continue;
                }
                let mut one = metric.encode_family(labels)?;
                let none = None::<&Exemplar<Labels, f64>>;
                match (kind, value) {
                    (MetricType::Counter, Value::Whole(n)) => one.encode_counter(n, none)?,
                    (MetricType::Counter, Value::Real(n)) => one.encode_counter(n, none)?,
                    (_, Value::Whole(n)) => one.encode_gauge(n)?,
                    (_, Value::Real(n)) => one.encode_gauge(n)?,
                }
            }
        }
        Ok(())
    }
}

/// The text that Prometheus scrapes.
///
/// # Errors
/// Never: a String takes all that is written.
pub fn text(families: Vec<Family>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

/// How this node reads its node.yaml.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigFigures {
    /// Whether the file as it lies there was understood.
    pub broken: bool,
    /// Keys that differ from what runs and wait for a restart.
    pub waiting: usize,
}

/// What a node knows without a ledger.
#[derive(Debug)]
pub struct Seen {
    /// Who leads.
    pub leader: LeaderView,
    /// Its parts.
    pub health: MeshHealth,
    /// Members it hears.
    pub heard: usize,
    /// Its machine; simulated GPUs among it, which do nothing.
    pub host: HostFigures,
    /// Bytes its transfers moved.
    pub bytes_moved: u64,
    /// Its configuration.
    pub config: ConfigFigures,
}

/// What every node says.
pub fn own(seen: Seen) -> Vec<Family> {
    let Seen { leader, health, heard, host, bytes_moved, config } = seen;
    let leads = matches!(leader, LeaderView::Here { .. });
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let gauge = Family::gauge;
    let cores = || Unit::Other("cores".to_owned());
    let mut families = vec![
        Family { kind: MetricType::Info, ..gauge("mloc_build", "The binary.") }.with(version, Value::Whole(1)),
        gauge("mloc_leader", "1 when this node leads, else 0.").is(leads.into()),
        gauge("mloc_term", "Term of the leader this node knows, 0 for none.").is(leader.parts().1),
        gauge("mloc_members_heard", "Members this node hears by gossip, itself included.").is(heard as u64),
        gauge("mloc_raft_last_log_index", "Last entry in this node's log.").is(health.raft.last_log),
        gauge("mloc_raft_applied_index", "Last entry in this node's ledger.").is(health.raft.applied),
        gauge("mloc_gossip_connections", "Members with a gossip connection.").is(health.gossip.connected),
        Family::counter("mloc_gossip_dials_failed", "Gossip dials that came to nothing.").is(health.gossip.dials_failed),
        gauge("mloc_links", "Members with a link.").is(health.links as u64),
        gauge("mloc_refusals", "Reasons for which peers were refused, or refused this node, of late.")
            .is(health.refusals as u64),
        Family::counter("mloc_store_transferred", "Bytes that pulls, checkpoints and publications moved.")
            .of(Unit::Bytes)
            .is(bytes_moved),
        gauge("mloc_config_broken", "1 when node.yaml as it lies there was refused and what was read before stays.")
            .is(config.broken.into()),
        gauge("mloc_config_waiting", "Keys of node.yaml that differ from what runs and wait for a restart.")
            .is(config.waiting as u64),
        gauge("mloc_process_memory", "Memory that the daemon itself holds.").of(Unit::Bytes).is(host.own_memory_bytes),
        gauge("mloc_node_cpu", "Cores that this node may use, as its container sees it.")
            .of(cores())
            .is_real(host.cpu_millis as f64 / 1e3),
        Family::counter("mloc_node_cpu_used", "Processor time used by the container, or by the host without one.")
            .of(Unit::Seconds)
            .is_real(host.cpu_used_us as f64 / 1e6),
        gauge("mloc_node_memory", "Memory that this node may use, as its container sees it.")
            .of(Unit::Bytes)
            .is(host.memory_bytes),
        gauge("mloc_node_memory_used", "Memory in use in the container, or on the host without one.")
            .of(Unit::Bytes)
            .is(host.memory_used_bytes),
        gauge("mloc_node_disk", "Size of the data directory's file system.").of(Unit::Bytes).is(host.disk_bytes),
        gauge("mloc_node_disk_free", "Free bytes of the data directory's file system.")
            .of(Unit::Bytes)
            .is(host.disk_free_bytes),
    ];
    if !host.gpus.is_empty() {
        let mut busy = gauge("mloc_gpu_utilisation", "How busy a GPU is, 0 to 1.").of(Unit::Other("ratio".to_owned()));
        let mut memory = gauge("mloc_gpu_memory", "A GPU's memory.").of(Unit::Bytes);
        let mut used = gauge("mloc_gpu_memory_used", "What is used of a GPU's memory, by whomever.").of(Unit::Bytes);
        for gpu in host.gpus {
            let labels = vec![("gpu", gpu.index.to_string()), ("type", gpu.kind)];
            busy = busy.with(labels.clone(), Value::Real(f64::from(gpu.utilisation_percent) / 100.0));
            memory = memory.with(labels.clone(), Value::Whole(gpu.memory_bytes));
            used = used.with(labels, Value::Whole(gpu.memory_used_bytes));
        }
        families.extend([busy, memory, used]);
    }
    families
}

/// What the leader alone says: `nodes` are its members as it sees them.
pub fn of_leader(
    ledger: &Ledger,
    nodes: &[NodeView],
    voters: (usize, usize),
    survival: &Survival,
    now: Millis,
) -> Vec<Family> {
    let gauge = Family::gauge;
    let mut tasks: BTreeMap<_, _> = TASK_STATES.into_iter().map(|state| (state, 0)).collect();
    let mut oldest_wait_ms = 0;
    for task in ledger.tasks.values() {
        let state = TaskState::of(task);
        *tasks.entry(state.name()).or_default() += 1;
        if let TaskState::Pending { since, .. } = state {
            oldest_wait_ms = oldest_wait_ms.max(now.since(since));
        }
    }
    let mut ends = BTreeMap::from([("FINISHED", 0), ("FAILED", 0), ("STOPPED", 0), ("LOST", 0)]);
    let attempts = ledger.tasks.values().flat_map(|task| &task.replicas).flat_map(|replica| &replica.attempts);
    for how in attempts.filter_map(|attempt| attempt.how()) {
        let name = match how {
            AttemptEnd::Finished => "FINISHED",
            AttemptEnd::Failed(_) => "FAILED",
            AttemptEnd::Stopped => "STOPPED",
            AttemptEnd::Lost => "LOST",
        };
        *ends.entry(name).or_default() += 1;
    }
    let mut states: BTreeMap<_, _> =
        ["IDLE", "RUNNING", "DRAINING", "LOST", "REVOKED"].into_iter().map(|state| (state, 0)).collect();
    for node in nodes {
        *states.entry(node.state.as_str()).or_default() += 1;
    }
    let pending = tasks["PENDING"];
    let running = ledger.usage.values().filter(|row| row.end.is_none()).count();
    let members = ledger.members.values().filter(|m| m.revoked_at.is_none()).count();
    let mut families = vec![
        gauge("mloc_tasks", "Tasks by state.").each("state", tasks),
        gauge("mloc_queue_length", "Tasks that wait.").is(pending),
        gauge("mloc_queue_oldest_wait", "How long the task that waits longest has waited; 0 when none waits.")
            .of(Unit::Seconds)
            .is_real(oldest_wait_ms as f64 / 1e3),
        gauge("mloc_attempts_running", "Attempts that started and have not ended.").is(running as u64),
        Family::counter("mloc_attempts", "Attempts that ended, by how.").each("end", ends),
        gauge("mloc_members", "Members in the table, revoked ones left out.").is(members as u64),
        gauge("mloc_nodes", "Members by state.").each("state", states),
        gauge("mloc_voters", "Voters.").is(voters.0 as u64),
        gauge("mloc_voters_alive", "Voters that answer.").is(voters.1 as u64),
        gauge("mloc_survivable_failures", "Voters that may fail right now without the mesh stopping to take tasks.")
            .is(survival.failures as u64),
    ];
    families.extend(gpus(nodes));
    families.extend(usage(ledger, now));
    families
}

fn gpus(nodes: &[NodeView]) -> Option<Family> {
    let mut counts = BTreeMap::<(&str, &str), u64>::new();
    for gpu in nodes.iter().filter(|n| !matches!(n.state.as_str(), "LOST" | "REVOKED")).flat_map(|n| &n.gpus) {
        for state in ["FREE", "HELD", "UNUSABLE"] {
            *counts.entry((&gpu.gpu_type, state)).or_default() += u64::from(gpu.state == state);
        }
    }
    let family = Family::gauge("mloc_gpus", "GPUs of members that are heard, by type and state.");
    let one = |family: Family, ((kind, state), n): ((&str, &str), u64)| {
        family.with(vec![("type", kind.to_owned()), ("state", state.to_owned())], Value::Whole(n))
    };
    (!counts.is_empty()).then(|| counts.into_iter().fold(family, one))
}

/// Gauges, for a lost attempt's time is cut back to its last sign of life. The pairs that came first keep their series for
/// good: which later ones are summed up does not change either.
fn usage(ledger: &Ledger, now: Millis) -> Vec<Family> {
    let mut came = BTreeMap::<(&str, &str), Millis>::new();
    for row in ledger.usage.values() {
        let first = came.entry((&row.owner, &row.project)).or_insert(row.start);
        *first = row.start.min(*first);
    }
    let mut order: Vec<_> = came.into_iter().map(|(payer, at)| (at, payer)).collect();
    order.sort_unstable();
    let known: BTreeSet<_> = order.into_iter().take(PAYERS_MAX).map(|(_, payer)| payer).collect();
    let mut sums = BTreeMap::<(&str, &str), (u128, u128)>::new();
    for row in ledger.usage.values() {
        let payer = (row.owner.as_str(), row.project.as_str());
        let payer = if known.contains(&payer) { payer } else { (OTHERS, OTHERS) };
        let held_ms = u128::from(row.end.unwrap_or(now).since(row.start));
        let (gpu_ms, cpu_milli_ms) = sums.entry(payer).or_default();
        *gpu_ms += held_ms * u128::from(row.gpu_count);
        // As in stats: cores beside a GPU cost nothing of their own.
        *cpu_milli_ms += if row.gpu_count == 0 { held_ms * u128::from(row.cpu_millis) } else { 0 };
    }
    let mut gpu = Family::gauge("mloc_usage_gpu", "GPU time by user and project: time × GPUs, running attempts included.")
        .of(Unit::Seconds);
    let mut cpu = Family::gauge("mloc_usage_cpu_core", "Core time by user and project, of attempts without a GPU.")
        .of(Unit::Seconds);
    for ((user, project), (gpu_ms, cpu_milli_ms)) in sums {
        let labels = vec![("user", user.to_owned()), ("project", project.to_owned())];
        gpu = gpu.with(labels.clone(), Value::Real(gpu_ms as f64 / 1e3));
        cpu = cpu.with(labels, Value::Real(cpu_milli_ms as f64 / 1e6));
    }
    [gpu, cpu].into_iter().filter(|family| !family.samples.is_empty()).collect()
}
