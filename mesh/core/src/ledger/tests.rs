//! `apply`, case by case. What holds for every sequence of entries is in `tests/arbitrary.rs`.

use super::{
    entry::{CheckpointRef, Failure, FailureClass, Reason, TaskResult},
    invariants,
    state::{AttemptEnd, AttemptState, TaskEnd},
    usage, *,
};
use crate::{
    cases::{assigned, attempt, ledger, member, publishing_to, spec, submit, take, with_gpus},
    id::{AttemptId, NodeId, RequestId, TaskId},
    task::spec::{Input, Location, Model, Pin},
    time::Millis,
};

fn started(id: &AttemptId, at: u64) -> Entry {
    Entry::Started { attempt: id.clone(), at: Millis(at) }
}

fn publishing(id: &AttemptId, at: u64) -> Entry {
    Entry::Publishing { attempt: id.clone(), at: Millis(at) }
}

fn finished(id: &AttemptId, at: u64) -> Entry {
    Entry::Finished { attempt: id.clone(), result: TaskResult::default(), at: Millis(at) }
}

fn stopped(id: &AttemptId, at: u64) -> Entry {
    Entry::Stopped { attempt: id.clone(), at: Millis(at) }
}

fn lost(id: &AttemptId, last_heard: u64, at: u64) -> Entry {
    Entry::LeaseExpired { attempt: id.clone(), last_heard: Millis(last_heard), at: Millis(at) }
}

fn failed(id: &AttemptId, class: FailureClass, at: u64) -> Entry {
    let failure = Failure { class, message: "disk full".to_owned() };
    Entry::Failed { attempt: id.clone(), failure, at: Millis(at) }
}

fn cancelled(task: &str, at: u64) -> Entry {
    Entry::Cancelled { task: TaskId::new(task), by: "alice".to_owned(), at: Millis(at) }
}

fn state(ledger: &Ledger, task: &str) -> TaskState {
    TaskState::of(&ledger.tasks[&TaskId::new(task)])
}

/// A ledger where `t.0.1` runs on `a` since 20.
fn running() -> (Ledger, AttemptId) {
    let mut ledger = ledger(&["a", "b"]);
    let id = attempt("t", 1);
    for entry in [submit("t", spec("t"), 0), assigned(&id, "a", &[0], 10), started(&id, 20)] {
        take(&mut ledger, entry);
    }
    (ledger, id)
}

#[test]
fn a_task_goes_down_the_straight_line() {
    let mut ledger = ledger(&["a"]);
    let id = attempt("t", 1);
    let steps = [
        (submit("t", spec("t"), 0), "PENDING"),
        (assigned(&id, "a", &[], 10), "SCHEDULED"),
        (started(&id, 20), "RUNNING"),
        (publishing(&id, 30), "RUNNING"),
        (finished(&id, 40), "COMPLETED"),
    ];
    for (entry, then) in steps {
        take(&mut ledger, entry);
        assert_eq!(state(&ledger, "t").name(), then);
    }
    assert_eq!(ledger.usage[&id].end, Some(Millis(40)));
    invariants::all(&ledger).unwrap();
}

#[test]
fn the_same_key_makes_one_task() {
    let mut ledger = ledger(&[]);
    let with = |id: &str, digest: &str, owner: &str| {
        let mut spec = spec("t");
        spec.metadata.owner = owner.to_owned();
        Entry::Submit {
            task: TaskId::new(id),
            spec: Box::new(spec),
            request: RequestId::new("k"),
            body_digest: digest.to_owned(),
            at: Millis(5),
        }
    };
    take(&mut ledger, with("one", "d", "alice"));
    assert_eq!(ledger.apply(&with("two", "d", "alice")), Outcome::Duplicate(TaskId::new("one")));
    let reused = Outcome::Rejected(Reason::KeyReused(TaskId::new("one")));
    assert_eq!(ledger.apply(&with("two", "other", "alice")), reused);
    // Keys belong to owners.
    take(&mut ledger, with("two", "other", "bob"));
    assert_eq!(ledger.apply(&Entry::KeysForgotten { before: Millis(5) }), Outcome::Stale);
    take(&mut ledger, Entry::KeysForgotten { before: Millis(6) });
    take(&mut ledger, with("three", "d", "alice"));
    assert_eq!(ledger.tasks.len(), 3);
}

