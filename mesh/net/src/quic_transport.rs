//! chitchat's transport on quinn, and joining: one UDP port, mutual TLS, two protocols.
//!
//! chitchat's server is one task, so nothing here makes it wait: `send` hands the message to the switchboard and returns.
//! The switchboard dials, greets, keeps one connection per peer and drops what a slow peer does not take.
//! Who may gossip is decided by the handshake (the token) and the set of revoked nodes; membership is the ledger's.

mod address;
mod connection;
mod join;
mod peer_table;
mod reset;
mod switchboard;

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chitchat::{ChitchatMessage, Serializable, transport::Socket};
use quinn::{
    ClientConfig, Connection, Endpoint, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
};
use thiserror::Error;
use tokio::{
    net::lookup_host,
    select,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

pub use self::{
    address::Advertise,
    join::{FoundingAsk, JoinAsk, JoinError, JoinRefusal, JoinRequest, LeaderHint, Welcome},
    peer_table::DialRate,
    switchboard::Refusal,
};
use self::{
    connection::{Hello, Received},
    peer_table::PeerTable,
    switchboard::{Board, Event, Parts, Switchboard},
};
use crate::{
    names::{MeshId, NodeId},
    tls::{MeshTls, MeshTlsError, SERVER_NAME},
};

const GOSSIP: &[u8] = b"mloc-gossip/1";
const JOIN: &[u8] = b"mloc-join/1";
/// Messages from chitchat waiting for the switchboard.
const OUTBOX_MESSAGES_MAX: usize = 256;
/// Messages from all peers waiting for chitchat.
const INBOX_MESSAGES_MAX: usize = 256;
const EVENTS_MAX: usize = 256;
/// Nodes waiting to be let in.
const JOINS_MAX: usize = 16;
/// Beyond this many connections a dialler must first prove its address (a QUIC retry).
const CONNECTIONS_BEFORE_RETRY: usize = 256;
/// Handshakes served at once; more are refused and try again.
const HANDSHAKES_MAX: usize = 128;
/// Streams a peer may have open: it gossips a few messages a second.
const STREAMS_MAX: u32 = 64;
/// WAN round trips are nearer to this than to QUIC's default of 333 ms only on a bad day; start in between.
const INITIAL_RTT: Duration = Duration::from_millis(200);
/// How long open connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// How the gossip endpoint behaves.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// Where to listen, UDP. `[::]` listens on IPv4 too.
    pub bind: SocketAddr,
    /// What to tell others.
    pub advertise: Advertise,
    /// This start's number, higher than any before (see [`crate::gossip::next_generation`]).
    pub generation: u64,
    /// A dial, handshake and greeting included, takes at most this.
    pub dial_timeout: Duration,
    /// A connection without a sign of life for this long is gone.
    pub idle: Duration,
    /// A sign of life at least this often; below a third of `idle`, so that two may be lost.
    pub keep_alive: Duration,
    /// How fast to dial.
    pub rate: DialRate,
}

impl EndpointSettings {
    /// Defaults fit for a WAN.
    pub fn new(bind: SocketAddr, advertise: Advertise, generation: u64) -> Self {
        Self {
            bind,
            advertise,
            generation,
            dial_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            rate: DialRate::default(),
        }
    }
}

