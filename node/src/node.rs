//! A node, assembled: mesh, worker, REST. Order matters: REST's listener first, to say what the node waits for; links
//! before joining, the worker before the orchestrator can send to it, what REST asks last, so that whoever reaches it
//! reaches a whole node.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use async_trait::async_trait;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use mloc_api::{
    Access, Control, UserTokens,
    forward::{Asking, Duplex, Forward, Leader},
};
use mloc_core::{
    capability::{Capability, Gpu, SIMULATED},
    id::NodeId,
    leader::Settings as LeaderSettings,
    quantity,
};
use mloc_exec::{Programs, Sandbox};
use mloc_mesh::{
    handle::{LeaderView, MeshHandle},
    link::{LinkAdvertise, StreamKind},
    quic_transport::Advertise,
    raft::{RaftSettings, VoterPolicy},
    start::{Mesh, MeshSettings, TOKEN_FILE},
    token::JoinToken,
};
use mloc_runtime::{AttemptLogs, LeaderLink, LinkDown, ProbeSettings, Worker, WorkerSettings};
use mloc_store::{Secret, Store, StoreConfig};
use tokio::sync::{mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

use crate::{
    config::{CommandModule, NodeConfig, Profile, Vote},
    control::{Host, MeshControl},
    files::{self, NodeFiles},
    front::Front,
    logs::Logs,
    metrics::ConfigFigures,
    reload::{self, Reload},
    telemetry,
    uploads::{Limits, Uploads},
};

/// Messages to this node's worker that wait.
const WORKER_INBOX: usize = 256;
/// Volatile figures (GPU use, free disk) are read and gossiped this often.
const LOAD_EVERY: Duration = Duration::from_secs(5);
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
        let gossip_advertise = advertise(&config).context(BadConfig)?;
        let link_advertise = link_advertise(&config).context(BadConfig)?;
        let store = Store::new(store_config(&config).context(BadConfig)?)?;
        let secrets = secrets(&config).context(BadConfig)?;
        let offers = Offers::settle(&config, store.features()).context(BadConfig)?;
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
        let bind = config.rest.bind.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7948)));
        let front = Front::open(bind, &data_dir, &tracker, &cancel).await?;

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
                gossip_bind: config.gossip.bind.unwrap_or_else(|| any_address(7946)),
                gossip_advertise,
                link_bind: link_bind(&config),
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
                leader: leader_settings(times.lease),
                tick: times.tick,
            },
            to_worker,
        )
        .await?;
        front.waiting.send_replace("starting: the mesh is there, this node looks at its hardware".into());

        let uploads = Uploads::open(&data_dir, upload_limits(&config).context(BadConfig)?);
        let uploads = Arc::new(uploads.with_context(|| format!("make uploads/ in {}", data_dir.display()))?);
        let files = NodeFiles::new(mesh.handle.clone(), store.clone(), uploads.clone(), data_dir.clone());
        let files = Arc::new(files);
        let store = store.with_peers(files.clone());

        let settings = ProbeSettings { node: mesh.handle.node().clone(), data_dir: data_dir.clone() };
        let capability = capability(&settings, &config, &name, &offers);
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
                programs: config
                    .modules
                    .command
                    .enabled
                    .then(|| Programs { sandbox: config.modules.command.sandbox, hidden: config.secret_files() }),
                disk_reserve_bytes: WorkerSettings::DISK_RESERVE_BYTES,
            };
            let link = Arc::new(MeshLink(mesh.handle.clone()));
            Some(Worker::start(settings, Arc::new(store), link, worker_inbox).await?)
        } else {
            None
        };
        let local_logs = worker.as_ref().map_or_else(|| Arc::new(AttemptLogs::new(&data_dir)), Worker::logs);
        let logs = Arc::new(Logs::new(local_logs));
        let figures = watch::Sender::default();
        let host = Host { data_dir: data_dir.clone(), config: figures.subscribe() };
        let control: Arc<dyn Control> = Arc::new(MeshControl::new(mesh.handle.clone(), logs.clone(), host));

        // Known before REST serves: the first `mloc nodes` shows this node as it is.
        mesh.handle.publish_capability(&capability).await.context(
            "this node's hardware can't be gossiped (hint: fewer labels, secrets, volumes, modules or kinds of simulated GPUs in node.yaml)",
        )?;

        let own = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            tracker.spawn(cancel.clone().run_until_cancelled_owned(task));
        };
        let offers = watch::Sender::new((config, offers));
        own(Box::pin(keep_capability(mesh.handle.clone(), settings, name.clone(), offers.subscribe())));
        own(Box::pin(serve_members(mesh.accept(StreamKind::Http)?, control.clone())));
        own(Box::pin(serve_logs(mesh.accept(StreamKind::Logs)?, logs)));
        own(Box::pin(mesh.handle.serve_files(files.clone())?));
        let forward: Arc<dyn Forward> = Arc::new(MeshForward(mesh.handle.clone()));
        let asking = Asking::new(control.clone(), forward.clone());
        own(Box::pin(files::collect_uploads(uploads, mesh.handle.node().clone(), asking)));

        let rest = front.rest;
        let tokens = user_tokens(&mesh.token);
        let access = if rest.ip().is_loopback() { Access::Trusted(tokens) } else { Access::TokenOnly(tokens) };
        let app = mloc_api::rest_router(control, files.clone(), forward, access);
        front.serve(app, mesh.handle.node(), mesh.gossip_address)?;
        Ok(Self { name, mesh, rest, front, files, data_dir, worker, offers, figures, tracker, cancel, _drop: dropped })
    }

    /// The file that holds the join token.
    pub fn token_file(&self) -> PathBuf {
        self.data_dir.join(TOKEN_FILE)
    }

    /// Reads `file` again whenever it changes, and does what it says as far as a running node can.
    pub fn follow(&self, file: PathBuf, read: reload::Read, level: telemetry::Level) {
        let (offers, tools) = (self.offers.clone(), self.worker.as_ref().map(Worker::tools));
        let files = self.files.clone();
        let running = offers.borrow().0.clone();
        let apply = move |config: &NodeConfig| {
            let store = Store::new(store_config(config)?)?;
            let secrets = secrets(config)?;
            let offer = Offers::settle(config, store.features())?;
            files.change(store.clone());
            if let Some(tools) = &tools {
                tools.change(secrets, Arc::new(store.with_peers(files.clone())), config.secret_files());
            }
            level.choose(config.log.as_deref());
            offers.send_replace((config.clone(), offer));
            Ok(())
        };
        let reload = Reload { file, read, running, figures: self.figures.clone() };
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

fn leader_settings(lease: Duration) -> LeaderSettings {
    let ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    let default = LeaderSettings::default();
    // A short lease (tests, small LANs) has short pacing too.
    LeaderSettings {
        lease_ms: ms,
        slack_ms: default.slack_ms.min(ms / 6),
        resend_ms: default.resend_ms.min(ms / 6),
        resend_max_ms: default.resend_max_ms.min(ms / 2),
        ..default
    }
}

/// This machine's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "node".to_owned())
}

