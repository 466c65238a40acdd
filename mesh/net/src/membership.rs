//! Who may speak: letting nodes in, and keeping every node's member table as new as the ledger's.

use std::{
    cmp::Ordering,
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
    quic_transport::{GossipEndpoint, JoinAsk, JoinRefusal, JoinRequest, LeaderHint, Welcome},
};

/// Gossip key of a node's raft id: the leader needs it to make the node a voter.
pub(crate) const RAFT: &str = "raft";

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

    /// Takes a newer table, or the right one in place of a damaged one of the same version: on disk first, then for
    /// everybody. Whether it was taken.
    fn take(&self, newer: MemberTable) -> bool {
        let fits = |table: &MemberTable| match newer.version.cmp(&table.version) {
            Ordering::Greater => true,
            Ordering::Equal => newer.digest() != table.digest(),
            Ordering::Less => false,
        };
        if !self.read(|table| newer.mesh == table.mesh && fits(table)) {
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
        let mut listening = self.inner.link.listening();
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
            self.inner.link.set_revoked(revoked.clone());
            self.inner.link.set_allowed(&allowed);
            endpoint.set_revoked(revoked);
            self.teach_addresses(&table);
            self.gossip_what_is_known(&table).await;
            // A burst of commits is one round.
            ticks.tick().await;
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                changed = members.changed() => if changed.is_err() { return },
                changed = listening.changed() => if changed.is_err() { return },
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
        let LeaderView::There { node, .. } = self.leader() else { return None };
        let heard = self.inner.gossip.members().borrow().clone();
        let newest = heard.values().filter_map(|m| m.mesh()).map(|mark| mark.version).max()?;
        // The leader's digest is of the ledger. Another one at this version: the file here was damaged, or was forged.
        let right = heard.get(&node).and_then(|leader| leader.mesh()).filter(|mark| mark.version == have);
        let differs = right.is_some_and(|mark| mark.digest != table.read(MemberTable::digest));
        let have = if differs { have.saturating_sub(1) } else { have };
        if newest <= have {
            return None;
        }
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
        // Only what raft itself says, while this node votes: hints of hints would keep an old leader alive. When it knows
        // none any more it says so, or the old one would stand there for ever.
        let raft = self.inner.consensus.leadership().borrow().clone();
        let leader = raft.leader.filter(|_| self.inner.consensus.votes());
        said.push((keys::LEADER, json_value(&leader.map(|node| LeaderHint { term: raft.term, node }))));
        for (key, value) in said {
            if let Err(error) = self.inner.gossip.publish(key, &value).await {
                warn!(key, %error, "not gossiped");
            }
        }
    }
}
