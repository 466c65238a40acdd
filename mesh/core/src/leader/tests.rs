//! The leader's turns, case by case.

use std::collections::BTreeMap;

use super::*;
use crate::{
    cases::{attempt, ledger, node, publishing_to, spec, submit, take},
    ledger::Ledger,
    wire::{Phase, Progress, ToWorker},
};

struct Env {
    ledger: Ledger,
    nodes: BTreeMap<NodeId, NodeView>,
    leader: Leader,
}

const TERM: u64 = 3;

impl Env {
    /// Nodes `a` and `b`; `a` leads; task `t` waits.
    fn new() -> Self {
        let mut ledger = ledger(&["a", "b"]);
        take(&mut ledger, submit("t", spec("t"), 0));
        let view = |name: &str| (NodeId::new(name), NodeView { capability: Some(node(name, &[])), alive: true });
        let mut leader = Leader::new(NodeId::new("a"), Settings { slack_ms: 5_000, ..Settings::default() });
        leader.became_leader(Millis(0), &ledger);
        Env { ledger, nodes: BTreeMap::from([view("a"), view("b")]), leader }
    }

    /// One turn; its proposals are committed.
    fn turn(&mut self, now: u64) -> Decisions {
        let decisions = self.leader.decide(&self.ledger, &self.nodes, Millis(now), TERM);
        for entry in &decisions.propose {
            take(&mut self.ledger, entry.clone());
        }
        decisions
    }

