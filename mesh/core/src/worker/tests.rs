//! The worker's promises, case by case.

use super::*;
use crate::{
    capability::Grant,
    cases::{attempt, spec},
    ledger::entry::FailureClass,
    task::TaskType,
    wire::StopReason,
};

mod wake;

const LEASE: u64 = 60_000;

/// A worker whose journal writes are durable at once, and what it asked for.
struct Env {
    worker: Worker,
    disk: JournalRows,
    now: u64,
    seen: Vec<Action>,
}

impl Env {
    fn new() -> Self {
        Self::from(JournalRows::default(), 0)
    }

    fn from(disk: JournalRows, now: u64) -> Self {
        let settings = Settings::new(NodeId::new("n"));
        let (worker, actions) = Worker::restore(disk.clone(), settings, now);
        let mut env = Env { worker, disk, now, seen: Vec::new() };
        env.take(actions);
        env
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Term(term) => self.disk.highest_term = term,
            Write::Attempt(row) => {
                self.disk.attempts.retain(|r| r.assign.attempt != row.assign.attempt);
                self.disk.attempts.push(*row);
            }
            Write::Forget(id) => self.disk.attempts.retain(|r| r.assign.attempt != id),
        }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Action::Journal { id, write } = action {
                self.write(write);
                let more = self.worker.on(Event::Journalled(id), self.now);
                self.take(more);
            } else {
                self.seen.push(action);
            }
        }
    }

    /// What comes of an event.
    fn on(&mut self, event: Event) -> Vec<Action> {
        self.seen.clear();
        let actions = self.worker.on(event, self.now);
        self.take(actions);
        std::mem::take(&mut self.seen)
    }

    fn at(&mut self, now: u64) -> Vec<Action> {
        self.now = now;
        self.on(Event::Tick)
    }

    fn child(&mut self, id: &AttemptId, event: ChildEvent) -> Vec<Action> {
        let run = self.worker.attempts[id].child.as_ref().map_or(0, |c| c.run);
        self.on(Event::Child { attempt: id.clone(), run, event })
    }

    /// The leader answers whatever report is under way.
    fn committed(&mut self, id: &AttemptId) -> Vec<Action> {
        let seq = self.worker.attempts[id].sent.as_ref().unwrap().seq;
        let answer = FromLeader::Committed { term: 1 };
        self.on(Event::ReportAnswered { attempt: id.clone(), seq, answer })
    }

    fn heartbeat_answered(&mut self, sent_at: u64, stop: Vec<(AttemptId, StopReason)>) -> Vec<Action> {
        self.on(Event::HeartbeatAnswered(FromLeader::Alive { term: 1, sent_at, stop }))
    }

    /// `t.0.1` runs, and a heartbeat of moment 2,000 that named it was acknowledged.
    fn running() -> (Self, AttemptId) {
        let mut env = Env::new();
        let id = attempt("t", 1);
        env.on(assign(&id, 1));
        env.committed(&id);
        env.at(2_000);
        env.heartbeat_answered(2_000, Vec::new());
        (env, id)
    }
}

fn assign(id: &AttemptId, term: u64) -> Event {
    let grant = Grant { gpus: vec![0], ..Grant::default() };
    let assign = Assign {
        term,
        attempt: id.clone(),
        spec: spec("t"),
        grant,
        checkpoint: None,
        pins: Default::default(),
        lease_ms: LEASE,
    };
    Event::Message { request: 1, message: ToWorker::Assign(Box::new(assign)) }
}

fn reports(actions: &[Action]) -> Vec<&Report> {
    let mut reports = Vec::new();
    for action in actions {
        if let Action::SendReport { report, .. } = action {
            reports.push(report);
        }
    }
    reports
}

fn starts(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::StartChild { .. })).count()
}

#[test]
fn an_assignment_is_acknowledged_after_it_is_journalled() {
    let (mut worker, _) = Worker::restore(JournalRows::default(), Settings::new(NodeId::new("n")), 0);
    let id = attempt("t", 1);
    let actions = worker.on(assign(&id, 1), 1);
    assert!(actions.iter().all(|a| matches!(a, Action::Journal { .. })), "{actions:?}");
    // The term's row, then the attempt's.
    assert!(worker.on(Event::Journalled(1), 2).is_empty());
    let actions = worker.on(Event::Journalled(2), 3);
    assert!(actions.contains(&Action::Answer { request: 1, answer: FromWorker::Journalled }));
    assert_eq!(reports(&actions), [&Report::Started]);
    assert_eq!(starts(&actions), 0, "Started is not committed");
}

