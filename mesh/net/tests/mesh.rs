//! Whole meshes in one process: who leads as others see it, draining, revoking.

use std::{collections::BTreeSet, time::Duration};

use mloc_core::{
    capability::Capability,
    id::NodeId,
    leader::Settings as LeaderSettings,
    ledger::{Entry, Outcome},
};
use mloc_mesh::{
    handle::{LeaderView, MeshHandle, MeshUnavailable},
    quic_transport::Advertise,
    raft::{RaftSettings, VoterPolicy},
    start::{Mesh, MeshSettings},
    token::JoinToken,
    voting::RevokeError,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// No condition here takes longer, on a loaded machine of two cores either.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    mesh: Mesh,
    _dir: TempDir,
}

impl Node {
    /// `seed`: a member, with the token; without one the node founds a mesh.
    async fn start(name: &str, seed: Option<&Node>) -> Self {
        Self::start_with(name, seed, true).await
    }

    async fn start_with(name: &str, seed: Option<&Node>, vote: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = MeshSettings {
            seeds: seed.iter().map(|seed| seed.mesh.gossip_address.to_string()).collect(),
            token: seed.map(|seed| seed.mesh.token.clone()),
            ..settings(name, &dir)
        };
        Self::start_by(settings, dir, vote).await
    }

    async fn start_by(settings: MeshSettings, dir: TempDir, vote: bool) -> Self {
        mloc_mesh::tls::install_crypto_provider();
        let name = settings.name.clone();
        let (to_worker, _) = mpsc::channel(1);
        let mesh = timeout(PATIENCE, Mesh::start(settings, to_worker)).await.expect("it starts in time").unwrap();
        mesh.handle.publish_capability(&capability(mesh.handle.node(), &name, vote)).await.unwrap();
        Self { mesh, _dir: dir }
    }

    fn handle(&self) -> &MeshHandle {
        &self.mesh.handle
    }

    fn id(&self) -> &NodeId {
        self.mesh.handle.node()
    }

    fn leads(&self) -> bool {
        matches!(self.handle().leader(), LeaderView::Here { .. })
    }

    fn follows(&self, leader: &Node) -> bool {
        matches!(self.handle().leader(), LeaderView::There { node, .. } if node == *leader.id())
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.handle().voters().into_iter().collect()
    }
}

fn settings(name: &str, dir: &TempDir) -> MeshSettings {
    let any = "127.0.0.1:0".parse().unwrap();
    let ms = Duration::from_millis;
    MeshSettings {
        data_dir: dir.path().to_owned(),
        name: name.into(),
        version: "0.1.0".into(),
        gossip_bind: any,
        gossip_advertise: Advertise::Detect,
        link_bind: any,
        link_advertise: None,
        work: false,
        seeds: Vec::new(),
        waiting: Default::default(),
        bootstrap_expect: None,
        token: None,
        gossip_interval: ms(100),
        raft: RaftSettings { heartbeat: ms(150), election_min: ms(800), election_max: ms(1600), ..RaftSettings::lan() },
        voters: VoterPolicy { stable_after: ms(500), ..VoterPolicy::default() },
        leader: LeaderSettings::default(),
        tick: ms(100),
    }
}

fn capability(node: &NodeId, name: &str, vote: bool) -> Capability {
    Capability {
        node: node.clone(),
        name: name.into(),
        version: "0.1.0".into(),
        cpu_model: "none".into(),
        cpu_features: "none".into(),
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        disk_bytes: 1 << 40,
        gpus: Vec::new(),
        matmul_gflops: None,
        features: BTreeSet::new(),
        labels: Default::default(),
        work: false,
        vote,
        reachable: true,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not so in {PATIENCE:?}");
}

async fn three_voters() -> [Node; 3] {
    let a = Node::start("a", None).await;
    let b = Node::start("b", Some(&a)).await;
    let c = Node::start("c", Some(&a)).await;
    until("three voters", || a.voters().len() == 3 || b.voters().len() == 3 || c.voters().len() == 3).await;
    [a, b, c]
}

fn leader<'n>(nodes: &[&'n Node]) -> Option<&'n Node> {
    nodes.iter().copied().find(|node| node.leads())
}

async fn the_leader<'n>(nodes: &[&'n Node]) -> &'n Node {
    until("a leader", || leader(nodes).is_some()).await;
    leader(nodes).expect("there was one just now")
}

