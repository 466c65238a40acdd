//! Who leads: raft's own word where this node votes; elsewhere what voters gossip, once the node they name says so too.
//!
//! A gossiped hint is a member's word about another, and any member may say anything, a term of `u64::MAX` included. So
//! a hint moves nobody before the node it names was asked and has answered that it leads, in that term or a later one.
//! It is believed for as long as somebody alive goes on saying it and the named node is alive. What is left to trust is
//! a member's word about itself: who abuses that is revoked.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tracing::debug;

use crate::{
    calls::{Answer, Call},
    gossip::Members,
    handle::{LeaderView, MeshHandle},
    names::NodeId,
    quic_transport::LeaderHint,
    raft::Leadership,
};

/// A node that did not confirm a hint is asked again after this long: it may be about to lead.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A node asked whether it leads must answer within this; a slower one is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes asked at once. Honest hints name one or two; there is one hint a member.
const ASKED_AT_ONCE: usize = 8;

/// In which term each node has said of itself that it leads: the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Confirmed(BTreeMap<NodeId, u64>);

impl Confirmed {
    /// Takes a node's own word. Whether it was news.
    pub fn learn(&mut self, node: &NodeId, term: u64) -> bool {
        let known = self.0.entry(node.clone()).or_default();
        let news = *known < term;
        *known = term.max(*known);
        news
    }

    /// The hint with the term the named node itself gave, if it did and that term is no older.
    fn confirm(&self, hint: &LeaderHint) -> Option<LeaderHint> {
        let term = *self.0.get(&hint.node)?;
        (term >= hint.term).then(|| LeaderHint { term, node: hint.node.clone() })
    }

    /// Forgets nodes nobody names any more.
    fn forget_but(&mut self, named: &BTreeSet<NodeId>) -> bool {
        let before = self.0.len();
        self.0.retain(|node, _| named.contains(node));
        self.0.len() != before
    }
}

/// What members that are alive say of others that are.
fn hints<'m>(members: &'m Members, me: &'m NodeId) -> impl Iterator<Item = LeaderHint> + 'm {
    let alive = |node: &NodeId| members.get(node).is_some_and(|view| view.alive);
    // A hint that names this node is old: raft itself would know.
    let plausible = move |hint: &LeaderHint| hint.node != *me && alive(&hint.node);
    members.values().filter(|view| view.alive).filter_map(|view| view.leader()).filter(plausible)
}

/// Who leads, as far as a node knows: of raft's word and confirmed hints the highest term.
pub(crate) fn leader_of(
    me: &NodeId,
    raft: &Leadership,
    votes: bool,
    members: &Members,
    confirmed: &Confirmed,
) -> LeaderView {
    if raft.mine {
        return LeaderView::Here { node: me.clone(), term: raft.term };
    }
    // A node that was voted out hears no more of elections: its raft names the last leader it had for ever.
    let own = raft.leader.clone().filter(|_| votes).map(|node| LeaderHint { term: raft.term, node });
    let heard = hints(members, me).filter_map(|hint| confirmed.confirm(&hint));
    match own.into_iter().chain(heard).max_by_key(|hint| hint.term) {
        Some(hint) => LeaderView::There { node: hint.node, term: hint.term },
        None => LeaderView::Unknown,
    }
}

/// Whom to ask whether it leads: named in a later term than any leader known, and not confirmed. Highest term first.
fn to_ask(me: &NodeId, known: &LeaderView, members: &Members, confirmed: &Confirmed) -> Vec<NodeId> {
    let (_, term) = known.clone().parts();
    let mut open: Vec<LeaderHint> = hints(members, me)
        .filter(|hint| hint.term > term || matches!(known, LeaderView::Unknown))
        .filter(|hint| confirmed.confirm(hint).is_none())
        .collect();
    open.sort_by_key(|hint| Reverse(hint.term));
    let mut seen = BTreeSet::new();
    open.into_iter().map(|hint| hint.node).filter(|node| seen.insert(node.clone())).collect()
}