/// `[::]` listens on IPv4 too; without IPv6 in the kernel, `0.0.0.0`.
fn any_address(port: u16) -> SocketAddr {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    if std::net::UdpSocket::bind(v6).is_ok() {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from(([0, 0, 0, 0], port))
    }
}

fn link_bind(config: &NodeConfig) -> SocketAddr {
    config.links.bind.unwrap_or_else(|| {
        let gossip = config.gossip.bind.unwrap_or_else(|| any_address(7946));
        SocketAddr::new(gossip.ip(), 7947)
    })
}

fn advertise(config: &NodeConfig) -> anyhow::Result<Advertise> {
    if !config.role.reachable {
        return Ok(Advertise::DialsOutOnly);
    }
    match &config.gossip.advertise {
        None => Ok(Advertise::Detect),
        Some(text) => Ok(Advertise::At(resolve(text, "--advertise (gossip.advertise)")?)),
    }
}

/// Links are told as they are written, a name as a name: whoever dials resolves it. Gossip's host serves both, its port
/// does not.
fn link_advertise(config: &NodeConfig) -> anyhow::Result<Option<LinkAdvertise>> {
    let read = |text: &str, flag: &str| text.parse::<LinkAdvertise>().with_context(|| format!("{flag} {text}"));
    match (&config.links.advertise, &config.gossip.advertise) {
        (Some(text), _) => read(text, "--link-advertise (links.advertise)").map(Some),
        (None, Some(text)) => {
            read(text, "--advertise (gossip.advertise)").map(|advertise| Some(advertise.at_bound_port()))
        }
        (None, None) => Ok(None),
    }
}

