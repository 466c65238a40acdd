//! Links over real sockets: members speak, strangers do not, and failures have names.

mod bench;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bench::{identity, until};
use mloc_mesh::{
    gossip::PeerView,
    identity::NodeIdentity,
    link::{Channel, LinkError, LinkHandle, LinkSettings, StreamKind},
    names::NodeId,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
};

struct Peer {
    identity: Arc<NodeIdentity>,
    link: LinkHandle,
}

impl Peer {
    async fn start(number: u8) -> Self {
        Self::start_at(number, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(number: u8, bind: SocketAddr) -> Self {
        Self::start_with(number, bind, None).await
    }

    async fn start_with(number: u8, bind: SocketAddr, advertise: Option<&str>) -> Self {
        mloc_mesh::tls::install_crypto_provider();
        let identity = identity(number);
        let mut settings = LinkSettings::new(bind);
        settings.request_timeout = Duration::from_secs(10);
        settings.young = Duration::ZERO;
        settings.advertise = advertise.map(|text| text.parse().unwrap());
        let link = LinkHandle::start(settings, &identity).await.unwrap();
        Self { identity, link }
    }

    fn node(&self) -> &NodeId {
        self.identity.node()
    }

    /// Answers each request with its body reversed and the channel's name.
    fn echo(&self, channel: Channel) -> JoinHandle<()> {
        let mut incoming = self.link.incoming(channel);
        tokio::spawn(async move {
            while let Some(request) = incoming.recv().await {
                let mut body = request.body;
                body.reverse();
                body.extend(format!("{channel:?}").bytes());
                let _asker_gone = request.reply.send(body);
            }
        })
    }
}

/// Each knows all others' addresses and has them as members.
fn introduce(peers: &[&Peer], keep: impl Fn(&String) -> bool) {
    let book: BTreeMap<_, _> = peers
        .iter()
        .map(|peer| (peer.node().clone(), peer.link.addresses().into_iter().filter(&keep).collect::<Vec<_>>()))
        .collect();
    for peer in peers {
        peer.link.set_addresses(&book);
        peer.link.set_allowed(book.keys());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_ask_and_answer_on_each_channel() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b], |_| true);
    for channel in [Channel::Control, Channel::Raft] {
        b.echo(channel);
        let answer = a.link.request(b.node(), channel, b"abc".to_vec()).await.unwrap();
        assert_eq!(answer, format!("cba{channel:?}").into_bytes());
    }
    // Many at once, over the one link there is.
    let asks = (0..200u8).map(|n| {
        let (link, peer) = (a.link.clone(), b.node().clone());
        tokio::spawn(async move { link.request(&peer, Channel::Control, vec![n]).await.unwrap()[0] == n })
    });
    for ask in asks.collect::<Vec<_>>() {
        assert!(ask.await.unwrap());
    }
    let mut connected = a.link.connected();
    connected.wait_for(|now| now.contains(b.node())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_serves_where_udp_is_blocked() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b], |address| address.contains("/tcp/"));
    b.echo(Channel::Control);
    assert_eq!(a.link.request(b.node(), Channel::Control, vec![1]).await.unwrap()[0], 1);
}

