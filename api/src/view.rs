//! What clients see. Moments are RFC 3339 in UTC; durations and sizes carry their unit in their name.

use std::collections::BTreeMap;

use mloc_core::{
    task::spec::Location,
    wire::{Progress, Serving},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Every state a task can be in, in the order it goes through them.
pub const TASK_STATES: [&str; 6] = ["PENDING", "SCHEDULED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"];

/// The answer to a submission.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The task.
    pub task: TaskView,
    /// Whether this submission made it; false when its key had been used for it before, or on a dry run.
    pub created: bool,
    /// What the user should know: settings without effect here, a missing checkpoint destination.
    pub notes: Vec<String>,
    /// On a dry run: where it would go and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<ExplainView>,
}

/// One served name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    /// What it is called at the API.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// The task that is wanted: the newest version.
    pub task: String,
    /// When that was accepted, in seconds since 1970.
    pub created_unix: u64,
    /// Replicas that are wanted.
    pub desired: u32,
    /// Replicas of all versions that are ready and not stopping.
    pub ready: u32,
    /// Whether it has none because nobody asked: a request wakes it.
    pub sleeps: bool,
    /// Whether it was woken and none is ready yet.
    pub wakes: bool,
    /// Every replica that runs or is to, older versions' included.
    pub replicas: Vec<ReplicaView>,
}

/// One replica of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaView {
    /// The task, for an update has two.
    pub task: String,
    /// Its attempt; absent while it waits for a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// WAITING, STARTING, READY or STOPPING.
    pub state: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That node's name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its requests, as its worker last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
}

/// One task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// `metadata.name`.
    pub name: String,
    /// Who pays.
    pub owner: String,
    /// For what.
    pub project: String,
    /// `spec.taskType`.
    pub task_type: String,
    /// PENDING, SCHEDULED, RUNNING, COMPLETED, FAILED or CANCELLED.
    pub state: String,
    /// What a running task does: PULLING, TRAINING, SERVING, CHECKPOINTING, UPLOADING.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why it is in this state.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when.
    pub since: String,
    /// When it was accepted.
    pub submitted_at: String,
    /// The node of its live attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Figures of the live attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Every attempt, oldest first.
    pub attempts: Vec<AttemptView>,
    /// One row for each attempt that started, oldest first, failed and running ones included.
    #[serde(default)]
    pub usage: Vec<UsageRow>,
    /// What it left, once completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultView>,
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptView {
    /// TASK.REPLICA.ATTEMPT.
    pub id: String,
    /// Its node's id.
    pub node: String,
    /// Its node's name.
    pub node_name: String,
    /// ASSIGNED, RUNNING, PUBLISHING, STOPPING, FINISHED, FAILED, STOPPED or LOST.
    pub state: String,
    /// Why it ended, if it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When it was assigned.
    pub assigned_at: String,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Type of its GPUs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gpu_type: String,
    /// Their indices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u32>,
}

/// What one attempt used: the accounting row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageRow {
    /// TASK.REPLICA.ATTEMPT.
    pub attempt: String,
    /// The task.
    pub task_id: String,
    /// Who pays: `metadata.owner`.
    pub user_id: String,
    /// For what: `metadata.project`.
    pub project_id: String,
    /// When the worker started it.
    pub start_time: String,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// Seconds from start to end, or until now.
    pub duration: f64,
    /// Type of its GPUs; empty without.
    pub gpu_type: String,
    /// How many.
    pub gpu_count: u32,
    /// Hours × GPUs.
    pub gpu_hours: f64,
    /// Cores held, in thousandths.
    pub cpu_millis: u64,
    /// Hours × cores; 0 for an attempt with GPUs, as in the sums of `stats`.
    pub cpu_core_hours: f64,
}

/// What a task left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultView {
    /// Where the artifacts lie.
    pub location: String,
    /// The attempt that made them: TASK.REPLICA.ATTEMPT.
    #[serde(default)]
    pub attempt: String,
    /// The node it ran on; without a destination they lie on that node's disk.
    #[serde(default)]
    pub node: String,
    /// That node's name.
    #[serde(default)]
    pub node_name: String,
    /// `output.destination`, as the ledger has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Location>,
    /// The files.
    pub artifacts: Vec<mloc_core::ledger::entry::Artifact>,
    /// Figures of the run.
    pub summary: BTreeMap<String, Value>,
}