#[test]
fn a_child_starts_once_started_is_committed_and_once() {
    let mut env = Env::new();
    let id = attempt("t", 1);
    env.on(assign(&id, 1));
    assert_eq!(starts(&env.committed(&id)), 1);
    let again = env.on(assign(&id, 1));
    assert_eq!(again, [Action::Answer { request: 1, answer: FromWorker::Journalled }]);
}

#[test]
fn a_lower_term_is_refused_also_after_a_restart() {
    let mut env = Env::new();
    env.on(assign(&attempt("t", 1), 7));
    let mut env = Env::from(env.disk, 0);
    let actions = env.on(assign(&attempt("u", 1), 6));
    assert_eq!(actions, [Action::Answer { request: 1, answer: FromWorker::StaleTerm { highest: 7 } }]);
}

#[test]
fn a_restarted_worker_goes_on_from_its_checkpoint() {
    let (mut env, id) = Env::running();
    let checkpoint = LocalCheckpoint { step: 4, path: "c4".to_owned(), manifest_sha256: "x".to_owned() };
    env.child(&id, ChildEvent::Checkpoint(checkpoint.clone()));
    let env = Env::from(env.disk, 0);
    let resumed = env.seen.iter().find_map(|a| match a {
        Action::StartChild { resume, .. } => Some(resume.clone()),
        _ => None,
    });
    assert_eq!(resumed, Some(Some(checkpoint)));
}

#[test]
fn a_successor_on_the_same_node_goes_on_from_what_was_left() {
    let (mut env, first) = Env::running();
    let left = LocalCheckpoint { step: 4, path: "c4".to_owned(), manifest_sha256: "x".to_owned() };
    env.child(&first, ChildEvent::Checkpoint(left.clone()));
    env.child(&first, ChildEvent::Exited(Exit::Signal(9)));
    assert_eq!(env.committed(&first), [], "it is kept, not forgotten");
    assert_eq!(env.worker.attempts().count(), 0);
    // A restart in between loses nothing.
    let mut env = Env::from(env.disk, 3_000);
    let second = attempt("t", 2);
    env.on(assign(&second, 1));
    let started = env.committed(&second);
    let resumed =
        started.iter().any(|a| matches!(a, Action::StartChild { resume, .. } if *resume == Some(left.clone())));
    assert!(resumed, "{started:?}");
    env.child(&second, ChildEvent::Exited(Exit::Signal(9)));
    // It made none of its own: the first one's stays.
    assert_eq!(env.committed(&second), [Action::Forgotten { attempt: second }]);
    let third = attempt("t", 3);
    env.on(assign(&third, 1));
    env.committed(&third);
    let failure = Failure { class: FailureClass::Fatal, message: "bad data".to_owned() };
    env.child(&third, ChildEvent::Failed(failure));
    env.child(&third, ChildEvent::Exited(Exit::Code(1)));
    let forgotten = [Action::Forgotten { attempt: third.clone() }, Action::Forgotten { attempt: first }];
    assert_eq!(env.committed(&third), forgotten);
    assert!(env.disk.attempts.is_empty());
}

