//! A node, assembled: mesh, worker, REST. Order matters: REST's listener first, to say what the node waits for; links
//! before joining, the worker before the orchestrator can send to it, what REST asks last, so that whoever reaches it
//! reaches a whole node.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use mloc_api::{
    Access, Control, Parts, UserTokens,
    forward::{Asking, Forward},
};
use mloc_core::quantity;
use mloc_mesh::{
    link::StreamKind,
    raft::{RaftSettings, VoterPolicy},
    start::{Mesh, MeshSettings, TOKEN_FILE},
    token::JoinToken,
};
use mloc_runtime::{AttemptLogs, ProbeSettings, Worker, WorkerSettings};
use mloc_store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

use crate::{
    addresses,
    config::{NodeConfig, Profile},
    control::{Host, MeshControl},
    files::{self, NodeFiles},
    front::Front,
    gpu_check::Checked,
    logs::Logs,
    members::{self, MeshForward, MeshLink},
    metrics::ConfigFigures,
    offers::{self, Offers},
    reload::{self, Reload},
    services::{self, MeshServices, MeshSiblings},
    settle, telemetry,
    uploads::Uploads,
};

/// Messages to this node's worker that wait.
const WORKER_INBOX: usize = 256;
/// How long REST has to answer what it has when the node stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// A running node.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its part in the mesh.
    pub mesh: Mesh,
    /// Where REST listens.
    pub rest: SocketAddr,
    front: Front,
    files: Arc<NodeFiles>,
    data_dir: PathBuf,
    worker: Option<Worker>,
    offers: watch::Sender<(NodeConfig, Offers)>,
    figures: watch::Sender<ConfigFigures>,
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// A start that is given up takes its listener with it.
    _drop: DropGuard,
}

/// Marks an error that another flag, environment variable or node.yaml would mend.
#[derive(Debug)]
pub struct BadConfig;

impl std::fmt::Display for BadConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the configuration")
    }
}

/// Keys for REST users, from the join token: every member has the same.
pub fn user_tokens(token: &JoinToken) -> UserTokens {
    UserTokens::new(token.derive(b"rest-users"))
}

impl Node {
    /// Starts it; returns when it serves.
    ///
    /// # Errors
    /// When files or sockets can't be had, or the mesh refuses it.
    pub async fn start(config: NodeConfig, token: Option<JoinToken>) -> anyhow::Result<Self> {
        // What is wrong with the configuration is found before anything is founded or joined; that all of it is too much to
        // gossip shows only with the hardware beside it.
        let gossip_advertise = addresses::advertise(&config).context(BadConfig)?;
        let link_advertise = addresses::link_advertise(&config).context(BadConfig)?;
        let store = Store::new(settle::store(&config).context(BadConfig)?)?;
        let secrets = settle::secrets(&config).context(BadConfig)?;
        let offers = Offers::settle(&config, store.features()).context(BadConfig)?;
        offers::announce_programs(&config.modules.command);
        let data_dir = config.data_dir.clone().context("dataDir is settled before")?;
        std::fs::create_dir_all(&data_dir).with_context(|| {
            let dir = data_dir.display();
            format!("create the data directory {dir} (--data-dir, MLOC_DATA_DIR or node.yaml's dataDir takes another)")
        })?;
        let data_dir = data_dir.canonicalize().context("the data directory's path")?;
        let name = config.name.clone().unwrap_or_else(host_name);
        let times = config.durations();

        // First of all: whoever probes this node learns what it waits for, and a taken port founds no mesh.
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let dropped = cancel.clone().drop_guard();
        let front = Front::open(addresses::rest_bind(&config), &data_dir, &tracker, &cancel).await?;

        let (to_worker, worker_inbox) = mpsc::channel(WORKER_INBOX);
        let raft = match config.profile {
            Profile::Lan => RaftSettings::lan(),
            Profile::Wan => RaftSettings::wan(),
        };
        let mesh = Mesh::start(
            MeshSettings {
                data_dir: data_dir.clone(),
                name: name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                gossip_bind: addresses::gossip_bind(&config),
                gossip_advertise,
                link_bind: addresses::link_bind(&config),
                link_advertise,
                work: config.role.work,
                seeds: config.seeds.clone(),
                waiting: front.waiting.clone(),
                bootstrap_expect: config.bootstrap_expect.and_then(|nodes| usize::try_from(nodes).ok()),
                token,
                gossip_interval: times.gossip_interval,
                raft: RaftSettings {
                    heartbeat: times.raft_heartbeat,
                    election_min: times.election.0,
                    election_max: times.election.1,
                    ..raft
                },
                voters: VoterPolicy {
                    stable_after: times.voter_stable,
                    grace: times.voter_grace,
                    ..VoterPolicy::default()
                },
                leader: settle::leader(times.lease),
                tick: times.tick,
            },
            to_worker,
        )
        .await?;
        front.waiting.send_replace("starting: the mesh is there, this node looks at its hardware".into());

        let uploads = Uploads::open(&data_dir, settle::upload_limits(&config).context(BadConfig)?);
        let uploads = Arc::new(uploads.with_context(|| format!("make uploads/ in {}", data_dir.display()))?);
        let files = NodeFiles::new(mesh.handle.clone(), store.clone(), uploads.clone(), data_dir.clone());
        let files = Arc::new(files);
        let store = store.with_peers(files.clone());

        let settings = ProbeSettings { node: mesh.handle.node().clone(), data_dir: data_dir.clone() };
        let capability = offers::capability(&settings, &config, &name, &offers, &Checked::default());
        info!(
            cores = quantity::show_cpu(capability.cpu_millis),
            memory = quantity::show_bytes(capability.memory_bytes),
            gpus = capability.gpus.len(),
            "hardware"
        );
        let worker = if config.role.work {
            let settings = WorkerSettings {
                node: mesh.handle.node().clone(),
                data_dir: data_dir.clone(),
                program: std::env::current_exe().context("this program's path")?,
                heartbeat: times.worker_heartbeat,
                lease: times.lease,
                secrets,
                programs: config.modules.command.enabled.then(|| settle::programs(&config)),
                disk_reserve_bytes: WorkerSettings::DISK_RESERVE_BYTES,
            };
            let link = Arc::new(MeshLink(mesh.handle.clone()));
            let others = Arc::new(MeshSiblings(mesh.handle.clone()));
            Some(Worker::start(settings, Arc::new(store), link, others, worker_inbox).await?)
        } else {
            None
        };
        let local_logs = worker.as_ref().map_or_else(|| Arc::new(AttemptLogs::new(&data_dir)), Worker::logs);
        let logs = Arc::new(Logs::new(local_logs));
        let replicas = worker.as_ref().map(Worker::replicas).unwrap_or_default();
        let figures = watch::Sender::default();
        let host = Host { data_dir: data_dir.clone(), config: figures.subscribe() };
        let control: Arc<dyn Control> =
            Arc::new(MeshControl::new(mesh.handle.clone(), logs.clone(), files.clone(), host));

        // Known before REST serves: the first `mloc nodes` shows this node as it is.
        mesh.handle.publish_capability(&capability).await.context(
            "this node's hardware can't be gossiped (hint: fewer labels, secrets, volumes, modules or kinds of simulated GPUs in node.yaml)",
        )?;

        let own = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            tracker.spawn(cancel.clone().run_until_cancelled_owned(task));
        };
        let offers = watch::Sender::new((config, offers));
        own(Box::pin(offers::keep_capability(mesh.handle.clone(), settings, name.clone(), offers.subscribe())));
        own(Box::pin(members::serve_members(mesh.accept(StreamKind::Http)?, control.clone())));
        own(Box::pin(members::serve_logs(mesh.accept(StreamKind::Logs)?, logs)));
        own(Box::pin(mesh.handle.serve_files(files.clone())?));
        own(Box::pin(services::announce(mesh.handle.clone(), replicas.clone())));
        own(Box::pin(services::serve(mesh.accept(StreamKind::Services)?, replicas.clone())));
        let forward: Arc<dyn Forward> = Arc::new(MeshForward(mesh.handle.clone()));
        let asking = Asking::new(control.clone(), forward.clone());
        own(Box::pin(files::collect_uploads(uploads, mesh.handle.node().clone(), asking)));