/// A file that a tree names and a node has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are there already.
    pub there: u64,
}

/// Files that came along with a task which has not ended: their node must keep them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BroughtView {
    /// The task.
    pub task: String,
    /// The node that took it.
    pub node: String,
    /// The path as the task has it.
    pub path: String,
    /// SHA-256 of the list of files.
    pub tree: String,
    /// Bytes of them all.
    pub bytes: u64,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFilter {
    /// Of this owner.
    pub owner: Option<String>,
    /// Of this project.
    pub project: Option<String>,
    /// In this state: one of [`TASK_STATES`], in any case.
    pub state: Option<String>,
    /// Of this name.
    pub name: Option<String>,
    /// At most so many; 100 unless given, 1,000 at most.
    pub limit: Option<usize>,
    /// Those after this one: `next` of the page before.
    pub cursor: Option<String>,
    /// Whatever this node knows will do.
    pub stale: Option<bool>,
}

/// A page of tasks, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskView>,
    /// The next page's cursor, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One thing that happened to a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: String,
    /// SUBMITTED, ASSIGNED, STARTED, PUBLISHING, ended states.
    pub event: String,
    /// The attempt it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Why a task does or does not run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainView {
    /// The scheduler's answer for programs.
    pub explanation: Value,
    /// The same for people.
    pub text: String,
}

/// One member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// IDLE, RUNNING, DRAINING, LOST or REVOKED.
    pub state: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
    /// The binary's version.
    pub version: String,
    /// CPU model.
    pub cpu_model: String,
    /// Cores, free and in all, in thousandths.
    pub cpu_millis_free: u64,
    /// Cores in all, in thousandths.
    pub cpu_millis: u64,
    /// Free memory slots in bytes.
    pub memory_bytes_free: u64,
    /// Memory in all, in bytes.
    pub memory_bytes: u64,
    /// Free disk in bytes.
    pub disk_bytes: u64,
    /// Measured f32 matmul rate in GFLOP/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_gflops: Option<u32>,
    /// GPUs.
    pub gpus: Vec<GpuView>,
    /// Modules and the like.
    pub features: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Attempts it holds.
    pub attempts: Vec<String>,
    /// Link addresses.
    pub addresses: Vec<String>,
}

/// One GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpuView {
    /// Index.
    pub index: u32,
    /// Type.
    pub gpu_type: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Utilisation in percent.
    pub utilisation_percent: u32,
    /// FREE, HELD or UNUSABLE.
    pub state: String,
    /// Why it is unusable, or which attempt holds it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The mesh.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeshView {
    /// Its id.
    pub mesh: String,
    /// The node that answered: the leader, unless `?stale=true` asked the node that took the request.
    pub node: String,
    /// The leader's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Its term.
    pub term: u64,
    /// Voters' ids.
    pub voters: Vec<String>,
    /// Voters that answer.
    pub voters_alive: usize,
    /// Members, revoked ones left out.
    pub members: usize,
    /// How many voters may fail right now without the mesh stopping to take tasks.
    pub survives_failures: usize,
    /// The same in words, with what each loss would take: a few lines.
    pub advice: String,
}

/// What usage is asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    /// Of this user.
    pub user: Option<String>,
    /// Of this project.
    pub project: Option<String>,
    /// From this UTC day on, `YYYY-MM-DD`.
    pub start_date: Option<String>,
    /// To this UTC day, included.
    pub end_date: Option<String>,
    /// Whatever this node knows will do.
    pub stale: Option<bool>,
}

/// Usage. `query_parameters` echoes what was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatsView {
    /// What was asked.
    pub query_parameters: BTreeMap<String, String>,
    /// GPU-hours: hours × GPUs, failed attempts included.
    pub total_gpu_hours: f64,
    /// Tasks that completed inside the range.
    pub total_tasks_completed: u64,
    /// GPU-hours by GPU type.
    pub breakdown_by_gpu: BTreeMap<String, f64>,
    /// Core-hours held by attempts without a GPU.
    pub total_cpu_core_hours: f64,
}