impl MeshHandle {
    /// Asks the nodes that hints name. Runs until dropped.
    pub(crate) async fn confirm_leaders(self) {
        let mut members = self.inner.gossip.members();
        let mut raft = self.inner.consensus.leadership();
        let mut asked: BTreeMap<NodeId, Instant> = BTreeMap::new();
        loop {
            let seen = members.borrow_and_update().clone();
            raft.borrow_and_update();
            let me = &self.inner.node;
            let named: BTreeSet<NodeId> = hints(&seen, me).map(|hint| hint.node).collect();
            self.inner.confirmed_leaders.send_if_modified(|confirmed| confirmed.forget_but(&named));
            asked.retain(|node, at| named.contains(node) && at.elapsed() < ASK_AGAIN);
            let open = to_ask(me, &self.leader(), &seen, &self.inner.confirmed_leaders.borrow());
            let ask: Vec<_> = open.iter().filter(|node| !asked.contains_key(*node)).cloned().collect();
            stream::iter(ask.iter().cloned().map(|node| self.ask_whether_it_leads(node)))
                .buffer_unordered(ASKED_AT_ONCE)
                .for_each(|()| std::future::ready(()))
                .await;
            asked.extend(ask.into_iter().map(|node| (node, Instant::now())));
            let again = async {
                match open.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(ASK_AGAIN).await,
                }
            };
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                changed = raft.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    async fn ask_whether_it_leads(&self, node: NodeId) {
        match tokio::time::timeout(ASK_TIMEOUT, self.call(&node, &Call::Leader)).await {
            Ok(Ok(Answer::Leads(Some(term)))) => {
                self.inner.confirmed_leaders.send_if_modified(|confirmed| confirmed.learn(&node, term));
            }
            Ok(Ok(_)) => debug!(%node, "a node that is named as leader does not lead"),
            Ok(Err(error)) => debug!(%node, %error, "a node that is named as leader can't be asked"),
            Err(_) => debug!(%node, "a node that is named as leader does not answer"),
        }
    }

    /// Waits until [`Self::leader`] is another than `seen`: a request that hangs with the old one can be given up.
    pub async fn leader_other_than(&self, seen: &LeaderView) {
        let mut members = self.inner.gossip.members();
        let mut raft = self.inner.consensus.leadership();
        let mut confirmed = self.inner.confirmed_leaders.subscribe();
        loop {
            members.borrow_and_update();
            raft.borrow_and_update();
            confirmed.borrow_and_update();
            if self.leader() != *seen {
                return;
            }
            let alive = tokio::select! {
                changed = members.changed() => changed.is_ok(),
                changed = raft.changed() => changed.is_ok(),
                changed = confirmed.changed() => changed.is_ok(),
            };
            if !alive {
                // The mesh stops, and with it this process: the leader changes no more.
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gossip::{PeerView, json_value, keys},
        identity::NodeIdentity,
    };

    fn node(number: u8) -> NodeId {
        NodeIdentity::from_seed([number; 32]).node().clone()
    }

    /// `(who, alive, names whom, in which term)`; whom 0: nobody.
    fn mesh(said: &[(u8, bool, u8, u64)]) -> Members {
        let view = |(who, alive, names, term): &(u8, bool, u8, u64)| {
            let hint = (*names > 0).then(|| LeaderHint { term: *term, node: node(*names) });
            let view = PeerView {
                node: node(*who),
                generation: 1,
                alive: *alive,
                gossip_address: ([127, 0, 0, 1], 1).into(),
                values: BTreeMap::from([(keys::LEADER.to_owned(), json_value(&hint))]),
            };
            (node(*who), view)
        };
        said.iter().map(view).collect()
    }

    fn there(number: u8, term: u64) -> LeaderView {
        LeaderView::There { node: node(number), term }
    }

    /// As node 9, which does not vote.
    fn seen(members: &Members, confirmed: &Confirmed) -> LeaderView {
        leader_of(&node(9), &Leadership::default(), false, members, confirmed)
    }

    #[test]
    fn a_hint_is_believed_once_the_node_it_names_says_so() {
        let members = mesh(&[(1, true, 2, 5), (2, true, 2, 5), (9, true, 0, 0)]);
        let mut confirmed = Confirmed::default();
        assert_eq!(seen(&members, &confirmed), LeaderView::Unknown);
        assert_eq!(to_ask(&node(9), &LeaderView::Unknown, &members, &confirmed), [node(2)]);
        assert!(confirmed.learn(&node(2), 5) && !confirmed.learn(&node(2), 5));
        assert_eq!(seen(&members, &confirmed), there(2, 5));
        assert!(to_ask(&node(9), &there(2, 5), &members, &confirmed).is_empty());
    }

    #[test]
    fn a_forged_term_moves_nobody_and_hides_no_true_leader() {
        let members = mesh(&[(1, true, 3, u64::MAX), (2, true, 2, 5), (3, true, 2, 5)]);
        let mut confirmed = Confirmed::default();
        assert_eq!(to_ask(&node(9), &LeaderView::Unknown, &members, &confirmed), [node(3), node(2)]);
        confirmed.learn(&node(2), 5);
        assert_eq!(seen(&members, &confirmed), there(2, 5));
        let raft = Leadership { term: 5, leader: Some(node(2)), mine: false };
        assert_eq!(leader_of(&node(9), &raft, true, &members, &confirmed), there(2, 5));
    }

    #[test]
    fn the_dead_neither_lead_nor_say_who_does() {
        let mut confirmed = Confirmed::default();
        confirmed.learn(&node(2), 5);
        assert_eq!(seen(&mesh(&[(1, true, 2, 5), (2, false, 2, 5)]), &confirmed), LeaderView::Unknown);
        assert_eq!(seen(&mesh(&[(1, false, 2, 5), (2, true, 0, 0)]), &confirmed), LeaderView::Unknown);
        assert_eq!(seen(&mesh(&[(1, true, 0, 0), (2, true, 0, 0)]), &confirmed), LeaderView::Unknown, "withdrawn");
        assert!(confirmed.forget_but(&BTreeSet::new()) && confirmed == Confirmed::default());
    }

    #[test]
    fn of_two_the_later_term_and_of_itself_raft_alone() {
        let members = mesh(&[(1, true, 2, 5), (2, true, 2, 5), (3, true, 3, 6), (4, true, 9, 7)]);
        let mut confirmed = Confirmed::default();
        confirmed.learn(&node(2), 5);
        confirmed.learn(&node(3), 6);
        assert_eq!(seen(&members, &confirmed), there(3, 6));
        let raft = Leadership { term: 8, leader: Some(node(4)), mine: false };
        assert_eq!(leader_of(&node(9), &raft, true, &members, &confirmed), there(4, 8));
        assert_eq!(leader_of(&node(9), &raft, false, &members, &confirmed), there(3, 6), "voted out in term 8");
        let raft = Leadership { term: 8, leader: Some(node(9)), mine: true };
        let here = LeaderView::Here { node: node(9), term: 8 };
        assert_eq!(leader_of(&node(9), &raft, true, &members, &confirmed), here);
    }
}
