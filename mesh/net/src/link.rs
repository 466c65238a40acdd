//! Links between members: requests with one answer, and streams, over libp2p.
//!
//! Only members are spoken to: strangers are refused before a byte of ours. QUIC first, TCP where UDP is blocked. What
//! requests and streams mean is for those who send and take them; a request to oneself is not sent but called.

mod address_book;
mod advertise;
mod behaviour;
mod codec;
pub mod files;
mod restarts;
mod stream;
mod swarm_task;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use libp2p_stream::{Control, OpenStreamError};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{compat::FuturesAsyncReadCompatExt, sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use self::{
    address_book::Addresses,
    advertise::{listen_addresses, told},
    restarts::Restarts,
    stream::Counters,
    swarm_task::{Command, Shared, SwarmTask},
};
pub use self::{
    advertise::{BadAdvertise, LinkAdvertise},
    stream::{LinkStream, StreamKind, Traffic},
};
use crate::{
    gossip::Members,
    identity::{NodeIdentity, peer_id_of},
    names::NodeId,
};

/// Requests of this node waiting for the swarm.
const COMMANDS_MAX: usize = 1024;
/// Requests of others waiting for their handler, by channel.
const INCOMING_MAX: usize = 256;
/// Streams of others waiting to be taken, by kind.
const STREAMS_WAITING_MAX: usize = 64;
/// How long listening may take to begin.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other family of a `[::]` bind may take besides: a machine may have no address of it.
const OTHER_FAMILY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the swarm may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What requests are about; each has its own protocol, limits and queue, so that one cannot starve the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Orchestrator, workers, forwarded calls. Requests to 1 MiB, answers to 10 MiB.
    Control,
    /// Votes and appends. Requests to 8 MiB, answers to 1 MiB.
    Raft,
}

/// Why a request or stream failed. Whether the peer has acted is unknown except for `Refused` and `TooLarge`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// No link to the peer, or it broke.
    #[error("node {peer} cannot be reached: {reason}")]
    Unreachable {
        /// Whom.
        peer: NodeId,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("node {peer} did not answer within {} ms", after.as_millis())]
    Timeout {
        /// Who.
        peer: NodeId,
        /// The time given.
        after: Duration,
    },
    /// The peer, or this node, does not do it.
    #[error("node {peer} refused: {reason}")]
    Refused {
        /// Who.
        peer: NodeId,
        /// Why.
        reason: String,
    },
    /// Larger than the channel takes.
    #[error("the {what} has {bytes} bytes, the channel takes {max}")]
    TooLarge {
        /// Request or answer.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// This node is stopping.
    #[error("this node's links are closed")]
    Closed,
}

/// Why links could not start.
#[derive(Debug, Error)]
pub enum LinkStartError {
    /// A part of the swarm could not be built.
    #[error("cannot set up links ({what}): {reason}")]
    Swarm {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The port is taken or forbidden.
    #[error("cannot listen for links on {address}: {reason}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
}

/// A request of another member. Dropping `reply` refuses it.
#[derive(Debug)]
pub struct IncomingRequest {
    /// Who asks, proven by its key, a member when it asked.
    pub peer: NodeId,
    /// What it asks.
    pub body: Vec<u8>,
    /// The answer.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// How links behave.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// Where to listen, UDP (QUIC) and TCP alike. `[::]` listens on IPv4 too.
    pub bind: SocketAddr,
    /// What to tell others instead of the addresses listened on.
    pub advertise: Option<LinkAdvertise>,
    /// Time for a request and its answer, dialling included.
    pub request_timeout: Duration,
    /// Time for a dial and its handshake.
    pub dial_timeout: Duration,
    /// A QUIC connection without a sign of life for this long is gone.
    pub silence: Duration,
    /// A sign of life at least this often.
    pub keep_alive: Duration,
    /// A link nobody uses is closed after this long.
    pub unused: Duration,
    /// Each link is pinged this often; one that does not answer in `ping_timeout` is closed.
    pub ping_every: Duration,
    /// See `ping_every`.
    pub ping_timeout: Duration,
    /// A link younger than this when gossip shows a restart of the peer is to the new process. Gossip takes a second or
    /// two; a process that died needs longer than that to have made a link and be back.
    pub young: Duration,
    /// Ask a home router to forward the port.
    pub upnp: bool,
}

impl LinkSettings {
    /// Defaults fit for a WAN; libp2p's own suit a LAN.
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            advertise: None,
            request_timeout: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            unused: Duration::from_secs(300),
            ping_every: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            young: Duration::from_secs(3),
            upnp: false,
        }
    }
}

