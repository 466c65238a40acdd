//! Gossip over bad lines: 150 ms one way and one datagram in twenty lost.

mod bench;

use std::time::Duration;

use bench::{
    Node, endpoint_settings, token, until,
    weather::{Relay, Weather},
};
use mloc_mesh::quic_transport::Advertise;

const NODES: usize = 10;
const BAD: Weather = Weather { one_way: Duration::from_millis(150), loss: 0.05 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_over_a_wan_converge_and_notice_a_death() {
    let token = token();
    let mut nodes = Vec::new();
    let mut relays = Vec::new();
    let mut seed = Vec::new();
    for number in 1..=NODES {
        let relay = Relay::open().await;
        let mut settings = endpoint_settings(1);
        // Others know the node by its relay's address only.
        settings.advertise = Advertise::At(relay.address);
        if number == 1 {
            seed.push(relay.address.to_string());
        }
        let seeds = if number == 1 { vec![] } else { seed.clone() };
        let node = Node::start_with(number as u8, &token, settings, seeds).await;
        relays.push(relay.before(node.endpoint.local_addr().unwrap(), BAD, number as u64));
        nodes.push(node);
    }
    for node in &nodes {
        node.sees("all alive", |members| {
            members.len() == NODES && members.values().all(|view| view.alive && view.values.contains_key("cap"))
        })
        .await;
    }
    until("one connection kept to each", || {
        nodes.iter().all(|node| node.endpoint.stats().connected == NODES as u64 - 1)
    })
    .await;
    let gone = nodes.pop().unwrap();
    let name = gone.node().clone();
    drop(gone);
    for node in &nodes {
        node.sees("the death", |members| !members[&name].alive).await;
    }
    relays.iter().for_each(|relay| relay.abort());
}
