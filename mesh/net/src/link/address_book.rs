//! Where members can be dialled, as gossip and the member table say. Answers the swarm whenever it dials a peer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Addresses by peer.
pub(crate) type Addresses = Arc<BTreeMap<PeerId, Vec<Multiaddr>>>;

/// The latest addresses, replaced as a whole, and how the last dials went.
#[derive(Default)]
pub(crate) struct AddressBook {
    pub addresses: Addresses,
    /// Request-response only says that a dial failed, and some failures make no swarm event; here all of them pass.
    failures: HashMap<PeerId, String>,
}

impl AddressBook {
    /// Why the last dial to that peer failed.
    pub(crate) fn failure(&self, peer: &PeerId) -> &str {
        self.failures.get(peer).map_or("the dial failed", String::as_str)
    }

    /// Only members' failures are of interest.
    pub(crate) fn forget_failures_but(&mut self, members: &BTreeSet<PeerId>) {
        self.failures.retain(|peer, _| members.contains(peer));
    }
}

/// Why a dial failed, in words for a log.
pub(crate) fn dial_reason(error: &DialError) -> String {
    match error {
        DialError::NoAddresses => "no address of it is known yet".to_owned(),
        DialError::Transport(tried) => {
            let tried: Vec<_> = tried.iter().map(|(address, error)| format!("{address}: {error}")).collect();
            tried.join("; ")
        }
        other => other.to_string(),
    }
}

impl NetworkBehaviour for AddressBook {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.and_then(|peer| self.addresses.get(&peer).cloned()).unwrap_or_default())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::DialFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.failures.insert(peer, dial_reason(failure.error));
                }
            }
            FromSwarm::ConnectionEstablished(established) => {
                self.failures.remove(&established.peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
