//! A node that only remembers what it was asked, and a mesh of such nodes.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http_body_util::BodyExt;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use mloc_api::{
    Access, Caller, Control, ControlError, Parts, Services, UserTokens,
    control::{Freshness, LogsFrom, Submission},
    files::{FileBytes, Files, Uploaded},
    forward::{Duplex, Forward, Leader},
    services::Ready,
    view::{
        Accepted, AttemptView, BroughtView, Event, ExplainView, GpuView, MeshView, Missing, NodeView, ReplicaView,
        ResultView, ServiceView, StatsQuery, StatsView, TaskFilter, TaskPage, TaskView, UsageRow,
    },
};
use mloc_core::{
    files::BroughtTree,
    id::{AttemptId, NodeId, TaskId},
    ledger::entry::Artifact,
    schedule::{Explanation, NodeExplanation, NodeReason},
    task::spec::Location,
    wire::{Progress, Serving},
};
use serde_json::Value;
use tokio::{io::DuplexStream, sync::watch};
use tower::ServiceExt;

pub const TASK: &str = "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: echo, owner: OWNER, project: p}
spec: {taskType: echo, resources: {hardware: {cpu: 100m}}, hyperparameters: {steps: 1}}
";

/// Not text.
pub const BACKUP: &[u8] = b"MLOCBKUP\x00\xff and more";

pub fn tokens() -> UserTokens {
    UserTokens::new([7; 32])
}

/// Answers everything with a full view, and keeps what it was asked.
#[derive(Default)]
pub struct Fake {
    /// Never answers a submission.
    pub stuck: bool,
    pub asked: Mutex<Vec<String>>,
}

impl Fake {
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

#[async_trait]
impl Control for Fake {
    async fn submit(&self, caller: &Caller, submission: Submission) -> Result<Accepted, ControlError> {
        self.note(format!("submit by {} as {}", caller.user, submission.request));
        if self.stuck {
            std::future::pending::<()>().await;
        }
        if !submission.brought.trees.is_empty() {
            self.note(format!("brought {:?}", submission.brought));
        }
        let parsed = mloc_core::task::parse_with(submission.body.as_bytes(), &submission.file, &submission.brought)
            .map_err(|problems| ControlError::Invalid { detail: problems.to_string(), problems: Vec::new() })?;
        caller.may_act_for(&parsed.spec.metadata.owner)?;
        Ok(Accepted { task: task(), created: true, notes: vec!["n".into()], explain: Some(explain()) })
    }

    async fn tasks(&self, fresh: Freshness, _: TaskFilter) -> Result<TaskPage, ControlError> {
        self.note(format!("tasks {fresh:?}"));
        Ok(TaskPage { tasks: vec![task()], next: Some("1".into()) })
    }

    async fn task(&self, fresh: Freshness, id: &TaskId) -> Result<TaskView, ControlError> {
        self.note(format!("task {id} {fresh:?}"));
        Ok(task())
    }

    async fn brought(&self, _: &Caller, node: Option<&str>) -> Result<Vec<BroughtView>, ControlError> {
        self.note(format!("brought of {node:?}"));
        let (task, node, path) = ("task-1".to_owned(), "a".to_owned(), "./x".to_owned());
        Ok(vec![BroughtView { task, node, path, tree: "0".repeat(64), bytes: 1 }])
    }

    async fn cancel(&self, caller: &Caller, id: &TaskId) -> Result<TaskView, ControlError> {
        self.note(format!("cancel {id} by {}", caller.user));
        caller.may_act_for("john-doe")?;
        Ok(task())
    }

    async fn explain(&self, fresh: Freshness, id: &TaskId) -> Result<ExplainView, ControlError> {
        self.note(format!("explain {id} {fresh:?}"));
        Ok(explain())
    }

    async fn logs(&self, id: &TaskId, from: LogsFrom) -> Result<BoxStream<'static, io::Result<Bytes>>, ControlError> {
        self.note(format!("logs {id} {from:?}"));
        Ok(futures::stream::iter([Ok(Bytes::from_static(b"a line\n"))]).boxed())
    }

