//! Which replicas of services can be asked, and where: each node gossips its own, signed as everything it says, and
//! reads those of all. So whoever takes a request needs no leader to find a replica.

use std::time::Duration;

use mloc_core::id::{AttemptId, NodeId};

use crate::{
    gossip::{Members, PeerView, PublishError, json_value, keys},
    handle::MeshHandle,
};

/// Bytes of one gossiped list: with its signature it stays below what one value may have.
const LIST_BYTES_MAX: usize = 3_500;
/// Lists that a node gossips at most: several hundred replicas.
const LISTS_MAX: usize = 16;

/// A replica that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyReplica {
    /// What its service is called at the API.
    pub served_name: String,
    /// Its attempt.
    pub attempt: AttemptId,
    /// Its node.
    pub node: NodeId,
}

impl MeshHandle {
    /// Tells the mesh which replicas of this node can be asked: their names and attempts. `before` is what this returned
    /// the time before, 0 at first: lists that are needed no more are emptied.
    ///
    /// # Errors
    /// When a name is too long to be gossiped.
    pub async fn publish_replicas(&self, ready: &[(String, AttemptId)], before: usize) -> Result<usize, PublishError> {
        let lists = lists(ready);
        for (at, list) in
            lists.iter().map(String::as_str).chain(std::iter::repeat("[]")).take(before.max(lists.len())).enumerate()
        {
            self.inner.gossip.publish(&key(at), list).await?;
        }
        Ok(lists.len())
    }

    /// Every replica that can be asked, of nodes that gossip hears, in order.
    pub fn ready_replicas(&self) -> Vec<ReadyReplica> {
        let members = self.inner.gossip.members();
        let members = members.borrow();
        let mut all: Vec<ReadyReplica> =
            members.values().filter(|peer| self.hears(peer)).flat_map(replicas_of).collect();
        all.sort();
        all
    }

    fn hears(&self, peer: &PeerView) -> bool {
        peer.alive || peer.node == self.inner.node
    }

    /// Returns when gossip shows something new, or after `most` at the latest.
    pub async fn gossip_changed(&self, most: Duration) {
        let mut members = self.inner.gossip.members();
        members.borrow_and_update();
        // Gossip has ended with the node, or nothing was new: the caller looks again either way.
        let _ = tokio::time::timeout(most, members.changed()).await;
    }

    /// Returns when gossip does not hear a node any more, or it was started anew: what it had begun may never end. It may
    /// be wrong.
    pub async fn unheard(&self, node: &NodeId) {
        if *node == self.inner.node {
            return std::future::pending().await;
        }
        let mut members = self.inner.gossip.members();
        let generation = |members: &Members| members.get(node).map(|peer| peer.generation);
        let begun = generation(&members.borrow());
        let gone = |members: &Members| members.get(node).is_none_or(|peer| !peer.alive) || generation(members) != begun;
        if members.wait_for(|members| gone(members)).await.is_err() {
            // Gossip has ended, and with it this process.
            std::future::pending().await
        }
    }
}

fn key(at: usize) -> String {
    format!("{}{at}", keys::SERVICES)
}

fn replicas_of(peer: &PeerView) -> Vec<ReadyReplica> {
    let lists = (0..LISTS_MAX).map_while(|at| peer.json::<Vec<(String, AttemptId)>>(&key(at)));
    let all = lists.flatten();
    all.map(|(served_name, attempt)| ReadyReplica { served_name, attempt, node: peer.node.clone() }).collect()
}

/// As JSON, in as many lists as their bytes need. What finds no place in the last one is not told: no node runs so many.
fn lists(ready: &[(String, AttemptId)]) -> Vec<String> {
    let mut lists = Vec::new();
    let mut list: Vec<&(String, AttemptId)> = Vec::new();
    let mut bytes = 2;
    for one in ready {
        let more = json_value(one).len() + 1;
        if bytes + more > LIST_BYTES_MAX && !list.is_empty() {
            lists.push(json_value(&std::mem::take(&mut list)));
            bytes = 2;
        }
        bytes += more;
        list.push(one);
    }
    if !list.is_empty() {
        lists.push(json_value(&list));
    }
    lists.truncate(LISTS_MAX);
    lists
}

#[cfg(test)]
mod tests {
    use mloc_core::id::TaskId;

    use super::*;

    #[test]
    fn many_replicas_fit_into_several_values() {
        let one = |n: u32| {
            let task = TaskId::new(format!("task-01JABCDEFGHJKMNPQRSTVW{n:04}"));
            (format!("org/model-{n}"), AttemptId { task, replica: n, attempt: 1 })
        };
        let all: Vec<_> = (0..200).map(one).collect();
        let lists = lists(&all);
        assert!(lists.len() > 1 && lists.iter().all(|list| list.len() <= LIST_BYTES_MAX));
        let values = lists.iter().enumerate().map(|(at, list)| (key(at), list.clone())).collect();
        let node = NodeId::new("n");
        let gossip_address = ([127, 0, 0, 1], 1).into();
        let peer = PeerView { node: node.clone(), generation: 1, alive: true, gossip_address, values };
        let read: Vec<_> = replicas_of(&peer).into_iter().map(|r| (r.served_name, r.attempt)).collect();
        assert_eq!(read, all);
        assert_eq!(super::lists(&[]), Vec::<String>::new());
    }
}