/// This node's links. Clones are the same links; they end with [`LinkHandle::close`] or the last clone.
#[derive(Clone)]
pub struct LinkHandle {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    settings: LinkSettings,
    commands: mpsc::Sender<Command>,
    streams: Control,
    shared: Arc<Shared>,
    traffic: Counters,
    allowed: watch::Sender<Arc<BTreeSet<PeerId>>>,
    addresses: watch::Sender<Addresses>,
    connected: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    listening: watch::Receiver<Arc<BTreeSet<Multiaddr>>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl LinkHandle {
    /// Listens from now on, speaks to nobody until [`Self::set_allowed`].
    pub async fn start(settings: LinkSettings, identity: &NodeIdentity) -> Result<Self, LinkStartError> {
        let mut swarm = behaviour::build(identity, &settings)?;
        let mut wanted = listen_addresses(settings.bind);
        if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_err() {
            // A kernel without IPv4; were it what `bind` asks for, listening would say so.
            wanted.retain(|address| settings.bind.is_ipv4() || !has(address, |part| matches!(part, Protocol::Ip4(_))));
        }
        for address in wanted.clone() {
            swarm
                .listen_on(address.clone())
                .map_err(|error| LinkStartError::Listen { address, reason: error.to_string() })?;
        }
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (allowed, allowed_now) = watch::channel(Arc::default());
        let (addresses, addresses_now) = watch::channel(Arc::default());
        let (connected_now, connected) = watch::channel(Arc::default());
        let (listening_now, mut listening) = watch::channel(Arc::<BTreeSet<Multiaddr>>::default());
        let shared = Arc::new(Shared::default());
        let streams = swarm.behaviour().streams.new_control();
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let task = SwarmTask::new(swarm, shared.clone(), connected_now, listening_now, settings.request_timeout);
        tracker.spawn(task.run(asked, allowed_now, addresses_now, cancel.clone()));
        let quic = |part: &Protocol<'_>| matches!(part, Protocol::QuicV1);
        let tcp = |part: &Protocol<'_>| matches!(part, Protocol::Tcp(_));
        let both =
            |known: &Arc<BTreeSet<Multiaddr>>| known.iter().any(|a| has(a, quic)) && known.iter().any(|a| has(a, tcp));
        if timeout(LISTEN_TIMEOUT, listening.wait_for(both)).await.is_err() {
            cancel.cancel();
            let address = wanted.swap_remove(0);
            return Err(LinkStartError::Listen { address, reason: "no interface took the address in time".into() });
        }
        let each = |known: &Arc<BTreeSet<Multiaddr>>| {
            let listens = |wanted: &Multiaddr| {
                let same = |known: &Multiaddr| known.iter().map(|p| p.tag()).eq(wanted.iter().map(|p| p.tag()));
                known.iter().any(same)
            };
            wanted.iter().all(listens)
        };
        // What is told at a join should be whole, but a family without an address is no error.
        let _whole = timeout(OTHER_FAMILY_TIMEOUT, listening.wait_for(each)).await.is_ok();
        let node = identity.node().clone();
        let inner = Inner {
            node,
            settings,
            commands,
            streams,
            shared,
            traffic: Counters::default(),
            allowed,
            addresses,
            connected,
            listening,
            tracker,
            cancel,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This node.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// Who may speak with this node from now on; links to others are closed. Names that are no PeerId are skipped.
    pub fn set_allowed<'n>(&self, members: impl IntoIterator<Item = &'n NodeId>) {
        let allowed: BTreeSet<_> =
            members.into_iter().filter(|node| **node != self.inner.node).filter_map(peer_id_of).collect();
        self.inner.allowed.send_if_modified(|known| replace(known, allowed));
    }

    /// Those were members and are none any more: only for the words with which they are refused.
    pub fn set_revoked(&self, revoked: BTreeSet<NodeId>) {
        self.inner.shared.set_revoked(revoked);
    }

    /// Where members can be dialled (multiaddr text), all of them. Texts that are no address are skipped.
    pub fn set_addresses(&self, book: &BTreeMap<NodeId, Vec<String>>) {
        let book = book
            .iter()
            .filter_map(|(node, texts)| {
                let addresses = texts.iter().filter_map(|text| match text.parse() {
                    Ok(address) => Some(address),
                    Err(error) => {
                        debug!(%node, text, %error, "not a link address");
                        None
                    }
                });
                Some((peer_id_of(node)?, addresses.collect()))
            })
            .collect();
        self.inner.addresses.send_if_modified(|known| replace(known, book));
    }

    /// Where this node can be dialled, to be told to others; changes as interfaces come and go.
    pub fn addresses(&self) -> Vec<String> {
        let told = told(&self.inner.listening.borrow(), self.inner.settings.advertise.as_ref());
        told.iter().map(Multiaddr::to_string).collect()
    }

    /// Changes whenever [`Self::addresses`] may have.
    pub(crate) fn listening(&self) -> watch::Receiver<Arc<BTreeSet<Multiaddr>>> {
        self.inner.listening.clone()
    }

    /// Members with a link now.
    pub fn connected(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.inner.connected.clone()
    }

    /// Why links came to nothing for want of membership, here or at the other end: the last few, as they were logged.
    pub fn refusals(&self) -> Vec<String> {
        self.inner.shared.refusals()
    }

    /// Bytes of streams since the start, by kind.
    pub fn traffic(&self) -> Vec<(StreamKind, Traffic)> {
        self.inner.traffic.read()
    }

    /// Closes links to former selves of members that restart, as gossip shows it. Without it a link to a killed process
    /// swallows messages until a ping goes unanswered.
    pub fn follow_restarts(&self, mut members: watch::Receiver<Arc<Members>>) {
        let commands = self.inner.commands.clone();
        let older_than = self.inner.settings.young;
        let follow = async move {
            let mut restarts = Restarts::default();
            loop {
                let seen = members.borrow_and_update().clone();
                for peer in restarts.observe(&seen).iter().filter_map(peer_id_of) {
                    if commands.send(Command::Restarted { peer, older_than }).await.is_err() {
                        return;
                    }
                }
                if members.changed().await.is_err() {
                    return;
                }
            }
        };
        self.inner.tracker.spawn(self.inner.cancel.clone().run_until_cancelled_owned(follow));
    }

    /// Sends `body` and waits for the answer, at most [`LinkSettings::request_timeout`].
    pub async fn request(&self, peer: &NodeId, channel: Channel, body: Vec<u8>) -> Result<Vec<u8>, LinkError> {
        self.request_within(self.inner.settings.request_timeout, peer, channel, body).await
    }

    /// As [`Self::request`] with a shorter time.
    pub async fn request_within(
        &self,
        after: Duration,
        peer: &NodeId,
        channel: Channel,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, LinkError> {
        let max = channel.limits().request;
        if body.len() > max {
            return Err(LinkError::TooLarge { what: "request", bytes: body.len(), max });
        }
        let id = self.member(peer)?;
        self.ask(after, peer, |reply| Command::Request { peer: id, channel, body, reply }).await
    }

    /// Requests of others on that channel, from now on; an earlier receiver gets no more.
    pub fn incoming(&self, channel: Channel) -> mpsc::Receiver<IncomingRequest> {
        let (to, incoming) = mpsc::channel(INCOMING_MAX);
        self.inner.shared.handle(channel, to);
        incoming
    }

    /// Opens a stream to a member. `Ok` says that the peer's side takes such streams, not that it has read anything.
    pub async fn open_stream(&self, peer: &NodeId, kind: StreamKind) -> Result<LinkStream, LinkError> {
        let id = self.member(peer)?;
        let after = self.inner.settings.request_timeout;
        // libp2p-stream dials too, but forgets the dial when two are asked for at once; so the link stands first.
        self.ask(after, peer, |reply| Command::Connect { peer: id, reply }).await?;
        let mut streams = self.inner.streams.clone();
        match timeout(after, streams.open_stream(id, kind.protocol())).await {
            Ok(Ok(stream)) => Ok(self.inner.traffic.count(kind, stream.compat())),
            Ok(Err(OpenStreamError::UnsupportedProtocol(protocol))) => {
                Err(LinkError::Refused { peer: peer.clone(), reason: format!("it takes no {protocol} streams now") })
            }
            Ok(Err(error)) => Err(LinkError::Unreachable { peer: peer.clone(), reason: error.to_string() }),
            Err(_) => Err(LinkError::Timeout { peer: peer.clone(), after }),
        }
    }

    /// Streams of that kind others open, until the receiver is dropped. One receiver a kind.
    pub fn accept(&self, kind: StreamKind) -> Result<mpsc::Receiver<(NodeId, LinkStream)>, LinkError> {
        let mut incoming = self.inner.streams.clone().accept(kind.protocol()).map_err(|_| LinkError::Refused {
            peer: self.inner.node.clone(),
            reason: format!("{} streams are being accepted already", kind.protocol()),
        })?;
        let (to, streams) = mpsc::channel(STREAMS_WAITING_MAX);
        let traffic = self.inner.traffic.clone();
        // libp2p-stream drops a stream when its queue of one is full; ours is longer.
        let taking = async move {
            while let Some((peer, stream)) = incoming.next().await {
                let stream = (NodeId::new(peer.to_base58()), traffic.count(kind, stream.compat()));
                match to.try_send(stream) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => debug!(%peer, ?kind, "stream dropped, too many wait"),
                    Err(mpsc::error::TrySendError::Closed(_)) => break,
                }
            }
        };
        self.inner.tracker.spawn(self.inner.cancel.clone().run_until_cancelled_owned(taking));
        Ok(streams)
    }

    /// Ends all links and waits a moment for the goodbyes.
    pub async fn close(&self) {
        self.inner.cancel.cancel();
        self.inner.tracker.close();
        if timeout(STOP_TIMEOUT, self.inner.tracker.wait()).await.is_err() {
            debug!("links did not stop in time");
        }
    }

    fn member(&self, peer: &NodeId) -> Result<PeerId, LinkError> {
        let refused = |reason: &str| LinkError::Refused { peer: peer.clone(), reason: reason.to_owned() };
        let id = peer_id_of(peer).ok_or_else(|| refused("its name is no PeerId"))?;
        match self.inner.allowed.borrow().contains(&id) {
            true => Ok(id),
            false => Err(refused("it is not in this node's member table")),
        }
    }

    async fn ask<T>(
        &self,
        after: Duration,
        peer: &NodeId,
        command: impl FnOnce(oneshot::Sender<Result<T, LinkError>>) -> Command,
    ) -> Result<T, LinkError> {
        let asked = async {
            let (reply, replied) = oneshot::channel();
            self.inner.commands.send(command(reply)).await.map_err(|_| LinkError::Closed)?;
            replied.await.map_err(|_| LinkError::Closed)?
        };
        match timeout(after, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(LinkError::Timeout { peer: peer.clone(), after }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn replace<T: PartialEq>(known: &mut Arc<T>, new: T) -> bool {
    let changed = **known != new;
    if changed {
        *known = Arc::new(new);
    }
    changed
}

fn has(address: &Multiaddr, wanted: impl Fn(&Protocol<'_>) -> bool) -> bool {
    address.iter().any(|part| wanted(&part))
}
