//! Where this node listens, and what it tells others to dial.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use anyhow::Context;
use mloc_mesh::{link::LinkAdvertise, quic_transport::Advertise};

use crate::config::NodeConfig;

/// The port of gossip.
const GOSSIP_PORT: u16 = 7946;
/// The port of links.
const LINK_PORT: u16 = 7947;
/// The port of REST.
const REST_PORT: u16 = 7948;

/// Where gossip listens.
pub fn gossip_bind(config: &NodeConfig) -> SocketAddr {
    config.gossip.bind.unwrap_or_else(|| any_address(GOSSIP_PORT))
}

/// Where links listen: on gossip's address unless they have their own.
pub fn link_bind(config: &NodeConfig) -> SocketAddr {
    config.links.bind.unwrap_or_else(|| SocketAddr::new(gossip_bind(config).ip(), LINK_PORT))
}

/// Where REST listens: on loopback unless the node is told otherwise.
pub fn rest_bind(config: &NodeConfig) -> SocketAddr {
    config.rest.bind.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], REST_PORT)))
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

/// What gossip tells others to dial.
///
/// # Errors
/// An address that is none, with the flag it came by.
pub fn advertise(config: &NodeConfig) -> anyhow::Result<Advertise> {
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
///
/// # Errors
/// An address that is none, with the flag it came by.
pub fn link_advertise(config: &NodeConfig) -> anyhow::Result<Option<LinkAdvertise>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
