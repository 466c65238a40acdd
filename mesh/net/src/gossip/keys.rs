//! The keys members gossip under, and what their values are.

use serde::{Deserialize, Serialize};

use crate::names::MeshId;

/// The node's capability without its load (see `gossip::capability`). Changes seldom.
pub const CAPABILITY: &str = "cap";
/// Free disk and use of GPUs. At most every 5 s.
pub const LOAD: &str = "load";
/// JSON of a [`crate::quic_transport::LeaderHint`], or `null` from a node that knows none by its own raft.
pub const LEADER: &str = "leader";
/// JSON of a [`MeshMark`].
pub const MESH: &str = "mesh";
/// JSON list of link addresses (multiaddr text).
pub const ADDRESSES: &str = "addrs";

/// JSON list of the replicas of services that can be asked here, see [`crate::services`]; a number follows.
pub const SERVICES: &str = "svc";

/// Which mesh, and which member table of it a node has: whoever has an older one asks for the newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshMark {
    /// The mesh.
    pub mesh: MeshId,
    /// Version of the node's member table.
    pub version: u64,
    /// Its digest (see [`crate::members::MemberTable::digest`]).
    pub digest: String,
}
