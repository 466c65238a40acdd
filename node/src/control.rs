//! REST's questions answered from the mesh: the one place where ledger state becomes what clients see.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mloc_api::{
    Caller, Control, ControlError,
    control::{Freshness, LogsFrom, Submission},
    view::{
        Accepted, BroughtView, Event, ExplainView, MeshView, NodeView, ResultView, ServiceView, StatsQuery, StatsView,
        TaskFilter, TaskPage, TaskView,
    },
};
use mloc_core::{
    capability::{Gpu, SIMULATED},
    files::Brought,
    id::{NodeId, TaskId},
    ledger::{
        Entry, Ledger, Outcome, Reason,
        state::{Attempt, AttemptEnd, AttemptState, Task, TaskEnd},
        task_state::TaskState,
        usage,
    },
    survival::{Standing, survival},
    task::{self, problem::Problems},
};
use mloc_mesh::{
    handle::{LeaderView, MeshHandle, MeshUnavailable},
    voting::RevokeError,
};
use mloc_runtime::{GpuFigures, HostFigures};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    files::{self, NodeFiles},
    follow,
    logs::Logs,
    memory,
    metrics::{self, ConfigFigures},
    services,
    views::{self, attempt_view, gpu_view, history, usage_rows},
};

/// Most tasks on a page.
const PAGE_MAX: usize = 1_000;
/// Tasks on a page unless said otherwise.
const PAGE: usize = 100;

/// [`Control`] over the mesh.
pub struct MeshControl {
    mesh: MeshHandle,
    logs: Arc<Logs>,
    files: Arc<NodeFiles>,
    host: Host,
}

/// What /metrics asks of this machine.
pub struct Host {
    /// The disk that counts is this folder's.
    pub data_dir: PathBuf,
    /// How node.yaml is read.
    pub config: watch::Receiver<ConfigFigures>,
}

impl MeshControl {
    /// Answers from this mesh; `logs` finds what attempts print, `files` what lies here.
    pub fn new(mesh: MeshHandle, logs: Arc<Logs>, files: Arc<NodeFiles>, host: Host) -> Self {
        Self { mesh, logs, files, host }
    }

    /// Makes the reads that follow see every acknowledged commit.
    async fn fresh(&self, fresh: Freshness) -> Result<(), ControlError> {
        match fresh {
            Freshness::Stale if self.holds_ledger() => Ok(()),
            Freshness::Stale => Err(ControlError::Unavailable(
                "this node does not vote and holds no copy of the ledger: ask without stale=true, or ask a voter \
                 (`mloc nodes` names them)"
                    .into(),
            )),
            Freshness::Linearizable => self.mesh.linearize().await.map_err(unavailable),
        }
    }

    /// Voters have the ledger, up to what they have heard of it.
    fn holds_ledger(&self) -> bool {
        self.mesh.voters().contains(self.mesh.node())
    }

    async fn propose(&self, entry: Entry) -> Result<Outcome, ControlError> {
        self.mesh.propose(entry).await.map_err(unavailable)
    }

    fn view(&self, id: &TaskId) -> Result<TaskView, ControlError> {
        self.mesh.read(|ledger| match ledger.tasks.get(id) {
            Some(task) => Ok(self.task_view(ledger, id, task)),
            None => Err(ControlError::NotFound(format!("task {id}"))),
        })
    }