    fn beat(&mut self, node: &str, attempts: &[AttemptId], now: u64) -> Vec<(AttemptId, StopReason)> {
        let said = |id: &AttemptId| AttemptProgress {
            attempt: id.clone(),
            phase: Phase::Training,
            progress: Progress { step: 7, ..Progress::default() },
        };
        let attempts = attempts.iter().map(said).collect();
        let heartbeat = Heartbeat { node: NodeId::new(node), sent_at: 1, attempts };
        match self.leader.on_heartbeat(&self.ledger, heartbeat, Millis(now), TERM) {
            FromLeader::Alive { term: TERM, sent_at: 1, stop } => stop,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_assignment_is_sent_once_it_is_committed_and_until_it_is_journalled() {
    let mut env = Env::new();
    let first = env.turn(10);
    assert_eq!(first.propose.len(), 1);
    assert!(first.send.is_empty(), "nothing is committed yet");
    let sent = |decisions: Decisions| decisions.send.len();
    // At once, after 1 s, after 2 s more; not in between.
    let turns = [(11, 1), (500, 0), (1_011, 1), (2_900, 0), (3_011, 1)];
    for (now, messages) in turns {
        assert_eq!(sent(env.turn(now)), messages, "at {now}");
    }
    assert_eq!(env.leader.on_worker_answer(&attempt("t", 1), &FromWorker::Journalled, Millis(3_020)), None);
    assert_eq!(sent(env.turn(9_000)), 0);
}

#[test]
fn the_lease_runs_from_the_last_heartbeat_that_named_the_attempt() {
    let mut env = Env::new();
    env.turn(0);
    env.turn(1);
    let id = attempt("t", 1);
    assert_eq!(env.beat("b", std::slice::from_ref(&id), 20_000), []);
    // The node lives and says nothing of it.
    assert_eq!(env.beat("b", &[], 60_000), []);
    assert!(env.turn(85_000).propose.is_empty(), "lease and slack are just not over");
    let decisions = env.turn(85_001);
    let lost = Entry::LeaseExpired { attempt: id.clone(), last_heard: Millis(20_000), at: Millis(85_001) };
    assert_eq!(decisions.propose, [lost]);
    assert_eq!(env.beat("b", std::slice::from_ref(&id), 85_002), [(id, StopReason::Superseded)]);
}

/// Found by the simulation (seed 6788 of its first version).
#[test]
fn a_heartbeat_does_not_bring_back_a_lease_whose_end_is_being_committed() {
    let mut env = Env::new();
    env.turn(0);
    env.turn(1);
    let id = attempt("t", 1);
    let expired = env.leader.decide(&env.ledger, &env.nodes, Millis(65_002), TERM).propose;
    assert_eq!(expired.len(), 1);
    assert_eq!(env.beat("b", std::slice::from_ref(&id), 65_003), [(id, StopReason::Superseded)]);
    assert_eq!(env.turn(65_004).propose.len(), 1, "proposed again until it is committed");
}

#[test]
fn a_new_leader_grants_a_fresh_lease() {
    let mut env = Env::new();
    env.turn(0);
    env.leader.became_leader(Millis(50_000), &env.ledger);
    assert!(env.turn(100_000).propose.is_empty());
    assert_eq!(env.turn(115_001).propose.len(), 1);
}

#[test]
fn who_may_compute_offline_keeps_its_attempt_so_long() {
    for (offline_for_ms, kept_ms) in [(None, 65_000), (Some(10_000), 65_000), (Some(300_000), 305_000)] {
        let mut env = Env::new();
        let mut patient = spec("t");
        patient.placement.offline_for_ms = offline_for_ms;
        env.ledger = ledger(&["a", "b"]);
        take(&mut env.ledger, submit("t", patient, 0));
        env.turn(0);
        env.turn(1);
        assert!(env.turn(1 + kept_ms).propose.is_empty(), "{offline_for_ms:?}");
        assert_eq!(env.turn(2 + kept_ms).propose.len(), 1, "{offline_for_ms:?}");
    }
}

#[test]
fn who_meets_another_publisher_is_told_to_ask_again() {
    let mut env = Env::new();
    env.ledger = ledger(&["a", "b"]);
    for id in ["t", "u"] {
        take(&mut env.ledger, submit(id, publishing_to(spec(id), "out"), 0));
    }
    for view in env.nodes.values_mut() {
        view.capability.as_mut().unwrap().features.insert("destination:s3".to_owned());
    }
    env.turn(0);
    let (t, u) = (attempt("t", 1), attempt("u", 1));
    for id in [&t, &u] {
        take(&mut env.ledger, Entry::Started { attempt: id.clone(), at: Millis(1) });
    }
    take(&mut env.ledger, Entry::Publishing { attempt: t.clone(), at: Millis(2) });
    let ask = |env: &Env| {
        let node = env.ledger.attempt(&u).unwrap().node.clone();
        env.leader.on_report(&env.ledger, &node, u.clone(), Report::Publish, Millis(3), TERM)
    };
    let later = FromLeader::Unavailable { why: "attempt t.0.1 may be writing to the same destination".to_owned() };
    assert_eq!(ask(&env), Reaction::Answer(later.clone()), "not worth a commit");
    // The other was faster between the question and the commit.
    assert_eq!(Leader::answer_to(&Outcome::Rejected(Reason::PublishHeld(t.clone())), TERM), later);
    take(&mut env.ledger, Entry::Finished { attempt: t, result: Default::default(), at: Millis(4) });
    assert!(matches!(ask(&env), Reaction::Propose(Entry::Publishing { .. })));
}

#[test]
fn nobody_speaks_for_an_attempt_of_another_node() {
    let mut env = Env::new();
    env.turn(0);
    let id = attempt("t", 1);
    assert_eq!(env.beat("a", std::slice::from_ref(&id), 10), [(id.clone(), StopReason::Superseded)]);
    let on_report = |from: &str, report: Report| {
        env.leader.on_report(&env.ledger, &NodeId::new(from), id.clone(), report, Millis(5), TERM)
    };
    assert!(matches!(on_report("a", Report::Started), Reaction::Answer(FromLeader::Stale { .. })));
    assert_eq!(
        on_report("b", Report::Started),
        Reaction::Propose(Entry::Started { attempt: id.clone(), at: Millis(5) })
    );
}

#[test]
fn a_cancelled_attempt_is_told_to_stop_until_it_has() {
    let mut env = Env::new();
    env.turn(0);
    let id = attempt("t", 1);
    take(&mut env.ledger, Entry::Cancelled { task: id.task.clone(), by: "alice".to_owned(), at: Millis(5) });
    let sent = env.turn(10).send;
    let stop = ToWorker::Stop { term: TERM, attempt: id.clone(), why: StopReason::Cancelled };
    assert_eq!(sent, [(NodeId::new("b"), stop)]);
    assert_eq!(env.leader.on_worker_answer(&id, &FromWorker::Journalled, Millis(20)), None);
    assert_eq!(env.turn(1_010).send.len(), 1, "journalled is not stopped");
    assert_eq!(env.beat("b", std::slice::from_ref(&id), 1_020), [(id.clone(), StopReason::Cancelled)]);
    take(&mut env.ledger, Entry::Stopped { attempt: id, at: Millis(1_100) });
    assert!(env.turn(9_000).send.is_empty());
}

#[test]
fn a_refused_assignment_goes_back_to_the_queue() {
    let mut env = Env::new();
    env.turn(0);
    let refused = FromWorker::Refused { reason: "no room".to_owned() };
    let entry = env.leader.on_worker_answer(&attempt("t", 1), &refused, Millis(9)).unwrap();
    take(&mut env.ledger, entry);
    assert!(env.turn(1_008).propose.is_empty(), "its backoff is not over");
    assert_eq!(env.turn(1_009).propose.len(), 1);
}

#[test]
fn old_keys_are_swept() {
    let mut env = Env::new();
    let day = 86_400_000;
    env.turn(0);
    assert_eq!(env.turn(day).propose.iter().filter(|e| matches!(e, Entry::KeysForgotten { .. })).count(), 0);
    let swept = Entry::KeysForgotten { before: Millis(600_000) };
    assert!(env.turn(day + 600_000).propose.contains(&swept));
}

#[test]
fn a_new_leader_keeps_the_keys_of_one_whose_clock_was_behind() {
    let mut env = Env::new();
    let now = 20_000 * 86_400_000;
    env.leader.became_leader(Millis(now), &env.ledger);
    let forgets = |decisions: Decisions| decisions.propose.iter().any(|e| matches!(e, Entry::KeysForgotten { .. }));
    assert!(!forgets(env.turn(now)), "the key was stamped in 1970, and may be a second old");
    assert!(!forgets(env.turn(now + 86_399_999)));
    assert!(forgets(env.turn(now + 86_400_000)));
}

#[test]
fn a_revoked_node_gets_no_lease() {
    let mut env = Env::new();
    take(&mut env.ledger, Entry::MemberRevoked { node: NodeId::new("b"), at: Millis(1) });
    let heartbeat = Heartbeat { node: NodeId::new("b"), sent_at: 1, attempts: Vec::new() };
    let answer = env.leader.on_heartbeat(&env.ledger, heartbeat, Millis(2), TERM);
    assert!(matches!(answer, FromLeader::Unavailable { .. }));
}

#[test]
fn progress_is_that_of_the_last_heartbeat() {
    let mut env = Env::new();
    env.turn(0);
    let id = attempt("t", 1);
    assert!(env.leader.progress(&id).is_none());
    env.beat("b", std::slice::from_ref(&id), 10);
    assert_eq!(env.leader.progress(&id).map(|p| p.progress.step), Some(7));
}
