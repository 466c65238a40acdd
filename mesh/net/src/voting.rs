//! Who votes, carried out: promotion and replacement while this node leads, and revoking without losing the majority.
//! Who should vote is [`plan_voters`]'s to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mloc_core::{
    id::NodeId,
    ledger::{Entry, Outcome, Reason},
};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::{
    gossip::Members,
    handle::{LeaderView, MeshHandle, MeshUnavailable},
    membership::RAFT,
    orchestrator::Uptimes,
    raft::{Candidate, RaftId, Standing, Voter, VoterPolicy, VotersError, plan_voters},
};

/// Less free disk than this, and a node does not vote: a log that can't grow stops the ledger.
const VOTER_DISK_BYTES_MIN: u64 = 256 << 20;

/// What the choice of voters rests on. Locked for the time of a change: two at once would undo each other.
pub(crate) struct Voting {
    policy: VoterPolicy,
    uptimes: Uptimes,
}

impl Voting {
    pub fn new(policy: VoterPolicy) -> Self {
        Self { policy, uptimes: Uptimes::default() }
    }
}

/// Why a member was not revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// Not now, or not here.
    #[error(transparent)]
    Unavailable(#[from] MeshUnavailable),
    /// It votes, and the mesh could commit nothing without it.
    #[error(
        "node {node} votes, and without it no majority of the {voters} voters would be left to go on: first let other \
         nodes vote (two more members that are up, reachable and may vote are promoted by themselves), or bring back \
         those that are down"
    )]
    QuorumLost {
        /// It.
        node: NodeId,
        /// Voters now.
        voters: usize,
    },
}

impl From<VotersError> for RevokeError {
    fn from(error: VotersError) -> Self {
        Self::Unavailable(match error {
            VotersError::NotLeader { leader } => MeshUnavailable::NotLeader { leader },
            error => MeshUnavailable::NoQuorum(error.to_string()),
        })
    }
}

/// Every member as a candidate, and the peer behind each raft id.
#[derive(Default)]
struct Field {
    candidates: Vec<Candidate>,
    peers: BTreeMap<RaftId, NodeId>,
}

impl MeshHandle {
    /// Shuts a member out. On the leader only. One that votes gives up its vote first, so that the mesh never counts on
    /// a node it does not speak to; the leader itself hands the lead over, and whoever leads then is to be asked.
    ///
    /// # Errors
    /// When the mesh could not go on without it, when this node does not lead, or no majority answers.
    pub async fn revoke(&self, node: &NodeId) -> Result<Outcome, RevokeError> {
        self.linearize().await?;
        if !self.read(|ledger| ledger.members.contains_key(node)) {
            return Ok(Outcome::Rejected(Reason::UnknownMember(node.clone())));
        }
        let voting = self.inner.voting.lock().await;
        if let Some(target) = self.inner.consensus.unfinished_change() {
            self.inner.consensus.change_voters(&target).await?;
        }
        let voters = self.inner.consensus.voters();
        if voters.iter().any(|voter| voter.peer == *node) {
            let lost = || RevokeError::QuorumLost { node: node.clone(), voters: voters.len() };
            let target = self.plan(&voting, &voters, Some(node)).ok_or_else(lost)?;
            let elsewhere = || {
                let leader = self.leader().parts().0.filter(|leader| *leader != self.inner.node);
                RevokeError::Unavailable(MeshUnavailable::NotLeader { leader })
            };
            if *node == self.inner.node && self.inner.consensus.hand_over(|heir| heir != node).await {
                return Err(elsewhere());
            }
            self.inner.consensus.change_voters(&target).await?;
            info!(%node, voters = target.len(), "a member that is revoked has given up its vote");
            if *node == self.inner.node {
                return Err(elsewhere());
            }
        }
        Ok(self.propose(Entry::MemberRevoked { node: node.clone(), at: self.now() }).await?)
    }