/// Why the endpoint could not start.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The port is taken or forbidden.
    #[error("cannot listen for gossip on udp {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates cannot be made.
    #[error(transparent)]
    Tls(#[from] MeshTlsError),
    /// The settings make no sense.
    #[error("gossip settings: {0}")]
    Settings(&'static str),
    /// QUIC does not take our TLS.
    #[error("cannot set up QUIC: {0}")]
    Quic(String),
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Dials begun.
    pub dials: u64,
    /// Dials that came to nothing.
    pub dials_failed: u64,
    /// Connections closed because there was a better one to the same peer.
    pub duplicates: u64,
    /// Messages handed to a connection.
    pub sent: u64,
    /// Messages that went nowhere.
    pub dropped: u64,
    /// Connections kept now: one a peer.
    pub connected: u64,
}

/// The gossip port of this node.
pub struct GossipEndpoint {
    node: NodeId,
    mesh: MeshId,
    generation: u64,
    advertised: SocketAddr,
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    gossip_client: watch::Sender<ClientConfig>,
    join_client: watch::Sender<ClientConfig>,
    dial_timeout: Duration,
    board: Arc<Board>,
    outbox: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    inbox: watch::Sender<Option<mpsc::Sender<Received>>>,
    revoked: watch::Sender<Arc<BTreeSet<NodeId>>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl GossipEndpoint {
    /// Listens, accepts and dials from now on. Nodes that ask to join come out of the second part.
    pub fn bind(
        node: NodeId,
        tls: &MeshTls,
        settings: &EndpointSettings,
    ) -> Result<(Self, mpsc::Receiver<JoinAsk>), EndpointError> {
        if settings.keep_alive.saturating_mul(2) > settings.idle {
            return Err(EndpointError::Settings("keep_alive must be at most half of idle"));
        }
        let transport = transport_config(settings)?;
        let server = server_config(tls, &transport)?;
        let (gossip_client, gossip_client_now) = watch::channel(client_config(tls, GOSSIP, &transport)?);
        let (join_client, _) = watch::channel(client_config(tls, JOIN, &transport)?);
        let at = |source| EndpointError::Bind { address: settings.bind, source };
        let socket = UdpSocket::bind(settings.bind).map_err(at)?;
        let endpoint =
            Endpoint::new(reset::endpoint_config(tls.reset_key()), Some(server), socket, Arc::new(TokioRuntime))
                .map_err(at)?;
        let advertised = settings.advertise.resolve(endpoint.local_addr().map_err(at)?, &node);

        let (asks, asked) = mpsc::channel(JOINS_MAX);
        let (outbox, to_send) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let (inbox, inbox_now) = watch::channel(None);
        let (revoked, revoked_now) = watch::channel(Arc::default());
        let (events, happened) = mpsc::channel(EVENTS_MAX);
        let board = Arc::new(Board::default());
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let switchboard = Switchboard::new(Parts {
            endpoint: endpoint.clone(),
            gossip_client: gossip_client_now,
            hello: Hello { mesh: tls.mesh().clone(), generation: settings.generation, advertised },
            table: PeerTable::new(node.clone(), advertised, settings.rate, Instant::now()),
            board: board.clone(),
            events: events.clone(),
            inbox: inbox_now,
            tracker: tracker.clone(),
            cancel: cancel.clone(),
            dial_timeout: settings.dial_timeout,
        });
        tracker.spawn(switchboard.run(to_send, happened, revoked_now.clone()));
        let door = Door {
            endpoint: endpoint.clone(),
            mesh: tls.mesh().clone(),
            revoked: revoked_now,
            asks,
            events,
            limit: settings.dial_timeout,
            tracker: tracker.clone(),
            cancel: cancel.clone(),
        };
        tracker.spawn(door.run());
        let this = Self {
            node,
            mesh: tls.mesh().clone(),
            generation: settings.generation,
            advertised,
            endpoint,
            transport,
            gossip_client,
            join_client,
            dial_timeout: settings.dial_timeout,
            board,
            outbox,
            inbox,
            revoked,
            tracker,
            cancel,
        };
        Ok((this, asked))
    }

    /// This node.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The mesh of the join token.
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// This start's number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The address told to others (for a node that takes no dials, a stand-in nobody dials).
    pub fn advertised(&self) -> SocketAddr {
        self.advertised
    }

    /// The address listened on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// These nodes are not spoken to from now on; open connections to them are closed.
    pub fn set_revoked(&self, revoked: BTreeSet<NodeId>) {
        self.revoked.send_if_modified(|current| {
            let changed = **current != revoked;
            if changed {
                *current = Arc::new(revoked);
            }
            changed
        });
    }

    /// Other certificates (of a rotated token, say): new connections use and believe these, open ones go on.
    pub fn set_certificates(&self, tls: &MeshTls) -> Result<(), EndpointError> {
        if *tls.mesh() != self.mesh {
            return Err(EndpointError::Settings("a token of another mesh cannot take the place of this mesh's"));
        }
        let gossip = client_config(tls, GOSSIP, &self.transport)?;
        let join = client_config(tls, JOIN, &self.transport)?;
        self.endpoint.set_server_config(Some(server_config(tls, &self.transport)?));
        self.gossip_client.send_replace(gossip);
        self.join_client.send_replace(join);
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> TransportStats {
        let counters = &self.board.counters;
        TransportStats {
            dials: counters.dials.load(Relaxed),
            dials_failed: counters.dials_failed.load(Relaxed),
            duplicates: counters.duplicates.load(Relaxed),
            sent: counters.sent.load(Relaxed),
            dropped: counters.dropped.load(Relaxed),
            connected: counters.connected.load(Relaxed),
        }
    }

    /// Connections of any kind now, those shaking hands or saying goodbye included.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// The last connections that came to nothing, with reasons.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.board.refusals()
    }

    /// Asks one seed (`host:port`, resolved now) to let this node in.
    pub async fn ask_to_join(&self, seed: &str, request: &JoinRequest) -> Result<Welcome, JoinError> {
        let unresolved = |reason: String| JoinError::Unresolved { seed: seed.to_owned(), reason };
        let addresses: Vec<_> = lookup_host(seed).await.map_err(|e| unresolved(e.to_string()))?.collect();
        let mut last = unresolved("the name has no address".into());
        for address in addresses {
            match self.ask_at(address, request).await {
                Ok(Ok(welcome)) => return Ok(welcome),
                Ok(Err(refusal)) => return Err(JoinError::Refused { seed: seed.to_owned(), refusal }),
                Err(reason) => last = JoinError::Unreachable { seed: seed.to_owned(), address, reason },
            }
        }
        Err(last)
    }

    async fn ask_at(&self, address: SocketAddr, request: &JoinRequest) -> Result<Result<Welcome, JoinRefusal>, String> {
        let connecting = self
            .endpoint
            .connect_with(self.join_client.borrow().clone(), address, SERVER_NAME)
            .map_err(|e| e.to_string())?;
        let connection = timeout(self.dial_timeout, connecting)
            .await
            .map_err(|_| format!("no answer within {} ms", self.dial_timeout.as_millis()))?
            .map_err(|e| e.to_string())?;
        let answer = timeout(join::ANSWER_TIMEOUT, join::ask(&connection, request))
            .await
            .map_err(|_| format!("no answer within {} s", join::ANSWER_TIMEOUT.as_secs()))?;
        connection.close(VarInt::from_u32(0), b"answered");
        answer
    }

    /// Ends all connections and waits a moment for the goodbyes.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.endpoint.close(VarInt::from_u32(0), b"this node is stopping");
        self.tracker.close();
        if timeout(GOODBYE, async { tokio::join!(self.tracker.wait(), self.endpoint.wait_idle()) }).await.is_err() {
            debug!("gossip connections did not end in time");
        }
    }
}

/// Without it, a node whose handle is gone would go on answering.
impl Drop for GossipEndpoint {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.endpoint.close(VarInt::from_u32(0), b"this node is stopping");
    }
}