    async fn events(&self, fresh: Freshness, id: &TaskId) -> Result<Vec<Event>, ControlError> {
        self.note(format!("events {id} {fresh:?}"));
        let at = "2025-09-01T00:00:00.000Z".to_owned();
        let (attempt, node) = (Some("t.0.1".into()), Some("a".into()));
        Ok(vec![Event { at, event: "LOST".into(), attempt, node, detail: "why".into() }])
    }

    async fn nodes(&self, fresh: Freshness) -> Result<Vec<NodeView>, ControlError> {
        self.note(format!("nodes {fresh:?}"));
        Ok(vec![node()])
    }

    async fn drain(&self, caller: &Caller, id: &str, _: bool) -> Result<NodeView, ControlError> {
        self.note(format!("drain {id} by {}", caller.user));
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        Ok(node())
    }

    async fn revoke(&self, caller: &Caller, id: &str) -> Result<NodeView, ControlError> {
        self.note(format!("revoke {id} by {}", caller.user));
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        Ok(node())
    }

    async fn stats(&self, fresh: Freshness, _: StatsQuery) -> Result<StatsView, ControlError> {
        self.note(format!("stats {fresh:?}"));
        Ok(StatsView {
            query_parameters: BTreeMap::from([("user".into(), "john-doe".into())]),
            total_gpu_hours: 1.5,
            total_tasks_completed: 1,
            breakdown_by_gpu: BTreeMap::from([("nvidia-l40".into(), 1.5)]),
            total_cpu_core_hours: 0.0,
        })
    }

    async fn services(&self, fresh: Freshness) -> Result<Vec<ServiceView>, ControlError> {
        self.note(format!("services {fresh:?}"));
        Ok(vec![service()])
    }

    async fn wake(&self, caller: &Caller, name: &str) -> Result<ServiceView, ControlError> {
        self.note(format!("wake {name} by {}", caller.user));
        Ok(service())
    }

    async fn mesh(&self, fresh: Freshness) -> Result<MeshView, ControlError> {
        self.note(format!("mesh {fresh:?}"));
        Ok(MeshView {
            mesh: "m".into(),
            node: "a".into(),
            leader: Some("a".into()),
            term: 1,
            voters: vec!["a".into()],
            voters_alive: 1,
            members: 1,
            survives_failures: 0,
            advice: "one node".into(),
        })
    }

    async fn backup(&self, caller: &Caller) -> Result<Bytes, ControlError> {
        self.note(format!("backup by {}", caller.user));
        caller.may_act_for(mloc_api::auth::ADMIN)?;
        Ok(Bytes::from_static(BACKUP))
    }