    /// Promotes and replaces voters while this node leads. Runs until dropped.
    pub(crate) async fn keep_voters(self, pause: Duration) {
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut voting = self.inner.voting.lock().await;
            let members = self.inner.gossip.members().borrow().clone();
            let alive = members.values().filter(|m| m.alive || m.node == self.inner.node);
            voting.uptimes.observe(alive.map(|m| (m.node.clone(), m.generation)), self.inner.clock.elapsed());
            if !matches!(self.leader(), LeaderView::Here { .. }) {
                continue;
            }
            // A leader that died half way through a change left a joint configuration: it is finished first.
            if let Some(target) = self.inner.consensus.unfinished_change() {
                if let Err(error) = self.inner.consensus.change_voters(&target).await {
                    warn!(%error, "an unfinished change of voters waits");
                }
                continue;
            }
            // Nobody that drains leads while another can.
            if self.drains(&self.inner.node) && self.inner.consensus.hand_over(|heir| !self.drains(heir)).await {
                info!("this node drains; another leads");
                continue;
            }
            let voters = self.inner.consensus.voters();
            let Some(target) = self.plan(&voting, &voters, None) else { continue };
            match self.inner.consensus.change_voters(&target).await {
                Ok(()) => info!(voters = target.len(), "the voters changed"),
                Err(error) => warn!(%error, "the voters could not be changed; tried again soon"),
            }
        }
    }

    fn drains(&self, node: &NodeId) -> bool {
        self.read(|ledger| ledger.members.get(node).is_some_and(|member| member.draining_since.is_some()))
    }

    /// The voters to change to; without `leaving`, if that is to be shut out.
    fn plan(&self, voting: &Voting, voters: &[Voter], leaving: Option<&NodeId>) -> Option<BTreeMap<RaftId, NodeId>> {
        let members = self.inner.gossip.members().borrow().clone();
        let field = self.field(voting, voters, leaving, &members);
        let current: BTreeSet<RaftId> = voters.iter().map(|voter| voter.id).collect();
        let target = plan_voters(&field.candidates, &current, &voting.policy)?;
        Some(target.into_iter().filter_map(|id| Some((id, field.peers.get(&id)?.clone()))).collect())
    }

    fn field(&self, voting: &Voting, voters: &[Voter], leaving: Option<&NodeId>, members: &Members) -> Field {
        let mut field = Field::default();
        field.peers.extend(voters.iter().map(|voter| (voter.id, voter.peer.clone())));
        let moment = self.inner.clock.elapsed();
        let known: Vec<(NodeId, bool)> = self.read(|ledger| {
            let members = ledger.members.iter().filter(|(_, member)| member.revoked_at.is_none());
            members.map(|(node, member)| (node.clone(), member.draining_since.is_some())).collect()
        });
        for (node, draining) in known {
            let view = members.get(&node);
            let gossiped: Option<RaftId> = view.and_then(|v| v.values.get(RAFT)).and_then(|text| text.parse().ok());
            let voter = voters.iter().find(|voter| voter.peer == node);
            let capability = view.and_then(|view| view.capability());
            let standing = match leaving == Some(&node) {
                true => Standing::Out,
                false if draining || capability.as_ref().is_some_and(|c| !c.vote) => Standing::Leaving,
                false => Standing::Willing,
            };
            // A node that lost its data directory has a new raft id: its old seat is dead, the new id may be promoted.
            if let Some(seat) = voter.filter(|v| gossiped.is_some_and(|id| id != v.id)) {
                field.candidates.push(Candidate {
                    id: seat.id,
                    leader: false,
                    standing,
                    reachable: true,
                    disk_ok: true,
                    alive: false,
                    stable_for: Duration::ZERO,
                    silent_for: seat.silent_for,
                });
            }
            let Some(id) = gossiped.or(voter.map(|v| v.id)) else { continue };
            field.peers.insert(id, node.clone());
            field.candidates.push(Candidate {
                id,
                leader: node == self.inner.node,
                standing,
                reachable: capability.as_ref().is_some_and(|c| c.reachable),
                disk_ok: capability.as_ref().is_some_and(|c| c.disk_bytes >= VOTER_DISK_BYTES_MIN),
                alive: node == self.inner.node || view.is_some_and(|v| v.alive),
                stable_for: voting.uptimes.of(&node, moment),
                silent_for: voter.filter(|v| v.id == id).and_then(|v| v.silent_for),
            });
        }
        field
    }
}
