//! The task that drives the swarm. Requests come in by a bounded queue, their answers go out by the caller's own channel.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    request_response::{self, InboundRequestId, Message, OutboundFailure, OutboundRequestId, ResponseChannel},
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    select,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Channel, IncomingRequest, LinkError,
    address_book::{Addresses, dial_reason},
    behaviour::{Member, MemberEvent},
    codec::Answer,
};
use crate::names::NodeId;

/// Requests of others that are being handled; more are told to come again.
const BEING_ANSWERED_MAX: usize = 1024;
const REFUSALS_KEPT: usize = 32;
/// A link we dialled that the other side closes within this was not wanted there.
const SHUT_OUT: Duration = Duration::from_secs(2);
/// How long links may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(300);

/// libp2p closes without a reason, so this side can only say what it may have been.
const STRANGER_HINT: &str =
    " before an answer came (a node that does not hold this one for a member closes its links at once)";

/// Where a caller waits.
type Reply<T> = oneshot::Sender<Result<T, LinkError>>;

/// What callers ask of the swarm.
pub(crate) enum Command {
    Request {
        peer: PeerId,
        channel: Channel,
        body: Vec<u8>,
        reply: Reply<Vec<u8>>,
    },
    Connect {
        peer: PeerId,
        reply: Reply<()>,
    },
    /// The peer's links that are older than this lead to its former self.
    Restarted {
        peer: PeerId,
        older_than: Duration,
    },
}

/// What the handle and the task both see.
#[derive(Default)]
pub(crate) struct Shared {
    handlers: Mutex<HashMap<Channel, mpsc::Sender<IncomingRequest>>>,
    refusals: Mutex<VecDeque<String>>,
    revoked: Mutex<BTreeSet<NodeId>>,
}

impl Shared {
    pub(crate) fn handle(&self, channel: Channel, to: mpsc::Sender<IncomingRequest>) {
        self.handlers.lock().unwrap_or_else(|e| e.into_inner()).insert(channel, to);
    }

    fn handler(&self, channel: Channel) -> Option<mpsc::Sender<IncomingRequest>> {
        self.handlers.lock().unwrap_or_else(|e| e.into_inner()).get(&channel).cloned()
    }

    pub(crate) fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap_or_else(|e| e.into_inner()).iter().cloned().collect()
    }

    pub(crate) fn set_revoked(&self, revoked: BTreeSet<NodeId>) {
        *self.revoked.lock().unwrap_or_else(|e| e.into_inner()) = revoked;
    }

    /// Why this node has no link with a peer that is no member.
    fn not_a_member(&self, peer: &NodeId) -> String {
        match self.revoked.lock().unwrap_or_else(|e| e.into_inner()).contains(peer) {
            true => format!("node {peer} was revoked from this mesh"),
            false => format!("node {peer} is not a member of this mesh, as far as this node knows"),
        }
    }

    fn note_refusal(&self, reason: String) {
        let mut refusals = self.refusals.lock().unwrap_or_else(|e| e.into_inner());
        // A stranger that keeps dialling is said once.
        if refusals.contains(&reason) {
            return debug!(reason, "no link, again");
        }
        warn!(reason, "no link");
        refusals.push_back(reason);
        if refusals.len() > REFUSALS_KEPT {
            refusals.pop_front();
        }
    }
}

/// Whom was asked, and who waits.
type Asker = (PeerId, Reply<Vec<u8>>);
type Answering = BoxFuture<'static, (Channel, ResponseChannel<Answer>, Option<Vec<u8>>)>;

pub(crate) struct SwarmTask {
    swarm: Swarm<Member>,
    shared: Arc<Shared>,
    connected: watch::Sender<Arc<BTreeSet<NodeId>>>,
    advertised: watch::Sender<Arc<BTreeSet<Multiaddr>>>,
    waiting: HashMap<(Channel, OutboundRequestId), Asker>,
    connecting: HashMap<PeerId, Vec<Reply<()>>>,
    /// Links and when they came about.
    since: HashMap<ConnectionId, (PeerId, Instant)>,
    answering: FuturesUnordered<Answering>,
    request_timeout: Duration,
}

