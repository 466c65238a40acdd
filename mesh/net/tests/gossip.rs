//! Gossip over real sockets: members find each other, strangers stay out, the dead are noticed.

mod bench;

use std::collections::BTreeSet;

use bench::{Node, endpoint_settings, identity, token, until};
use mloc_mesh::{
    gossip::{GossipHealth, Members},
    names::NodeId,
    quic_transport::{Advertise, Refusal},
    tls::MeshTls,
    token::JoinToken,
};

fn alive(members: &Members, node: &NodeId) -> bool {
    members.get(node).is_some_and(|view| view.alive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_and_one_seed_converge_on_signed_values() {
    let token = token();
    let a = Node::start(1, &token, 1, &[]).await;
    let b = Node::start(2, &token, 1, &[&a]).await;
    let c = Node::start(3, &token, 1, &[&a]).await;
    for node in [&a, &b, &c] {
        node.sees("all capabilities", |members| {
            [(1, &a), (2, &b), (3, &c)].iter().all(|(number, other)| {
                alive(members, other.node())
                    && members[other.node()].values.get("cap") == Some(&format!("capability of {number}"))
            })
        })
        .await;
    }
    b.gossip.publish("load", "0.5").await.unwrap();
    for node in [&a, &c] {
        node.sees("b's load", |members| members[b.node()].values.get("load").is_some_and(|load| load == "0.5")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dial_and_one_connection_stays() {
    let token = token();
    for _ in 0..3 {
        let (a, _) = bench::endpoint(1, &token, 1);
        let (b, _) = bench::endpoint(2, &token, 1);
        let seeds = |of: &mloc_mesh::quic_transport::GossipEndpoint| vec![of.local_addr().unwrap().to_string()];
        let (to_a, to_b) = (seeds(&a), seeds(&b));
        let (a, b) = tokio::join!(Node::on(1, a, to_b), Node::on(2, b, to_a));
        for node in [&a, &b] {
            node.sees("the other", |members| members.values().filter(|view| view.alive).count() == 2).await;
        }
        // Open ones and not only those kept: so it is the same one that both keep.
        until("one connection", || [&a, &b].iter().all(|node| node.endpoint.open_connections() == 1)).await;
        assert_eq!((a.endpoint.stats().connected, b.endpoint.stats().connected), (1, 1));
        let dials = a.endpoint.stats().dials + b.endpoint.stats().dials;
        assert!(dials <= 3, "{dials} dials between two nodes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_token_is_refused_with_a_reason_on_both_sides() {
    let ours = token();
    let a = Node::start(1, &ours, 1, &[]).await;
    let other_mesh = Node::start(2, &token(), 1, &[&a]).await;
    let rotated = JoinToken::rotate(ours.mesh().clone(), &mut rand::rng());
    let wrong_token = Node::start(3, &rotated, 1, &[&a]).await;
    for (stranger, reason) in [(&other_mesh, "is of mesh"), (&wrong_token, "another join token")] {
        until("the stranger is told why", || {
            stranger.endpoint.refusals().iter().any(|refusal| refusal.dialled && refusal.reason.contains(reason))
        })
        .await;
        until("we note why", || {
            a.endpoint.refusals().iter().any(|refusal| !refusal.dialled && refusal.reason.contains(reason))
        })
        .await;
        assert!(!a.gossip.members().borrow().contains_key(stranger.node()));
        stranger.sees("itself alone", |members| members.len() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_is_noticed_and_a_restart_believed() {
    let token = token();
    let a = Node::start(1, &token, 1, &[]).await;
    let b = Node::start(2, &token, 1, &[&a]).await;
    let c = Node::start(3, &token, 7, &[&a]).await;
    for node in [&a, &b, &c] {
        node.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
    }
    let gone = c.node().clone();
    drop(c);
    for node in [&a, &b] {
        node.sees("a death", |members| !alive(members, &gone)).await;
    }
    let settings = endpoint_settings(8);
    let _c = Node::start_with(3, &token, settings, vec![a.address()]).await;
    for node in [&a, &b] {
        node.sees("a restart", |members| alive(members, &gone) && members[&gone].generation == 8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_cut_off_and_told() {
    let token = token();
    let a = Node::start(1, &token, 1, &[]).await;
    let b = Node::start(2, &token, 1, &[&a]).await;
    for node in [&a, &b] {
        node.sees("two alive", |members| members.values().filter(|view| view.alive).count() == 2).await;
    }
    a.endpoint.set_revoked(BTreeSet::from([b.node().clone()]));
    until("b is told", || b.endpoint.refusals().iter().any(|refusal| refusal.reason.contains("revoked"))).await;
    let said = |refusal: &Refusal| refusal.reason.contains("revoked") && refusal.reason.contains(b.node().as_str());
    assert!(a.endpoint.refusals().iter().any(said), "the one that cuts says so too: {:?}", a.endpoint.refusals());
    a.sees("b dead", |members| !alive(members, b.node())).await;
    assert_eq!(a.endpoint.stats().connected, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_dials_gossips_over_its_own() {
    let token = token();
    let a = Node::start(1, &token, 1, &[]).await;
    let b = Node::start(2, &token, 1, &[&a]).await;
    let mut settings = endpoint_settings(1);
    settings.advertise = Advertise::DialsOutOnly;
    let hidden = Node::start_with(3, &token, settings, vec![a.address()]).await;
    for node in [&a, &b, &hidden] {
        node.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
    }
    hidden.gossip.publish("load", "1").await.unwrap();
    b.sees("its load", |members| members[hidden.node()].values.contains_key("load")).await;
}

/// A member that holds the token writes a value for another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_value_is_not_believed() {
    let token = token();
    let a = Node::start(1, &token, 1, &[]).await;
    let victim = identity(9);
    // The forger gossips under the victim's name, with values only its own key signs.
    let (endpoint, _) = bench::endpoint(2, &token, 5);
    let config = chitchat::ChitchatConfig {
        chitchat_id: chitchat::ChitchatId::new(victim.node().as_str(), 5, endpoint.advertised()),
        cluster_id: token.mesh().to_string(),
        gossip_interval: std::time::Duration::from_millis(50),
        listen_addr: endpoint.advertised(),
        seed_nodes: vec![a.address()],
        failure_detector_config: chitchat::FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: std::time::Duration::from_secs(60),
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let signature = "A".repeat(86);
    let forged = vec![("cap".to_owned(), format!("1.1.{signature}.eight GPUs"))];
    let forger = chitchat::spawn_chitchat(config, forged, &endpoint).await.unwrap();
    // It has heard from a, so a has heard from it: one exchange goes both ways.
    let reached = async {
        let heard = |c: &mut chitchat::Chitchat| {
            c.node_states().values().any(|s| s.get("cap").is_some_and(|v| v.contains("capability of 1")))
        };
        while !forger.with_chitchat(heard).await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(bench::PATIENCE, reached).await.expect("the forger reaches a");
    let b = Node::start(3, &token, 1, &[&a]).await;
    a.sees("an honest third node", |members| members.contains_key(b.node())).await;
    for node in [&a, &b] {
        assert!(!node.gossip.members().borrow().contains_key(victim.node()));
    }
}

/// Ten nodes, one seed: everybody sees everybody, and no pair keeps two connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_converge() {
    let token = token();
    let first = Node::start(1, &token, 1, &[]).await;
    let mut nodes = vec![first];
    for number in 2..=10 {
        let node = Node::start(number, &token, 1, &[&nodes[0]]).await;
        nodes.push(node);
    }
    for node in &nodes {
        node.sees("ten alive", |members| members.values().filter(|view| view.alive).count() == 10).await;
    }
    until("each keeps one connection to each", || nodes.iter().all(|node| node.endpoint.stats().connected == 9)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_token_shuts_out_the_old_one_without_cutting_members() {
    let old = token();
    let new = JoinToken::rotate(old.mesh().clone(), &mut rand::rng());
    let a = Node::start(1, &old, 1, &[]).await;
    let b = Node::start(2, &old, 1, &[&a]).await;
    for node in [&a, &b] {
        node.sees("two alive", |members| members.values().filter(|view| view.alive).count() == 2).await;
    }
    let connected = [a.endpoint.stats().dials, b.endpoint.stats().dials];
    for tokens in [vec![new.clone(), old.clone()], vec![new.clone()]] {
        for node in [&a, &b] {
            node.endpoint.set_certificates(&MeshTls::new(&node.identity, &tokens).unwrap()).unwrap();
        }
    }
    let c = Node::start(3, &new, 1, &[&a]).await;
    for node in [&a, &b, &c] {
        node.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
    }
    let late = Node::start(4, &old, 1, &[&a]).await;
    until("the old token is refused", || {
        late.endpoint.refusals().iter().any(|refusal| refusal.reason.contains("rotated"))
    })
    .await;
    let dialled = [a.endpoint.stats().dials, b.endpoint.stats().dials];
    assert!(dialled.iter().zip(connected).all(|(now, then)| *now <= then + 1), "a and b did not dial each other anew");
    let other = MeshTls::new(&a.identity, &[token()]).unwrap();
    assert!(a.endpoint.set_certificates(&other).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_gossip_is_noticed() {
    let node = Node::start(1, &token(), 1, &[]).await;
    let Node { endpoint, gossip, .. } = node;
    let mut health = gossip.health();
    assert_eq!(*health.borrow(), GossipHealth::Running);
    drop(endpoint);
    let ended = health.wait_for(|health| *health != GossipHealth::Running).await.unwrap().clone();
    assert!(matches!(ended, GossipHealth::Died { .. }), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_serves_both_address_families() {
    if std::net::UdpSocket::bind("[::]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let token = token();
    let mut settings = endpoint_settings(1);
    settings.bind = "[::]:0".parse().unwrap();
    settings.advertise = Advertise::At("127.0.0.1:0".parse().unwrap());
    let both = Node::start_with(1, &token, settings, vec![]).await;
    let port = both.endpoint.local_addr().unwrap().port();
    let four = Node::start_with(2, &token, endpoint_settings(1), vec![format!("127.0.0.1:{port}")]).await;
    let mut settings = endpoint_settings(1);
    settings.bind = "[::1]:0".parse().unwrap();
    let six = Node::start_with(3, &token, settings, vec![format!("[::1]:{port}")]).await;
    for node in [&both, &four, &six] {
        node.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
    }
}

/// The founder has no seeds: after a kill it dials nobody, so the others must notice that their connections lead nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_founder_is_found_again_on_its_port() {
    let token = token();
    let founder = {
        let token = token.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            // A loopback address of its own: no other test takes the port while it is free.
            let mut settings = endpoint_settings(1);
            settings.bind = ([127, 1 + rand::random::<u8>() / 2, rand::random(), 1], 0).into();
            let node = runtime.block_on(Node::start_with(1, &token, settings, vec![]));
            (runtime, node)
        })
    };
    let (runtime, founder) = tokio::task::spawn_blocking(|| founder.join().unwrap()).await.unwrap();
    let b = Node::start(2, &token, 1, &[&founder]).await;
    let c = Node::start(3, &token, 1, &[&founder]).await;
    for node in [&b, &c] {
        node.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
    }
    let name = founder.node().clone();
    let mut settings = endpoint_settings(2);
    settings.bind = founder.endpoint.local_addr().unwrap();
    // The tasks go first, so that no goodbye is sent.
    tokio::task::spawn_blocking(move || {
        runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        drop(founder);
    })
    .await
    .unwrap();
    let founder = Node::start_with(1, &token, settings, vec![]).await;
    for node in [&b, &c] {
        node.sees("the founder's second start", |members| alive(members, &name) && members[&name].generation == 2)
            .await;
    }
    founder.sees("three alive", |members| members.values().filter(|view| view.alive).count() == 3).await;
}