/// As a client would: asks whoever leads until it is done or refused for good.
async fn revoke(nodes: &[&Node], whom: &NodeId) -> Result<Outcome, RevokeError> {
    let revoked = timeout(PATIENCE, async {
        loop {
            match the_leader(nodes).await.handle().revoke(whom).await {
                Err(RevokeError::Unavailable(error)) => println!("asked again: {error}"),
                done => return done,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    revoked.await.expect("it is revoked in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_takes_the_vote_first_and_never_the_majority() {
    let [a, b, c] = three_voters().await;
    let all = [&a, &b, &c];
    let first = the_leader(&all).await;
    let rest: Vec<&Node> = all.into_iter().filter(|node| node.id() != first.id()).collect();
    assert_eq!(revoke(&all, rest[0].id()).await, Ok(Outcome::Applied));
    // Two voters would be worse than one, and the one of the two that is left leads.
    let left = [first, rest[1]];
    let second = the_leader(&left).await;
    assert_eq!(second.voters(), BTreeSet::from([second.id().clone()]));
    assert_eq!(revoke(&left, rest[0].id()).await, Ok(Outcome::Stale), "it is so already");

    // The only voter: another takes its place before it goes.
    let other = left.into_iter().find(|node| node.id() != second.id()).unwrap();
    assert_eq!(revoke(&left, second.id()).await, Ok(Outcome::Applied));
    assert!(other.leads());
    // And the last one cannot go: nobody could take a word of it back.
    let refused = other.handle().revoke(other.id()).await;
    assert_eq!(refused, Err(RevokeError::QuorumLost { node: other.id().clone(), voters: 1 }));
    let stranger = NodeId::new("12D3KooWstranger");
    assert!(matches!(other.handle().revoke(&stranger).await, Ok(Outcome::Rejected(_))));
    let drained = Entry::MemberDrained { node: other.id().clone(), draining: true, at: other.handle().now() };
    assert_eq!(other.handle().propose(drained).await, Ok(Outcome::Applied), "the mesh goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_drains_hands_the_lead_over_and_keeps_its_vote() {
    let [a, b, c] = three_voters().await;
    let all = [&a, &b, &c];
    let drain = timeout(PATIENCE, async {
        loop {
            let first = the_leader(&all).await;
            let at = first.handle().now();
            let entry = Entry::MemberDrained { node: first.id().clone(), draining: true, at };
            match first.handle().propose(entry).await {
                Ok(_) => return first,
                Err(error) => println!("asked again: {error}"),
            }
        }
    });
    let drained = drain.await.unwrap();
    let rest: Vec<&Node> = all.into_iter().filter(|node| node.id() != drained.id()).collect();
    until("another leads", || leader(&rest).is_some() && !drained.leads()).await;
    assert_eq!(the_leader(&rest).await.voters().len(), 3, "nobody could take its seat");
}

/// A node that does not vote hears of leaders by gossip alone, and asks the one that is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_vote_learns_who_leads_and_who_leads_next() {
    let [a, b, c] = three_voters().await;
    let edge = Node::start_with("edge", Some(&a), false).await;
    let first = the_leader(&[&a, &b, &c]).await.id().clone();
    let mut nodes = Vec::from([a, b, c]);
    let first = nodes.swap_remove(nodes.iter().position(|node| *node.id() == first).unwrap());
    until("it follows the leader", || edge.follows(&first)).await;
    assert!(!edge.voters().contains(edge.id()));

    let seen = edge.handle().leader();
    let watching = edge.handle().clone();
    let changed = tokio::spawn(async move { watching.leader_other_than(&seen).await });
    assert!(!changed.is_finished());
    first.mesh.stop().await;
    timeout(PATIENCE, changed).await.expect("the change is seen").unwrap();
    until("it follows the next", || nodes.iter().any(|node| node.leads() && edge.follows(node))).await;
    let refused = edge.handle().revoke(nodes[0].id()).await;
    assert!(matches!(refused, Err(RevokeError::Unavailable(MeshUnavailable::NotLeader { .. }))), "{refused:?}");
}

/// As a StatefulSet does it: one file for all, the token minted beforehand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_start_together_are_one_mesh_also_after_a_restart() {
    let token = JoinToken::found(&mut rand::rng());
    // Loopback addresses of this test alone: the seeds must be known before anybody listens.
    let [second, third, port] = [rand::random::<u8>() / 2 + 1, rand::random(), rand::random::<u8>()];
    let address = |n: u8| std::net::SocketAddr::from(([127, second, third, n], 20_000 + u16::from(port)));
    let seeds: Vec<String> = (1..=3).map(|n| address(n).to_string()).collect();
    let by = |n: u8, dir: &TempDir| MeshSettings {
        gossip_bind: address(n),
        seeds: seeds.clone(),
        bootstrap_expect: Some(3),
        token: Some(token.clone()),
        ..settings(&format!("n{n}"), dir)
    };
    let start = async |n: u8, dir: TempDir| Node::start_by(by(n, &dir), dir, true).await;
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [a, b, c] = dirs;
    let (a, b, c) = tokio::join!(start(1, a), start(2, b), start(3, c));
    assert_eq!([&a, &b, &c].iter().filter(|node| node.mesh.founded).count(), 1);
    until("three voters", || [&a, &b, &c].iter().any(|node| node.leads() && node.voters().len() == 3)).await;

    // One comes back with what it kept: it is a member, and founds nothing.
    let Node { mesh, _dir: dir } = a;
    let id = mesh.handle.node().clone();
    mesh.stop().await;
    let a = start(1, dir).await;
    assert!(*a.id() == id && !a.mesh.founded);
    until("it follows", || [&b, &c].iter().any(|node| a.follows(node)) || a.leads()).await;
}
