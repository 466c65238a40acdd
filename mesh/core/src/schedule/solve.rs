//! The decision. Pure: the same problem has the same answer, and its answer applied leaves nothing to decide.
//!
//! Order: priority, then submission. A replica that fits nowhere now is passed by those behind it; nothing is reserved
//! for it yet, so that a stream of small tasks can hold a large one back for long.

use std::cmp::Reverse;

use super::problem::{Problem, Waiting};
use crate::{
    capability::{Capability, Grant},
    fit::{self, Held},
    id::{AttemptId, NodeId},
    ledger::{
        Entry,
        state::{AttemptEnd, AttemptState},
    },
    time::Millis,
};

/// One replica goes to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The new attempt.
    pub attempt: AttemptId,
    /// Its node.
    pub node: NodeId,
    /// What it holds there.
    pub grant: Grant,
    /// What the node has, for the recheck in `apply`.
    pub capacity: Grant,
}

impl Assignment {
    /// The entry that makes it so.
    pub fn entry(self, at: Millis) -> Entry {
        let Assignment { attempt, node, grant, capacity } = self;
        Entry::Assigned { attempt, node, grant, capacity, at }
    }
}

/// Decides for every waiting replica that can go now.
pub fn solve(problem: &Problem<'_>) -> Vec<Assignment> {
    let mut held = problem.held();
    let mut assignments = Vec::new();
    for waiting in problem.queue().iter().filter(|w| problem.is_ready(w)) {
        let best = problem
            .nodes
            .keys()
            .filter(|node| problem.takes_work(node))
            .filter_map(|node| {
                let on = held.get(node)?;
                let capability = problem.nodes.get(node)?.capability.as_ref()?;
                let grant = fit::fits(&waiting.task.spec, capability, on).ok()?;
                Some((rank(problem, waiting, capability, node, &grant, on), node, capability, grant))
            })
            .min_by(|a, b| a.0.cmp(&b.0));
        let Some((_, node, capability, grant)) = best else { continue };
        let Some(number) = problem.ledger.next_attempt(waiting.replica) else { continue };
        let attempt = AttemptId { task: waiting.id.clone(), replica: waiting.number, attempt: number };
        if let Some(on) = held.get_mut(node) {
            on.push(Held { attempt: attempt.clone(), grant: grant.clone(), started: false });
        }
        assignments.push(Assignment { attempt, node: node.clone(), grant, capacity: fit::capacity(capability) });
    }
    assignments
}

/// Lower is better, first field first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    /// Where this replica failed or was lost before: another node may do.
    failed_here: usize,
    /// Replicas of the same service: what one node takes with it should be few.
    siblings: usize,
    /// Memory of the GPUs it would take; without GPUs, whether it would sit on a node that has some.
    gpu_waste: u64,
    /// Training must not cost the orchestrator its attention.
    leads: bool,
    /// Held cores, per mille.
    load: u64,
    /// Attempts on it.
    attempts: usize,
    /// A mesh of equals fills the faster first.
    speed: Reverse<Option<u32>>,
    name: &'a str,
    node: &'a NodeId,
}

fn rank<'a>(
    problem: &Problem<'a>,
    waiting: &Waiting<'_>,
    capability: &'a Capability,
    node: &'a NodeId,
    grant: &Grant,
    on: &[Held],
) -> Rank<'a> {
    let failed_here = waiting.replica.attempts.iter().filter(|a| {
        a.node == *node && matches!(a.state, AttemptState::Ended { how: AttemptEnd::Failed(_) | AttemptEnd::Lost, .. })
    });
    let gpu_waste = match grant.gpus.first() {
        None => u64::from(!capability.gpus.is_empty()),
        Some(index) => {
            let gpu = capability.gpus.iter().find(|gpu| gpu.index == *index);
            gpu.map_or(u64::MAX, |gpu| gpu.memory_bytes)
        }
    };
    let cores = capability.cpu_millis.max(1);
    let held_cores = on.iter().fold(0u64, |sum, h| sum.saturating_add(h.grant.cpu_millis));
    // Those of an older version leave.
    let siblings = match &waiting.task.spec.service {
        Some(_) => on.iter().filter(|held| held.attempt.task == *waiting.id).count(),
        None => 0,
    };
    Rank {
        failed_here: failed_here.count(),
        siblings,
        gpu_waste,
        leads: problem.leader == Some(node),
        load: held_cores.saturating_mul(1000) / cores,
        attempts: on.len(),
        speed: Reverse(capability.matmul_gflops),
        name: &capability.name,
        node,
    }
}