#[test]
fn an_assignment_is_looked_at_again() {
    let mut ledger = ledger(&["a", "b"]);
    take(&mut ledger, submit("t", with_gpus(spec("t"), "any", 1, 0), 0));
    take(&mut ledger, submit("u", spec("u"), 0));
    let no = |ledger: &mut Ledger, entry: Entry| match ledger.apply(&entry) {
        Outcome::Rejected(reason) => reason,
        other => panic!("{entry:?} came to {other:?}"),
    };
    assert_eq!(no(&mut ledger, assigned(&attempt("t", 2), "a", &[], 1)), Reason::OutOfSequence(attempt("t", 2)));
    assert_eq!(no(&mut ledger, assigned(&attempt("x", 1), "a", &[], 1)), Reason::UnknownTask(TaskId::new("x")));
    assert_eq!(no(&mut ledger, assigned(&attempt("t", 1), "z", &[], 1)), Reason::UnknownMember(NodeId::new("z")));
    for gpus in [&[4][..], &[1, 1]] {
        let refused = no(&mut ledger, assigned(&attempt("t", 1), "a", gpus, 1));
        assert_eq!(refused, Reason::NoRoom(NodeId::new("a")), "{gpus:?}");
    }
    take(&mut ledger, assigned(&attempt("t", 1), "a", &[1, 2], 1));
    assert_eq!(no(&mut ledger, assigned(&attempt("t", 2), "b", &[], 1)), Reason::AttemptLive(attempt("t", 1)));
    // GPU 2 is held.
    assert_eq!(no(&mut ledger, assigned(&attempt("u", 1), "a", &[2, 3], 1)), Reason::NoRoom(NodeId::new("a")));
    take(&mut ledger, Entry::MemberDrained { node: NodeId::new("b"), draining: true, at: Millis(1) });
    assert_eq!(no(&mut ledger, assigned(&attempt("u", 1), "b", &[], 1)), Reason::Draining(NodeId::new("b")));
    take(&mut ledger, Entry::MemberRevoked { node: NodeId::new("b"), at: Millis(1) });
    assert_eq!(no(&mut ledger, assigned(&attempt("u", 1), "b", &[], 1)), Reason::RevokedMember(NodeId::new("b")));
    take(&mut ledger, assigned(&attempt("u", 1), "a", &[0, 3], 1));
}

#[test]
fn node_loss_is_retried_with_backoff_until_the_tries_are_used_up() {
    let (mut ledger, id) = running();
    take(&mut ledger, lost(&id, 100, 200));
    assert_eq!(ledger.usage[&id].end, Some(Millis(100)), "usage ends at the last sign of life");
    let TaskState::Pending { not_before, reason, .. } = state(&ledger, "t") else { panic!("not pending") };
    assert_eq!(not_before, Millis(1_200));
    assert!(reason.contains("nothing was heard of node a"), "{reason}");
    let second = attempt("t", 2);
    assert_eq!(
        ledger.apply(&assigned(&second, "b", &[], 1_000)),
        Outcome::Rejected(Reason::NotReady(TaskId::new("t")))
    );
    take(&mut ledger, assigned(&second, "b", &[], 1_200));
    take(&mut ledger, failed(&second, FailureClass::Retryable, 2_000));
    // Twice the first wait; a third would be capped.
    assert_eq!(ledger.tasks[&TaskId::new("t")].replicas[0].not_before, Millis(4_000));
    let third = attempt("t", 3);
    take(&mut ledger, assigned(&third, "b", &[], 4_000));
    take(&mut ledger, failed(&third, FailureClass::Retryable, 5_000));
    let TaskState::Failed { failure, .. } = state(&ledger, "t") else { panic!("not failed") };
    assert_eq!(failure.message, "disk full (attempt 3, retry.limit 2)");
    invariants::all(&ledger).unwrap();
}