fn transport_config(settings: &EndpointSettings) -> Result<Arc<TransportConfig>, EndpointError> {
    let idle = settings.idle.try_into().map_err(|_| EndpointError::Settings("idle is too long for QUIC"))?;
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(settings.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(STREAMS_MAX.into())
        .max_concurrent_bidi_streams(1u32.into());
    Ok(Arc::new(config))
}

fn server_config(tls: &MeshTls, transport: &Arc<TransportConfig>) -> Result<ServerConfig, EndpointError> {
    let crypto =
        QuicServerConfig::try_from(tls.server(&[GOSSIP, JOIN])?).map_err(|e| EndpointError::Quic(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport.clone());
    Ok(config)
}

fn client_config(
    tls: &MeshTls,
    protocol: &[u8],
    transport: &Arc<TransportConfig>,
) -> Result<ClientConfig, EndpointError> {
    let crypto = QuicClientConfig::try_from(tls.client(protocol)?).map_err(|e| EndpointError::Quic(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport.clone());
    Ok(config)
}

/// Accepts connections and sends each to where its protocol belongs.
struct Door {
    endpoint: Endpoint,
    mesh: MeshId,
    revoked: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    asks: mpsc::Sender<JoinAsk>,
    events: mpsc::Sender<Event>,
    limit: Duration,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Door {
    async fn run(self) {
        let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
        loop {
            let incoming = select! { biased;
                () = self.cancel.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            if self.endpoint.open_connections() > CONNECTIONS_BEFORE_RETRY && incoming.may_retry() {
                if let Err(error) = incoming.retry() {
                    debug!(%error, "retry not sent");
                }
                continue;
            }
            let (asks, events, revoked, mesh, limit) =
                (self.asks.clone(), self.events.clone(), self.revoked.clone(), self.mesh.clone(), self.limit);
            let cancel = self.cancel.clone();
            self.tracker.spawn(cancel.run_until_cancelled_owned(async move {
                let from = incoming.remote_address();
                let shaken = shake(incoming, limit).await;
                drop(permit);
                let event = match shaken {
                    Ok((connection, peer, protocol)) if protocol == JOIN => {
                        return join::serve(connection, peer, mesh, revoked, asks).await;
                    }
                    Ok((connection, peer, _)) => Event::Accepted { connection, peer },
                    Err(reason) => Event::Refused { from, reason },
                };
                let _switchboard_gone = events.send(event).await;
            }));
        }
    }
}

async fn shake(incoming: Incoming, limit: Duration) -> Result<(Connection, NodeId, Vec<u8>), String> {
    let connection = timeout(limit, incoming)
        .await
        .map_err(|_| format!("no handshake within {} ms", limit.as_millis()))?
        .map_err(|e| e.to_string())?;
    let peer = connection::peer_of(&connection).ok_or("the peer's certificate holds no ed25519 key")?;
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok()?.protocol)
        .ok_or("the peer speaks no protocol of ours")?;
    Ok((connection, peer, protocol))
}

/// chitchat's door to the endpoint. One chitchat server at a time; a later one takes over.
#[async_trait]
impl chitchat::transport::Transport for GossipEndpoint {
    /// The address is the endpoint's own, whatever chitchat says.
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (inbox, received) = mpsc::channel(INBOX_MESSAGES_MAX);
        self.inbox.send_replace(Some(inbox));
        Ok(Box::new(GossipSocket { outbox: self.outbox.clone(), received }))
    }
}

struct GossipSocket {
    outbox: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    received: mpsc::Receiver<Received>,
}

#[async_trait]
impl Socket for GossipSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        message.serialize(&mut bytes);
        match self.outbox.try_send((to, bytes)) {
            Ok(()) => Ok(()),
            // Dropped: chitchat says everything again, and an error here would only be logged.
            Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => anyhow::bail!("the gossip endpoint is closed"),
        }
    }

    /// Cancel-safe, as chitchat's select demands: a message not returned stays queued. An error ends gossip for good.
    async fn recv(&mut self) -> anyhow::Result<Received> {
        self.received.recv().await.ok_or_else(|| anyhow::anyhow!("the gossip endpoint is closed"))
    }
}
