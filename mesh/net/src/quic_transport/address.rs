//! Where a node says it can be reached for gossip.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use sha2::{Digest, Sha256};

use crate::names::NodeId;

/// What a node tells others about its gossip address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advertise {
    /// What it is bound to; with a wildcard bind, the address the system would use to speak to the world.
    Detect,
    /// This address (port 0: the port it is bound to).
    At(SocketAddr),
    /// Nothing: the node is behind a NAT. It dials others and gossips over those connections; nobody dials it.
    DialsOutOnly,
}

/// Addresses of nodes that take no dials: a private IPv6 range of ours and a digest of the node's name, so that chitchat,
/// which names nodes' addresses, has a distinct one for each.
const NO_DIALS_PREFIX: [u8; 6] = [0xfd, 0x6d, 0x6c, 0x6f, 0x63, 0x00];

pub(crate) fn takes_no_dials(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.octets().starts_with(&NO_DIALS_PREFIX))
}

fn no_dials_address(node: &NodeId) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..6].copy_from_slice(&NO_DIALS_PREFIX);
    octets[6..].copy_from_slice(&Sha256::digest(node.as_str())[..10]);
    SocketAddr::new(Ipv6Addr::from(octets).into(), 1)
}

impl Advertise {
    /// The address to tell, given the one we are bound to.
    pub(crate) fn resolve(self, bound: SocketAddr, node: &NodeId) -> SocketAddr {
        match self {
            Self::DialsOutOnly => no_dials_address(node),
            Self::At(address) if address.port() == 0 => SocketAddr::new(address.ip(), bound.port()),
            Self::At(address) => address,
            Self::Detect if bound.ip().is_unspecified() => SocketAddr::new(outward_ip(bound.ip()), bound.port()),
            Self::Detect => bound,
        }
    }
}

/// The address the system's routes would send from; loopback when there is no route. Sends nothing.
fn outward_ip(wildcard: IpAddr) -> IpAddr {
    let towards = |bind: IpAddr, target: IpAddr| {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((target, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    // Documentation ranges (RFC 5737, RFC 3849): routed like the world, owned by nobody.
    let v4 = || towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = || towards(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    let (found, loopback) = match wildcard {
        IpAddr::V4(_) => (v4(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (v4().or_else(v6), IpAddr::from(Ipv6Addr::LOCALHOST)),
    };
    found.unwrap_or(loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let node = NodeId::new("n");
        let bound: SocketAddr = "127.0.0.1:7946".parse().unwrap();
        assert_eq!(Advertise::Detect.resolve(bound, &node), bound);
        let public: SocketAddr = "203.0.113.9:0".parse().unwrap();
        assert_eq!(Advertise::At(public).resolve(bound, &node), "203.0.113.9:7946".parse().unwrap());
        let hidden = Advertise::DialsOutOnly.resolve(bound, &node);
        assert!(takes_no_dials(hidden) && !takes_no_dials(bound));
        assert_ne!(hidden, Advertise::DialsOutOnly.resolve(bound, &NodeId::new("m")));
        let wildcard: SocketAddr = "0.0.0.0:7946".parse().unwrap();
        assert!(!Advertise::Detect.resolve(wildcard, &node).ip().is_unspecified());
    }
}