    fn task_view(&self, ledger: &Ledger, id: &TaskId, task: &Task) -> TaskView {
        let state = TaskState::of(task);
        let (since, reason, live) = match &state {
            TaskState::Pending { since, reason, .. } => (*since, reason.clone(), None),
            TaskState::Scheduled { attempt, node, since } => (*since, String::new(), Some((attempt, node))),
            TaskState::Running { attempt, node, since, .. } => (*since, String::new(), Some((attempt, node))),
            TaskState::Completed { at, .. } => (*at, String::new(), None),
            TaskState::Failed { at, failure, .. } => (*at, failure.message.clone(), None),
            TaskState::Cancelled { at, by, .. } => (*at, format!("cancelled by {by}"), None),
        };
        let progress = live.and_then(|(attempt, _)| self.mesh.progress(attempt));
        let phase = matches!(state, TaskState::Running { .. })
            .then(|| progress.as_ref().map(|p| p.phase.name().to_owned()))
            .flatten();
        let result = match &task.ended {
            Some(TaskEnd::Completed { result, .. }) => {
                let finished = |a: &&Attempt| matches!(&a.state, AttemptState::Ended { how: AttemptEnd::Finished, .. });
                let made = task.replicas.iter().flat_map(|r| &r.attempts).rfind(finished);
                Some(ResultView {
                    location: result.location.clone(),
                    attempt: made.map(|a| a.id.to_string()).unwrap_or_default(),
                    node: made.map(|a| a.node.to_string()).unwrap_or_default(),
                    node_name: made.map(|a| attempt_view(ledger, a).node_name).unwrap_or_default(),
                    destination: task.spec.output.destination.clone(),
                    artifacts: result.artifacts.clone(),
                    summary: result.summary.clone(),
                })
            }
            _ => None,
        };
        TaskView {
            id: id.to_string(),
            name: task.spec.metadata.name.clone(),
            owner: task.spec.metadata.owner.clone(),
            project: task.spec.metadata.project.clone(),
            task_type: task.spec.task_type.name().to_owned(),
            state: state.name().to_owned(),
            phase,
            reason,
            since: since.to_rfc3339(),
            submitted_at: task.submitted_at.to_rfc3339(),
            node: live.map(|(_, node)| node.to_string()),
            progress: progress.map(|p| p.progress),
            attempts: task.replicas.iter().flat_map(|r| &r.attempts).map(|a| attempt_view(ledger, a)).collect(),
            usage: usage_rows(ledger, id, task, self.mesh.now()),
            result,
        }
    }

