//! Decisions and their explanations, case by case.

use std::collections::BTreeMap;

use super::*;
use crate::{
    capability::Capability,
    cases::{GIB, assigned, attempt, ledger, node, spec, submit, take, with_gpus},
    id::{NodeId, TaskId},
    ledger::{Entry, Ledger},
    task::{TaskSpec, TaskType},
    time::Millis,
};

/// A mesh whose tasks wait.
struct Env {
    ledger: Ledger,
    nodes: BTreeMap<NodeId, NodeView>,
    leader: Option<NodeId>,
}

impl Env {
    fn new(nodes: Vec<Capability>) -> Self {
        let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        let ledger = ledger(&names);
        let view = |c: Capability| (c.node.clone(), NodeView { capability: c, alive: true });
        Env { ledger, nodes: nodes.into_iter().map(view).collect(), leader: None }
    }

    fn task(mut self, id: &str, spec: TaskSpec) -> Self {
        take(&mut self.ledger, submit(id, spec, 0));
        self
    }

    fn problem(&self) -> Problem<'_> {
        Problem { ledger: &self.ledger, nodes: &self.nodes, leader: self.leader.as_ref(), now: Millis(10) }
    }

    /// `task@node:gpus`, in order of decision; applied.
    fn solve(&mut self) -> Vec<String> {
        let found = solve(&self.problem());
        let shown = |a: &Assignment| {
            let gpus: Vec<String> = a.grant.gpus.iter().map(u32::to_string).collect();
            format!("{}@{}:{}", a.attempt.task, a.node, gpus.join(","))
        };
        let all = found.iter().map(shown).collect();
        for assignment in found {
            take(&mut self.ledger, assignment.entry(Millis(10)));
        }
        assert_eq!(solve(&self.problem()), [], "S1 solving twice changes nothing");
        all
    }

    fn explain(&self, task: &str) -> String {
        explain(&self.problem(), &TaskId::new(task)).unwrap().to_string()
    }
}

#[test]
fn priority_goes_first_then_who_came_first() {
    let mut urgent = spec("c");
    urgent.priority = 5;
    let mut env = Env::new(vec![node("n", &[])]).task("a", spec("a")).task("b", spec("b")).task("c", urgent);
    assert_eq!(env.solve(), ["c@n:", "a@n:", "b@n:"]);
}

#[test]
fn the_smallest_gpu_that_does_is_taken() {
    let big = node("a", &[("nvidia-h100-80gb", 80)]);
    let small = node("b", &[("nvidia-l40", 48), ("nvidia-l40", 48)]);
    let mut env = Env::new(vec![big, small])
        .task("small", with_gpus(spec("small"), "any", 1, 24))
        .task("large", with_gpus(spec("large"), "any", 1, 60))
        .task("cpu", spec("cpu"));
    assert_eq!(env.solve(), ["small@b:0", "large@a:0", "cpu@a:"]);
}

#[test]
fn work_without_gpus_keeps_off_nodes_that_have_some() {
    let mut env = Env::new(vec![node("a", &[("nvidia-l40", 48)]), node("b", &[])]).task("t", spec("t"));
    assert_eq!(env.solve(), ["t@b:"]);
}

#[test]
fn the_leader_works_last_and_load_is_spread() {
    let mut env = Env::new(vec![node("a", &[]), node("b", &[]), node("c", &[])]);
    env.leader = Some(NodeId::new("a"));
    for id in ["t1", "t2", "t3"] {
        env = env.task(id, spec(id));
    }
    assert_eq!(env.solve(), ["t1@b:", "t2@c:", "t3@b:"]);
}

#[test]
fn a_head_that_fits_nowhere_is_passed() {
    let mut env = Env::new(vec![node("n", &[])]).task("gpu", with_gpus(spec("gpu"), "any", 1, 0)).task("t", spec("t"));
    assert_eq!(env.solve(), ["t@n:"]);
}

#[test]
fn a_node_that_failed_is_tried_last() {
    let mut env = Env::new(vec![node("a", &[]), node("b", &[])]).task("t", spec("t"));
    take(&mut env.ledger, assigned(&attempt("t", 1), "a", &[], 1));
    let lost = Entry::LeaseExpired { attempt: attempt("t", 1), last_heard: Millis(1), at: Millis(2) };
    take(&mut env.ledger, lost);
    let later = Problem { now: Millis(5_000), ..env.problem() };
    assert_eq!(solve(&later)[0].node, NodeId::new("b"));
}