/// `HOST:PORT`, or `HOST` alone (port 0: the bound one).
fn resolve(text: &str, flag: &str) -> anyhow::Result<SocketAddr> {
    let with_port = if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        format!("[{text}]:0")
    } else if text.contains(':') {
        text.to_owned()
    } else {
        format!("{text}:0")
    };
    let found = with_port.to_socket_addrs().with_context(|| format!("{flag} {text}: expected HOST:PORT or HOST"))?;
    found.into_iter().next().with_context(|| format!("{flag} {text}: the name has no address"))
}

fn secret(path: &Path) -> anyhow::Result<String> {
    crate::client::read_secret(path)
}

fn secrets(config: &NodeConfig) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    config.secrets.iter().map(|(name, path)| Ok((name.clone(), secret(path)?))).collect()
}

fn store_config(config: &NodeConfig) -> anyhow::Result<StoreConfig> {
    let cache = config.cache()?;
    let mut store = StoreConfig { volumes: config.volumes.clone(), cache, ..StoreConfig::default() };
    store.s3.endpoint = config.s3.endpoint.clone().or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
    store.s3.region.clone_from(&config.s3.region);
    store.s3.access_key_id = config.s3.access_key_id_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.secret_access_key = config.s3.secret_access_key_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.session_token = config.s3.session_token_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.anonymous = config.s3.anonymous;
    config.store.settle(&mut store, secret)?;
    Ok(store)
}

/// An upload that says nothing for so long has broken off: its client goes on with another.
const UPLOAD_SILENCE: Duration = Duration::from_secs(60);

fn upload_limits(config: &NodeConfig) -> anyhow::Result<Limits> {
    let (bytes_max, keep_for) = config.uploads.settle()?;
    let reserve = StoreConfig::default().reserve_bytes;
    Ok(Limits { bytes_max, reserve, keep_for, silence: UPLOAD_SILENCE })
}

/// The module that runs programs of users.
const COMMAND: &str = "command";

/// What is said of programs of users before any is run; an error when they must be held and cannot be.
fn runs_programs(command: &CommandModule) -> anyhow::Result<()> {
    if !command.enabled {
        return Ok(());
    }
    match (command.sandbox, mloc_modules::sandbox_available()) {
        (Sandbox::Required | Sandbox::BestEffort, Ok(())) => info!("programs of users run here, held to their folders"),
        (Sandbox::Off, _) => warn!("programs of users run here and can do whatever this node's user can"),
        (Sandbox::BestEffort, Err(why)) => {
            warn!(%why, "programs of users run here and can do whatever this node's user can");
        }
        (Sandbox::Required, Err(why)) => bail!(
            "modules.command: programs of users cannot be held to their folders here: {why}\nhint: allow Landlock (Linux 6.2, and a container whose filter lets it pass), or set modules.command.sandbox: best-effort"
        ),
    }
    Ok(())
}

/// What the configuration says of this node's offers.
#[derive(Clone, Debug)]
struct Offers {
    cpu_millis: Option<u64>,
    memory_bytes: Option<u64>,
    simulated: Vec<Gpu>,
    features: BTreeSet<String>,
}

