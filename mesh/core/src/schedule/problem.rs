//! What the scheduler is asked: the ledger, what nodes say of themselves, and the moment.

use std::collections::BTreeMap;

use crate::{
    capability::Capability,
    fit::Held,
    id::{NodeId, TaskId},
    ledger::{
        Ledger,
        state::{Replica, Task},
    },
    time::Millis,
};

/// A node as the leader sees it by gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What it last said of itself, signature checked; `None` when that is nothing yet, or cannot be read.
    pub capability: Option<Capability>,
    /// Whether gossip hears of it. A hint: it keeps new work off a node, and ends nothing.
    pub alive: bool,
}

/// The scheduler's question.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// What has been decided so far.
    pub ledger: &'a Ledger,
    /// Every node that gossips.
    pub nodes: &'a BTreeMap<NodeId, NodeView>,
    /// The orchestrator: chosen last as a worker.
    pub leader: Option<&'a NodeId>,
    /// Now.
    pub now: Millis,
}

/// A replica that waits for a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    pub id: &'a TaskId,
    pub task: &'a Task,
    pub number: u32,
    pub replica: &'a Replica,
}

impl<'a> Problem<'a> {
    /// Replicas without a live attempt or a result, in the order of the queue: priority, then submission. Those whose
    /// backoff or dependencies are not over are among them.
    pub(super) fn queue(&self) -> Vec<Waiting<'a>> {
        let mut queue: Vec<Waiting<'a>> = Vec::new();
        for (id, task) in self.ledger.tasks.iter().filter(|(_, task)| task.ended.is_none()) {
            for (number, replica) in (0..).zip(&task.replicas) {
                if replica.live().is_none() && !replica.finished() && !replica.retired {
                    queue.push(Waiting { id, task, number, replica });
                }
            }
        }
        queue.sort_by_key(|w| (std::cmp::Reverse(w.task.spec.priority), w.task.seq, w.number));
        queue
    }

    /// Whether a replica may go now, if a node has room.
    pub(super) fn is_ready(&self, waiting: &Waiting<'_>) -> bool {
        waiting.replica.may_go(self.now)
            && self.ledger.dependencies_done(waiting.task)
            && self.away(waiting.task).is_none()
    }

    /// A member that gossip does not hear of and that alone has a source of this task: an attempt would use up a try. Of a
    /// source that was pinned a worker may have a copy.
    pub(super) fn away(&self, task: &Task) -> Option<NodeId> {
        let heard = |node: &NodeId| self.nodes.get(node).is_some_and(|view| view.alive);
        let spec = self.ledger.resolved(task);
        let mut unseen = spec.sources().filter(|(input, _)| !task.pins.contains_key(input));
        unseen.find_map(|(_, source)| source.held_by().filter(|node| !heard(node)).cloned())
    }

    /// What is held on each node that gossips.
    pub(super) fn held(&self) -> BTreeMap<&'a NodeId, Vec<Held>> {
        let mut held: BTreeMap<&NodeId, Vec<Held>> = self.nodes.keys().map(|node| (node, Vec::new())).collect();
        for attempt in self.ledger.live_attempts() {
            if let Some(on) = held.get_mut(&attempt.node) {
                let started = attempt.state.started_at().is_some();
                on.push(Held { attempt: attempt.id.clone(), grant: attempt.grant.clone(), started });
            }
        }
        held
    }

    /// Whether the mesh would give this node anything new.
    pub(super) fn takes_work(&self, node: &NodeId) -> bool {
        let member = self.ledger.members.get(node);
        self.nodes.get(node).is_some_and(|view| view.alive)
            && member.is_some_and(|m| m.revoked_at.is_none() && m.draining_since.is_none())
    }
}
