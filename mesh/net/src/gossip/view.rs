//! What this node believes of the others: of all that gossip says, the values their authors signed, newest first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use mloc_core::capability::Capability;
use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

use super::{
    capability, keys,
    signed::{self, Subject},
};
use crate::{identity, names::NodeId, quic_transport::LeaderHint};

/// One member as gossip shows it. Only `values` are proven; whether it lives is a guess of the failure detector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Who.
    pub node: NodeId,
    /// Its start; higher after a restart.
    pub generation: u64,
    /// Whether heartbeats arrive as expected. A hint: act on leases.
    pub alive: bool,
    /// Where it gossips (unproven).
    pub gossip_address: SocketAddr,
    /// Its values, each signed by itself in this generation.
    pub values: BTreeMap<String, String>,
}

impl PeerView {
    /// A value that is JSON, read as `T`; `None` when it is absent or not a `T` (another version's, say).
    pub fn json<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.values.get(key)?).ok()
    }

    /// What it offers, and its load if that was heard.
    pub fn capability(&self) -> Option<Capability> {
        capability::read(self.values.get(keys::CAPABILITY)?, self.values.get(keys::LOAD).map(String::as_str))
    }

    /// Whom it holds for the leader.
    pub fn leader(&self) -> Option<LeaderHint> {
        self.json(keys::LEADER)
    }

    /// Its mesh and member table.
    pub fn mesh(&self) -> Option<keys::MeshMark> {
        self.json(keys::MESH)
    }

    /// Its link addresses (multiaddr text).
    pub fn link_addresses(&self) -> Vec<String> {
        self.json(keys::ADDRESSES).unwrap_or_default()
    }
}

/// All members, this node included.
pub type Members = BTreeMap<NodeId, PeerView>;

/// Text for a value that is JSON.
pub fn json_value(value: &impl Serialize) -> String {
    // Fails for maps with keys that are no strings and for floats that are no numbers; gossip values have neither.
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"unwritable\":\"{error}\"}}"))
}

/// What chitchat holds of one start of one node, unproven.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub node: String,
    pub generation: u64,
    pub alive: bool,
    pub address: SocketAddr,
    pub values: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Believed {
    text: String,
    counter: u64,
    value: String,
    /// The last text that was not believed, so that it is checked and logged once.
    refused: Option<String>,
}

/// Remembers what was proven, so that each signature is checked once.
#[derive(Debug, Default)]
pub(crate) struct Beliefs {
    proven: HashMap<(NodeId, u64), BTreeMap<String, Believed>>,
}

impl Beliefs {
    /// The members that this much hearsay proves.
    pub(crate) fn review(&mut self, heard: Vec<Heard>) -> Members {
        let mut members = Members::new();
        let mut current = HashSet::new();
        for Heard { node, generation, alive, address, values } in heard {
            let node = NodeId::new(node);
            if identity::peer_id_of(&node).is_none() {
                continue;
            }
            let start = (node.clone(), generation);
            let proven = self.proven.entry(start.clone()).or_default();
            let values: BTreeMap<_, _> = values
                .into_iter()
                .filter_map(|(key, text)| Some((key.clone(), believe(proven, &node, generation, key, text)?)))
                .collect();
            current.insert(start);
            // Without one proven value nothing shows that the node itself ever said anything in this generation.
            if values.is_empty() {
                continue;
            }
            let known = members.get(&node);
            let older = known.is_some_and(|known| generation < known.generation);
            // The same start under two addresses: a forged one brings no life to a dead one's entry and takes none.
            let same_start_alive = known.is_some_and(|known| known.generation == generation && known.alive && !alive);
            if !older && !same_start_alive {
                let view = PeerView { node: node.clone(), generation, alive, gossip_address: address, values };
                members.insert(node, view);
            }
        }
        self.proven.retain(|start, _| current.contains(start));
        members
    }
}

/// The value to believe under this key: the new text's if it is good and newer, else the last good one.
fn believe(
    proven: &mut BTreeMap<String, Believed>,
    node: &NodeId,
    generation: u64,
    key: String,
    text: String,
) -> Option<String> {
    let last = proven.entry(key.clone()).or_default();
    if last.text != text && last.refused.as_ref() != Some(&text) {
        let subject = Subject { node, generation, key: &key };
        match signed::open(subject, &text) {
            Ok((counter, value)) if last.text.is_empty() || counter > last.counter => {
                *last = Believed { counter, value: value.to_owned(), text, refused: None };
            }
            Ok((counter, _)) => {
                warn!(%node, key, counter, newest = last.counter, "an old gossip value came again, kept the newer");
                last.refused = Some(text);
            }
            Err(reason) => {
                warn!(%node, key, %reason, "gossip value not believed");
                last.refused = Some(text);
            }
        }
    }
    (!last.text.is_empty()).then(|| last.value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeIdentity;

    fn heard(node: &NodeIdentity, generation: u64, alive: bool, values: &[(&str, String)]) -> Heard {
        Heard {
            node: node.node().to_string(),
            generation,
            alive,
            address: ([127, 0, 0, 1], 1).into(),
            values: values.iter().map(|(key, text)| ((*key).to_owned(), text.clone())).collect(),
        }
    }

    #[test]
    fn a_forged_or_replayed_value_changes_nothing() {
        let (a, b) = (NodeIdentity::from_seed([1; 32]), NodeIdentity::from_seed([2; 32]));
        let mut beliefs = Beliefs::default();
        let old = signed::sign(&a, 1, "cap", 1, "8 GPUs");
        let new = signed::sign(&a, 1, "cap", 2, "7 GPUs");
        let forged = signed::sign(&b, 1, "cap", 3, "0 GPUs");
        for (text, believed) in [(&old, "8 GPUs"), (&new, "7 GPUs"), (&old, "7 GPUs"), (&forged, "7 GPUs")] {
            let members = beliefs.review(vec![heard(&a, 1, true, &[("cap", text.clone())])]);
            assert_eq!(members[a.node()].values["cap"], believed);
        }
    }

    #[test]
    fn a_made_up_generation_is_not_a_restart() {
        let (a, b) = (NodeIdentity::from_seed([1; 32]), NodeIdentity::from_seed([2; 32]));
        let mut beliefs = Beliefs::default();
        let real = heard(&a, 1, true, &[("cap", signed::sign(&a, 1, "cap", 1, "x"))]);
        let made_up = heard(&a, 9, true, &[("cap", signed::sign(&b, 9, "cap", 1, "y"))]);
        let members = beliefs.review(vec![real.clone(), made_up]);
        assert_eq!((members[a.node()].generation, members.len()), (1, 1));
        let restarted = heard(&a, 2, true, &[("cap", signed::sign(&a, 2, "cap", 1, "z"))]);
        let mut dead = real;
        dead.alive = false;
        let members = beliefs.review(vec![restarted, dead]);
        assert_eq!((members[a.node()].generation, members[a.node()].alive), (2, true));
    }
}