#[test]
fn a_tasks_own_error_is_not_retried() {
    for class in [FailureClass::Fatal, FailureClass::TimedOut] {
        let (mut ledger, id) = running();
        take(&mut ledger, failed(&id, class, 30));
        assert_eq!(state(&ledger, "t").name(), "FAILED");
        assert_eq!(ledger.apply(&failed(&id, class, 31)), Outcome::Duplicate(TaskId::new("t")));
    }
}

#[test]
fn a_lost_attempt_is_fenced_and_its_successor_may_publish() {
    let (mut ledger, first) = running();
    take(&mut ledger, publishing(&first, 30));
    take(&mut ledger, lost(&first, 40, 50));
    for entry in [started(&first, 60), publishing(&first, 60), finished(&first, 60), stopped(&first, 60)] {
        assert_eq!(ledger.apply(&entry), Outcome::Stale, "{entry:?}");
    }
    let second = attempt("t", 2);
    let entries = [assigned(&second, "b", &[], 5_000), started(&second, 5_001), publishing(&second, 5_002)];
    for entry in entries {
        take(&mut ledger, entry);
    }
    take(&mut ledger, finished(&second, 5_003));
    assert_eq!(ledger.apply(&finished(&second, 5_004)), Outcome::Duplicate(TaskId::new("t")));
    invariants::all(&ledger).unwrap();
}

#[test]
fn nothing_is_finished_without_the_right_to_publish() {
    let (mut ledger, id) = running();
    assert_eq!(ledger.apply(&finished(&id, 30)), Outcome::Rejected(Reason::OutOfSequence(id)));
}

#[test]
fn a_cancelled_task_is_over_at_once_and_its_slots_later() {
    let (mut ledger, id) = running();
    take(&mut ledger, cancelled("t", 30));
    assert_eq!(state(&ledger, "t").name(), "CANCELLED");
    assert_eq!(ledger.live_attempts_on(&NodeId::new("a")).count(), 1, "the worker has not stopped");
    assert_eq!(ledger.apply(&publishing(&id, 31)), Outcome::Stale);
    assert_eq!(ledger.apply(&cancelled("t", 32)), Outcome::Duplicate(TaskId::new("t")), "asked again, it is so");
    take(&mut ledger, failed(&id, FailureClass::Retryable, 40));
    assert_eq!(state(&ledger, "t").name(), "CANCELLED");
    assert_eq!(ledger.live_attempts_on(&NodeId::new("a")).count(), 0);
    assert_eq!(ledger.usage[&id].end, Some(Millis(40)));
}

#[test]
fn what_has_ended_otherwise_cannot_be_cancelled() {
    let (mut ledger, id) = running();
    take(&mut ledger, publishing(&id, 30));
    take(&mut ledger, finished(&id, 40));
    assert_eq!(ledger.apply(&cancelled("t", 50)), Outcome::Rejected(Reason::TaskEnded(TaskId::new("t"))));
}

#[test]
fn a_terminal_state_names_its_attempt_and_node() {
    let by = |id: &AttemptId| Some((id.clone(), NodeId::new("a")));
    let (mut ledger, id) = running();
    take(&mut ledger, publishing(&id, 30));
    take(&mut ledger, finished(&id, 40));
    assert_eq!(state(&ledger, "t"), TaskState::Completed { at: Millis(40), by_attempt: by(&id) });
    let (mut ledger, id) = running();
    take(&mut ledger, cancelled("t", 30));
    let last = TaskState::Cancelled { at: Millis(30), by: "alice".to_owned(), last_attempt: by(&id) };
    assert_eq!(state(&ledger, "t"), last);
    let (mut ledger, id) = running();
    take(&mut ledger, failed(&id, FailureClass::Fatal, 30));
    assert!(matches!(state(&ledger, "t"), TaskState::Failed { by_attempt, .. } if by_attempt == by(&id)));
}