    async fn metrics(&self) -> String {
        "mloc_members 1\n".into()
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

pub const ARTIFACT: &[u8] = b"what a task left\n";

/// Bytes at the node that took the request: one upload of ten bytes, of which four are there.
#[async_trait]
impl Files for Fake {
    fn node(&self) -> NodeId {
        NodeId::new("here")
    }

    async fn uploaded(&self, sha256: &str) -> Result<Uploaded, ControlError> {
        self.note(format!("uploaded {}", &sha256[..4]));
        Ok(Uploaded { bytes: 4, whole: false })
    }

    async fn upload(&self, sha256: &str, offset: u64, length: u64, bytes: FileBytes) -> Result<Uploaded, ControlError> {
        let got: Vec<_> = bytes.map(|piece| piece.unwrap()).collect().await;
        let text = String::from_utf8(got.concat()).unwrap();
        self.note(format!("upload {} from {offset}, {length} bytes: {text}", &sha256[..4]));
        Ok(Uploaded { bytes: offset + length, whole: true })
    }

    async fn missing(&self, tree: &str) -> Result<Vec<Missing>, ControlError> {
        Ok(vec![Missing { sha256: tree.to_owned(), bytes: 10, there: 4 }])
    }

    async fn keep(&self, brought: &BTreeMap<String, BroughtTree>) -> Result<(), ControlError> {
        self.note(format!("keep {:?}", brought.keys().collect::<Vec<_>>()));
        match brought.contains_key("./gone") {
            true => Err(ControlError::Conflict("./gone is not here".into())),
            false => Ok(()),
        }
    }

    async fn artifact(
        &self,
        result: &ResultView,
        path: &str,
        range: std::ops::Range<u64>,
    ) -> Result<FileBytes, ControlError> {
        self.note(format!("artifact {path} of {} on {}", result.attempt, result.node));
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        Ok(futures::stream::iter([Ok(Bytes::from_static(&ARTIFACT[range]))]).boxed())
    }
}

fn at() -> String {
    "2025-09-01T00:00:00.000Z".to_owned()
}

/// With every optional field, so that a schema can be held to it.
pub fn task() -> TaskView {
    TaskView {
        id: "task-1".into(),
        name: "echo".into(),
        owner: "john-doe".into(),
        project: "p".into(),
        task_type: "echo".into(),
        state: "RUNNING".into(),
        phase: Some("TRAINING".into()),
        reason: "why".into(),
        since: at(),
        submitted_at: at(),
        node: Some("a".into()),
        progress: Some(Progress {
            step: 1,
            note: Some("n".into()),
            serving: Some(Serving::default()),
            ..Progress::default()
        }),
        attempts: vec![AttemptView {
            id: "task-1.0.1".into(),
            node: "a".into(),
            node_name: "a".into(),
            state: "LOST".into(),
            reason: "silent".into(),
            assigned_at: at(),
            started_at: Some(at()),
            ended_at: Some(at()),
            gpu_type: "nvidia-l40".into(),
            gpus: vec![0],
        }],
        usage: vec![UsageRow {
            attempt: "task-1.0.1".into(),
            task_id: "task-1".into(),
            user_id: "john-doe".into(),
            project_id: "p".into(),
            start_time: at(),
            end_time: Some(at()),
            duration: 1.0,
            gpu_type: "nvidia-l40".into(),
            gpu_count: 1,
            gpu_hours: 0.1,
            cpu_millis: 100,
            cpu_core_hours: 0.0,
        }],
        result: Some(ResultView {
            location: "s3://b/p".into(),
            attempt: "task-1.0.1".into(),
            node: "a".into(),
            node_name: "a".into(),
            destination: Some(Location::Local { path: "out/p".into() }),
            artifacts: vec![Artifact {
                path: "logs/f".into(),
                kind: "training_logs".into(),
                bytes: ARTIFACT.len() as u64,
                sha256: "0".into(),
            }],
            summary: BTreeMap::from([("loss".into(), Value::from(1.0))]),
        }),
    }
}

/// What [`Fake`] says is served.
pub fn service() -> ServiceView {
    ServiceView {
        name: "chat".into(),
        owner: "john-doe".into(),
        task: "task-1".into(),
        created_unix: 1,
        desired: 1,
        ready: 1,
        sleeps: false,
        wakes: false,
        replicas: vec![ReplicaView {
            task: "task-1".into(),
            attempt: Some("task-1.0.1".into()),
            state: "READY".into(),
            node: Some("a".into()),
            node_name: "a".into(),
            reason: "why".into(),
            serving: Some(Serving { ready: true, ..Serving::default() }),
        }],
    }
}

fn explain() -> ExplainView {
    let reason = NodeReason { text: "t".into(), remedy: "r".into(), passes: false, misfit: None };
    let node = NodeExplanation { node: NodeId::new("a"), name: "a".into(), fits: false, reasons: vec![reason] };
    let explanation = Explanation {
        task: TaskId::new("task-1"),
        state: "PENDING",
        summary: "s".into(),
        waits_for: vec!["w".into()],
        ahead: vec![TaskId::new("task-0")],
        nodes: vec![node],
    };
    ExplainView { explanation: serde_json::to_value(explanation).unwrap(), text: "t".into() }
}

fn node() -> NodeView {
    NodeView {
        id: "a".into(),
        name: "a".into(),
        state: "IDLE".into(),
        leader: true,
        voter: true,
        version: "0".into(),
        cpu_model: "c".into(),
        cpu_millis_free: 1,
        cpu_millis: 1,
        memory_bytes_free: 1,
        memory_bytes: 1,
        disk_bytes: 1,
        matmul_gflops: Some(1),
        gpus: vec![GpuView {
            index: 0,
            gpu_type: "nvidia-l40".into(),
            memory_bytes: 1,
            utilisation_percent: 0,
            state: "HELD".into(),
            detail: "task-1.0.1".into(),
        }],
        features: vec!["echo".into()],
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        attempts: vec!["task-1.0.1".into()],
        addresses: vec!["/ip4/127.0.0.1/tcp/1".into()],
    }
}

/// A mesh as one node sees it: who leads, and the others behind streams in memory.
pub struct FakeMesh {
    pub leader: watch::Sender<Leader>,
    pub members: BTreeMap<NodeId, Arc<Fake>>,
    /// Far ends of streams to killed nodes: they stand, and nothing comes.
    pub silent: Mutex<Vec<DuplexStream>>,
}

impl FakeMesh {
    pub fn new(leader: Leader, members: &[(&str, &Arc<Fake>)]) -> Arc<Self> {
        let members = members.iter().map(|(name, fake)| (NodeId::new(*name), Arc::clone(fake))).collect();
        Arc::new(Self { leader: watch::Sender::new(leader), members, silent: Mutex::default() })
    }
}

#[async_trait]
impl Forward for FakeMesh {
    fn leader(&self) -> Leader {
        self.leader.borrow().clone()
    }

    async fn leader_other_than(&self, seen: &Leader) {
        // An error means that the mesh is gone, and the test with it.
        let _ = self.leader.subscribe().wait_for(|now| now != seen).await;
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        let (near, far) = tokio::io::duplex(64 << 10);
        match self.members.get(node) {
            Some(member) => {
                let service = TowerToHyperService::new(mloc_api::link_router(member.clone()));
                tokio::spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    // It breaks off when the asker gives up.
                    let _ = server.serve_connection(TokioIo::new(far), service).await;
                });
            }
            None => self.silent.lock().unwrap().push(far),
        }
        Ok(Box::new(near))
    }

