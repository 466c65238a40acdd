//! W2: whatever happened, the worker does not ask to be woken at a moment that is past, for a shell that sleeps until
//! then would spin.

use proptest::prelude::*;

use super::*;

/// Something that may happen to a worker with the attempts of two tasks.
#[derive(Clone, Debug)]
enum Op {
    Assign {
        id: AttemptId,
        run_ms: Option<u64>,
        stop_ms: Option<u64>,
        offline_for_ms: Option<u64>,
    },
    Stop(AttemptId),
    Journalled,
    Child(AttemptId, ChildEvent),
    Published(AttemptId),
    PublishFailed(AttemptId),
    Answered(AttemptId, FromLeader),
    /// A heartbeat of so long ago is acknowledged.
    Heard {
        ago: u64,
        stop: Option<AttemptId>,
    },
    Passes(u64),
    ToTheWake,
    Restarts,
}

fn id() -> impl Strategy<Value = AttemptId> {
    // Mostly one, so that cases get far with it.
    prop_oneof![8 => Just(attempt("t", 1)), 1 => Just(attempt("t", 2)), 1 => Just(attempt("u", 1))]
}

fn failure() -> Failure {
    Failure { class: FailureClass::Retryable, message: "m".to_owned() }
}

fn child_event() -> impl Strategy<Value = ChildEvent> {
    let local = LocalCheckpoint { step: 1, path: "c".to_owned(), manifest_sha256: "c".to_owned() };
    prop_oneof![
        4 => Just(ChildEvent::Computed),
        2 => Just(ChildEvent::Exited(Exit::Code(0))),
        1 => Just(ChildEvent::Failed(failure())),
        1 => Just(ChildEvent::Checkpoint(local)),
        1 => Just(ChildEvent::Pushed(CheckpointRef { step: 1, manifest_sha256: String::new() })),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let ms = || prop::option::weighted(0.2, 0..90_000u64);
    let answer = prop_oneof![
        6 => Just(FromLeader::Committed { term: 1 }),
        1 => Just(FromLeader::Stale { term: 1, why: String::new() }),
        1 => Just(FromLeader::Unavailable { why: String::new() }),
    ];
    prop_oneof![
        4 => (id(), ms(), ms(), ms())
            .prop_map(|(id, run_ms, stop_ms, offline_for_ms)| Op::Assign { id, run_ms, stop_ms, offline_for_ms }),
        1 => id().prop_map(Op::Stop),
        12 => Just(Op::Journalled),
        6 => (id(), child_event()).prop_map(|(id, event)| Op::Child(id, event)),
        1 => id().prop_map(Op::Published),
        1 => id().prop_map(Op::PublishFailed),
        8 => (id(), answer).prop_map(|(id, answer)| Op::Answered(id, answer)),
        6 => (prop_oneof![4 => Just(0), 1 => 0..70_000u64], prop::option::weighted(0.1, id())).prop_map(|(ago, stop)| Op::Heard { ago, stop }),
        4 => (0..70_000u64).prop_map(Op::Passes),
        6 => Just(Op::ToTheWake),
        1 => Just(Op::Restarts),
    ]
}

/// A worker whose journal is written when the case says so.
struct Slow {
    worker: Worker,
    now: u64,
    waiting: Vec<(u64, Write)>,
    disk: Env,
}

impl Slow {
    fn new() -> Self {
        let (worker, actions) = Worker::restore(JournalRows::default(), Settings::new(NodeId::new("n")), 0);
        let mut slow = Slow { worker, now: 0, waiting: Vec::new(), disk: Env::new() };
        slow.take(actions);
        slow
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Action::Journal { id, write } = action {
                self.waiting.push((id, write));
            }
        }
    }

    fn on(&mut self, event: Event) {
        let actions = self.worker.on(event, self.now);
        self.take(actions);
    }

    fn happen(&mut self, op: Op) {
        match op {
            Op::Assign { id, run_ms, stop_ms, offline_for_ms } => {
                let mut spec = spec("t");
                (spec.timeouts.run_ms, spec.timeouts.stop_ms) = (run_ms, stop_ms);
                spec.placement.offline_for_ms = offline_for_ms;
                let grant = Grant { gpus: vec![0], ..Grant::default() };
                let assign = Assign {
                    term: 1,
                    attempt: id,
                    spec,
                    grant,
                    checkpoint: None,
                    pins: Default::default(),
                    lease_ms: LEASE,
                };
                self.on(Event::Message { request: 1, message: ToWorker::Assign(Box::new(assign)) });
            }
            Op::Stop(attempt) => {
                let message = ToWorker::Stop { term: 1, attempt, why: StopReason::Cancelled };
                self.on(Event::Message { request: 1, message });
            }
            Op::Journalled => {
                let Some((last, _)) = self.waiting.last().cloned() else { return };
                for (_, write) in self.waiting.drain(..) {
                    self.disk.write(write);
                }
                self.on(Event::Journalled(last));
            }
            Op::Child(attempt, event) => {
                let Some(running) = self.worker.attempts.get(&attempt) else { return };
                let Some(run) = running.child.as_ref().map(|child| child.run) else { return };
                self.on(Event::Child { attempt, run, event });
            }
            Op::Published(attempt) => self.on(Event::Published { attempt, result: TaskResult::default() }),
            Op::PublishFailed(attempt) => self.on(Event::PublishFailed { attempt, failure: failure() }),
            Op::Answered(attempt, answer) => {
                let Some(running) = self.worker.attempts.get(&attempt) else { return };
                let Some(seq) = running.sent.as_ref().map(|sent| sent.seq) else { return };
                self.on(Event::ReportAnswered { attempt, seq, answer });
            }
            Op::Heard { ago, stop } => {
                let sent_at = self.now.saturating_sub(ago);
                let stop = stop.map(|id| (id, StopReason::Superseded)).into_iter().collect();
                self.on(Event::HeartbeatAnswered(FromLeader::Alive { term: 1, sent_at, stop }));
            }
            Op::Passes(ms) => {
                self.now += ms;
                self.on(Event::Tick);
            }
            Op::ToTheWake => {
                self.now = self.worker.wake_at(self.now);
                self.on(Event::Tick);
            }
            Op::Restarts => {
                let (worker, actions) =
                    Worker::restore(self.disk.disk.clone(), Settings::new(NodeId::new("n")), self.now);
                self.waiting.clear();
                self.worker = worker;
                self.take(actions);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_wake_is_in_the_past(ops in prop::collection::vec(op(), 0..80)) {
        let mut slow = Slow::new();
        for op in ops {
            slow.happen(op.clone());
            let (at, now) = (slow.worker.wake_at(slow.now), slow.now);
            prop_assert!(at > now, "at {} after {:?} at {}: {:?}", at, op, now, slow.worker.attempts);
        }
    }
}

#[test]
fn an_unanswered_wish_to_publish_out_of_the_lease_asks_for_no_wake() {
    let (mut env, id) = Env::running();
    env.child(&id, ChildEvent::Computed);
    env.child(&id, ChildEvent::Exited(Exit::Code(0)));
    env.at(100_000);
    assert!(env.worker.attempts[&id].sent.is_some(), "the wish is still unanswered");
    assert_eq!(env.worker.wake_at(env.now), 102_000, "the next heartbeat");
}

#[test]
fn a_bound_of_the_run_that_is_over_asks_for_no_wake() {
    let run = |stop_ms| {
        let mut env = Env::new();
        let id = attempt("t", 1);
        let Event::Message { request, message: ToWorker::Assign(mut assign) } = assign(&id, 1) else { unreachable!() };
        (assign.spec.timeouts.run_ms, assign.spec.timeouts.stop_ms) = (Some(5_000), stop_ms);
        env.on(Event::Message { request, message: ToWorker::Assign(assign) });
        env.committed(&id);
        (env, id)
    };
    let (mut env, _) = run(None);
    env.at(5_000);
    assert_eq!(env.worker.wake_at(env.now), 7_000, "the heartbeat, and not the bound that was kept");
    let (mut env, _) = run(Some(0));
    let killed = env.at(5_000);
    assert!(killed.iter().any(|a| matches!(a, Action::KillChild { .. })), "no grace, no turn more: {killed:?}");
    let (mut env, id) = run(None);
    env.child(&id, ChildEvent::Computed);
    env.at(6_000);
    assert_eq!(env.worker.wake_at(env.now), 8_000, "the heartbeat: the child that lingers is not measured");
}