        let rest = front.rest;
        let tokens = user_tokens(&mesh.token);
        let access = if rest.ip().is_loopback() { Access::Trusted(tokens) } else { Access::TokenOnly(tokens) };
        let services = Arc::new(MeshServices { mesh: mesh.handle.clone(), replicas });
        let app = mloc_api::rest_router(Parts { control, files: files.clone(), services, forward }, access);
        front.serve(app, mesh.handle.node(), mesh.gossip_address)?;
        Ok(Self { name, mesh, rest, front, files, data_dir, worker, offers, figures, tracker, cancel, _drop: dropped })
    }

    /// The file that holds the join token.
    pub fn token_file(&self) -> PathBuf {
        self.data_dir.join(TOKEN_FILE)
    }

    /// Reads the configuration again whenever its files are no longer as `applied` says, and does what it says as far as
    /// a running node can.
    pub fn follow(&self, source: reload::Source, applied: reload::Seen, level: telemetry::Level) {
        let (offers, tools) = (self.offers.clone(), self.worker.as_ref().map(Worker::tools));
        let files = self.files.clone();
        let running = offers.borrow().0.clone();
        let apply = move |config: &NodeConfig| {
            let store = Store::new(settle::store(config)?)?;
            let secrets = settle::secrets(config)?;
            let offer = Offers::settle(config, store.features())?;
            files.change(store.clone());
            if let Some(tools) = &tools {
                tools.change(secrets, Arc::new(store.with_peers(files.clone())), config.secret_files());
            }
            level.choose(config.log.as_deref());
            offers.send_replace((config.clone(), offer));
            Ok(())
        };
        let reload = Reload { source, applied, running, figures: self.figures.clone() };
        self.tracker.spawn(self.cancel.clone().run_until_cancelled_owned(async move { reload.keep(apply).await }));
    }

    /// Returns when the node can't go on, with the reason.
    pub async fn failed(&self) -> String {
        match &self.worker {
            Some(worker) => worker.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Saves checkpoints, hands the lead over, leaves.
    pub async fn stop(self) {
        self.front.leave();
        if let Some(worker) = self.worker {
            worker.stop().await;
        }
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(GOODBYE, self.tracker.wait()).await.is_err() {
            warn!(seconds = GOODBYE.as_secs(), "some requests were not answered");
        }
        self.mesh.stop().await;
    }
}

/// This machine's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "node".to_owned())
}
