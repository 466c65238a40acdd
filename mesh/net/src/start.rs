//! Starting a node's part in the mesh, and stopping it: files, sockets and tasks in the one order that works.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use futures::FutureExt;
use mloc_core::{
    id::NodeId,
    leader::{Leader, Settings as LeaderSettings},
    ledger::{Entry, entry::Member},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{Instrument, error, info, warn};

use crate::{
    calls::{Answer, Call, decode, encode},
    clock::SteadyClock,
    founding::{Acceptor, Group},
    gathering::{Founding, Gathered, Gathering},
    gossip::{Gossip, GossipHealth, GossipSettings, next_generation},
    handle::{Inner, LeaderView, MeshHandle},
    identity::NodeIdentity,
    leadership::Confirmed,
    link::{Channel, IncomingRequest, LinkAdvertise, LinkError, LinkHandle, LinkSettings, LinkStream, StreamKind},
    members::MemberTable,
    membership::{Table, table_of},
    orchestrator::{WorkerInbox, WorkerMessage},
    quic_transport::{Advertise, EndpointSettings, GossipEndpoint, JoinRequest},
    raft::{BootstrapError, Consensus, ConsensusStart, RaftSettings, RaftWire, VoterPolicy, WireError},
    tls::MeshTls,
    token::JoinToken,
    voting::Voting,
};

/// File in the data directory that holds the join token.
pub const TOKEN_FILE: &str = "join.token";
/// Calls of members answered at once.
const CALLS_AT_ONCE: usize = 64;
/// How long tasks have to end at a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node brings.
pub struct MeshSettings {
    /// Key, ledger, tables. Created if absent.
    pub data_dir: PathBuf,
    /// Name for people.
    pub name: String,
    /// The binary's version.
    pub version: String,
    /// Gossip.
    pub gossip_bind: SocketAddr,
    /// What to tell others of it.
    pub gossip_advertise: Advertise,
    /// Links.
    pub link_bind: SocketAddr,
    /// What others dial for links, when it is not what is listened on.
    pub link_advertise: Option<LinkAdvertise>,
    /// Whether it takes work; without, assignments are refused.
    pub work: bool,
    /// Members' gossip addresses.
    pub seeds: Vec<String>,
    /// What the start waits for, in words: it may take as long as it takes.
    pub waiting: watch::Sender<String>,
    /// Found the mesh together with the other seeds, once so many of them are there (see [`crate::founding`]). Without,
    /// a node with seeds only joins.
    pub bootstrap_expect: Option<usize>,
    /// The join token, when it was given; else the data directory's, else a new mesh's.
    pub token: Option<JoinToken>,
    /// Between two rounds of gossip.
    pub gossip_interval: Duration,
    /// Consensus.
    pub raft: RaftSettings,
    /// When members vote.
    pub voters: VoterPolicy,
    /// Leases and pacing.
    pub leader: LeaderSettings,
    /// How late the orchestrator may notice that time has passed.
    pub tick: Duration,
}

/// A running part in the mesh.
pub struct Mesh {
    /// What the rest of the node uses.
    pub handle: MeshHandle,
    /// The token of this mesh: for a person at a terminal, and what is derived from it.
    pub token: JoinToken,
    /// Whether this start founded the mesh.
    pub founded: bool,
    /// Where gossip listens.
    pub gossip_address: SocketAddr,
    /// What others are told to dial for gossip.
    pub gossip_advertised: SocketAddr,
    link: LinkHandle,
    endpoint: Arc<GossipEndpoint>,
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Dropped without [`Mesh::stop`] its tasks end first: none of them may take the end of the others for a fault.
    _drop: DropGuard,
}

/// Raft over links.
struct LinkWire(LinkHandle);

#[async_trait]
impl RaftWire for LinkWire {
    async fn call(&self, peer: &NodeId, body: Vec<u8>) -> Result<Vec<u8>, WireError> {
        self.0.request(peer, Channel::Raft, body).await.map_err(|error| match error {
            // Asked again at once: the next try dials anew.
            LinkError::Timeout { .. } | LinkError::Closed => {
                WireError::Broken { peer: peer.clone(), why: error.to_string() }
            }
            LinkError::Unreachable { .. } | LinkError::Refused { .. } | LinkError::TooLarge { .. } => {
                WireError::Unreachable { peer: peer.clone(), why: error.to_string() }
            }
        })
    }
}

/// How a node comes to its mesh.
enum Way {
    /// Nothing here, no seeds: a new mesh.
    Found(JoinToken),
    /// Nothing here, seeds: ask them.
    Join(JoinToken),
    /// Nothing here, and the seeds are to found a mesh together, unless there is one.
    Gather(JoinToken, Group),
    /// It was a member before.
    Return(JoinToken, MemberTable),
}

fn way(settings: &MeshSettings) -> anyhow::Result<Way> {
    let dir = &settings.data_dir;
    let kept = MemberTable::load(dir)?;
    let file = dir.join(TOKEN_FILE);
    let own = if file.exists() { Some(JoinToken::from_file(&file)?) } else { None };
    let given = settings.token.clone();
    if let (None, None, Some(token), true) = (&kept, &given, &own, settings.seeds.is_empty()) {
        // A token of its own and no member table: the founding was cut short, and goes on. (Whoever joins keeps the
        // table before the token.)
        return Ok(Way::Found(token.clone()));
    }
    let token = given.or(own);
    let group = match settings.bootstrap_expect {
        // One founds alone, as without it.
        None | Some(1) => None,
        Some(expect) => Some(Group::new(expect, &settings.seeds)?),
    };
    match (kept, token) {
        (Some(table), Some(token)) if table.mesh == *token.mesh() => Ok(Way::Return(token, table)),
        (Some(table), Some(token)) => anyhow::bail!(
            "{} belongs to mesh {}, the token is of mesh {}: use another data directory, or the token of the first",
            dir.display(),
            table.mesh,
            token.mesh()
        ),
        (Some(table), None) => anyhow::bail!(
            "{} belongs to mesh {}, and its {TOKEN_FILE} is gone: pass the token by file or environment",
            dir.display(),
            table.mesh
        ),
        (None, Some(token)) if !settings.seeds.is_empty() => match group {
            // Chosen before and cut short: whoever joined meanwhile waits for this node, so it asks nobody.
            _ if Acceptor::load(dir)?.chosen => Ok(Way::Found(token)),
            Some(group) => Ok(Way::Gather(token, group)),
            None => Ok(Way::Join(token)),
        },
        (None, Some(_)) => anyhow::bail!(
            "a join token without a seed: `mloc join HOST:PORT` joins a mesh, `mloc up` without a token founds one"
        ),
        (None, None) if group.is_some() => anyhow::bail!(
            "bootstrapExpect without a join token: the nodes that found a mesh need the same one beforehand, by \
             --token-file or MLOC_JOIN_TOKEN"
        ),
        (None, None) if settings.seeds.is_empty() => Ok(Way::Found(JoinToken::found(&mut rand::rng()))),
        (None, None) => anyhow::bail!(
            "no join token: it is in join.token of a member's data directory; pass it by --token-file or MLOC_JOIN_TOKEN"
        ),
    }
}

impl Mesh {
    /// Starts, joins or founds. A node with seeds waits for its mesh for as long as it takes.
    ///
    /// # Errors
    /// When files or sockets can't be had, or the mesh refuses this node for good.
    pub async fn start(settings: MeshSettings, worker: mpsc::Sender<WorkerMessage>) -> anyhow::Result<Self> {
        let dir = settings.data_dir.clone();
        std::fs::create_dir_all(&dir).with_context(|| format!("create the data directory {}", dir.display()))?;
        let clock = SteadyClock::start();
        let identity = Arc::new(NodeIdentity::load_or_create(&dir)?);
        let node = identity.node().clone();
        let way = way(&settings)?;
        let token = match &way {
            Way::Found(token) | Way::Join(token) | Way::Gather(token, _) | Way::Return(token, _) => token.clone(),
        };
        let tls = MeshTls::new(&identity, std::slice::from_ref(&token))?;
        let generation = next_generation(&dir, clock.now().0)?;
        let endpoint_settings = EndpointSettings::new(settings.gossip_bind, settings.gossip_advertise, generation);
        let (endpoint, mut asks) = GossipEndpoint::bind(node.clone(), &tls, &endpoint_settings)?;
        let endpoint = Arc::new(endpoint);

        let mut link_settings = LinkSettings::new(settings.link_bind);
        link_settings.advertise = settings.link_advertise;
        let link = LinkHandle::start(link_settings, &identity).await?;

        let gathering = |founding| Gathering {
            endpoint: &endpoint,
            seeds: &settings.seeds,
            request: JoinRequest {
                mesh: token.mesh().clone(),
                name: settings.name.clone(),
                version: settings.version.clone(),
                addresses: link.addresses(),
                founding: None,
            },
            founding,
            said: String::new(),
            waiting: &settings.waiting,
        };
        let gathered = match way {
            Way::Found(_) => Gathered::Founder,
            Way::Return(_, table) => Gathered::Member(table),
            Way::Join(_) => gathering(None).run(&mut asks).await?,
            Way::Gather(_, group) => gathering(Some(Founding::new(&dir, &node, group)?)).run(&mut asks).await?,
        };
        let founded = matches!(gathered, Gathered::Founder);
        let table = match gathered {
            Gathered::Founder => MemberTable::new(token.mesh().clone(), 0, BTreeMap::new()),
            Gathered::Member(table) => {
                // Before the token: a token without a table is a founding that was cut short.
                table.store(&dir)?;
                table
            }
        };
        crate::durable_file::replace(&dir.join(TOKEN_FILE), format!("{}\n", token.reveal()).as_bytes(), 0o600)
            .with_context(|| format!("keep the join token in {}", dir.display()))?;
        let table = Table::new(&dir, table);

        let allowed = table.clone();
        let consensus = Consensus::start(ConsensusStart {
            dir: dir.clone(),
            me: node.clone(),
            settings: settings.raft,
            wire: Arc::new(LinkWire(link.clone())),
            is_member: Arc::new(move |peer| allowed.allows(peer)),
        })
        .await?;
        let gossip_settings = GossipSettings {
            seeds: settings.seeds.clone(),
            interval: settings.gossip_interval,
            seek: settings.gossip_interval.max(Duration::from_millis(200)),
            ..GossipSettings::default()
        };
        let gossip = Gossip::start(gossip_settings, &endpoint, identity.clone()).await?;
        link.follow_restarts(gossip.members());
        let mut gossip_health = gossip.health();
        let inner = Inner {
            node: node.clone(),
            mesh: token.mesh().clone(),
            consensus: consensus.clone(),
            endpoint: endpoint.clone(),
            gossip,
            link: link.clone(),
            slack: Duration::from_millis(settings.leader.slack_ms),
            leader: Mutex::new(Leader::new(node.clone(), settings.leader)),
            wake: Notify::new(),
            confirmed: Mutex::new(None),
            clock,
            confirmed_leaders: watch::Sender::new(Confirmed::default()),
            load_said: Mutex::new(None),
            voting: tokio::sync::Mutex::new(Voting::new(settings.voters)),
        };
        let mesh = MeshHandle { inner: Arc::new(inner) };
        if founded {
            found(&mesh, &settings.name).await?;
        }

        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let spawn = |name: &'static str, task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let watched = async move {
                if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                    error!(task = name, "a task of the mesh died; the process ends so that it can start anew");
                    std::process::abort();
                }
            };
            tracker
                .spawn(cancel.clone().run_until_cancelled_owned(watched.instrument(tracing::info_span!("mesh", name))));
        };
        let pause = settings.gossip_interval;
        let worker = if settings.work { WorkerInbox::Open(worker) } else { WorkerInbox::TakesNone };
        spawn("leader", Box::pin(mesh.clone().confirm_leaders()));
        spawn("join", Box::pin(mesh.clone().let_in(asks)));
        spawn("members", Box::pin(mesh.clone().keep_members(table.clone(), endpoint.clone(), pause)));
        spawn("voters", Box::pin(mesh.clone().keep_voters(pause * 2)));
        spawn("orchestrator", Box::pin(mesh.clone().orchestrate(worker.clone(), settings.tick)));
        let incoming = link.incoming(Channel::Control);
        spawn("calls", Box::pin(answer_calls(mesh.clone(), incoming, table, worker)));
        let incoming = link.incoming(Channel::Raft);
        spawn("raft", Box::pin(answer_raft(consensus.clone(), incoming)));
        spawn(
            "gossip",
            Box::pin(async move {
                let died = gossip_health.wait_for(|health| matches!(health, GossipHealth::Died { .. })).await;
                if let Ok(health) = died {
                    error!(health = ?*health, "gossip has ended; the process ends so that it can start anew");
                    std::process::abort();
                }
            }),
        );
        spawn(
            "ledger",
            Box::pin(async move {
                let reason = consensus.failed().await;
                error!(reason, "the ledger has stopped; the process ends so that it can start anew");
                std::process::abort();
            }),
        );
        tracker.close();

        Ok(Self {
            handle: mesh,
            token,
            founded,
            gossip_address: endpoint.local_addr().context("the gossip address")?,
            gossip_advertised: endpoint.advertised(),
            link,
            endpoint,
            tracker,
            _drop: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// Streams of one kind that members open to this node, with who opened them.
    ///
    /// # Errors
    /// When that kind was taken before.
    pub fn accept(&self, kind: StreamKind) -> anyhow::Result<mpsc::Receiver<(NodeId, LinkStream)>> {
        Ok(self.link.accept(kind)?)
    }

    /// Hands the lead over, says goodbye, and closes the files.
    pub async fn stop(self) {
        self.handle.inner.consensus.hand_over(|_| true).await;
        self.cancel.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, self.tracker.wait()).await.is_err() {
            warn!(seconds = STOP_TIMEOUT.as_secs(), "tasks of the mesh did not stop");
        }
        self.handle.inner.consensus.stop().await;
        self.handle.inner.gossip.stop().await;
        self.link.close().await;
        self.endpoint.close().await;
    }
}

