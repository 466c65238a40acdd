//! Nodes on loopback, ports chosen by the system, times a tenth of the product's.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod weather;

use std::{sync::Arc, time::Duration};

use mloc_mesh::{
    gossip::{Gossip, GossipSettings, Members},
    identity::NodeIdentity,
    names::NodeId,
    quic_transport::{Advertise, EndpointSettings, GossipEndpoint, JoinAsk},
    tls::MeshTls,
    token::JoinToken,
};
use tokio::{sync::mpsc, time::timeout};

/// No condition here takes longer, on a loaded machine of two cores either.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn token() -> JoinToken {
    JoinToken::found(&mut rand::rng())
}

pub fn identity(number: u8) -> Arc<NodeIdentity> {
    Arc::new(NodeIdentity::from_seed([number; 32]))
}

pub fn endpoint_settings(generation: u64) -> EndpointSettings {
    EndpointSettings::new("127.0.0.1:0".parse().unwrap(), Advertise::Detect, generation)
}

pub fn endpoint(number: u8, token: &JoinToken, generation: u64) -> (GossipEndpoint, mpsc::Receiver<JoinAsk>) {
    endpoint_with(number, token, endpoint_settings(generation))
}

pub fn endpoint_with(
    number: u8,
    token: &JoinToken,
    settings: EndpointSettings,
) -> (GossipEndpoint, mpsc::Receiver<JoinAsk>) {
    mloc_mesh::tls::install_crypto_provider();
    let identity = identity(number);
    let tls = MeshTls::new(&identity, std::slice::from_ref(token)).unwrap();
    GossipEndpoint::bind(identity.node().clone(), &tls, &settings).unwrap()
}

pub struct Node {
    pub identity: Arc<NodeIdentity>,
    pub endpoint: GossipEndpoint,
    pub gossip: Gossip,
}

impl Node {
    pub async fn start(number: u8, token: &JoinToken, generation: u64, seeds: &[&Node]) -> Self {
        let seeds = seeds.iter().map(|seed| seed.address()).collect();
        Self::start_with(number, token, endpoint_settings(generation), seeds).await
    }

    pub async fn start_with(number: u8, token: &JoinToken, settings: EndpointSettings, seeds: Vec<String>) -> Self {
        let (endpoint, _) = endpoint_with(number, token, settings);
        Self::on(number, endpoint, seeds).await
    }

    pub async fn on(number: u8, endpoint: GossipEndpoint, seeds: Vec<String>) -> Self {
        let identity = identity(number);
        let settings = GossipSettings { seeds, ..GossipSettings::default() }.faster(10);
        let gossip = Gossip::start(settings, &endpoint, identity.clone()).await.unwrap();
        gossip.publish("cap", &format!("capability of {number}")).await.unwrap();
        Self { identity, endpoint, gossip }
    }

    pub fn node(&self) -> &NodeId {
        self.identity.node()
    }

    pub fn address(&self) -> String {
        self.endpoint.local_addr().unwrap().to_string()
    }

    /// Waits until what this node believes satisfies `wanted`.
    pub async fn sees(&self, what: &str, wanted: impl Fn(&Members) -> bool) {
        let mut members = self.gossip.members();
        let waited = timeout(PATIENCE, members.wait_for(|members| wanted(members))).await.map(|seen| seen.map(drop));
        if waited.is_err() {
            panic!(
                "{what}: not seen by {} in {PATIENCE:?}; it sees {:#?}, refused {:?}, {:?}",
                self.node(),
                self.gossip.members().borrow(),
                self.endpoint.refusals(),
                self.endpoint.stats(),
            );
        }
    }
}

/// Waits on a condition nothing wakes us for.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not so in {PATIENCE:?}");
}
