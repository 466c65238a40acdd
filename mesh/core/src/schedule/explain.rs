//! Why a task does or does not run: the queue before it, and for each node every reason and its remedy.

use std::fmt;

use serde::Serialize;

use super::problem::{NodeView, Problem};
use crate::{
    fit::{self, Misfit},
    id::{NodeId, TaskId},
    ledger::{TaskState, submit::Dependency},
};

/// The scheduler's answer about one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The task.
    pub task: TaskId,
    /// PENDING and so on.
    pub state: &'static str,
    /// One sentence: what it comes to, and what would help.
    pub summary: String,
    /// What has to happen first: backoff, dependencies.
    pub waits_for: Vec<String>,
    /// Waiting tasks before it, first one first.
    pub ahead: Vec<TaskId>,
    /// Each node, those that fit first.
    pub nodes: Vec<NodeExplanation>,
}

/// One node's part of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeExplanation {
    /// The node.
    pub node: NodeId,
    /// Its name for people.
    pub name: String,
    /// Whether the task could go there now.
    pub fits: bool,
    /// Why not: every reason.
    pub reasons: Vec<NodeReason>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeReason {
    /// For people.
    pub text: String,
    /// What would make it fit.
    pub remedy: String,
    /// Whether it passes by itself.
    pub passes: bool,
    /// For programs; absent when it is about the node and not about room on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub misfit: Option<Misfit>,
}

/// Explains a task of the ledger; `None` when there is none of this id.
pub fn explain(problem: &Problem<'_>, task: &TaskId) -> Option<Explanation> {
    let found = problem.ledger.tasks.get(task)?;
    let state = TaskState::of(found);
    let waits_for = waits_for(problem, found);
    let mut ahead: Vec<TaskId> = problem.queue().iter().take_while(|w| w.id != task).map(|w| w.id.clone()).collect();
    ahead.dedup();
    let mut nodes = nodes(problem, found);
    nodes.sort_by(|a, b| (!a.fits, &a.name, &a.node).cmp(&(!b.fits, &b.name, &b.node)));
    let summary = match &state {
        TaskState::Pending { .. } => summary_of_waiting(&waits_for, &nodes),
        TaskState::Scheduled { node, .. } => format!("node {} was chosen and has not started yet", name(problem, node)),
        TaskState::Running { node, .. } => format!("it runs on node {}", name(problem, node)),
        TaskState::Completed { at, .. } => format!("it completed at {at}"),
        TaskState::Failed { failure, .. } => format!("it failed: {}", failure.message),
        TaskState::Cancelled { by, .. } => format!("{by} cancelled it"),
    };
    let pending = matches!(state, TaskState::Pending { .. });
    Some(Explanation {
        task: task.clone(),
        state: state.name(),
        summary,
        waits_for: if pending { waits_for } else { Vec::new() },
        ahead: if pending { ahead } else { Vec::new() },
        nodes: if pending { nodes } else { Vec::new() },
    })
}

fn name(problem: &Problem<'_>, node: &NodeId) -> String {
    let gossip = problem.nodes.get(node).and_then(|view| Some(view.capability.as_ref()?.name.clone()));
    gossip.or_else(|| problem.ledger.members.get(node).map(|m| m.name.clone())).unwrap_or_else(|| node.to_string())
}

fn waits_for(problem: &Problem<'_>, task: &crate::ledger::state::Task) -> Vec<String> {
    let mut waits = Vec::new();
    if task.spec.service.is_some() && task.replicas.iter().all(|replica| replica.retired) {
        waits.push(match task.desired() {
            0 => "a request: it has no replicas, for nobody asked for `timeouts.idle`".to_owned(),
            _ => "its turn: replicas of an older version are exchanged step by step".to_owned(),
        });
    }
    let waiting = task.replicas.iter().filter(|r| r.live().is_none() && !r.finished() && !r.retired);
    if let Some(replica) = waiting.min_by_key(|r| r.not_before)
        && !replica.may_go(problem.now)
    {
        let seconds = replica.not_before.since(problem.now).div_ceil(1000);
        waits.push(format!("backoff: tried again in {seconds} s, because {}", replica.pending_reason));
    }
    for on in task.spec.waits_for() {
        match problem.ledger.dependency(task, on) {
            Dependency::Done => {}
            Dependency::Waiting(id) => waits.push(format!("dependsOn {on}: {id} has not completed yet")),
            Dependency::Unknown => waits.push(format!("dependsOn {on}: no such task")),
            Dependency::Broken(id) => waits.push(format!("dependsOn {on}: {id} did not complete")),
        }
    }
    if let Some(node) = problem.away(task) {
        waits.push(format!("node {}, which alone has files of this task, is silent", name(problem, &node)));
    }
    waits
}

