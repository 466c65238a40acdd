//! Decisions and their explanations, case by case.

use std::collections::BTreeMap;

use super::*;
use crate::{
    capability::Capability,
    cases::{GIB, assigned, attempt, ledger, node, spec, submit, take, with_gpus},
    id::{NodeId, TaskId},
    ledger::{Entry, Ledger},
    task::{
        TaskSpec, TaskType,
        spec::{Input, Location, Model, Pin, SEVERAL_GPUS},
    },
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
        let view = |c: Capability| (c.node.clone(), NodeView { capability: Some(c), alive: true });
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
fn a_live_node_that_has_not_said_what_it_has_is_not_called_silent() {
    let mut env = Env::new(vec![node("new", &[])]).task("t", spec("t"));
    env.nodes.get_mut(&NodeId::new("new")).unwrap().capability = None;
    assert!(env.solve().is_empty());
    insta::assert_snapshot!(env.explain("t"), @r"
    t is PENDING: it waits for room: node new would do (alive, and what it has is not known: it has just started, or runs another version of mloc)
      node new:
        alive, and what it has is not known: it has just started, or runs another version of mloc
          hint: wait a moment; if it stays so, run the same version on every node
    ");
}

#[test]
fn a_backoff_of_another_clock_is_not_waited_for() {
    let mut env = Env::new(vec![node("a", &[])]).task("t", spec("t"));
    take(&mut env.ledger, assigned(&attempt("t", 1), "a", &[], 1));
    let lost = Entry::LeaseExpired { attempt: attempt("t", 1), last_heard: Millis(1), at: Millis(1 << 50) };
    take(&mut env.ledger, lost);
    assert!(env.explain("t").contains("node a has room"), "{}", env.explain("t"));
    assert_eq!(env.solve(), ["t@a:"]);
}

#[test]
fn what_a_node_lacks_besides_hardware_is_named() {
    let mut asked = with_gpus(spec("t"), "any", 2, 0);
    asked.task_type = TaskType::Sft;
    asked.secrets_from = vec!["HF_TOKEN".to_owned()];
    asked.request.disk_bytes = 150 * GIB;
    asked.output.destination = Some(Location::Local { path: "shared/out".to_owned() });
    let mut capability = node("n", &[("nvidia-l40", 48), ("nvidia-l40", 48)]);
    capability.features.extend(["sft".to_owned(), "destination:local".to_owned()]);
    let mut env = Env::new(vec![capability]).task("t", asked);
    assert!(env.solve().is_empty());
    insta::assert_snapshot!(env.explain("t"), @r"
    t is PENDING: no node can run it as things are; nearest is n: ask for gpu.count 1; add HF_TOKEN under `secrets` in its node.yaml, or leave it out of secretsFrom; add shared under `volumes` in its node.yaml, or name another volume; ask for at most 100.0 GiB of disk, or free some on the node
      node n:
        several GPUs asked: this node's build trains on one (feature parallel:gpus)
          hint: ask for gpu.count 1
        no secret `HF_TOKEN` on this node (feature secret:HF_TOKEN)
          hint: add HF_TOKEN under `secrets` in its node.yaml, or leave it out of secretsFrom
        no volume `shared` on this node (feature volume:shared)
          hint: add shared under `volumes` in its node.yaml, or name another volume
        disk 150.0 GiB asked: 100.0 GiB free now
          hint: ask for at most 100.0 GiB of disk, or free some on the node
    ");
}

#[test]
fn training_gets_its_gpus_together_on_one_node_that_shares_steps() {
    let asked = |name: &str| TaskSpec { task_type: TaskType::Sft, ..with_gpus(spec(name), "any", 2, 0) };
    let offering = |name: &str, gpus: &[(&str, u64)], features: &[&str]| {
        let mut capability = node(name, gpus);
        capability.features.extend(features.iter().map(|feature| (*feature).to_owned()));
        capability
    };
    let l40 = ("nvidia-l40", 48);
    let mut env = Env::new(vec![
        offering("one", &[l40], &["sft", SEVERAL_GPUS]),
        // Two GPUs, but of an earlier build.
        offering("old", &[l40, l40], &["sft"]),
        offering("three", &[l40, l40, l40], &["sft", SEVERAL_GPUS]),
    ])
    .task("t", asked("t"))
    .task("u", asked("u"));
    assert_eq!(env.solve(), ["t@three:0,1"]);
    let said = env.explain("u");
    assert!(said.contains("several GPUs asked: this node's build trains on one"), "{said}");
    assert!(said.contains("held by t"), "{said}");
}

#[test]
fn disk_is_what_is_free_now() {
    let needs = |gib: u64| {
        let mut spec = spec("t");
        spec.request.disk_bytes = gib * GIB;
        spec
    };
    let mut env = Env::new(vec![node("n", &[])]).task("t", needs(60)).task("u", needs(60)).task("v", needs(500));
    // 100 GiB are free, and the first has written nothing yet.
    assert_eq!(env.solve(), ["t@n:"]);
    assert!(env.explain("u").contains("it waits for room"), "{}", env.explain("u"));
    assert!(env.explain("v").contains("no node can run it"), "it is waited for in vain: {}", env.explain("v"));
    assert!(env.explain("u").contains("disk 60.0 GiB asked: 40.0 GiB free now, with t on it"), "{}", env.explain("u"));
    take(&mut env.ledger, Entry::Started { attempt: attempt("t", 1), at: Millis(11) });
    env.nodes.get_mut(&NodeId::new("n")).unwrap().capability.as_mut().unwrap().disk_bytes = 60 * GIB;
    assert_eq!(env.solve(), ["u@n:"]);
}

#[test]
fn another_type_is_hinted_at_only_where_it_would_do() {
    let hint = |asked: &str, there: &str| {
        let env = Env::new(vec![node("n", &[(there, 48)])]).task("t", with_gpus(spec("t"), asked, 1, 0));
        let text = env.explain("t");
        text.rsplit_once("hint: ").map(|(_, hint)| hint.to_owned()).unwrap_or(text)
    };
    let (l40, simulated) = ("nvidia-l40", "simulated:nvidia-l40");
    for (asked, there, want) in [
        ("any", simulated, "ask for gpu.type simulated:any, or use a node that has a real GPU"),
        ("simulated:any", l40, "ask for gpu.type any, or use a node that has a simulated GPU"),
        ("nvidia-h200", l40, "ask for gpu.type nvidia-l40 or any"),
        ("nvidia-h200", simulated, "ask for gpu.type simulated:any, or use a node that has nvidia-h200"),
        ("simulated:amd-x", simulated, "ask for gpu.type simulated:nvidia-l40 or simulated:any"),
    ] {
        assert_eq!(hint(asked, there), want, "{asked} on {there}");
    }
    // What computes is not sent to a simulated one.
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/sft_mistral_7b.yaml")).unwrap();
    let example = crate::task::parse_bytes(&bytes, "example").unwrap().spec;
    let text = Env::new(vec![node("n", &[(simulated, 48)])]).task("t", example).explain("t");
    for named in [
        "gpu.type nvidia-a100-80gb: this node has simulated:nvidia-l40",
        "hint: use a node that has nvidia-a100-80gb",
        "feature source:huggingface",
        "feature adapter:qlora",
        "hint: ask for gpu.count 1",
    ] {
        assert!(text.contains(named), "{named}: {text}");
    }
}

#[test]
fn who_takes_a_tasks_artifacts_waits_for_it() {
    let mut taking = spec("second");
    let source = Location::Task { identifier: "first".to_owned(), path: None };
    taking.model = Some(Model { source, adapter: None, reference: None, value: None });
    let mut env = Env::new(vec![node("n", &[])]).task("t-1", spec("first")).task("t-2", taking);
    assert_eq!(env.solve(), ["t-1@n:"]);
    assert!(env.explain("t-2").contains("dependsOn first: t-1 has not completed yet"), "{}", env.explain("t-2"));
}

#[test]
fn a_gpu_that_needs_mending_does_not_pass_by_itself() {
    let l40 = ("nvidia-l40", 48);
    let mut capability = node("n", &[l40]);
    capability.gpus[0].unusable = Some("this build of mloc has no CUDA".to_owned());
    capability.gpus[0].unusable_for_good = true;
    let mut env = Env::new(vec![capability]).task("t", with_gpus(spec("t"), "any", 1, 0));
    assert!(env.solve().is_empty());
    insta::assert_snapshot!(env.explain("t"), @r"
    t is PENDING: no node can run it as things are; nearest is n: mend GPU 0 there, or use another node
      node n:
        GPU 0 cannot be used: this build of mloc has no CUDA
          hint: mend GPU 0 there, or use another node
    ");
    // Beside one that will be free it is no reason.
    let mut capability = node("n", &[l40, l40]);
    capability.gpus[1].unusable = Some("no driver".to_owned());
    capability.gpus[1].unusable_for_good = true;
    let mut env = Env::new(vec![capability])
        .task("first", with_gpus(spec("first"), "any", 1, 0))
        .task("second", with_gpus(spec("second"), "any", 1, 0));
    assert_eq!(env.solve(), ["first@n:0"]);
    assert!(env.explain("second").contains("it waits for room"), "{}", env.explain("second"));
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

#[test]
fn a_task_whose_files_one_silent_node_has_waits_for_it() {
    let brought = |held_by: &str| {
        let node = NodeId::new(held_by);
        let source = Location::Submitted { node, tree: "0".repeat(64), path: "./model".into(), bytes: 1 };
        TaskSpec { model: Some(Model { source, adapter: None, reference: None, value: None }), ..spec("t") }
    };
    let offering = |name: &str| {
        let mut capability = node(name, &[]);
        capability.features.insert("source:submitted".into());
        capability
    };
    let mut env = Env::new(vec![offering("a"), offering("b")]).task("t", brought("b"));
    env.nodes.get_mut(&NodeId::new("b")).unwrap().alive = false;
    assert!(env.solve().is_empty(), "an attempt could only fail");
    assert!(env.explain("t").contains("node b, which alone has files of this task, is silent"), "{}", env.explain("t"));
    // A worker that pulled it may have it still.
    let pin = Pin { version: "v".into(), files: 1, bytes: 1 };
    env.ledger.tasks.get_mut(&TaskId::new("t")).unwrap().pins.insert(Input::Model, pin);
    assert_eq!(env.solve(), ["t@a:"]);

    let mut env = Env::new(vec![offering("a"), offering("b")]).task("t", brought("b"));
    assert_eq!(env.solve().len(), 1);
}
