//! Which link addresses others are told: those listened on, or the host and port a person gave instead.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use thiserror::Error;

/// What to tell others instead of the addresses listened on: behind a router, in a container, or to choose an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAdvertise {
    host: Host,
    /// Absent: the port listened on.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// Told as a name: whoever dials resolves it anew, so a node whose address changes is found again.
    Name(String),
}

/// The text is no host that can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected HOST:PORT or HOST ({why}); IPv6 with a port goes in brackets: [2001:db8::1]:7947")]
pub struct BadAdvertise {
    why: String,
}

impl LinkAdvertise {
    /// The same host at the port listened on.
    pub fn at_bound_port(self) -> Self {
        Self { port: None, ..self }
    }
}

impl FromStr for LinkAdvertise {
    type Err = BadAdvertise;

    /// `HOST:PORT`, or `HOST` alone (or port 0) for the port listened on.
    fn from_str(text: &str) -> Result<Self, BadAdvertise> {
        let bad = |why: String| BadAdvertise { why };
        let port_of = |port: u16| (port != 0).then_some(port);
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self { host: Host::Ip(ip), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: Host::Ip(address.ip()), port: port_of(address.port()) });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => {
                (name, port_of(port.parse().map_err(|_| bad(format!("`{port}` is no port from 0 to 65535")))?))
            }
            None => (text, None),
        };
        let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if name.is_empty() || name.contains(odd) {
            return Err(bad(format!("`{name}` is neither an address nor a host name")));
        }
        Ok(Self { host: Host::Name(name.to_owned()), port })
    }
}

/// Where to listen: QUIC and TCP on the address given. libp2p keeps an IPv6 socket from taking IPv4, so `[::]` is
/// listened on in both families, on the same port (with port 0 each takes a free one; every address names its own).
pub(super) fn listen_addresses(bind: SocketAddr) -> Vec<Multiaddr> {
    let mut ips = vec![bind.ip()];
    if bind.ip() == Ipv6Addr::UNSPECIFIED {
        ips.push(Ipv4Addr::UNSPECIFIED.into());
    }
    let both = |ip: IpAddr| [quic(Multiaddr::from(ip), bind.port()), tcp(Multiaddr::from(ip), bind.port())];
    ips.into_iter().flat_map(both).collect()
}

fn quic(host: Multiaddr, port: u16) -> Multiaddr {
    host.with(Protocol::Udp(port)).with(Protocol::QuicV1)
}

fn tcp(host: Multiaddr, port: u16) -> Multiaddr {
    host.with(Protocol::Tcp(port))
}

/// What to tell of the addresses listened on. Link-local ones mean another machine on every wire, and loopback means
/// the asker: it is told only by a node that has nothing else.
pub(super) fn told(listening: &BTreeSet<Multiaddr>, advertise: Option<&LinkAdvertise>) -> BTreeSet<Multiaddr> {
    if let Some(advertise) = advertise {
        return listening.iter().map(|address| instead(address, listening, advertise)).collect();
    }
    let tellable = listening.iter().filter(|address| !is_link_local(address));
    let (loopback, others): (BTreeSet<_>, BTreeSet<_>) = tellable.cloned().partition(is_loopback);
    if others.is_empty() { loopback } else { others }
}