    fn mint_key(&self) -> String {
        "minted-1".into()
    }
}

/// Replicas of services, each a function from a request to its answer.
#[async_trait]
impl Services for Fake {
    fn ready(&self, name: &str) -> Vec<Ready> {
        let attempt = AttemptId { task: TaskId::new("task-1"), replica: 0, attempt: 1 };
        if name == "chat" { vec![Ready { attempt, node: NodeId::new("a") }] } else { Vec::new() }
    }

    fn names(&self) -> BTreeSet<String> {
        BTreeSet::from(["chat".to_owned()])
    }

    async fn changed(&self, _most: Duration) {}

    async fn open(&self, _node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let answer = axum::routing::any(|request: Request<Body>| async move {
            axum::Json(serde_json::json!({"path": request.uri().to_string()}))
        });
        let service = TowerToHyperService::new(Router::new().fallback(answer));
        tokio::spawn(async move {
            // It breaks off when the asker gives up.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
        });
        Ok(Box::new(near))
    }

    async fn unheard(&self, _node: &NodeId) {
        std::future::pending().await
    }
}

fn parts(control: &Arc<Fake>, mesh: Arc<FakeMesh>) -> Parts {
    Parts { control: control.clone(), files: control.clone(), services: control.clone(), forward: mesh }
}

pub fn token_only(control: &Arc<Fake>, mesh: Arc<FakeMesh>) -> Router {
    mloc_api::rest_router(parts(control, mesh), Access::TokenOnly(tokens()))
}

pub fn trusted(control: &Arc<Fake>) -> Router {
    let mesh = FakeMesh::new(Leader::Here, &[]);
    mloc_api::rest_router(parts(control, mesh), Access::Trusted(tokens()))
}

/// A request: `METHOD PATH`, headers, body.
pub fn request(line: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder().method(method).uri(path);
    headers.iter().fold(request, |r, (k, v)| r.header(*k, *v)).body(Body::from(body.to_owned())).unwrap()
}

pub async fn ask(app: &Router, request: Request<Body>) -> Response<Body> {
    app.clone().oneshot(request).await.unwrap()
}

pub async fn status(app: &Router, line: &str, headers: &[(&str, &str)], body: &str) -> StatusCode {
    ask(app, request(line, headers, body)).await.status()
}

pub async fn json(response: Response<Body>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

pub async fn serve(app: Router) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}
