//! The one raft configuration of MLOC, and the only place that says what an entry, an outcome and the state are.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use mloc_core::{
    id::NodeId,
    ledger::{Entry, Ledger, Outcome},
};

/// A raft id: 63 random bits, minted once per data directory and never reused. A node that lost its log is another
/// raft node, even on the same machine with the same key: its old votes and promises are gone.
pub type RaftId = u64;

/// What raft knows of a node besides its id. Addresses are resolved from the peer id elsewhere, names too: both may
/// change, and raft refuses a change of what it knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftNode {
    /// The node's libp2p peer id.
    pub peer: NodeId,
}

// openraft's storage suite makes nodes of its own.
#[cfg(test)]
impl Default for RaftNode {
    fn default() -> Self {
        Self { peer: NodeId::new("12D3KooWnobody") }
    }
}

/// A ledger entry as raft carries it. openraft wants `Display` for its traces; a submission may be long, so only the
/// entry's kind is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Command(pub Entry);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}", self.0);
        let kind = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        f.write_str(kind)
    }
}

openraft::declare_raft_types!(
    /// Entries of the ledger in, their outcomes out (`None` for raft's own entries).
    ///
    /// Standard leader ids: one leader a term. openraft's default lets a term have several, one after another, and
    /// then a term could not fence the messages of a leader that was replaced.
    pub TypeConfig:
        D = Command,
        R = Option<Outcome>,
        NodeId = RaftId,
        Node = RaftNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type LogEntry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type Membership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