#[test]
fn of_two_tasks_with_one_destination_one_at_a_time_publishes() {
    let mut ledger = ledger(&["a"]);
    for (id, place) in [("t", "out"), ("u", "out"), ("v", "elsewhere")] {
        take(&mut ledger, submit(id, publishing_to(spec(id), place), 0));
        take(&mut ledger, assigned(&attempt(id, 1), "a", &[], 1));
        take(&mut ledger, started(&attempt(id, 1), 2));
    }
    let (t, u) = (attempt("t", 1), attempt("u", 1));
    take(&mut ledger, publishing(&t, 3));
    take(&mut ledger, publishing(&attempt("v", 1), 3));
    let held = Outcome::Rejected(Reason::PublishHeld(t.clone()));
    assert_eq!(ledger.apply(&publishing(&u, 4)), held);
    // Cancelled, its worker may go on writing until it has heard.
    let mut cancelling = ledger.clone();
    take(&mut cancelling, cancelled("t", 5));
    assert_eq!(cancelling.apply(&publishing(&u, 6)), held);
    take(&mut cancelling, stopped(&t, 7));
    take(&mut cancelling, publishing(&u, 8));
    // Lost, it has stopped by itself: its lease was over first.
    let mut losing = ledger.clone();
    take(&mut losing, lost(&t, 5, 6));
    take(&mut losing, publishing(&u, 8));
    take(&mut ledger, finished(&t, 5));
    take(&mut ledger, publishing(&u, 6));
    invariants::all(&ledger).unwrap();
}

#[test]
fn no_clock_but_the_leaders_holds_up_a_task() {
    // Whoever took the task is years ahead.
    let mut ledger = ledger(&["a", "b"]);
    let (first, second) = (attempt("t", 1), attempt("t", 2));
    take(&mut ledger, submit("t", spec("t"), 1 << 50));
    take(&mut ledger, assigned(&first, "a", &[], 10));
    // And so is the leader that saw it lost: its successor cannot tell how much of the backoff is left.
    take(&mut ledger, lost(&first, 1 << 50, (1 << 50) + 5));
    take(&mut ledger, assigned(&second, "b", &[], 20));
    // Where the clocks agree the backoff holds.
    take(&mut ledger, lost(&second, 25, 30));
    let early = ledger.apply(&assigned(&attempt("t", 3), "b", &[], 40));
    assert_eq!(early, Outcome::Rejected(Reason::NotReady(TaskId::new("t"))));
}

#[test]
fn disk_that_running_attempts_hold_is_not_counted_twice() {
    let mut ledger = ledger(&["a"]);
    let needs = |id: &str, free: u64| {
        let Entry::Assigned { attempt, node, mut grant, mut capacity, at } = assigned(&attempt(id, 1), "a", &[], 1)
        else {
            unreachable!()
        };
        (grant.disk_bytes, capacity.disk_bytes) = (60, free);
        Entry::Assigned { attempt, node, grant, capacity, at }
    };
    for id in ["t", "u"] {
        take(&mut ledger, submit(id, spec(id), 0));
    }
    take(&mut ledger, needs("t", 100));
    assert_eq!(ledger.apply(&needs("u", 100)), Outcome::Rejected(Reason::NoRoom(NodeId::new("a"))));
    take(&mut ledger, started(&attempt("t", 1), 2));
    assert_eq!(ledger.apply(&needs("u", 59)), Outcome::Rejected(Reason::NoRoom(NodeId::new("a"))));
    take(&mut ledger, needs("u", 60));
}

#[test]
fn a_stopped_attempt_costs_no_try() {
    let (mut ledger, id) = running();
    take(&mut ledger, stopped(&id, 30));
    let replica = &ledger.tasks[&TaskId::new("t")].replicas[0];
    assert_eq!((replica.failures(), replica.not_before), (0, Millis(30)));
    assert!(matches!(replica.attempts[0].state, AttemptState::Ended { how: AttemptEnd::Stopped, .. }));
}

