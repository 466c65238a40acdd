//! Who may speak: letting nodes in, keeping every node's member table as new as the ledger's, and choosing voters.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use mloc_core::{
    id::{MeshId, NodeId},
    ledger::{Entry, Ledger, Outcome, Reason, entry::Member},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::{
    calls::{Answer, Call},
    gossip::{json_value, keys},
    handle::{LeaderView, MeshHandle, MeshUnavailable},
    members::{MemberRow, MemberTable},
    orchestrator::Uptimes,
    quic_transport::{GossipEndpoint, JoinAsk, JoinRefusal, JoinRequest, Welcome},
    raft::{Candidate, RaftId, VoterPolicy, plan_voters},
};

/// Gossip key of a node's raft id: the leader needs it to make the node a voter.
pub(crate) const RAFT: &str = "raft";
/// Less free disk than this, and a node does not vote: a log that can't grow stops the ledger.
const VOTER_DISK_BYTES_MIN: u64 = 256 << 20;

/// The table of this node, shared by all who ask whether a peer may speak.
#[derive(Clone)]
pub(crate) struct Table {
    dir: PathBuf,
    now: Arc<RwLock<MemberTable>>,
}

impl Table {
    pub fn new(dir: &Path, table: MemberTable) -> Self {
        Self { dir: dir.to_owned(), now: Arc::new(RwLock::new(table)) }
    }

    pub fn read<T>(&self, look: impl FnOnce(&MemberTable) -> T) -> T {
        look(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a peer is a member that was not revoked.
    pub fn allows(&self, node: &NodeId) -> bool {
        self.read(|table| table.members.get(node).is_some_and(|row| !row.revoked))
    }

    /// Takes a newer table: on disk first, then for everybody. Whether it was newer.
    fn take(&self, newer: MemberTable) -> bool {
        if self.read(|table| newer.version <= table.version || newer.mesh != table.mesh) {
            return false;
        }
        if let Err(error) = newer.store(&self.dir) {
            warn!(%error, "the member table can't be kept for the next start");
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = newer;
        true
    }
}

/// The table the ledger says.
pub(crate) fn table_of(mesh: &MeshId, ledger: &Ledger) -> MemberTable {
    let row = |member: &Member| MemberRow {
        name: member.name.clone(),
        addresses: member.addresses.clone(),
        revoked: member.revoked_at.is_some(),
    };
    let members = ledger.members.iter().map(|(node, member)| (node.clone(), row(member))).collect();
    MemberTable::new(mesh.clone(), ledger.members_version, members)
}

impl MeshHandle {
    /// Answers nodes that want in until the endpoint is gone.
    pub(crate) async fn let_in(self, mut asks: mpsc::Receiver<JoinAsk>) {
        while let Some(ask) = asks.recv().await {
            let admitted = match self.leader() {
                LeaderView::Here { .. } => self.admit(&ask.peer, &ask.request).await,
                LeaderView::There { node, .. } => {
                    let call = Call::Admit { node: ask.peer.clone(), request: ask.request.clone() };
                    match self.call(&node, &call).await {
                        Ok(Answer::Admitted(admitted)) => admitted,
                        Ok(_) | Err(_) => Err(JoinRefusal::NoLeader),
                    }
                }
                LeaderView::Unknown => Err(JoinRefusal::NoLeader),
            };
            let answer = admitted.map(|members| Welcome { leader: self.leader_hint(), members });
            if ask.reply.send(answer).is_err() {
                debug!(peer = %ask.peer, "a node that wanted in went away");
            }
        }
    }

    /// Commits a new member. On the leader.
    pub(crate) async fn admit(&self, node: &NodeId, request: &JoinRequest) -> Result<MemberTable, JoinRefusal> {
        let member = Member {
            name: request.name.clone(),
            addresses: request.addresses.clone(),
            joined_at: self.now(),
            draining_since: None,
            revoked_at: None,
        };
        match self.propose(Entry::MemberJoined { node: node.clone(), member }).await {
            Ok(Outcome::Rejected(Reason::RevokedMember(_))) => Err(JoinRefusal::Revoked(node.clone())),
            Ok(Outcome::Rejected(reason)) => Err(JoinRefusal::Denied(reason.to_string())),
            Ok(Outcome::Applied | Outcome::Duplicate(_) | Outcome::Stale) => {
                info!(%node, name = request.name, "a node joined");
                Ok(self.read(|ledger| table_of(&self.inner.mesh, ledger)))
            }
            Err(MeshUnavailable::Impossible(why)) => Err(JoinRefusal::Denied(why)),
            Err(_) => Err(JoinRefusal::NoLeader),
        }
    }

    /// Keeps table, allow-list, revocations and what is gossiped of them up to date. Runs until dropped.
    pub(crate) async fn keep_members(self, table: Table, endpoint: Arc<GossipEndpoint>, pause: Duration) {
        let mut applied = self.inner.consensus.ledger().applied();
        let mut members = self.inner.gossip.members();
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(newer) = self.newer_table(&table).await
                && table.take(newer)
            {
                info!(version = table.read(|t| t.version), "the member table changed");
            }
            let (allowed, revoked) = table.read(|t| {
                (t.allowed().cloned().collect::<BTreeSet<_>>(), t.revoked().cloned().collect::<BTreeSet<_>>())
            });
            self.inner.link.set_allowed(&allowed);
            endpoint.set_revoked(revoked);
            self.teach_addresses(&table);
            self.gossip_what_is_known(&table).await;
            // A burst of commits is one round.
            ticks.tick().await;
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                changed = members.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause * 10) => {}
            }
        }
    }

