//! What REST needs from a node that leads. A node that does not lead forwards instead of answering.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mloc_core::{
    files::Brought,
    id::{AttemptId, RequestId, TaskId},
};

use crate::{
    Caller, ControlError,
    view::{
        Accepted, BroughtView, Event, ExplainView, MeshView, NodeView, ServiceView, StatsQuery, StatsView, TaskFilter,
        TaskPage, TaskView,
    },
};

/// A task as it was sent.
#[derive(Clone, Debug)]
pub struct Submission {
    /// YAML or JSON.
    pub body: String,
    /// The file's name, for messages.
    pub file: String,
    /// What came along with it.
    pub brought: Brought,
    /// The client's name for it.
    pub request: RequestId,
    /// Check and explain only.
    pub dry_run: bool,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It sees every commit that was acknowledged before it began.
    Linearizable,
    /// Whatever this node knows (`?stale=true`); refused by a node that does not hold the ledger.
    Stale,
}

/// Which part of a task's log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogsFrom {
    /// The attempt to begin with; the newest one when absent.
    pub attempt: Option<AttemptId>,
    /// The byte of its log to begin with.
    pub offset: u64,
    /// Whether to go on with what is still to come, over later attempts, until the task has ended.
    pub follow: bool,
}

/// The orchestrator as REST sees it.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Takes a task; returns only after it is committed.
    async fn submit(&self, caller: &Caller, submission: Submission) -> Result<Accepted, ControlError>;
    /// Tasks, newest first.
    async fn tasks(&self, fresh: Freshness, filter: TaskFilter) -> Result<TaskPage, ControlError>;
    /// One task.
    async fn task(&self, fresh: Freshness, task: &TaskId) -> Result<TaskView, ControlError>;
    /// What tasks that have not ended brought along, of one node or of all.
    async fn brought(&self, caller: &Caller, node: Option<&str>) -> Result<Vec<BroughtView>, ControlError>;
    /// Cancels; returns after the commit, not after the worker has stopped.
    async fn cancel(&self, caller: &Caller, task: &TaskId) -> Result<TaskView, ControlError>;
    /// Why a task does or does not run.
    async fn explain(&self, fresh: Freshness, task: &TaskId) -> Result<ExplainView, ControlError>;
    /// The log of one attempt of a task; with `follow` also of those after it, until the task has ended. A worker that
    /// can't be reached is said in the stream.
    async fn logs(
        &self,
        task: &TaskId,
        from: LogsFrom,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ControlError>;
    /// What happened to a task, oldest first.
    async fn events(&self, fresh: Freshness, task: &TaskId) -> Result<Vec<Event>, ControlError>;
    /// Services that have not ended, by name.
    async fn services(&self, fresh: Freshness) -> Result<Vec<ServiceView>, ControlError>;
    /// Gives a service that sleeps its replicas back.
    async fn wake(&self, caller: &Caller, name: &str) -> Result<ServiceView, ControlError>;
    /// Members with their hardware and load.
    async fn nodes(&self, fresh: Freshness) -> Result<Vec<NodeView>, ControlError>;
    /// Lets a node finish what it has and take nothing new (or take work again).
    async fn drain(&self, caller: &Caller, node: &str, draining: bool) -> Result<NodeView, ControlError>;
    /// Forbids a node to speak to the mesh.
    async fn revoke(&self, caller: &Caller, node: &str) -> Result<NodeView, ControlError>;
    /// Usage.
    async fn stats(&self, fresh: Freshness, query: StatsQuery) -> Result<StatsView, ControlError>;
    /// Leader, voters and what the mesh survives.
    async fn mesh(&self, fresh: Freshness) -> Result<MeshView, ControlError>;
    /// All of the ledger, as the bytes of a backup file.
    async fn backup(&self, caller: &Caller) -> Result<Bytes, ControlError>;
    /// Figures in the OpenMetrics text format, which Prometheus reads.
    async fn metrics(&self) -> String;
    /// Whether this node has joined and serves.
    fn ready(&self) -> Result<(), String>;
}