#[test]
fn a_dependency_orders_and_its_failure_spreads() {
    let mut ledger = ledger(&["a"]);
    let after = |name: &str, on: &str| {
        let mut spec = spec(name);
        spec.depends_on = vec![on.to_owned()];
        spec
    };
    let unknown = ledger.apply(&submit("b", after("second", "first"), 0));
    assert_eq!(unknown, Outcome::Rejected(Reason::UnknownDependency("first".to_owned())));
    take(&mut ledger, submit("a", spec("first"), 0));
    take(&mut ledger, submit("b", after("second", "first"), 0));
    take(&mut ledger, submit("c", after("third", "b"), 0));
    let early = ledger.apply(&assigned(&attempt("b", 1), "a", &[], 5));
    assert_eq!(early, Outcome::Rejected(Reason::NotReady(TaskId::new("b"))));
    let mut done = ledger.clone();
    let id = attempt("a", 1);
    for entry in [assigned(&id, "a", &[], 5), started(&id, 6), publishing(&id, 7), finished(&id, 8)] {
        take(&mut done, entry);
    }
    take(&mut done, assigned(&attempt("b", 1), "a", &[], 9));
    take(&mut ledger, cancelled("a", 5));
    for task in ["b", "c"] {
        let TaskState::Failed { failure, .. } = state(&ledger, task) else { panic!("{task} waits for ever") };
        assert!(failure.message.contains("depends on"), "{}", failure.message);
    }
}

fn pinned(id: &AttemptId, version: &str, at: u64) -> Entry {
    let pin = Pin { version: version.to_owned(), files: 1, bytes: 2 };
    Entry::Pinned { attempt: id.clone(), pins: [(Input::Model, pin)].into(), at: Millis(at) }
}

/// A source does not change under a task: what the first attempt met is what every later one gets.
#[test]
fn what_is_pinned_first_stays() {
    let (mut ledger, first) = running();
    let version =
        |ledger: &Ledger| ledger.tasks[&TaskId::new("t")].pins.get(&Input::Model).map(|pin| pin.version.clone());
    assert_eq!(version(&ledger), None);
    take(&mut ledger, pinned(&first, "one", 21));
    assert_eq!(version(&ledger).as_deref(), Some("one"));
    assert_eq!(ledger.apply(&pinned(&first, "one", 22)), Outcome::Duplicate(TaskId::new("t")), "its report came twice");
    assert_eq!(ledger.apply(&pinned(&first, "two", 23)), Outcome::Duplicate(TaskId::new("t")));
    assert_eq!(version(&ledger).as_deref(), Some("one"));
    // Another input is another matter.
    let pin = Pin { version: "data".to_owned(), files: 1, bytes: 2 };
    let data = Entry::Pinned { attempt: first.clone(), pins: [(Input::Dataset, pin)].into(), at: Millis(24) };
    take(&mut ledger, data);
    assert_eq!(ledger.tasks[&TaskId::new("t")].pins.len(), 2);

    take(&mut ledger, lost(&first, 20, 90));
    assert_eq!(ledger.apply(&pinned(&first, "three", 91)), Outcome::Stale, "it is superseded");
    let second = attempt("t", 2);
    let ready = ledger.replica(&second).expect("its replica").not_before.0;
    take(&mut ledger, assigned(&second, "b", &[0], ready));
    assert_eq!(ledger.apply(&pinned(&second, "four", ready + 1)), Outcome::Duplicate(TaskId::new("t")));
    assert_eq!(version(&ledger).as_deref(), Some("one"));
    invariants::all(&ledger).unwrap();
}