impl SwarmTask {
    pub(crate) fn new(
        swarm: Swarm<Member>,
        shared: Arc<Shared>,
        connected: watch::Sender<Arc<BTreeSet<NodeId>>>,
        advertised: watch::Sender<Arc<BTreeSet<Multiaddr>>>,
        request_timeout: Duration,
    ) -> Self {
        Self {
            swarm,
            shared,
            connected,
            advertised,
            waiting: HashMap::new(),
            connecting: HashMap::new(),
            since: HashMap::new(),
            answering: FuturesUnordered::new(),
            request_timeout,
        }
    }

    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut allowed: watch::Receiver<Arc<BTreeSet<PeerId>>>,
        mut addresses: watch::Receiver<Addresses>,
        cancel: CancellationToken,
    ) {
        loop {
            select! {
                () = cancel.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(command) = commands.recv() => {
                    // Who calls after naming members or addresses means the new ones.
                    self.refresh(&mut allowed, &mut addresses);
                    self.on_command(command);
                }
                Some((channel, to, answer)) = self.answering.next(), if !self.answering.is_empty() => {
                    self.answer(channel, to, answer);
                }
                Ok(()) = allowed.changed() => {
                    allowed.mark_changed();
                    self.refresh(&mut allowed, &mut addresses);
                }
                Ok(()) = addresses.changed() => {
                    addresses.mark_changed();
                    self.refresh(&mut allowed, &mut addresses);
                }
            }
        }
        self.say_goodbye().await;
    }

    async fn say_goodbye(mut self) {
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // Fails only when the peer went by itself.
            let _gone_before = self.swarm.disconnect_peer_id(peer);
        }
        let goodbyes = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.next().await;
            }
        };
        if timeout(GOODBYE, goodbyes).await.is_err() {
            debug!("links did not end in time");
        }
    }

    fn refresh(
        &mut self,
        allowed: &mut watch::Receiver<Arc<BTreeSet<PeerId>>>,
        addresses: &mut watch::Receiver<Addresses>,
    ) {
        if addresses.has_changed().unwrap_or(false) {
            self.swarm.behaviour_mut().addresses.addresses = addresses.borrow_and_update().clone();
        }
        if allowed.has_changed().unwrap_or(false) {
            let allowed = allowed.borrow_and_update().clone();
            self.on_allowed(&allowed);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Request { peer, channel, body, reply } => {
                let behaviour = self.swarm.behaviour_mut();
                let id = match channel {
                    Channel::Control => behaviour.control.send_request(&peer, body),
                    Channel::Raft => behaviour.raft.send_request(&peer, body),
                };
                self.waiting.insert((channel, id), (peer, reply));
            }
            Command::Connect { peer, reply } => self.on_connect(peer, reply),
            Command::Restarted { peer, older_than } => {
                let stale = self.since.iter().filter(|(_, (of, since))| *of == peer && since.elapsed() >= older_than);
                for id in stale.map(|(id, _)| *id).collect::<Vec<_>>() {
                    info!(%peer, "closing a link to an earlier start of the peer");
                    self.swarm.close_connection(id);
                }
            }
        }
    }

    fn on_connect(&mut self, peer: PeerId, reply: Reply<()>) {
        if self.swarm.is_connected(&peer) {
            let _caller_gone = reply.send(Ok(()));
            return;
        }
        let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(options) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {
                let waiting = self.connecting.entry(peer).or_default();
                waiting.retain(|reply| !reply.is_closed());
                waiting.push(reply);
            }
            Err(error) => {
                let _caller_gone = reply.send(Err(unreachable(peer, dial_reason(&error))));
            }
        }
    }

    fn on_allowed(&mut self, allowed: &BTreeSet<PeerId>) {
        let list = &mut self.swarm.behaviour_mut().allowed;
        let gone: Vec<_> = list.allowed_peers().iter().filter(|peer| !allowed.contains(*peer)).copied().collect();
        for peer in gone {
            let reason = self.shared.not_a_member(&NodeId::new(peer.to_base58()));
            info!(%peer, reason, "links close");
            list.disallow_peer(peer);
        }
        for peer in allowed {
            list.allow_peer(*peer);
        }
        self.swarm.behaviour_mut().addresses.forget_failures_but(allowed);
    }

    fn on_event(&mut self, event: SwarmEvent<MemberEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.since.insert(connection_id, (peer_id, Instant::now()));
                debug!(peer = %peer_id, address = %endpoint.get_remote_address(), dialled = endpoint.is_dialer(), "link");
                for reply in self.connecting.remove(&peer_id).unwrap_or_default() {
                    let _caller_gone = reply.send(Ok(()));
                }
                self.show_connected();
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, endpoint, .. } => {
                let stood = self.since.remove(&connection_id).map(|(_, since)| since.elapsed());
                debug!(peer = %peer_id, ?cause, "link closed");
                // libp2p closes without a reason: what is known is that the other side did, and how soon.
                if endpoint.is_dialer() && cause.is_some() && stood.is_some_and(|stood| stood < SHUT_OUT) {
                    self.shared.note_refusal(format!(
                        "node {peer_id} closed the link as soon as it stood: it does not hold this node for a member \
                         (unknown to it, or revoked), or it is just stopping"
                    ));
                }
                self.show_connected();
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => self.on_dial_error(peer, &error),
            SwarmEvent::IncomingConnectionError { send_back_addr, error, peer_id, .. } => {
                let reason = match &error {
                    libp2p::swarm::ListenError::Denied { cause } => {
                        let stranger = cause.downcast_ref::<libp2p_allow_block_list::NotAllowed>().and(peer_id);
                        match stranger {
                            Some(stranger) => self.shared.not_a_member(&NodeId::new(stranger.to_base58())),
                            None => cause.to_string(),
                        }
                    }
                    other => {
                        debug!(from = %send_back_addr, error = %other, "a link did not come about");
                        return;
                    }
                };
                debug!(from = %send_back_addr, reason, "refused a link");
                self.shared.note_refusal(reason);
            }
            SwarmEvent::NewListenAddr { address, .. } | SwarmEvent::ExternalAddrConfirmed { address } => {
                self.advertise(|known| known.insert(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } | SwarmEvent::ExternalAddrExpired { address } => {
                self.advertise(|known| known.remove(&address));
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                warn!(?addresses, ?reason, "a link listener ended");
                self.advertise(|known| {
                    let before = known.len();
                    known.retain(|address| !addresses.contains(address));
                    known.len() < before
                });
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "link listener"),
            // Dials without a known peer are autonat's; the rest is news for others.
            _ => {}
        }
    }

    fn advertise(&self, change: impl FnOnce(&mut BTreeSet<Multiaddr>) -> bool) {
        self.advertised.send_if_modified(|known| change(Arc::make_mut(known)));
    }

    fn on_dial_error(&mut self, peer: PeerId, error: &DialError) {
        let reason = dial_reason(error);
        debug!(%peer, reason, "cannot reach a member");
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            let _caller_gone = reply.send(Err(unreachable(peer, reason.clone())));
        }
    }

    fn show_connected(&self) {
        let now: BTreeSet<_> = self.swarm.connected_peers().map(|peer| NodeId::new(peer.to_base58())).collect();
        self.connected.send_if_modified(|known| {
            let changed = **known != now;
            if changed {
                *known = Arc::new(now);
            }
            changed
        });
    }

    fn on_behaviour(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Control(event) => self.on_message(Channel::Control, event),
            MemberEvent::Raft(event) => self.on_message(Channel::Raft, event),
            MemberEvent::Ping(libp2p::ping::Event { peer, connection, result: Err(failure) }) => {
                // The peer restarted or the path broke: QUIC alone would notice after its idle time.
                debug!(%peer, %failure, "link does not answer, closing it");
                self.swarm.close_connection(connection);
            }
            // Kept for NAT traversal; what matters of them arrives as addresses.
            _ => {}
        }
    }

    fn on_message(&mut self, channel: Channel, event: request_response::Event<Vec<u8>, Answer>) {
        match event {
            request_response::Event::Message {
                peer,
                message: Message::Request { request_id, request, channel: to },
                ..
            } => {
                self.on_request(channel, peer, request_id, request, to);
            }
            request_response::Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.on_answer(channel, request_id, response);
            }
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let Some((_, reply)) = self.waiting.remove(&(channel, request_id)) else { return };
                let _caller_gone = reply.send(Err(self.failure(channel, peer, error)));
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                debug!(%peer, ?channel, %error, "a request could not be answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(
        &mut self,
        channel: Channel,
        peer: PeerId,
        id: InboundRequestId,
        body: Vec<u8>,
        to: ResponseChannel<Answer>,
    ) {
        let (reply, replied) = oneshot::channel();
        let request = IncomingRequest { peer: NodeId::new(peer.to_base58()), body, reply };
        let handed = if self.answering.len() < BEING_ANSWERED_MAX {
            match self.shared.handler(channel) {
                Some(handler) => handler.try_send(request).map_err(|error| match error {
                    mpsc::error::TrySendError::Full(_) => "busy",
                    mpsc::error::TrySendError::Closed(_) => "stopping",
                }),
                None => Err("starting"),
            }
        } else {
            Err("busy")
        };
        match handed {
            Ok(()) => self.answering.push(Box::pin(async move { (channel, to, replied.await.ok()) })),
            Err(state) => {
                debug!(%peer, ?channel, %id, state, "request refused");
                self.send_answer(channel, to, Answer::Refused(format!("the node is {state}, ask again in a moment")));
            }
        }
    }

    fn answer(&mut self, channel: Channel, to: ResponseChannel<Answer>, body: Option<Vec<u8>>) {
        let answer = match body {
            Some(body) => Answer::Body(body),
            None => Answer::Refused("the request was dropped unanswered".to_owned()),
        };
        self.send_answer(channel, to, answer);
    }

    fn send_answer(&mut self, channel: Channel, to: ResponseChannel<Answer>, answer: Answer) {
        let behaviour = self.swarm.behaviour_mut();
        let sent = match channel {
            Channel::Control => behaviour.control.send_response(to, answer),
            Channel::Raft => behaviour.raft.send_response(to, answer),
        };
        if sent.is_err() {
            debug!(?channel, "the asker is gone or gave up");
        }
    }

    fn on_answer(&mut self, channel: Channel, id: OutboundRequestId, answer: Answer) {
        let Some((peer, reply)) = self.waiting.remove(&(channel, id)) else { return };
        let answer = match answer {
            Answer::Body(body) => Ok(body),
            Answer::Refused(reason) => Err(LinkError::Refused { peer: NodeId::new(peer.to_base58()), reason }),
            Answer::TooLarge(bytes) => {
                Err(LinkError::TooLarge { what: "answer", bytes: bytes as usize, max: channel.limits().answer })
            }
        };
        let _caller_gone = reply.send(answer);
    }

    fn failure(&self, channel: Channel, peer: PeerId, failure: OutboundFailure) -> LinkError {
        let node = NodeId::new(peer.to_base58());
        match failure {
            OutboundFailure::DialFailure => {
                let reason = self.swarm.behaviour().addresses.failure(&peer);
                unreachable(peer, reason.to_owned())
            }
            OutboundFailure::Timeout => LinkError::Timeout { peer: node, after: self.request_timeout },
            OutboundFailure::ConnectionClosed => unreachable(peer, format!("the link closed{STRANGER_HINT}")),
            OutboundFailure::UnsupportedProtocols => LinkError::Refused {
                peer: node,
                reason: format!("it does not speak {}; is it of another version?", channel.protocol()),
            },
            OutboundFailure::Io(error) => unreachable(peer, format!("{error}{STRANGER_HINT}")),
        }
    }
}

fn unreachable(peer: PeerId, reason: String) -> LinkError {
    LinkError::Unreachable { peer: NodeId::new(peer.to_base58()), reason }
}