impl Offers {
    fn settle(config: &NodeConfig, of_store: Vec<String>) -> anyhow::Result<Self> {
        let bad = |key: &str, text: &str, e: quantity::BadQuantity| {
            anyhow::anyhow!(
                "hardware.{key}: `{text}`: expected {}{}",
                e.expected,
                e.hint.map(|h| format!("; {h}")).unwrap_or_default()
            )
        };
        let hardware = &config.hardware;
        let cpu = hardware.cpu.as_ref();
        let cpu_millis = cpu.map(|text| quantity::cpu_millis(text).map_err(|e| bad("cpu", text, e))).transpose()?;
        let memory = hardware.memory.as_ref();
        let memory_bytes = memory.map(|text| quantity::bytes(text).map_err(|e| bad("memory", text, e))).transpose()?;
        let mut simulated = Vec::new();
        for gpus in &hardware.simulated.gpus {
            let memory_bytes =
                quantity::bytes(&gpus.memory).map_err(|e| bad("simulated.gpus.memory", &gpus.memory, e))?;
            let kind = gpus.kind.strip_prefix(SIMULATED).unwrap_or(&gpus.kind);
            let gpu = Gpu {
                index: 0,
                kind: format!("{SIMULATED}{kind}"),
                memory_bytes,
                driver: "simulated".into(),
                utilisation_percent: 0,
                unusable: None,
                unusable_for_good: false,
            };
            simulated.extend((0..gpus.count).map(|_| gpu.clone()));
        }
        let known: BTreeSet<&str> = mloc_modules::registry().iter().map(|module| module.name()).collect();
        if let Some(odd) = config.modules.offer.iter().flatten().find(|name| !known.contains(name.as_str())) {
            bail!(
                "modules.offer: this build has no `{odd}`; it has {}",
                known.into_iter().collect::<Vec<_>>().join(", ")
            );
        }
        let offer = config.modules.offer.as_ref();
        let wanted = |name: &str| match name {
            COMMAND => config.modules.command.enabled,
            _ => offer.is_none_or(|names| names.iter().any(|n| n == name)),
        };
        runs_programs(&config.modules.command)?;
        let modules: Vec<_> = mloc_modules::registry().iter().filter(|m| wanted(m.name())).collect();
        let mut features: BTreeSet<String> = modules.iter().map(|m| m.name().to_owned()).collect();
        features.extend(of_store);
        features.extend(config.secrets.keys().map(|name| format!("secret:{name}")));
        features.extend(modules.iter().flat_map(|m| m.features()));
        Ok(Self { cpu_millis, memory_bytes, simulated, features })
    }
}

/// What this node offers: what was found, unless its configuration says otherwise.
fn capability(settings: &ProbeSettings, config: &NodeConfig, name: &str, offers: &Offers) -> Capability {
    let mut found = mloc_runtime::probe(settings);
    name.clone_into(&mut found.name);
    env!("CARGO_PKG_VERSION").clone_into(&mut found.version);
    found.cpu_millis = offers.cpu_millis.unwrap_or(found.cpu_millis);
    found.memory_bytes = offers.memory_bytes.unwrap_or(found.memory_bytes);
    for gpu in &offers.simulated {
        let index = u32::try_from(found.gpus.len()).unwrap_or(u32::MAX);
        found.gpus.push(Gpu { index, ..gpu.clone() });
    }
    found.features.clone_from(&offers.features);
    found.labels.clone_from(&config.labels);
    found.work = config.role.work;
    found.vote = config.role.vote == Vote::Auto && config.role.reachable;
    found.reachable = config.role.reachable;
    found
}

/// Gossips what this node offers whenever it changes, with the measured matmul rate once that is there.
async fn keep_capability(
    mesh: MeshHandle,
    settings: ProbeSettings,
    name: String,
    mut offers: watch::Receiver<(NodeConfig, Offers)>,
) {
    let measured = tokio::task::spawn_blocking(mloc_modules::measure_matmul).await.ok();
    let mut ticks = tokio::time::interval(LOAD_EVERY);
    loop {
        let (again, named, (with, offered)) = (settings.clone(), name.clone(), offers.borrow_and_update().clone());
        let probed = tokio::task::spawn_blocking(move || capability(&again, &with, &named, &offered)).await;
        if let Ok(mut found) = probed {
            found.matmul_gflops = measured;
            // Disk in steps of 256 MiB: every byte would be news to the whole mesh.
            found.disk_bytes &= !((256 << 20) - 1);
            if let Err(error) = mesh.publish_capability(&found).await {
                warn!(%error, "this node's hardware is gossiped as it was before");
            }
        }
        tokio::select! {
            _ = ticks.tick() => {}
            // Ends with the node, and this with it.
            Ok(()) = offers.changed() => {}
        }
    }
}

/// Requests that members forward to this node.
async fn serve_members(mut streams: mpsc::Receiver<(NodeId, mloc_mesh::link::LinkStream)>, control: Arc<dyn Control>) {
    let app = mloc_api::link_router(control);
    let tasks = TaskTracker::new();
    while let Some((peer, stream)) = streams.recv().await {
        let service = TowerToHyperService::new(app.clone());
        tasks.spawn(async move {
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "a forwarded request broke off");
            }
        });
    }
}