    /// The member of this id or name.
    fn find_node(&self, text: &str) -> Result<NodeId, ControlError> {
        let live = self.mesh.views();
        let found = self.mesh.read(|ledger| {
            let gossip = |id| live.get(id).and_then(|v| v.capability.as_ref()).map(|c| c.name.as_str());
            let named = |revoked: bool| {
                let members = ledger.members.iter().filter(|(_, m)| m.revoked_at.is_some() == revoked);
                views::named(text, members.map(|(id, m)| (id, m.name.as_str(), gossip(id))))
            };
            // A machine that came back under a new key bears the name of its revoked self; after a restore all do.
            let present = named(false);
            if present.is_empty() { named(true) } else { present }
        });
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(ControlError::NotFound(format!("node {text}"))),
            several => Err(ControlError::Conflict(format!(
                "{} nodes are named {text}: use an id, {}",
                several.len(),
                several.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    fn node_views(&self) -> Vec<NodeView> {
        let live = self.mesh.views();
        let (leader, _) = self.mesh.leader().parts();
        let voters = self.mesh.voters();
        self.mesh.read(|ledger| {
            let one = |(id, member): (&NodeId, &mloc_core::ledger::entry::Member)| {
                let view = live.get(id);
                let held: Vec<&Attempt> = ledger.live_attempts_on(id).collect();
                let state = if member.revoked_at.is_some() {
                    "REVOKED"
                } else if !view.is_some_and(|v| v.alive) {
                    "LOST"
                } else if member.draining_since.is_some() {
                    "DRAINING"
                } else if held.is_empty() {
                    "IDLE"
                } else {
                    "RUNNING"
                };
                let cap = view.and_then(|v| v.capability.as_ref());
                let (cpu, memory) = cap.map_or((0, 0), |c| (c.cpu_millis, c.memory_bytes));
                NodeView {
                    id: id.to_string(),
                    name: cap.map_or_else(|| member.name.clone(), |c| c.name.clone()),
                    state: state.to_owned(),
                    leader: leader.as_ref() == Some(id),
                    voter: voters.contains(id),
                    version: cap.map(|c| c.version.clone()).unwrap_or_default(),
                    cpu_model: cap.map(|c| c.cpu_model.clone()).unwrap_or_default(),
                    cpu_millis_free: cpu.saturating_sub(held.iter().map(|a| a.grant.cpu_millis).sum()),
                    cpu_millis: cpu,
                    memory_bytes_free: memory.saturating_sub(held.iter().map(|a| a.grant.memory_bytes).sum()),
                    memory_bytes: memory,
                    disk_bytes: cap.map_or(0, |c| c.disk_bytes),
                    matmul_gflops: cap.and_then(|c| c.matmul_gflops),
                    gpus: cap.map(|c| c.gpus.iter().map(|g| gpu_view(g, &held)).collect()).unwrap_or_default(),
                    features: cap.map(|c| c.features.iter().cloned().collect()).unwrap_or_default(),
                    labels: cap.map(|c| c.labels.clone()).unwrap_or_default(),
                    attempts: held.iter().map(|a| a.id.to_string()).collect(),
                    addresses: view.map(|v| v.addresses.clone()).unwrap_or_default(),
                }
            };
            ledger.members.iter().map(one).collect()
        })
    }

    /// Members and voters as this node sees them, revoked ones left out.
    fn standings(&self) -> Vec<Standing> {
        let (views, voters) = (self.mesh.views(), self.mesh.voters());
        let one = |(id, member): (&NodeId, &mloc_core::ledger::entry::Member)| {
            let view = views.get(id);
            let gossip = view.and_then(|v| v.capability.as_ref()).map(|c| c.name.clone());
            Standing {
                name: gossip.unwrap_or_else(|| member.name.clone()),
                votes: voters.contains(id),
                alive: view.is_some_and(|v| v.alive),
            }
        };
        self.mesh.read(|l| l.members.iter().filter(|(_, m)| m.revoked_at.is_none()).map(one).collect())
    }

    /// GPUs of this node that are only in its node.yaml: named so everywhere, they do nothing.
    fn simulated_gpus(&self) -> Vec<GpuFigures> {
        let offered = self.mesh.views().remove(self.mesh.node()).and_then(|view| view.capability);
        let gpus = offered.into_iter().flat_map(|capability| capability.gpus);
        let one = |gpu: Gpu| GpuFigures {
            index: gpu.index,
            kind: gpu.kind,
            utilisation_percent: 0,
            memory_bytes: gpu.memory_bytes,
            memory_used_bytes: 0,
        };
        gpus.filter(|gpu| gpu.kind.starts_with(SIMULATED)).map(one).collect()
    }

    fn node_view(&self, id: &NodeId) -> Result<NodeView, ControlError> {
        let found = self.node_views().into_iter().find(|n| n.id == id.as_str());
        found.ok_or_else(|| ControlError::NotFound(format!("node {id}")))
    }

    fn explanation(&self, id: &TaskId) -> Result<ExplainView, ControlError> {
        let explanation =
            self.mesh.explain(id, self.mesh.now()).ok_or_else(|| ControlError::NotFound(format!("task {id}")))?;
        let text = explanation.to_string();
        let explanation = serde_json::to_value(explanation).map_err(|e| ControlError::Internal(e.to_string()))?;
        Ok(ExplainView { explanation, text })
    }
}

fn unavailable(why: MeshUnavailable) -> ControlError {
    ControlError::Unavailable(why.to_string())
}

fn refused(reason: Reason) -> ControlError {
    match reason {
        Reason::UnknownTask(id) => ControlError::NotFound(format!("task {id}")),
        Reason::UnknownMember(id) => ControlError::NotFound(format!("node {id}")),
        Reason::KeyReused(_) => ControlError::KeyReused(reason.to_string()),
        other => ControlError::Conflict(other.to_string()),
    }
}

/// What an Idempotency-Key was used for: the text, and what came along with it. Not the node that took it: the same may
/// be sent to another.
fn body_digest(body: &str, brought: &Brought) -> Result<String, ControlError> {
    let mut hasher = Sha256::new_with_prefix(body.as_bytes());
    if !brought.trees.is_empty() {
        let trees = serde_json::to_vec(&brought.trees).map_err(|e| ControlError::Internal(e.to_string()))?;
        hasher.update([0]);
        hasher.update(trees);
    }
    Ok(hex::encode(hasher.finalize()))
}

#[async_trait]
impl Control for MeshControl {
    async fn submit(&self, caller: &Caller, submission: Submission) -> Result<Accepted, ControlError> {
        let Submission { body, file, brought, request, dry_run } = submission;
        let parsed = task::parse_with(body.as_bytes(), &file, &brought);
        let mut parsed = parsed.map_err(|problems| invalid(&problems))?;
        let mut problems = Problems::none(&file);
        mloc_modules::check(&parsed.spec).into_iter().for_each(|problem| problems.push(problem));
        if !problems.problems.is_empty() {
            return Err(invalid(&problems));
        }
        // A file without an owner is its submitter's.
        let owner = &mut parsed.spec.metadata.owner;
        if owner.is_empty() {
            owner.clone_from(&caller.user);
        }
        caller.may_act_for(owner)?;
        let mut notes: Vec<String> = parsed.notes.iter().map(ToString::to_string).collect();
        // A service has no steps.
        let trains = parsed.spec.service.is_none();
        if trains && parsed.spec.checkpoint.destination.is_none() && self.mesh.read(|l| l.members.len()) > 1 {
            notes.push(
                "no checkpoint.destination: on another node than the first this task would start again at step 0"
                    .into(),
            );
        }
        let now = self.mesh.now();
        let id = TaskId::mint(now, rand::random());
        let digest = body_digest(&body, &brought)?;
        if dry_run {
            self.fresh(Freshness::Linearizable).await?;
            // Explained on a copy of the ledger that has it: the answer is the scheduler's, not a guess at it.
            let explained = self.mesh.explain_if_submitted(&id, &parsed.spec, now).map_err(refused)?;
            let explanation = explained.ok_or_else(|| ControlError::Internal("the ledger lost this task".into()))?;
            let text = explanation.to_string();
            notes.extend(memory::note(&self.files.store(), &parsed.spec).await);
            let explanation = serde_json::to_value(explanation).map_err(|e| ControlError::Internal(e.to_string()))?;
            let task = TaskView {
                id: String::new(),
                name: parsed.spec.metadata.name,
                owner: parsed.spec.metadata.owner,
                project: parsed.spec.metadata.project,
                task_type: parsed.spec.task_type.name().to_owned(),
                state: "VALID".to_owned(),
                phase: None,
                reason: String::new(),
                since: now.to_rfc3339(),
                submitted_at: now.to_rfc3339(),
                node: None,
                progress: None,
                attempts: Vec::new(),
                usage: Vec::new(),
                result: None,
            };
            return Ok(Accepted { task, created: false, notes, explain: Some(ExplainView { explanation, text }) });
        }
        let entry =
            Entry::Submit { task: id.clone(), spec: Box::new(parsed.spec), request, body_digest: digest, at: now };
        let (task, created) = match self.propose(entry).await? {
            Outcome::Applied => (id, true),
            Outcome::Duplicate(first) => (first, false),
            Outcome::Rejected(reason) => return Err(refused(reason)),
            Outcome::Stale => return Err(ControlError::Internal("a submission was called stale".into())),
        };
        Ok(Accepted { task: self.view(&task)?, created, notes, explain: None })
    }

    async fn tasks(&self, fresh: Freshness, filter: TaskFilter) -> Result<TaskPage, ControlError> {
        self.fresh(fresh).await?;
        let limit = filter.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
        let before = match &filter.cursor {
            Some(cursor) => cursor.parse().map_err(|_| ControlError::Invalid {
                detail: format!("cursor: `{cursor}` is no cursor; pass `next` of the page before"),
                problems: Vec::new(),
            })?,
            None => u64::MAX,
        };
        Ok(self.mesh.read(|ledger| {
            let keep = |task: &Task| {
                let meta = &task.spec.metadata;
                task.seq < before
                    && filter.owner.as_ref().is_none_or(|o| *o == meta.owner)
                    && filter.project.as_ref().is_none_or(|p| *p == meta.project)
                    && filter.name.as_ref().is_none_or(|n| *n == meta.name)
                    && filter.state.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(TaskState::of(task).name()))
            };
            let mut found: Vec<_> = ledger.tasks.iter().filter(|(_, task)| keep(task)).collect();
            found.sort_by_key(|(_, task)| std::cmp::Reverse(task.seq));
            let more = found.len() > limit;
            found.truncate(limit);
            let next = if more { found.last().map(|(_, t)| t.seq.to_string()) } else { None };
            TaskPage { tasks: found.into_iter().map(|(id, t)| self.task_view(ledger, id, t)).collect(), next }
        }))
    }

    async fn task(&self, fresh: Freshness, task: &TaskId) -> Result<TaskView, ControlError> {
        self.fresh(fresh).await?;
        self.view(task)
    }

    async fn brought(&self, caller: &Caller, node: Option<&str>) -> Result<Vec<BroughtView>, ControlError> {
        // Who knows a digest can have the file fed to a task.
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        self.fresh(Freshness::Linearizable).await?;
        Ok(self.mesh.read(|ledger| {
            let live = ledger.tasks.iter().filter(|(_, task)| task.ended.is_none());
            let all = live.flat_map(|(id, task)| {
                let brought = files::brought_of(task.spec.sources().map(|(_, source)| source));
                brought.map(|(node, tree, path, bytes)| BroughtView {
                    task: id.to_string(),
                    node: node.to_string(),
                    path,
                    tree,
                    bytes,
                })
            });
            all.filter(|brought| node.is_none_or(|node| node == brought.node)).collect()
        }))
    }

    async fn cancel(&self, caller: &Caller, task: &TaskId) -> Result<TaskView, ControlError> {
        self.fresh(Freshness::Linearizable).await?;
        let owner = self.mesh.read(|l| l.tasks.get(task).map(|t| t.spec.metadata.owner.clone()));
        caller.may_act_for(&owner.ok_or_else(|| ControlError::NotFound(format!("task {task}")))?)?;
        let entry = Entry::Cancelled { task: task.clone(), by: caller.user.clone(), at: self.mesh.now() };
        match self.propose(entry).await? {
            Outcome::Rejected(reason) => Err(refused(reason)),
            Outcome::Applied | Outcome::Duplicate(_) | Outcome::Stale => self.view(task),
        }
    }

    async fn explain(&self, fresh: Freshness, task: &TaskId) -> Result<ExplainView, ControlError> {
        self.fresh(fresh).await?;
        self.explanation(task)
    }

    async fn logs(
        &self,
        task: &TaskId,
        from: LogsFrom,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ControlError> {
        self.fresh(Freshness::Linearizable).await?;
        let source = follow::FromMesh { mesh: self.mesh.clone(), logs: self.logs.clone() };
        follow::stream(source, task, from, follow::PACE)
    }

    async fn events(&self, fresh: Freshness, task: &TaskId) -> Result<Vec<Event>, ControlError> {
        self.fresh(fresh).await?;
        self.mesh.read(|ledger| match ledger.tasks.get(task) {
            Some(found) => Ok(history(ledger, found).into_iter().map(|(_, event)| event).collect()),
            None => Err(ControlError::NotFound(format!("task {task}"))),
        })
    }

    async fn nodes(&self, fresh: Freshness) -> Result<Vec<NodeView>, ControlError> {
        self.fresh(fresh).await?;
        Ok(self.node_views())
    }

    async fn services(&self, fresh: Freshness) -> Result<Vec<ServiceView>, ControlError> {
        self.fresh(fresh).await?;
        Ok(self.mesh.read(|ledger| services::views(ledger, &self.mesh)))
    }

    async fn wake(&self, _caller: &Caller, name: &str) -> Result<ServiceView, ControlError> {
        self.fresh(Freshness::Linearizable).await?;
        let unknown = || ControlError::NotFound(format!("service {name}"));
        let found = self.mesh.read(|ledger| {
            let (id, task) = ledger.current_of(name)?;
            Some((id.clone(), task.desired(), task.spec.service.as_ref()?.scale.min))
        });
        let (task, desired, replicas) = found.ok_or_else(unknown)?;
        if desired == 0 {
            let why = "a request woke it".to_owned();
            let entry = Entry::Scaled { task, replicas, why, at: self.mesh.now() };
            if let Outcome::Rejected(reason) = self.propose(entry).await? {
                return Err(refused(reason));
            }
        }
        self.mesh.read(|ledger| services::view(ledger, &self.mesh, name)).ok_or_else(unknown)
    }

    async fn drain(&self, caller: &Caller, node: &str, draining: bool) -> Result<NodeView, ControlError> {
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        self.fresh(Freshness::Linearizable).await?;
        let node = self.find_node(node)?;
        match self.propose(Entry::MemberDrained { node: node.clone(), draining, at: self.mesh.now() }).await? {
            Outcome::Rejected(reason) => Err(refused(reason)),
            Outcome::Applied | Outcome::Duplicate(_) | Outcome::Stale => self.node_view(&node),
        }
    }

    async fn revoke(&self, caller: &Caller, node: &str) -> Result<NodeView, ControlError> {
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        self.fresh(Freshness::Linearizable).await?;
        let node = self.find_node(node)?;
        let revoked = self.mesh.revoke(&node).await.map_err(|error| match error {
            RevokeError::Unavailable(error) => unavailable(error),
            RevokeError::QuorumLost { .. } => ControlError::Conflict(error.to_string()),
        })?;
        match revoked {
            Outcome::Rejected(reason) => Err(refused(reason)),
            Outcome::Applied | Outcome::Duplicate(_) | Outcome::Stale => self.node_view(&node),
        }
    }

    async fn stats(&self, fresh: Freshness, query: StatsQuery) -> Result<StatsView, ControlError> {
        self.fresh(fresh).await?;
        let asked = usage::Query::parse(
            query.user.as_deref(),
            query.project.as_deref(),
            query.start_date.as_deref(),
            query.end_date.as_deref(),
        )
        .map_err(|e| ControlError::Invalid { detail: e.to_string(), problems: Vec::new() })?;
        let given = [
            ("user", query.user),
            ("project", query.project),
            ("start_date", query.start_date),
            ("end_date", query.end_date),
        ];
        let stats = self.mesh.read(|ledger| usage::stats(ledger, &asked, self.mesh.now()));
        Ok(StatsView {
            query_parameters: given.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))).collect(),
            total_gpu_hours: stats.total_gpu_hours,
            total_tasks_completed: stats.total_tasks_completed,
            breakdown_by_gpu: stats.breakdown_by_gpu,
            total_cpu_core_hours: stats.total_cpu_core_hours,
        })
    }

    async fn mesh(&self, fresh: Freshness) -> Result<MeshView, ControlError> {
        self.fresh(fresh).await?;
        let (leader, term) = self.mesh.leader().parts();
        let standings = self.standings();
        let survival = survival(&standings);
        let voters = self.mesh.voters();
        Ok(MeshView {
            mesh: self.mesh.mesh_id().to_string(),
            node: self.mesh.node().to_string(),
            leader: leader.map(|l| l.to_string()),
            term,
            voters: voters.iter().map(ToString::to_string).collect(),
            voters_alive: standings.iter().filter(|s| s.votes && s.alive).count(),
            members: standings.len(),
            survives_failures: survival.failures,
            advice: survival.text,
        })
    }

    async fn backup(&self, caller: &Caller) -> Result<Bytes, ControlError> {
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        self.mesh.backup(env!("CARGO_PKG_VERSION")).await.map_err(unavailable)
    }

    async fn metrics(&self) -> String {
        let (dir, simulated) = (self.host.data_dir.clone(), self.simulated_gpus());
        let host = tokio::task::spawn_blocking(move || mloc_runtime::host(&dir)).await.unwrap_or_default();
        let health = self.mesh.health();
        let seen = metrics::Seen {
            leader: self.mesh.leader(),
            raft: (health.raft.last_log, health.raft.applied),
            gossip: health.gossip,
            links: health.links,
            streams: health.streams,
            refusals: health.refusals,
            heard: self.mesh.views().values().filter(|view| view.alive).count(),
            host: HostFigures { gpus: host.gpus.into_iter().chain(simulated).collect(), ..host },
            bytes_moved: mloc_store::bytes_moved(),
            config: *self.host.config.borrow(),
        };
        let leads = matches!(seen.leader, LeaderView::Here { .. });
        let mut families = metrics::own(seen);
        if leads {
            let (nodes, standings) = (self.node_views(), self.standings());
            let voters = standings.iter().filter(|s| s.votes);
            let voters = (voters.clone().count(), voters.filter(|s| s.alive).count());
            let (survival, now) = (survival(&standings), self.mesh.now());
            families.extend(self.mesh.read(|ledger| metrics::of_leader(ledger, &nodes, voters, &survival, now)));
        }
        metrics::text(families).unwrap_or_default()
    }

    fn ready(&self) -> Result<(), String> {
        match self.mesh.leader() {
            LeaderView::Unknown => Err("it has not heard of a leader yet".into()),
            LeaderView::Here { .. } | LeaderView::There { .. } => Ok(()),
        }
    }
}

/// A task that is refused, with all that is wrong with it.
fn invalid(problems: &Problems) -> ControlError {
    ControlError::Invalid {
        detail: problems.to_string(),
        problems: problems.iter().filter_map(|p| serde_json::to_value(p).ok()).collect(),
    }
}