#[test]
fn what_a_replica_holds_outlives_its_processes_and_goes_with_its_task() {
    let agent = |id: &AttemptId| {
        let Event::Message { request, message: ToWorker::Assign(mut assign) } = assign(id, 1) else { unreachable!() };
        assign.spec.task_type = TaskType::Agent;
        Event::Message { request, message: ToWorker::Assign(assign) }
    };
    let mut env = Env::new();
    let [first, second, third] = [1, 2, 3].map(|number| attempt("t", number));
    env.on(agent(&first));
    env.committed(&first);
    env.child(&first, ChildEvent::Exited(Exit::Signal(9)));
    assert_eq!(env.committed(&first), [], "its folder is for the next, whenever that comes");
    let mut env = Env::from(env.disk, 3_000);
    env.on(agent(&second));
    env.committed(&second);
    env.child(&second, ChildEvent::Exited(Exit::Signal(9)));
    assert_eq!(env.committed(&second), [Action::Forgotten { attempt: second }], "the first keeps it for all");
    env.on(agent(&third));
    env.committed(&third);
    let stop = ToWorker::Stop { term: 1, attempt: third.clone(), why: StopReason::Cancelled };
    env.on(Event::Message { request: 2, message: stop });
    env.child(&third, ChildEvent::Exited(Exit::Code(0)));
    let forgotten = [Action::Forgotten { attempt: third.clone() }, Action::Forgotten { attempt: first }];
    assert_eq!(env.committed(&third), forgotten);
    assert!(env.disk.attempts.is_empty());
}

#[test]
fn publishing_waits_for_the_right_and_the_lease() {
    let (mut env, id) = Env::running();
    let computed = env.child(&id, ChildEvent::Computed);
    assert_eq!(reports(&computed), [&Report::Publish]);
    let granted = env.committed(&id);
    assert!(granted.contains(&Action::StartPublish { attempt: id.clone() }));
    // The lease counts from the send time of the acknowledged heartbeat.
    assert!(!env.at(2_000 + LEASE - 1).contains(&Action::StopPublish { attempt: id.clone() }));
    assert!(env.at(2_000 + LEASE).contains(&Action::StopPublish { attempt: id.clone() }));
    assert!(reports(&env.at(80_000)).is_empty(), "out of the lease nothing is asked for");
    // Contact is back: the right is asked for anew.
    let back = env.heartbeat_answered(80_000, Vec::new());
    assert_eq!(reports(&back), [&Report::Publish]);
    assert!(env.committed(&id).contains(&Action::StartPublish { attempt: id.clone() }));
    let result = TaskResult { location: "here".to_owned(), ..TaskResult::default() };
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let published = env.on(Event::Published { attempt: id.clone(), result: result.clone() });
    assert_eq!(reports(&published), [&Report::Finished(result)]);
    let over = env.committed(&id);
    assert_eq!(over, [Action::Forgotten { attempt: id }]);
    assert!(env.disk.attempts.is_empty());
}

#[test]
fn a_right_that_is_not_given_yet_is_asked_for_again() {
    let (mut env, id) = Env::running();
    env.child(&id, ChildEvent::Computed);
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let seq = env.worker.attempts[&id].sent.as_ref().unwrap().seq;
    let answer = FromLeader::Unavailable { why: "another publishes there".to_owned() };
    assert_eq!(env.on(Event::ReportAnswered { attempt: id.clone(), seq, answer }), []);
    assert_eq!(reports(&env.at(3_000)), [&Report::Publish]);
    assert!(env.committed(&id).contains(&Action::StartPublish { attempt: id.clone() }));
}

#[test]
fn a_late_grant_of_an_earlier_question_is_none() {
    let (mut env, id) = Env::running();
    env.child(&id, ChildEvent::Computed);
    let earlier = Event::ReportAnswered { attempt: id, seq: 1, answer: FromLeader::Committed { term: 1 } };
    assert!(env.on(earlier).is_empty());
}

#[test]
fn a_heartbeat_from_before_it_came_renews_no_lease() {
    let mut env = Env::new();
    let id = attempt("t", 1);
    env.now = 500;
    env.on(assign(&id, 1));
    // Sent at 0, when it was not there yet.
    env.heartbeat_answered(0, Vec::new());
    assert!(!env.worker.attempts[&id].in_lease(500));
}

#[test]
fn without_contact_it_computes_for_a_while_then_stops_with_a_checkpoint() {
    let (mut env, id) = Env::running();
    assert!(!env.at(2_000 + LEASE - 1).iter().any(|a| matches!(a, Action::StopChild { .. })));
    assert!(env.at(2_000 + LEASE).iter().any(|a| matches!(a, Action::StopChild { grace_ms: 10_000, .. })));
    let gone = env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    assert_eq!(reports(&gone), [&Report::Stopped]);
}