/// `mloc up` binds `[::]`: it must be reached by IPv4 too, over both transports, and tell so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_bound_to_any_address_is_reached_by_ipv4() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let b = Peer::start_at(2, "[::]:0".parse().unwrap()).await;
    b.echo(Channel::Control);
    for transport in ["/quic-v1", "/tcp/"] {
        let by_v4 = |address: &String| address.starts_with("/ip4/") && address.contains(transport);
        // Its listeners hear of the machine's interfaces one by one.
        let told = async {
            while !b.link.addresses().iter().any(by_v4) {
                tokio::task::yield_now().await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(30), told).await;
        assert!(told.is_ok(), "{:?}", b.link.addresses());
        let a = Peer::start(1).await;
        introduce(&[&a, &b], by_v4);
        assert_eq!(a.link.request(b.node(), Channel::Control, vec![1]).await.unwrap()[0], 1);
        a.link.close().await;
    }
    let told = b.link.addresses();
    assert!(!told.iter().any(|address| address.starts_with("/ip6/fe80")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_advertises_a_name_is_dialled_by_it() {
    let b = Peer::start_with(2, "127.0.0.1:0".parse().unwrap(), Some("localhost")).await;
    b.echo(Channel::Control);
    let told = b.link.addresses();
    assert!(told.len() == 2 && told.iter().all(|address| address.starts_with("/dns/localhost/")), "{told:?}");
    let a = Peer::start(1).await;
    introduce(&[&a, &b], |_| true);
    assert_eq!(a.link.request(b.node(), Channel::Control, vec![1]).await.unwrap()[0], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_no_link() {
    let (a, stranger) = (Peer::start(1).await, Peer::start(2).await);
    a.echo(Channel::Control);
    // The stranger holds a for a member and knows its address; a does not know the stranger.
    let book = BTreeMap::from([(a.node().clone(), a.link.addresses())]);
    stranger.link.set_addresses(&book);
    stranger.link.set_allowed([a.node()]);
    let error = stranger.link.request(a.node(), Channel::Control, vec![1]).await.unwrap_err();
    assert!(matches!(&error, LinkError::Unreachable { reason, .. } if reason.contains("member")), "{error}");
    until("a says why", || {
        let said = |reason: &String| reason.contains(stranger.node().as_str()) && reason.contains("not a member");
        a.link.refusals().iter().any(said)
    })
    .await;
    // The stranger's log says it too, once, however often it tries.
    let tries = async {
        while stranger.link.refusals().is_empty() {
            stranger.link.request(a.node(), Channel::Control, vec![1]).await.unwrap_err();
        }
    };
    tokio::time::timeout(bench::PATIENCE, tries).await.expect("the stranger says why");
    let said = stranger.link.refusals();
    assert!(
        said[0].contains(a.node().as_str()) && said[0].contains("does not hold this node for a member"),
        "{said:?}"
    );
    a.link.set_revoked(BTreeSet::from([stranger.node().clone()]));
    stranger.link.request(a.node(), Channel::Control, vec![1]).await.unwrap_err();
    until("a says that it was revoked", || a.link.refusals().iter().any(|reason| reason.contains("was revoked"))).await;
    assert_eq!(stranger.link.refusals(), said);
    let error = a.link.request(stranger.node(), Channel::Control, vec![1]).await.unwrap_err();
    assert!(matches!(&error, LinkError::Refused { reason, .. } if reason.contains("member table")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_member_is_cut_off() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b], |_| true);
    a.echo(Channel::Control);
    b.link.request(a.node(), Channel::Control, vec![1]).await.unwrap();
    a.link.set_allowed(&BTreeSet::new());
    let mut connected = b.link.connected();
    connected.wait_for(|now| now.is_empty()).await.unwrap();
    let error = b.link.request(a.node(), Channel::Control, vec![1]).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_have_names() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    let absent = identity(3);
    introduce(&[&a, &b], |_| true);
    let error = a.link.request(b.node(), Channel::Control, vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { what: "request", .. }), "{error}");
    let error = a.link.request(b.node(), Channel::Control, vec![0]).await.unwrap_err();
    assert!(matches!(&error, LinkError::Refused { reason, .. } if reason.contains("starting")), "{error}");

    a.link.set_allowed([b.node(), absent.node()]);
    let error = a.link.request(absent.node(), Channel::Control, vec![0]).await.unwrap_err();
    assert!(matches!(&error, LinkError::Unreachable { reason, .. } if reason.contains("no address")), "{error}");

    let mut incoming = b.link.incoming(Channel::Control);
    let asking = (a.link.clone(), b.node().clone());
    let ask = tokio::spawn(async move { asking.0.request(&asking.1, Channel::Control, vec![0]).await });
    drop(incoming.recv().await.unwrap());
    let error = ask.await.unwrap().unwrap_err();
    assert!(matches!(&error, LinkError::Refused { reason, .. } if reason.contains("unanswered")), "{error}");

    let asking = (a.link.clone(), b.node().clone());
    let ask = tokio::spawn(async move { asking.0.request(&asking.1, Channel::Control, vec![0]).await });
    incoming.recv().await.unwrap().reply.send(vec![0; (10 << 20) + 1]).unwrap();
    let error = ask.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { what: "answer", .. }), "{error}");

    let short = Duration::from_millis(50);
    let error = a.link.request_within(short, b.node(), Channel::Control, vec![0]).await.unwrap_err();
    assert!(matches!(error, LinkError::Timeout { .. }), "{error}");

    let error = a.link.open_stream(b.node(), StreamKind::Http).await.map(drop).unwrap_err();
    assert!(matches!(&error, LinkError::Refused { reason, .. } if reason.contains("/mloc/http/1")), "{error}");

    a.link.close().await;
    assert_eq!(a.link.request(b.node(), Channel::Control, vec![0]).await, Err(LinkError::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_64_mib_arrives_whole() {
    const CHUNK: usize = 256 * 1024;
    const CHUNKS: usize = 256;
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b], |_| true);
    let mut streams = b.link.accept(StreamKind::Logs).unwrap();
    assert!(b.link.accept(StreamKind::Logs).is_err(), "one taker a kind");
    let asker = a.node().clone();
    let taking = tokio::spawn(async move {
        let (from, mut stream) = streams.recv().await.unwrap();
        assert_eq!(from, asker);
        let (mut bytes, mut sum, mut chunk) = (0u64, 0u64, vec![0; CHUNK]);
        loop {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                n => {
                    bytes += n as u64;
                    sum += chunk[..n].iter().map(|b| u64::from(*b)).sum::<u64>();
                }
            }
        }
        stream.write_all(&bytes.to_be_bytes()).await.unwrap();
        stream.write_all(&sum.to_be_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut stream = a.link.open_stream(b.node(), StreamKind::Logs).await.unwrap();
    let mut expected = 0;
    for n in 0..CHUNKS {
        let chunk = vec![n as u8; CHUNK];
        expected += (n as u8) as u64 * CHUNK as u64;
        stream.write_all(&chunk).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), (CHUNK * CHUNKS) as u64);
    assert_eq!(stream.read_u64().await.unwrap(), expected);
    taking.await.unwrap();
}

/// A process that is killed says no goodbye: the link to it stands and swallows messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_restarted_member_is_reached_again() {
    let a = Peer::start(1).await;
    let (shown, members) = watch::channel(Arc::default());
    a.link.follow_restarts(members);
    let show = |node: &NodeId, generation| {
        let gossip_address = ([127, 0, 0, 1], 1).into();
        let view = PeerView { node: node.clone(), generation, alive: true, gossip_address, values: BTreeMap::new() };
        shown.send_replace(Arc::new(BTreeMap::from([(node.clone(), view)])));
    };
    // The first process lives in a runtime of its own, which is stopped dead.
    let (known, name) = (a.node().clone(), identity(2).node().clone());
    let killed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let peer = runtime.block_on(async {
            let b = Peer::start(2).await;
            b.link.set_allowed([&known]);
            b.echo(Channel::Raft);
            b
        });
        (runtime, peer)
    });
    let (runtime, b) = tokio::task::spawn_blocking(|| killed.join().unwrap()).await.unwrap();
    a.link.set_addresses(&BTreeMap::from([(name.clone(), b.link.addresses())]));
    a.link.set_allowed([&name]);
    show(&name, 1);
    a.link.request(&name, Channel::Raft, vec![1]).await.unwrap();
    std::mem::forget(b);
    runtime.shutdown_background();

    let b = Peer::start(2).await;
    b.echo(Channel::Raft);
    introduce(&[&a, &b], |_| true);
    let mut connected = a.link.connected();
    show(&name, 2);
    connected.wait_for(|now| !now.contains(&name)).await.unwrap();
    assert_eq!(a.link.request(&name, Channel::Raft, vec![1]).await.unwrap()[0], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = LinkSettings::new(taken.local_addr().unwrap());
    let error = LinkHandle::start(settings, &identity(1)).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("cannot listen for links on /ip4/127.0.0.1/tcp/"), "{error}");
}