/// The advertised host in place of the one listened on, with the port given or that of the same family's listener.
fn instead(address: &Multiaddr, listening: &BTreeSet<Multiaddr>, advertise: &LinkAdvertise) -> Multiaddr {
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return address.clone(); // that host is the relay
    }
    let udp = matches!(address.iter().nth(1), Some(Protocol::Udp(_)));
    let same_kind = |other: &&Multiaddr| matches!(other.iter().nth(1), Some(Protocol::Udp(_))) == udp;
    let six = matches!(advertise.host, Host::Ip(IpAddr::V6(_)));
    let of_family = |other: &&Multiaddr| matches!(other.iter().next(), Some(Protocol::Ip6(_))) == six;
    let kind = || listening.iter().filter(same_kind);
    let bound = kind().find(of_family).or_else(|| kind().next()).unwrap_or(address);
    let port = advertise.port.or_else(|| port_of(bound)).unwrap_or_default();
    let host = match &advertise.host {
        Host::Ip(ip) => Multiaddr::from(*ip),
        Host::Name(name) => Multiaddr::empty().with(Protocol::Dns(name.into())),
    };
    if udp { quic(host, port) } else { tcp(host, port) }
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Udp(port) | Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn is_link_local(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_link_local(),
        Some(Protocol::Ip6(ip)) => ip.is_unicast_link_local(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn any_address_is_listened_on_in_both_families_at_one_port() {
        let texts = |bind: &str| -> Vec<String> {
            listen_addresses(bind.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts("[::]:7947"),
            ["/ip6/::/udp/7947/quic-v1", "/ip6/::/tcp/7947", "/ip4/0.0.0.0/udp/7947/quic-v1", "/ip4/0.0.0.0/tcp/7947"]
        );
        assert_eq!(texts("[::1]:7"), ["/ip6/::1/udp/7/quic-v1", "/ip6/::1/tcp/7"]);
        assert_eq!(texts("0.0.0.0:7"), ["/ip4/0.0.0.0/udp/7/quic-v1", "/ip4/0.0.0.0/tcp/7"]);
    }

    #[test]
    fn neither_link_local_nor_needless_loopback_is_told() {
        let global = ["/ip4/10.0.0.7/tcp/7947", "/ip6/2001:db8::7/tcp/7947"];
        let local = ["/ip4/127.0.0.1/tcp/7947", "/ip6/::1/tcp/7947"];
        let link = ["/ip6/fe80::1/tcp/7947", "/ip4/169.254.3.4/tcp/7947"];
        assert_eq!(told(&set(&[&global[..], &local, &link].concat()), None), set(&global));
        assert_eq!(told(&set(&[&local[..], &link].concat()), None), set(&local));
    }

    #[test]
    fn what_is_advertised_stands_for_all_that_is_listened_on() {
        let listening = set(&[
            "/ip4/10.0.0.7/udp/40001/quic-v1",
            "/ip4/10.0.0.7/tcp/40002",
            "/ip6/2001:db8::7/udp/60001/quic-v1",
            "/ip6/2001:db8::7/tcp/60002",
            "/ip4/192.0.2.1/tcp/4001/p2p-circuit",
        ]);
        for (advertise, quic, tcp) in [
            ("gpu-1.example.org:9000", "/dns/gpu-1.example.org/udp/9000/quic-v1", "/dns/gpu-1.example.org/tcp/9000"),
            ("gpu-1", "/dns/gpu-1/udp/40001/quic-v1", "/dns/gpu-1/tcp/40002"),
            ("203.0.113.9:9000", "/ip4/203.0.113.9/udp/9000/quic-v1", "/ip4/203.0.113.9/tcp/9000"),
            ("203.0.113.9", "/ip4/203.0.113.9/udp/40001/quic-v1", "/ip4/203.0.113.9/tcp/40002"),
            ("[2001:db8::9]:0", "/ip6/2001:db8::9/udp/60001/quic-v1", "/ip6/2001:db8::9/tcp/60002"),
            ("2001:db8::9", "/ip6/2001:db8::9/udp/60001/quic-v1", "/ip6/2001:db8::9/tcp/60002"),
        ] {
            let expected = set(&[quic, tcp, "/ip4/192.0.2.1/tcp/4001/p2p-circuit"]);
            assert_eq!(told(&listening, Some(&advertise.parse().unwrap())), expected, "{advertise}");
        }
    }

    #[test]
    fn a_text_that_cannot_be_dialled_is_refused_with_the_reason() {
        for (text, why) in [
            ("gpu-1:port", "`port` is no port"),
            ("gpu-1:70000", "`70000` is no port"),
            ("", "neither an address nor a host name"),
            ("gpu 1:7947", "neither an address nor a host name"),
            ("http://gpu-1:7947", "neither an address nor a host name"),
        ] {
            let error = text.parse::<LinkAdvertise>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("HOST:PORT"), "{text}: {error}");
        }
    }
}