    /// The ledger's table where this node has it, the leader's elsewhere.
    async fn newer_table(&self, table: &Table) -> Option<MemberTable> {
        let have = table.read(|t| t.version);
        let own = self.read(|ledger| (ledger.members_version > have).then(|| table_of(&self.inner.mesh, ledger)));
        if own.is_some() {
            return own;
        }
        let heard = self.inner.gossip.members();
        let newest = heard.borrow().values().filter_map(|m| m.mesh()).map(|mark| mark.version).max()?;
        if newest <= have {
            return None;
        }
        let LeaderView::There { node, .. } = self.leader() else { return None };
        match self.call(&node, &Call::Members { have }).await {
            Ok(Answer::Members(Ok(newer))) => newer,
            Ok(_) => None,
            Err(error) => {
                debug!(%error, "a newer member table waits");
                None
            }
        }
    }

    /// The link dials what gossip says, and what the table says of those gossip has not heard yet.
    fn teach_addresses(&self, table: &Table) {
        let mut book: BTreeMap<NodeId, Vec<String>> =
            table.read(|t| t.members.iter().map(|(node, row)| (node.clone(), row.addresses.clone())).collect());
        for (node, view) in self.views() {
            if !view.addresses.is_empty() && book.contains_key(&node) {
                book.insert(node, view.addresses);
            }
        }
        book.remove(&self.inner.node);
        self.inner.link.set_addresses(&book);
    }

    async fn gossip_what_is_known(&self, table: &Table) {
        let mark = table.read(|t| keys::MeshMark { mesh: t.mesh.clone(), version: t.version, digest: t.digest() });
        let mut said = vec![
            (keys::MESH, json_value(&mark)),
            (keys::ADDRESSES, json_value(&self.inner.link.addresses())),
            (RAFT, self.inner.consensus.raft_id().to_string()),
        ];
        // Only what raft itself says: hints of hints would keep an old leader alive.
        let raft = self.inner.consensus.leadership().borrow().clone();
        if let Some(node) = raft.leader {
            said.push((keys::LEADER, json_value(&crate::quic_transport::LeaderHint { term: raft.term, node })));
        }
        for (key, value) in said {
            if let Err(error) = self.inner.gossip.publish(key, &value).await {
                warn!(key, %error, "not gossiped");
            }
        }
    }

    /// Promotes and replaces voters while this node leads. Runs until dropped.
    pub(crate) async fn keep_voters(self, table: Table, policy: VoterPolicy, pause: Duration) {
        let mut uptimes = Uptimes::default();
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let moment = self.now();
            let members = self.inner.gossip.members().borrow().clone();
            let alive = members.values().filter(|m| m.alive || m.node == self.inner.node);
            uptimes.observe(alive.map(|m| (m.node.clone(), m.generation)), moment);
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
            let voters = self.inner.consensus.voters();
            let current: BTreeSet<RaftId> = voters.iter().map(|v| v.id).collect();
            let mut peers: BTreeMap<RaftId, NodeId> = voters.iter().map(|v| (v.id, v.peer.clone())).collect();
            let mut candidates = Vec::new();
            for node in table.read(|t| t.allowed().cloned().collect::<Vec<_>>()) {
                let view = members.get(&node);
                let gossiped: Option<RaftId> = view.and_then(|v| v.values.get(RAFT)).and_then(|text| text.parse().ok());
                let voter = voters.iter().find(|v| v.peer == node);
                // A node that lost its data directory has a new raft id: its old seat is dead, the new id may be promoted.
                if let Some(seat) = voter.filter(|v| gossiped.is_some_and(|id| id != v.id)) {
                    candidates.push(Candidate {
                        id: seat.id,
                        leader: false,
                        willing: true,
                        reachable: true,
                        disk_ok: true,
                        alive: false,
                        stable_for: Duration::ZERO,
                        silent_for: seat.silent_for,
                    });
                }
                let Some(id) = gossiped.or(voter.map(|v| v.id)) else { continue };
                let voter = voter.filter(|v| v.id == id);
                let capability: Option<mloc_core::capability::Capability> = view.and_then(|v| v.json(keys::CAPABILITY));
                let draining = self.read(|l| l.members.get(&node).is_some_and(|m| m.draining_since.is_some()));
                peers.insert(id, node.clone());
                candidates.push(Candidate {
                    id,
                    leader: node == self.inner.node,
                    willing: capability.as_ref().is_none_or(|c| c.vote) && !draining,
                    reachable: capability.as_ref().is_some_and(|c| c.reachable),
                    disk_ok: capability.as_ref().is_some_and(|c| c.disk_bytes >= VOTER_DISK_BYTES_MIN),
                    alive: node == self.inner.node || view.is_some_and(|v| v.alive),
                    stable_for: uptimes.of(&node, moment),
                    silent_for: voter.and_then(|v| v.silent_for),
                });
            }
            let Some(target) = plan_voters(&candidates, &current, &policy) else { continue };
            let target: BTreeMap<RaftId, NodeId> =
                target.into_iter().filter_map(|id| Some((id, peers.get(&id)?.clone()))).collect();
            match self.inner.consensus.change_voters(&target).await {
                Ok(()) => info!(voters = target.len(), "the voters changed"),
                Err(error) => warn!(%error, "the voters could not be changed; tried again soon"),
            }
        }
    }
}