/// Founds the mesh: this node its one voter and first member.
async fn found(mesh: &MeshHandle, name: &str) -> anyhow::Result<()> {
    match mesh.inner.consensus.bootstrap().await {
        // A crash right after the founding: it goes on from there.
        Ok(()) | Err(BootstrapError::Founded) => {}
        Err(error) => return Err(error.into()),
    }
    let mut leadership = mesh.inner.consensus.leadership();
    leadership.wait_for(|l| l.mine).await.context("a mesh of one chooses its one node")?;
    let member = Member {
        name: name.to_owned(),
        addresses: mesh.inner.link.addresses(),
        joined_at: mesh.now(),
        draining_since: None,
        revoked_at: None,
    };
    mesh.propose(Entry::MemberJoined { node: mesh.inner.node.clone(), member }).await?;
    info!(mesh = %mesh.inner.mesh, "founded a mesh");
    Ok(())
}

async fn answer_raft(consensus: Consensus, mut incoming: mpsc::Receiver<IncomingRequest>) {
    let tasks = TaskTracker::new();
    while let Some(request) = incoming.recv().await {
        let consensus = consensus.clone();
        tasks.spawn(async move {
            let answer = consensus.handle(&request.peer, &request.body).await;
            // The asker may have stopped waiting.
            let _ = request.reply.send(answer);
        });
    }
}

