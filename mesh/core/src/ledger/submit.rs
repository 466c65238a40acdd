//! Entries about whole tasks: submission, cancellation, what they depend on, how they end.

use std::collections::BTreeMap;

use super::{
    entry::{Failure, FailureClass, Outcome, Reason},
    state::{AttemptState, Key, Ledger, Replica, Task, TaskEnd},
};
use crate::{
    id::{RequestId, TaskId},
    task::TaskSpec,
    time::Millis,
};

/// Bound of `spec.replicas`, so that no entry makes every voter allocate without end.
pub const REPLICAS_MAX: u32 = 1_000;

/// What a task waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// It has completed.
    Done,
    /// It is under way: the task's id.
    Waiting(TaskId),
    /// No task has this name or id yet.
    Unknown,
    /// It failed or was cancelled: the task's id. What depends on it cannot run.
    Broken(TaskId),
}

impl Ledger {
    pub(super) fn submit(
        &mut self,
        id: &TaskId,
        spec: &TaskSpec,
        request: &RequestId,
        body_digest: &str,
        at: Millis,
    ) -> Outcome {
        let keys = self.keys.get(&spec.metadata.owner);
        if let Some(key) = keys.and_then(|keys| keys.get(request)) {
            return if key.body_digest == body_digest {
                Outcome::Duplicate(key.task.clone())
            } else {
                Outcome::Rejected(Reason::KeyReused(key.task.clone()))
            };
        }
        if self.tasks.contains_key(id) {
            return Outcome::Rejected(Reason::TaskExists(id.clone()));
        }
        // `not_before` stays 0: `at` is of the clock of whoever took the task, and that is not the scheduler's.
        let replica = Replica { pending_since: at, ..Replica::default() };
        let task = Task {
            seq: self.next_seq,
            spec: spec.clone(),
            submitted_at: at,
            replicas: vec![replica; spec.replicas.clamp(1, REPLICAS_MAX) as usize],
            ended: None,
            pins: BTreeMap::new(),
            scaled_to: None,
        };
        let task = match self.takes_its_name(task) {
            Ok(task) => task,
            Err(reason) => return Outcome::Rejected(reason),
        };
        if let Some(on) = spec.waits_for().find(|on| self.dependency(&task, on) == Dependency::Unknown) {
            return Outcome::Rejected(Reason::UnknownDependency(on.to_owned()));
        }
        self.next_seq += 1;
        self.tasks.insert(id.clone(), task);
        let key = Key { task: id.clone(), body_digest: body_digest.to_owned(), at };
        self.keys.entry(spec.metadata.owner.clone()).or_default().insert(request.clone(), key);
        self.fail_broken_dependents(at);
        Outcome::Applied
    }

    pub(super) fn cancelled(&mut self, id: &TaskId, by: &str, at: Millis) -> Outcome {
        match self.tasks.get(id) {
            None => Outcome::Rejected(Reason::UnknownTask(id.clone())),
            Some(task) => match task.ended {
                // The answer to the first of two was lost on its way: what was asked for is so.
                Some(TaskEnd::Cancelled { .. }) => Outcome::Duplicate(id.clone()),
                Some(TaskEnd::Completed { .. } | TaskEnd::Failed { .. }) => {
                    Outcome::Rejected(Reason::TaskEnded(id.clone()))
                }
                None => {
                    self.end_task(id, TaskEnd::Cancelled { at, by: by.to_owned() }, at);
                    Outcome::Applied
                }
            },
        }
    }

    pub(super) fn keys_forgotten(&mut self, before: Millis) -> Outcome {
        let count = |keys: &Self| keys.keys.values().map(std::collections::BTreeMap::len).sum::<usize>();
        let had = count(self);
        self.keys.retain(|_, keys| {
            keys.retain(|_, key| key.at >= before);
            !keys.is_empty()
        });
        if count(self) == had { Outcome::Stale } else { Outcome::Applied }
    }

    /// Writes the terminal entry unless there is one, and asks live attempts to stop: they hold their slots until
    /// they have.
    pub(super) fn end_task(&mut self, id: &TaskId, end: TaskEnd, at: Millis) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.ended.is_some() {
            return;
        }
        let completed = matches!(end, TaskEnd::Completed { .. });
        task.ended = Some(end);
        for attempt in task.replicas.iter_mut().filter_map(|r| r.attempts.last_mut()).filter(|a| a.is_live()) {
            attempt.state = AttemptState::Stopping { started_at: attempt.state.started_at(), since: at };
        }
        if !completed {
            self.fail_broken_dependents(at);
        }
    }

    /// Fails what depends on a task that failed or was cancelled, and what depends on that in turn.
    fn fail_broken_dependents(&mut self, at: Millis) {
        loop {
            let broken = self.tasks.iter().filter(|(_, t)| t.ended.is_none()).find_map(|(id, task)| {
                task.spec.waits_for().find_map(|name| match self.dependency(task, name) {
                    Dependency::Broken(on) => Some((id.clone(), on)),
                    Dependency::Done | Dependency::Waiting(_) | Dependency::Unknown => None,
                })
            });
            let Some((id, on)) = broken else { return };
            let failure = Failure {
                class: FailureClass::Fatal,
                message: format!("it depends on {on}, which did not complete; submit both again"),
            };
            if let Some(task) = self.tasks.get_mut(&id) {
                task.ended = Some(TaskEnd::Failed { at, failure });
                for attempt in task.replicas.iter_mut().filter_map(|r| r.attempts.last_mut()).filter(|a| a.is_live()) {
                    attempt.state = AttemptState::Stopping { started_at: attempt.state.started_at(), since: at };
                }
            }
        }
    }

    /// The task that another one means by this text: the one of this id, else the owner's newest earlier one of this
    /// name.
    pub(super) fn meant(&self, task: &Task, on: &str) -> Option<(&TaskId, &Task)> {
        let named = |t: &&Task| {
            t.spec.metadata.name == on && t.spec.metadata.owner == task.spec.metadata.owner && t.seq < task.seq
        };
        let by_id = self.tasks.get_key_value(&TaskId::new(on));
        by_id.or_else(|| self.tasks.iter().filter(|(_, t)| named(t)).max_by_key(|(_, t)| t.seq))
    }

    /// Where one of [`TaskSpec::waits_for`] stands.
    pub fn dependency(&self, task: &Task, on: &str) -> Dependency {
        let Some((id, found)) = self.meant(task, on) else { return Dependency::Unknown };
        match &found.ended {
            Some(TaskEnd::Completed { .. }) => Dependency::Done,
            Some(TaskEnd::Failed { .. } | TaskEnd::Cancelled { .. }) => Dependency::Broken(id.clone()),
            None => Dependency::Waiting(id.clone()),
        }
    }

    /// Whether everything this task depends on has completed.
    pub fn dependencies_done(&self, task: &Task) -> bool {
        task.spec.waits_for().all(|on| self.dependency(task, on) == Dependency::Done)
    }
}
