//! /metrics: figures in the OpenMetrics text format.
//!
//! Every node says what it sees itself: its own part in the mesh, its host, who it thinks leads. The ledger's figures
//! (queue, tasks, members, usage) are the leader's alone: others are behind it, or have none. So those series move to
//! another instance with the lead; whoever asks for them takes `max by (…)` over instances, never a sum or a rate.

use std::collections::{BTreeMap, BTreeSet};

use mloc_api::view::{NodeView, TASK_STATES};
use mloc_core::{
    ledger::{Ledger, state::AttemptEnd, task_state::TaskState},
    survival::Survival,
    time::Millis,
};
use mloc_mesh::{
    handle::LeaderView,
    link::{StreamKind, Traffic},
    quic_transport::TransportStats,
};
use mloc_runtime::HostFigures;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
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

    fn real(self, value: f64) -> Self {
        self.with(Vec::new(), Value::Real(value))
    }

    fn with(mut self, labels: Labels, value: Value) -> Self {
        self.samples.push((labels, value));
        self
    }

    fn each<'s>(self, label: &'static str, values: impl IntoIterator<Item = (&'s str, u64)>) -> Self {
        let one =
            |family: Self, (name, value): (&str, u64)| family.with(vec![(label, name.to_owned())], Value::Whole(value));
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
                if labels.is_empty() {
                    write(&mut metric, kind, *value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, kind, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: MetricType, value: Value) -> Result<(), std::fmt::Error> {
    let none = None::<&Exemplar<Labels, f64>>;
    match (kind, value) {
        (MetricType::Counter, Value::Whole(n)) => metric.encode_counter(&n, none),
        (MetricType::Counter, Value::Real(n)) => metric.encode_counter(&n, none),
        (_, Value::Whole(n)) => metric.encode_gauge(&n),
        (_, Value::Real(n)) => metric.encode_gauge(&n),
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
    /// Last entry in its log, and in its ledger.
    pub raft: (u64, u64),
    /// Its gossip connections.
    pub gossip: TransportStats,
    /// Members with a link.
    pub links: usize,
    /// Bytes of its streams to and from members, by what they are about.
    pub streams: Vec<(StreamKind, Traffic)>,
    /// Reasons for refusals of late.
    pub refusals: usize,
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
    let Seen { leader, raft, gossip, links, streams, refusals, heard, host, bytes_moved, config } = seen;
    let leads = matches!(leader, LeaderView::Here { .. });
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let gauge = Family::gauge;
    let cores = || Unit::Other("cores".to_owned());
    let mut moved =
        Family::counter("mloc_stream", "Bytes of streams to and from members, by what they are about.").of(Unit::Bytes);
    for (kind, traffic) in streams {
        for (direction, bytes) in [("received", traffic.received), ("sent", traffic.sent)] {
            let labels = vec![("about", kind.name().to_owned()), ("direction", direction.to_owned())];
            moved = moved.with(labels, Value::Whole(bytes));
        }
    }
    let mut families = vec![
        moved,
        Family { kind: MetricType::Info, ..gauge("mloc_build", "The binary.") }.with(version, Value::Whole(1)),
        gauge("mloc_leader", "1 when this node leads, else 0.").is(leads.into()),
        gauge("mloc_term", "Term of the leader this node knows, 0 for none.").is(leader.parts().1),
        gauge("mloc_members_heard", "Members this node hears by gossip, itself included.").is(heard as u64),
        gauge("mloc_raft_last_log_index", "Last entry in this node's log.").is(raft.0),
        gauge("mloc_raft_applied_index", "Last entry in this node's ledger.").is(raft.1),
        gauge("mloc_gossip_connections", "Members with a gossip connection.").is(gossip.connected),
        Family::counter("mloc_gossip_dials_failed", "Gossip dials that came to nothing.").is(gossip.dials_failed),
        gauge("mloc_links", "Members with a link.").is(links as u64),
        gauge("mloc_refusals", "Reasons for which peers were refused, or refused this node, of late.")
            .is(refusals as u64),
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
            .real(host.cpu_millis as f64 / 1e3),
        Family::counter("mloc_node_cpu_used", "Processor time used by the container, or by the host without one.")
            .of(Unit::Seconds)
            .real(host.cpu_used_us as f64 / 1e6),
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
    let (mut oldest_wait_ms, mut asleep) = (0, 0);
    for task in ledger.tasks.values() {
        let state = TaskState::of(task);
        *tasks.entry(state.name()).or_default() += 1;
        // It waits for a request, not for its turn.
        if task.spec.service.is_some() && task.desired() == 0 {
            asleep += u64::from(matches!(state, TaskState::Pending { .. }));
            continue;
        }
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
    let pending = tasks["PENDING"] - asleep;
    let running = ledger.usage.values().filter(|row| row.end.is_none()).count();
    let members = ledger.members.values().filter(|m| m.revoked_at.is_none()).count();
    let mut families = vec![
        gauge("mloc_tasks", "Tasks by state.").each("state", tasks),
        gauge("mloc_queue_length", "Tasks that wait.").is(pending),
        gauge("mloc_queue_oldest_wait", "How long the task that waits longest has waited; 0 when none waits.")
            .of(Unit::Seconds)
            .real(oldest_wait_ms as f64 / 1e3),
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
    families.extend(services(ledger));
    families.extend(usage(ledger, now));
    families
}

/// Replicas by served name; no family without a service.
fn services(ledger: &Ledger) -> Vec<Family> {
    let (mut desired, mut ready) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    for task in ledger.tasks.values().filter(|task| task.ended.is_none()) {
        let Some(service) = &task.spec.service else { continue };
        let name = service.served_name.as_str();
        let newest = ledger.current_of(name).map_or(0, |(_, task)| task.desired());
        desired.insert(name, u64::from(newest));
        let live = task.replicas.iter().filter_map(|replica| replica.live());
        *ready.entry(name).or_default() += live.filter(|attempt| attempt.is_ready()).count() as u64;
    }
    if desired.is_empty() {
        return Vec::new();
    }
    vec![
        Family::gauge("mloc_service_replicas_desired", "Replicas that are wanted, by service.")
            .each("service", desired),
        Family::gauge("mloc_service_replicas_ready", "Replicas that can be asked, by service.").each("service", ready),
    ]
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
    let mut gpu =
        Family::gauge("mloc_usage_gpu", "GPU time by user and project: time × GPUs, running attempts included.")
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

#[cfg(test)]
mod tests {
    use mloc_core::{id::AttemptId, ledger::state::UsageRow, survival::survival};

    use super::*;
    use crate::views::tests::ledger;

    fn whole(families: Vec<Family>) -> String {
        text(families).unwrap()
    }

    fn seen() -> Seen {
        let gpu = mloc_runtime::GpuFigures {
            index: 1,
            kind: "simulated:nvidia-l40".into(),
            utilisation_percent: 25,
            memory_bytes: 100,
            memory_used_bytes: 7,
        };
        Seen {
            leader: LeaderView::There { node: mloc_core::id::NodeId::new("b"), term: 3 },
            raft: (5, 4),
            gossip: TransportStats::default(),
            links: 2,
            streams: vec![(StreamKind::Files, Traffic { received: 7, sent: 5 })],
            refusals: 0,
            heard: 3,
            host: HostFigures { cpu_millis: 1500, gpus: vec![gpu], ..HostFigures::default() },
            bytes_moved: 9,
            config: ConfigFigures { broken: true, waiting: 2 },
        }
    }

    fn led(ledger: &Ledger) -> Vec<Family> {
        of_leader(ledger, &[], (3, 2), &survival(&[]), Millis(9_000_000))
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} in {text}");
        }
    }

    #[test]
    fn a_node_that_does_not_lead_claims_nothing_of_the_ledger() {
        let text = whole(own(seen()));
        has(
            &text,
            &[
                "mloc_leader 0",
                "mloc_term 3",
                "mloc_members_heard 3",
                "mloc_config_broken 1",
                "mloc_node_cpu_cores 1.5",
                "mloc_store_transferred_bytes_total 9",
                "mloc_gpu_utilisation_ratio{gpu=\"1\",type=\"simulated:nvidia-l40\"} 0.25",
            ],
        );
        for name in ["mloc_tasks", "mloc_queue", "mloc_voters", "mloc_members ", "mloc_usage"] {
            assert!(!text.contains(name), "{name} in {text}");
        }
    }

    #[test]
    fn the_leader_counts_the_ledger() {
        let (ledger, _) = ledger(vec![0, 1]);
        let text = whole(led(&ledger));
        has(
            &text,
            &[
                "mloc_tasks{state=\"RUNNING\"} 1",
                "mloc_tasks{state=\"FAILED\"} 0",
                "mloc_queue_length 0",
                "mloc_queue_oldest_wait_seconds 0.0",
                "mloc_attempts_running 1",
                "mloc_attempts_total{end=\"FAILED\"} 1",
                "mloc_attempts_total{end=\"LOST\"} 0",
                "mloc_members 1",
                "mloc_nodes{state=\"LOST\"} 0",
                "mloc_voters 3",
                "mloc_voters_alive 2",
                // Two GPUs for two halves of an hour, the second of which is not over.
                "mloc_usage_gpu_seconds{user=\"john-doe\",project=\"p\"} 7200.0",
            ],
        );
    }

    #[test]
    fn a_task_that_waits_is_timed_from_when_it_came_to_the_queue() {
        let (mut ledger, id) = ledger(vec![]);
        let task = ledger.tasks.get_mut(&id).unwrap();
        task.replicas[0].attempts.clear();
        task.replicas[0].pending_since = Millis(8_000_000);
        has(&whole(led(&ledger)), &["mloc_queue_length 1", "mloc_queue_oldest_wait_seconds 1000.0"]);
    }

    /// What a server of OpenMetrics holds a text to.
    #[test]
    fn every_family_has_one_head_and_its_unit_ends_its_name() {
        let (ledger, _) = ledger(vec![0]);
        let text = whole(own(seen()).into_iter().chain(led(&ledger)).collect());
        assert!(text.ends_with("# EOF\n"), "{text}");
        let heads = |word: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("# {word} ")));
            lines.map(|line| line.split_once(' ').unwrap()).collect::<Vec<_>>()
        };
        let types = heads("TYPE");
        let names: BTreeSet<_> = types.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), types.len(), "each once");
        assert_eq!(heads("HELP").into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), names);
        for (name, unit) in heads("UNIT") {
            assert!(name.ends_with(&format!("_{unit}")), "{name} {unit}");
        }
        for (name, kind) in types {
            assert!(name.starts_with("mloc_"), "{name}");
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let sample = format!("{name}{suffix}");
            let is = |line: &str| line.strip_prefix(&sample).is_some_and(|rest| rest.starts_with([' ', '{']));
            assert!(text.lines().any(is), "{name} has no sample");
            assert!(!matches!(kind, "gauge") || !name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn payers_that_came_first_keep_their_series_and_nothing_is_lost_of_the_others() {
        let (mut ledger, id) = ledger(vec![]);
        ledger.usage.clear();
        // Named so that the alphabet's order is the reverse of the one they came in.
        let came = 3 * PAYERS_MAX as u64;
        for n in 0..came {
            let row = UsageRow {
                owner: format!("user-{:04}", 9999 - n),
                project: "p".into(),
                start: Millis(n),
                end: Some(Millis(n + 1000)),
                gpu_kind: "nvidia-l40".into(),
                gpu_count: 2,
                cpu_millis: 1000,
            };
            ledger.usage.insert(AttemptId { task: id.clone(), replica: 0, attempt: n as u32 }, row);
        }
        let text = whole(led(&ledger));
        let series: Vec<&str> = text.lines().filter(|l| l.starts_with("mloc_usage_gpu_seconds{")).collect();
        assert_eq!(series.len(), PAYERS_MAX + 1);
        has(&text, &["mloc_usage_gpu_seconds{user=\"user-9999\",project=\"p\"} 2.0"]);
        let rest = 2.0 * (came - PAYERS_MAX as u64) as f64;
        has(&text, &[&format!("mloc_usage_gpu_seconds{{user=\"{OTHERS}\",project=\"{OTHERS}\"}} {rest:?}")]);
        let stats = mloc_core::ledger::usage::stats(&ledger, &Default::default(), Millis(0));
        let sum: f64 = series.iter().map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
        assert!((sum / 3600.0 - stats.total_gpu_hours).abs() < 1e-9, "{sum} {stats:?}");
    }
}