async fn answer_calls(
    mesh: MeshHandle,
    mut incoming: mpsc::Receiver<IncomingRequest>,
    table: Table,
    worker: WorkerInbox,
) {
    let room = Arc::new(tokio::sync::Semaphore::new(CALLS_AT_ONCE));
    let tasks = TaskTracker::new();
    while let Some(request) = incoming.recv().await {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let (mesh, table, worker) = (mesh.clone(), table.clone(), worker.clone());
        tasks.spawn(async move {
            let answer = match decode::<Call>(&request.body) {
                Ok(call) => mesh.answer(&request.peer, call, &table, &worker).await,
                Err(error) => Answer::Refused(error.to_string()),
            };
            let _ = request.reply.send(encode(&answer));
            drop(place);
        });
    }
}

impl MeshHandle {
    async fn answer(&self, from: &NodeId, call: Call, table: &Table, worker: &WorkerInbox) -> Answer {
        match call {
            Call::ToLeader(message) => Answer::FromLeader(self.answer_worker(from, message).await),
            Call::ToWorker(message) => match worker.deliver(message).await {
                Ok(answer) => Answer::FromWorker(answer),
                Err(gone) => Answer::Refused(gone.to_string()),
            },
            Call::Admit { node, request } => Answer::Admitted(self.admit(&node, &request).await),
            Call::Members { have } => match self.leader() {
                LeaderView::Here { .. } => {
                    let ledger = self.read(|ledger| table_of(&self.inner.mesh, ledger));
                    let newest = table.read(|t| (t.version > ledger.version).then(|| t.clone())).unwrap_or(ledger);
                    Answer::Members(Ok((newest.version > have).then_some(newest)))
                }
                other => Answer::Members(Err(other.parts().0)),
            },
            // Of others it says nothing: each speaks for itself.
            Call::Leader => Answer::Leads(match self.leader() {
                LeaderView::Here { term, .. } => Some(term),
                LeaderView::There { .. } | LeaderView::Unknown => None,
            }),
        }
    }
}
