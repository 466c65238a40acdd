//! The libp2p swarm of a member: what it speaks, to whom, and with which limits.

use std::time::Duration;

use hickory_resolver::{
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    net::NetError,
    system_conf,
};
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, autonat, dcutr, identify, noise, ping, relay,
    request_response::{self, ProtocolSupport},
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, upnp, yamux,
};
use libp2p_allow_block_list::{self as allow_list, AllowedPeers};
use libp2p_connection_limits::{self as connection_limits, ConnectionLimits};
use tracing::warn;

use super::{
    Channel, LinkSettings, LinkStartError,
    address_book::AddressBook,
    codec::{Framed, Limits},
};
use crate::identity::NodeIdentity;

/// In flight on one stream: bandwidth times round trip, 1 Gbit/s over 300 ms.
const STREAM_WINDOW_BYTES: u32 = 40 << 20;
/// In flight on one connection: a stream at full speed and control messages beside it.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Requests to or from one peer at a time.
const CONCURRENT_REQUESTS_MAX: usize = 256;
/// A second link appears when both sides dial at once, others when a relayed one becomes direct.
const CONNECTIONS_PER_PEER_MAX: u32 = 4;
const PENDING_INCOMING_MAX: u32 = 64;
/// A relayed link serves control traffic for an hour; libp2p would cut it after 2 min or 128 KiB.
const CIRCUIT_DURATION: Duration = Duration::from_secs(3600);

#[derive(NetworkBehaviour)]
pub(crate) struct Member {
    // First, so that it refuses strangers before anything else hears of them.
    pub allowed: allow_list::Behaviour<AllowedPeers>,
    pub limits: connection_limits::Behaviour,
    pub addresses: AddressBook,
    pub control: request_response::Behaviour<Framed>,
    pub raft: request_response::Behaviour<Framed>,
    pub streams: libp2p_stream::Behaviour,
    pub ping: ping::Behaviour,
    pub identify: identify::Behaviour,
    pub relay_client: relay::client::Behaviour,
    pub relay_server: relay::Behaviour,
    pub dcutr: dcutr::Behaviour,
    pub autonat_client: autonat::v2::client::Behaviour,
    pub autonat_server: autonat::v2::server::Behaviour,
    pub upnp: Toggle<upnp::tokio::Behaviour>,
}

impl Channel {
    /// Its name on the wire.
    pub(crate) fn protocol(self) -> StreamProtocol {
        match self {
            Self::Control => StreamProtocol::new("/mloc/control/1"),
            Self::Raft => StreamProtocol::new("/mloc/raft/1"),
        }
    }

    /// How large its messages may be. A task.yaml has at most 256 KiB; raft appends are bounded by raft's settings.
    pub(crate) fn limits(self) -> Limits {
        match self {
            Self::Control => Limits { request: 1 << 20, answer: 10 << 20 },
            Self::Raft => Limits { request: 8 << 20, answer: 1 << 20 },
        }
    }
}

pub(crate) fn build(identity: &NodeIdentity, settings: &LinkSettings) -> Result<Swarm<Member>, LinkStartError> {
    let failed = |what: &'static str| move |reason: String| LinkStartError::Swarm { what, reason };
    let tcp_config = tcp::Config::default().nodelay(true);
    let (names, how) = resolver(system_conf::read_system_conf());
    let swarm = SwarmBuilder::with_existing_identity(identity.libp2p_keypair())
        .with_tokio()
        .with_tcp(tcp_config, noise::Config::new, yamux::Config::default)
        .map_err(|e| failed("tcp")(e.to_string()))?
        .with_quic_config(|mut quic| {
            quic.handshake_timeout = settings.dial_timeout;
            quic.max_idle_timeout = u32::try_from(settings.silence.as_millis()).unwrap_or(u32::MAX);
            quic.keep_alive_interval = settings.keep_alive;
            quic.max_stream_data = STREAM_WINDOW_BYTES;
            quic.max_connection_data = CONNECTION_WINDOW_BYTES;
            quic
        })
        .with_dns_config(names, how)
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|e| failed("relay")(e.to_string()))?
        .with_behaviour(|keypair, relay_client| member(keypair, relay_client, settings))
        .map_err(|e| failed("behaviour")(e.to_string()))?
        // Smart dial: QUIC first, TCP a moment later, for where UDP is blocked.
        .with_swarm_config(|config| config.with_idle_connection_timeout(settings.unused).with_smart_dial())
        .build();
    Ok(swarm)
}

/// Members' link addresses may be names. A container without /etc/resolv.conf asks no name server and goes on: most
/// addresses are none, and /etc/hosts may know the rest.
fn resolver(system: Result<(ResolverConfig, ResolverOpts), NetError>) -> (ResolverConfig, ResolverOpts) {
    system.unwrap_or_else(|error| {
        warn!(%error, "/etc/resolv.conf can't be used: names of members are looked up in /etc/hosts alone");
        let mut opts = ResolverOpts::default();
        opts.use_hosts_file = ResolveHosts::Always;
        (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), opts)
    })
}

fn member(
    keypair: &libp2p::identity::Keypair,
    relay_client: relay::client::Behaviour,
    settings: &LinkSettings,
) -> Member {
    let us = keypair.public().to_peer_id();
    let channel = |channel: Channel| {
        let config = request_response::Config::default()
            .with_request_timeout(settings.request_timeout)
            .with_max_concurrent_streams(CONCURRENT_REQUESTS_MAX);
        let protocols = [(channel.protocol(), ProtocolSupport::Full)];
        request_response::Behaviour::with_codec(Framed(channel.limits()), protocols, config)
    };
    let limits = ConnectionLimits::default()
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
        .with_max_pending_incoming(Some(PENDING_INCOMING_MAX));
    // 0 bytes: no limit.
    let relayed =
        relay::Config { max_circuit_bytes: 0, max_circuit_duration: CIRCUIT_DURATION, ..relay::Config::default() };
    let version = concat!("mloc/", env!("CARGO_PKG_VERSION")).to_owned();
    Member {
        allowed: allow_list::Behaviour::default(),
        limits: connection_limits::Behaviour::new(limits),
        addresses: AddressBook::default(),
        control: channel(Channel::Control),
        raft: channel(Channel::Raft),
        streams: libp2p_stream::Behaviour::new(),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(settings.ping_every).with_timeout(settings.ping_timeout),
        ),
        identify: identify::Behaviour::new(
            identify::Config::new("/mloc/1".into(), keypair.public()).with_agent_version(version),
        ),
        relay_client,
        relay_server: relay::Behaviour::new(us, relayed),
        dcutr: dcutr::Behaviour::new(us),
        autonat_client: autonat::v2::client::Behaviour::default(),
        autonat_server: autonat::v2::server::Behaviour::default(),
        upnp: settings.upnp.then(upnp::tokio::Behaviour::default).into(),
    }
}