/// A task that takes another one's artifacts waits for it, and gets the place where they are.
#[test]
fn artifacts_of_a_task_are_where_it_left_them() {
    let taking = |from: &str, path: Option<&str>| {
        let mut spec = spec("second");
        let source = Location::Task { identifier: from.to_owned(), path: path.map(str::to_owned) };
        spec.model = Some(Model { source, adapter: None, reference: None, value: None });
        spec
    };
    let source = |ledger: &Ledger| {
        let resolved = ledger.resolved(&ledger.tasks[&TaskId::new("b")]);
        resolved.model.map(|model| model.source)
    };
    let mut ledger = ledger(&["a"]);
    let unknown = ledger.apply(&submit("b", taking("first", None), 0));
    assert_eq!(unknown, Outcome::Rejected(Reason::UnknownDependency("first".to_owned())), "it waits for it");
    let id = attempt("a", 1);
    let complete = |ledger: &mut Ledger| {
        for entry in [assigned(&id, "a", &[], 5), started(&id, 6), publishing(&id, 7), finished(&id, 8)] {
            take(ledger, entry);
        }
    };
    for destination in [false, true] {
        let mut ledger = ledger.clone();
        let first = if destination { publishing_to(spec("first"), "out") } else { spec("first") };
        take(&mut ledger, submit("a", first, 0));
        let asked = taking("first", Some("adapter"));
        take(&mut ledger, submit("b", asked.clone(), 0));
        let early = ledger.apply(&assigned(&attempt("b", 1), "a", &[], 5));
        assert_eq!(early, Outcome::Rejected(Reason::NotReady(TaskId::new("b"))));
        assert_eq!(source(&ledger), asked.model.map(|model| model.source), "there is nothing yet");
        complete(&mut ledger);
        let found = match destination {
            true => Location::S3 { bucket: "b".into(), path: "out/adapter".into(), endpoint: None, region: None },
            false => {
                let (node, path) = (NodeId::new("a"), Some("adapter".to_owned()));
                Location::Kept { node, attempt: id.clone(), path }
            }
        };
        assert_eq!(source(&ledger), Some(found));
        take(&mut ledger, assigned(&attempt("b", 1), "a", &[], 9));
    }
    // One that does not complete takes those who wait for it with it.
    take(&mut ledger, submit("a", spec("first"), 0));
    take(&mut ledger, submit("b", taking("a", None), 0));
    take(&mut ledger, cancelled("a", 5));
    assert_eq!(state(&ledger, "b").name(), "FAILED");
}

#[test]
fn several_replicas_complete_together_and_fail_together() {
    let mut ledger = ledger(&["a"]);
    let mut spec = spec("t");
    spec.replicas = 2;
    take(&mut ledger, submit("t", spec, 0));
    let (one, two) = (attempt("t", 1), AttemptId { replica: 1, ..attempt("t", 1) });
    for id in [&one, &two] {
        take(&mut ledger, assigned(id, "a", &[], 1));
        take(&mut ledger, started(id, 2));
    }
    let mut failing = ledger.clone();
    for id in [&one, &two] {
        assert_eq!(state(&ledger, "t").name(), "RUNNING");
        take(&mut ledger, publishing(id, 3));
        take(&mut ledger, finished(id, 4));
    }
    assert!(matches!(ledger.tasks[&TaskId::new("t")].ended, Some(TaskEnd::Completed { .. })));
    take(&mut failing, failed(&one, FailureClass::Fatal, 3));
    assert!(matches!(failing.attempt(&two).unwrap().state, AttemptState::Stopping { .. }));
    invariants::all(&failing).unwrap();
}

#[test]
fn a_checkpoint_outlives_its_attempt_and_never_goes_back() {
    let (mut ledger, id) = running();
    let at_step = |step: u64| Entry::Checkpointed {
        attempt: id.clone(),
        checkpoint: CheckpointRef { step, manifest_sha256: format!("{step}") },
        at: Millis(30),
    };
    take(&mut ledger, at_step(10));
    assert_eq!(ledger.apply(&at_step(10)), Outcome::Duplicate(TaskId::new("t")));
    assert_eq!(ledger.apply(&at_step(5)), Outcome::Duplicate(TaskId::new("t")));
    take(&mut ledger, lost(&id, 40, 50));
    assert_eq!(ledger.apply(&at_step(20)), Outcome::Stale);
    assert_eq!(ledger.replica(&id).unwrap().checkpoint.as_ref().map(|c| c.step), Some(10));
}