#[test]
fn a_silent_a_draining_and_an_unknown_node_get_nothing() {
    let mut env = Env::new(vec![node("silent", &[]), node("draining", &[]), node("unknown", &[])]).task("t", spec("t"));
    env.nodes.get_mut(&NodeId::new("silent")).unwrap().alive = false;
    take(&mut env.ledger, Entry::MemberDrained { node: NodeId::new("draining"), draining: true, at: Millis(1) });
    env.ledger.members.remove(&NodeId::new("unknown"));
    assert!(env.solve().is_empty());
    insta::assert_snapshot!(env.explain("t"), @r"
    t is PENDING: it waits for room: node silent would do (silent: gossip does not hear of it)
      node draining:
        draining: it takes nothing new
          hint: end its drain, or wait for another node
      node silent:
        silent: gossip does not hear of it
          hint: start it, or look at its network
      node unknown:
        it gossips and is not in the member table yet
          hint: wait until it has joined
    ");
}

#[test]
fn simulated_gpus_serve_only_what_asks_for_them() {
    let with = |kind: &str| with_gpus(spec("t"), kind, 1, 0);
    for (asked, goes) in [("any", 0), ("simulated:any", 1), ("simulated:nvidia-l40", 1), ("nvidia-l40", 0)] {
        let mut env = Env::new(vec![node("n", &[("simulated:nvidia-l40", 48)])]).task("t", with(asked));
        assert_eq!(env.solve().len(), goes, "{asked}");
    }
    let mut real = with("simulated:any");
    real.task_type = TaskType::Sft;
    let mut capability = node("n", &[("simulated:nvidia-l40", 48)]);
    capability.features.insert("sft".to_owned());
    let mut env = Env::new(vec![capability]).task("t", real);
    assert!(env.solve().is_empty());
    assert!(env.explain("t").contains("simulated GPUs cannot compute"));
}

#[test]
fn every_reason_is_named_with_its_remedy() {
    let mut asked = with_gpus(spec("t"), "nvidia-a100-80gb", 1, 0);
    asked.task_type = TaskType::Rm;
    asked.request.memory_bytes = 40 * GIB;
    asked.placement.node_selector.insert("zone".to_owned(), "eu".to_owned());
    let mut env = Env::new(vec![node("cpu", &[]), node("l40", &[("nvidia-l40", 48)])]);
    env = env.task("t", asked);
    assert!(env.solve().is_empty());
    insta::assert_snapshot!(env.explain("t"), @r"
    t is PENDING: no node can run it as things are; nearest is cpu: label the node zone=eu, or change placement.nodeSelector; use a build of mloc that has the module rm; ask for at most 24.0 GiB of memory, or add a larger node; leave resources.hardware.gpu out, or add a node with a GPU
      node cpu:
        label zone=eu asked: this node has no label zone
          hint: label the node zone=eu, or change placement.nodeSelector
        no module `rm` in this build
          hint: use a build of mloc that has the module rm
        memory 40.0 GiB asked: 24.0 GiB in all
          hint: ask for at most 24.0 GiB of memory, or add a larger node
        no GPU at all
          hint: leave resources.hardware.gpu out, or add a node with a GPU
      node l40:
        label zone=eu asked: this node has no label zone
          hint: label the node zone=eu, or change placement.nodeSelector
        no module `rm` in this build
          hint: use a build of mloc that has the module rm
        memory 40.0 GiB asked: 24.0 GiB in all
          hint: ask for at most 24.0 GiB of memory, or add a larger node
        gpu.type nvidia-a100-80gb: this node has nvidia-l40
          hint: ask for gpu.type nvidia-l40 or any
    ");
}

#[test]
fn held_and_foreign_gpus_are_explained() {
    let l40 = ("nvidia-l40", 48);
    let mut capability = node("n", &[l40, l40, l40, l40]);
    capability.gpus[3].unusable = Some("a foreign process uses it (pid 4711)".to_owned());
    let mut env = Env::new(vec![capability])
        .task("first", with_gpus(spec("first"), "any", 2, 0))
        .task("second", with_gpus(spec("second"), "any", 2, 0));
    assert_eq!(env.solve(), ["first@n:0,1"]);
    insta::assert_snapshot!(env.explain("second"), @r"
    second is PENDING: it waits for room: node n would do (GPU 3 cannot be used: a foreign process uses it (pid 4711); 2 GPUs asked: free 1 of 4 GPUs: 2 held by first)
      node n:
        GPU 3 cannot be used: a foreign process uses it (pid 4711)
          hint: free the GPU: it is taken in again by itself
        2 GPUs asked: free 1 of 4 GPUs: 2 held by first
          hint: wait for those to end, or cancel one
    ");
    insta::assert_snapshot!(env.explain("first"), @"first is SCHEDULED: node n was chosen and has not started yet");
}