#[test]
fn a_child_that_does_not_stop_is_killed() {
    let (mut env, id) = Env::running();
    let stop = ToWorker::Stop { term: 1, attempt: id.clone(), why: StopReason::Cancelled };
    let asked = env.on(Event::Message { request: 2, message: stop });
    assert!(asked.iter().any(|a| matches!(a, Action::StopChild { .. })));
    assert!(asked.contains(&Action::Answer { request: 2, answer: FromWorker::Journalled }));
    assert!(reports(&asked).is_empty(), "its slots are not free yet");
    assert!(!env.at(11_999).iter().any(|a| matches!(a, Action::KillChild { .. })));
    assert!(env.at(12_000).iter().any(|a| matches!(a, Action::KillChild { .. })));
    assert_eq!(reports(&env.child(&id, ChildEvent::Exited(Exit::Signal(9)))), [&Report::Stopped]);
}

#[test]
fn a_stop_for_what_it_does_not_know_is_answered_with_stopped() {
    let mut env = Env::new();
    let stop = ToWorker::Stop { term: 1, attempt: attempt("t", 1), why: StopReason::Cancelled };
    let actions = env.on(Event::Message { request: 2, message: stop });
    assert_eq!(reports(&actions), [&Report::Stopped]);
}

#[test]
fn a_child_that_dies_says_how() {
    for (exit, says) in [
        (Exit::Signal(9), "killed by signal 9 (out of memory?)"),
        (Exit::Code(0), "without saying that it was done"),
        (Exit::Code(3), "code 3"),
        (Exit::NotStarted { why: "no such file".to_owned() }, "could not be started: no such file"),
    ] {
        let (mut env, id) = Env::running();
        let actions = env.child(&id, ChildEvent::Exited(exit));
        let [Report::Failed(failure)] = reports(&actions)[..] else { panic!("{actions:?}") };
        assert!(failure.message.contains(says), "{}", failure.message);
        assert_eq!(failure.class, FailureClass::Retryable);
    }
}

#[test]
fn a_failure_is_reported_when_the_child_is_gone() {
    let (mut env, id) = Env::running();
    let failure = Failure { class: FailureClass::Fatal, message: "bad data".to_owned() };
    assert!(reports(&env.child(&id, ChildEvent::Failed(failure.clone()))).is_empty());
    let gone = env.child(&id, ChildEvent::Exited(Exit::Code(1)));
    assert_eq!(reports(&gone), [&Report::Failed(failure)]);
}

#[test]
fn the_run_has_a_bound() {
    let mut env = Env::new();
    let id = attempt("t", 1);
    let Event::Message { request, message: ToWorker::Assign(mut assign) } = assign(&id, 1) else { unreachable!() };
    assign.spec.timeouts.run_ms = Some(5_000);
    env.on(Event::Message { request, message: ToWorker::Assign(assign) });
    env.committed(&id);
    assert!(!env.at(4_999).iter().any(|a| matches!(a, Action::StopChild { .. })));
    assert!(env.at(5_000).iter().any(|a| matches!(a, Action::StopChild { .. })));
    let gone = env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let [Report::Failed(failure)] = reports(&gone)[..] else { panic!("{gone:?}") };
    assert_eq!((failure.class, failure.message.as_str()), (FailureClass::TimedOut, "timeouts.run of 5 s is over"));
}

#[test]
fn a_successor_waits_until_its_predecessors_child_is_gone() {
    let (mut env, first) = Env::running();
    let second = attempt("t", 2);
    let actions = env.on(assign(&second, 1));
    assert!(actions.iter().any(|a| matches!(a, Action::StopChild { attempt, .. } if *attempt == first)));
    assert_eq!(starts(&env.committed(&second)), 0);
    assert_eq!(starts(&env.child(&first, ChildEvent::Exited(Exit::Code(0)))), 1);
    let actions = env.on(assign(&first, 1));
    assert!(matches!(actions[..], [Action::Answer { answer: FromWorker::Journalled, .. }]), "it is still here");
}