/// Logs that members ask for.
async fn serve_logs(mut streams: mpsc::Receiver<(NodeId, mloc_mesh::link::LinkStream)>, logs: Arc<Logs>) {
    let tasks = TaskTracker::new();
    while let Some((peer, stream)) = streams.recv().await {
        let logs = logs.clone();
        tasks.spawn(async move {
            if let Err(error) = logs.serve(stream).await {
                tracing::debug!(%peer, %error, "a log's reader went away");
            }
        });
    }
}

/// The worker's way to the leader.
struct MeshLink(MeshHandle);

#[async_trait]
impl LeaderLink for MeshLink {
    async fn send(&self, message: mloc_core::wire::ToLeader) -> Result<mloc_core::wire::FromLeader, LinkDown> {
        self.0.ask_leader(message).await.map_err(|error| LinkDown(error.to_string()))
    }
}

fn leader(view: LeaderView) -> Leader {
    match view {
        LeaderView::Here { .. } => Leader::Here,
        LeaderView::There { node, .. } => Leader::There(node),
        LeaderView::Unknown => Leader::Unknown,
    }
}

/// REST's way to the leader.
struct MeshForward(MeshHandle);

#[async_trait]
impl Forward for MeshForward {
    fn leader(&self) -> Leader {
        leader(self.0.leader())
    }

    async fn leader_other_than(&self, seen: &Leader) {
        loop {
            let view = self.0.leader();
            if leader(view.clone()) != *seen {
                return;
            }
            // A new term of the same leader is no other leader.
            self.0.leader_other_than(&view).await;
        }
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        Ok(Box::new(self.0.open_stream(node, StreamKind::Http).await?))
    }

    fn mint_key(&self) -> String {
        format!("minted-{}", hex::encode(rand::random::<[u8; 16]>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_offered_by_name_and_s3_always() {
        let config = NodeConfig::parse("secrets: {HUB_TOKEN: /run/secrets/hub}\n").unwrap();
        let of_store = Store::new(store_config(&config).unwrap()).unwrap().features();
        let offers = Offers::settle(&config, of_store).unwrap();
        for feature in ["secret:HUB_TOKEN", "source:s3", "destination:s3"] {
            assert!(offers.features.contains(feature), "{:?}", offers.features);
        }
    }

    #[test]
    fn programs_of_users_are_offered_only_where_that_is_switched_on() {
        let features = |yaml: &str| Offers::settle(&NodeConfig::parse(yaml).unwrap(), vec![]).unwrap().features;
        assert!(!features("name: a").contains(COMMAND) && features("name: a").contains("sft"));
        let on = features("modules: {offer: [echo], command: {enabled: true, sandbox: off}}");
        assert!(on.contains(COMMAND) && on.contains("echo") && !on.contains("sft"), "{on:?}");
    }

    fn advertised(links: Option<&str>, gossip: Option<&str>) -> anyhow::Result<Option<LinkAdvertise>> {
        let mut config = NodeConfig::default();
        config.links.advertise = links.map(str::to_owned);
        config.gossip.advertise = gossip.map(str::to_owned);
        link_advertise(&config)
    }

    #[test]
    fn links_are_told_with_their_own_port_and_gossips_host() {
        let read = |text: &str| Some(text.parse::<LinkAdvertise>().unwrap());
        assert_eq!(advertised(None, None).unwrap(), None);
        assert_eq!(advertised(Some("gpu-1:9000"), Some("gpu-2:7946")).unwrap(), read("gpu-1:9000"));
        assert_eq!(advertised(None, Some("gpu-2:7946")).unwrap(), read("gpu-2"));
    }

    #[test]
    fn what_cannot_be_dialled_is_said_with_the_flag_it_came_by() {
        let error = |links, gossip| format!("{:#}", advertised(links, gossip).unwrap_err());
        assert!(
            error(Some("gpu-1:x"), None).starts_with("--link-advertise (links.advertise) gpu-1:x: expected HOST:PORT")
        );
        assert!(error(None, Some("gpu-1:x")).starts_with("--advertise (gossip.advertise) gpu-1:x: expected HOST:PORT"));
    }
}