fn nodes(problem: &Problem<'_>, task: &crate::ledger::state::Task) -> Vec<NodeExplanation> {
    let held = problem.held();
    let mut all: Vec<&NodeId> = problem.nodes.keys().chain(problem.ledger.members.keys()).collect();
    all.sort();
    all.dedup();
    let one = |node: &NodeId| {
        let mut reasons = reasons_of_member(problem, node);
        if let Some(capability) = problem.nodes.get(node).and_then(|view| view.capability.as_ref())
            && let Err(misfits) = fit::fits(&task.spec, capability, held.get(node).map_or(&[], Vec::as_slice))
        {
            reasons.extend(misfits.into_iter().map(|misfit| NodeReason {
                text: misfit.to_string(),
                remedy: misfit.remedy(),
                passes: misfit.passes(),
                misfit: Some(misfit),
            }));
        }
        NodeExplanation { node: node.clone(), name: name(problem, node), fits: reasons.is_empty(), reasons }
    };
    all.into_iter().map(one).collect()
}

fn reasons_of_member(problem: &Problem<'_>, node: &NodeId) -> Vec<NodeReason> {
    let mut reasons = Vec::new();
    let mut because = |text: &str, remedy: &str, passes: bool| {
        reasons.push(NodeReason { text: text.to_owned(), remedy: remedy.to_owned(), passes, misfit: None });
    };
    match problem.ledger.members.get(node) {
        None => because("it gossips and is not in the member table yet", "wait until it has joined", true),
        Some(member) => {
            if member.revoked_at.is_some() {
                because("revoked", "use another node: a revoked key does not come back", false);
            }
            if member.draining_since.is_some() {
                because("draining: it takes nothing new", "end its drain, or wait for another node", false);
            }
        }
    }
    match problem.nodes.get(node) {
        Some(NodeView { alive: true, capability: Some(_) }) => {}
        Some(NodeView { alive: true, capability: None }) => because(
            "alive, and what it has is not known: it has just started, or runs another version of mloc",
            "wait a moment; if it stays so, run the same version on every node",
            true,
        ),
        Some(NodeView { alive: false, .. }) | None => {
            because("silent: gossip does not hear of it", "start it, or look at its network", true);
        }
    }
    reasons
}

fn summary_of_waiting(waits_for: &[String], nodes: &[NodeExplanation]) -> String {
    if let Some(first) = waits_for.first() {
        return format!("it waits for {first}");
    }
    if let Some(node) = nodes.iter().find(|n| n.fits) {
        return format!("node {} has room: it is about to be scheduled", node.name);
    }
    if nodes.is_empty() {
        return "the mesh has no node to run it on: join one".to_owned();
    }
    if let Some(node) = nodes.iter().find(|n| n.reasons.iter().all(|r| r.passes)) {
        let why: Vec<&str> = node.reasons.iter().map(|r| r.text.as_str()).collect();
        return format!("it waits for room: node {} would do ({})", node.name, why.join("; "));
    }
    // The node that lacks least is the best advice.
    match nodes.iter().min_by_key(|n| n.reasons.iter().filter(|r| !r.passes).count()) {
        Some(node) => {
            let remedies: Vec<&str> = node.reasons.iter().filter(|r| !r.passes).map(|r| r.remedy.as_str()).collect();
            format!("no node can run it as things are; nearest is {}: {}", node.name, remedies.join("; "))
        }
        None => String::new(),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.task, self.state, self.summary)?;
        for wait in &self.waits_for {
            write!(f, "\n  waits for {wait}")?;
        }
        if !self.ahead.is_empty() {
            let (shown, more) = self.ahead.split_at(self.ahead.len().min(5));
            let shown: Vec<&str> = shown.iter().map(TaskId::as_str).collect();
            write!(f, "\n  queue: {} before it: {}", self.ahead.len(), shown.join(", "))?;
            if !more.is_empty() {
                write!(f, " and {} more", more.len())?;
            }
        }
        for node in &self.nodes {
            if node.fits {
                write!(f, "\n  node {}: fits", node.name)?;
                continue;
            }
            write!(f, "\n  node {}:", node.name)?;
            for reason in &node.reasons {
                write!(f, "\n    {}\n      hint: {}", reason.text, reason.remedy)?;
            }
        }
        Ok(())
    }
}