#[test]
fn a_report_is_repeated_until_it_is_committed() {
    let mut env = Env::new();
    let id = attempt("t", 1);
    env.on(assign(&id, 1));
    assert!(reports(&env.at(500)).is_empty());
    assert_eq!(reports(&env.at(1_000)), [&Report::Started]);
    let seq = env.worker.attempts[&id].sent.as_ref().unwrap().seq;
    let answer = FromLeader::Unavailable { why: "no quorum".to_owned() };
    env.on(Event::ReportAnswered { attempt: id.clone(), seq, answer });
    assert_eq!(reports(&env.at(2_000)), [&Report::Started]);
    let env = Env::from(env.disk, 0);
    assert_eq!(reports(&env.seen), [&Report::Started], "after a restart too");
}

#[test]
fn a_superseded_attempt_stops_and_is_forgotten() {
    let (mut env, id) = Env::running();
    let actions = env.heartbeat_answered(2_000, vec![(id.clone(), StopReason::Superseded)]);
    assert!(actions.iter().any(|a| matches!(a, Action::StopChild { .. })));
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let seq = env.worker.attempts[&id].sent.as_ref().unwrap().seq;
    let answer = FromLeader::Stale { term: 1, why: "over".to_owned() };
    let actions = env.on(Event::ReportAnswered { attempt: id.clone(), seq, answer });
    assert_eq!(actions, [Action::Forgotten { attempt: id }]);
}

#[test]
fn of_a_cancelled_task_no_checkpoint_is_wanted() {
    for (why, wanted) in [(StopReason::Cancelled, false), (StopReason::Superseded, true)] {
        let (mut env, id) = Env::running();
        let stop = ToWorker::Stop { term: 1, attempt: id.clone(), why: why.clone() };
        let actions = env.on(Event::Message { request: 2, message: stop });
        let asked = |a: &Action| matches!(a, Action::StopChild { checkpoint, .. } if *checkpoint == wanted);
        assert!(actions.iter().any(asked), "{why:?}: {actions:?}");
        // One may have been under way.
        let late = LocalCheckpoint { step: 3, path: "c".to_owned(), manifest_sha256: String::new() };
        env.child(&id, ChildEvent::Checkpoint(late));
        assert_eq!(env.worker.attempts[&id].row.checkpoint.is_some(), wanted, "{why:?}");
    }
}

#[test]
fn a_heartbeat_says_why_a_publication_waits() {
    let (mut env, id) = Env::running();
    env.child(&id, ChildEvent::Computed);
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let seq = env.worker.attempts[&id].sent.as_ref().unwrap().seq;
    let answered = |seq, answer| Event::ReportAnswered { attempt: AttemptId::clone(&id), seq, answer };
    let held = FromLeader::Unavailable { why: "attempt u.0.1 may be writing there".to_owned() };
    env.on(answered(seq + 1, held.clone()));
    assert_eq!(env.worker.attempts[&id].progress.note, None, "an answer to nothing that was asked");
    env.on(answered(seq, held));
    let note = env.worker.attempts[&id].progress.note.clone();
    assert_eq!(note.as_deref(), Some("waits to publish: attempt u.0.1 may be writing there"));
    let actions = env.on(answered(seq, FromLeader::Committed { term: 1 }));
    assert!(actions.contains(&Action::StartPublish { attempt: id.clone() }), "{actions:?}");
    assert_eq!(env.worker.attempts[&id].progress.note, None);
}

#[test]
fn a_heartbeat_says_how_far_a_publication_is() {
    let (mut env, id) = Env::running();
    let step = crate::wire::Progress { step: 7, total_steps: Some(7), ..Default::default() };
    env.child(&id, ChildEvent::Progress { phase: Phase::Training, progress: step });
    env.child(&id, ChildEvent::Computed);
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    let moved = |done| crate::wire::Progress { bytes_done: Some(done), bytes_total: Some(9), ..Default::default() };
    env.on(Event::Uploading { attempt: id.clone(), progress: moved(1) });
    assert_eq!(env.worker.attempts[&id].progress.bytes_done, None, "nothing is published without the right");
    env.committed(&id);
    env.on(Event::Uploading { attempt: id.clone(), progress: moved(5) });
    let beat = env.at(4_000).into_iter().find_map(|a| match a {
        Action::SendHeartbeat(heartbeat) => Some(heartbeat.attempts),
        _ => None,
    });
    let said = &beat.unwrap()[0];
    assert_eq!((said.phase, said.progress.step, said.progress.bytes_done), (Phase::Uploading, 7, Some(5)));
}