#[test]
fn members_change_once_and_a_revoked_one_does_not_come_back() {
    let mut ledger = ledger(&["a"]);
    let join = |name: &str| Entry::MemberJoined { node: NodeId::new("a"), member: member(name) };
    assert_eq!((ledger.apply(&join("a")), ledger.members_version), (Outcome::Stale, 1));
    take(&mut ledger, Entry::MemberDrained { node: NodeId::new("a"), draining: true, at: Millis(1) });
    take(&mut ledger, join("renamed"));
    assert_eq!(ledger.members[&NodeId::new("a")].draining_since, Some(Millis(1)), "a restart does not end a drain");
    take(&mut ledger, Entry::MemberRevoked { node: NodeId::new("a"), at: Millis(2) });
    assert_eq!(ledger.apply(&join("again")), Outcome::Rejected(Reason::RevokedMember(NodeId::new("a"))));
    assert_eq!(ledger.members_version, 4);
}

#[test]
fn a_revoked_members_attempt_says_nothing_more() {
    let (mut ledger, id) = running();
    take(&mut ledger, Entry::MemberRevoked { node: NodeId::new("a"), at: Millis(25) });
    let refused = Outcome::Rejected(Reason::RevokedMember(NodeId::new("a")));
    assert_eq!(ledger.apply(&publishing(&id, 30)), refused);
    take(&mut ledger, lost(&id, 25, 90));
}

#[test]
fn usage_counts_the_part_inside_the_days() {
    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;
    // 2025-09-01.
    const FIRST: u64 = 20_332 * DAY;
    let mut ledger = ledger(&["a"]);
    // Two GPUs from 22:00 on the day before to 03:00.
    let id = attempt("t", 1);
    let from = FIRST - 2 * HOUR;
    take(&mut ledger, submit("t", spec("t"), from));
    take(&mut ledger, assigned(&id, "a", &[0, 1], from));
    take(&mut ledger, started(&id, from));
    let ask = |start: &str, end: &str| usage::Query::parse(None, None, Some(start), Some(end)).unwrap();
    let hours =
        |ledger: &Ledger, query: &usage::Query, now: u64| usage::stats(ledger, query, Millis(now)).total_gpu_hours;
    let both = ask("2025-08-31", "2025-09-01");
    assert_eq!(hours(&ledger, &both, FIRST + HOUR), 6.0, "a running attempt counts up to now");
    take(&mut ledger, publishing(&id, FIRST + 3 * HOUR));
    take(&mut ledger, finished(&id, FIRST + 3 * HOUR));
    assert_eq!(hours(&ledger, &both, FIRST + 5 * DAY), 10.0);
    assert_eq!(hours(&ledger, &ask("2025-08-31", "2025-08-31"), FIRST + 5 * DAY), 4.0);
    let stats = usage::stats(&ledger, &ask("2025-09-01", "2025-09-01"), Millis(FIRST + 5 * DAY));
    assert_eq!((stats.total_gpu_hours, stats.total_tasks_completed), (6.0, 1));
    assert_eq!(stats.breakdown_by_gpu["nvidia-l40"], 6.0);
    assert_eq!(stats.total_cpu_core_hours, 0.0);
    let before = usage::stats(&ledger, &ask("2025-08-31", "2025-08-31"), Millis(FIRST + 5 * DAY));
    assert_eq!(before.total_tasks_completed, 0);
    let bobs = usage::Query { user: Some("bob".to_owned()), ..usage::Query::default() };
    assert_eq!(usage::stats(&ledger, &bobs, Millis(FIRST)), usage::Stats::default());
}

#[test]
fn a_bad_date_says_which_and_what() {
    for date in ["2025-9-1", "2025-02-30", "yesterday", "", "2025-09-01T00:00", "+025-09-01", "1969-12-31"] {
        let error = usage::Query::parse(None, None, Some(date), None).unwrap_err();
        assert!(error.to_string().starts_with(&format!("start_date: `{date}` is no day")), "{error}");
    }
    let error = usage::Query::parse(None, None, Some("2025-09-02"), Some("2025-09-01")).unwrap_err();
    assert_eq!(error.to_string(), "start_date 2025-09-02 is after end_date 2025-09-01: both days are included");
}
