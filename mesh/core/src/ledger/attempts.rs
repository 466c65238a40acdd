//! Entries about attempts: assignment with its recheck, the way to the right to publish, every kind of end.

use std::{collections::BTreeMap, time::Duration};

use super::{
    apply::Guards,
    entry::{CheckpointRef, Failure, FailureClass, Outcome, Reason, TaskResult},
    state::{Attempt, AttemptEnd, AttemptState, Ledger, Replica, TaskEnd, UsageRow},
};
use crate::{
    capability::Grant,
    id::{AttemptId, NodeId},
    task::spec::{Input, Pin, Retry},
    time::Millis,
};

impl Ledger {
    /// A decision was made on a state that may have changed since: every condition is looked at again.
    pub(super) fn assigned(
        &mut self,
        id: &AttemptId,
        node: &NodeId,
        grant: &Grant,
        capacity: &Grant,
        at: Millis,
        guards: Guards,
    ) -> Outcome {
        match self.refuse_assignment(id, node, grant, capacity, at, guards) {
            Some(reason) => Outcome::Rejected(reason),
            None => {
                if let Some(replica) = self.replica_mut(id) {
                    replica.attempts.push(Attempt {
                        id: id.clone(),
                        node: node.clone(),
                        grant: grant.clone(),
                        assigned_at: at,
                        ready_at: None,
                        state: AttemptState::Assigned,
                    });
                }
                Outcome::Applied
            }
        }
    }

    fn refuse_assignment(
        &self,
        id: &AttemptId,
        node: &NodeId,
        grant: &Grant,
        capacity: &Grant,
        at: Millis,
        guards: Guards,
    ) -> Option<Reason> {
        let Some(task) = self.tasks.get(&id.task) else { return Some(Reason::UnknownTask(id.task.clone())) };
        if task.ended.is_some() {
            return Some(Reason::TaskEnded(id.task.clone()));
        }
        let Some(replica) = task.replicas.get(id.replica as usize) else {
            return Some(Reason::UnknownAttempt(id.clone()));
        };
        if let Some(live) = replica.live() {
            return Some(Reason::AttemptLive(live.id.clone()));
        }
        if replica.retired {
            return Some(Reason::NotReady(id.task.clone()));
        }
        if replica.finished() || self.next_attempt(replica) != Some(id.attempt) {
            return Some(Reason::OutOfSequence(id.clone()));
        }
        if let Some(reason) = self.refuse_member(node) {
            return Some(reason);
        }
        if self.members.get(node).is_some_and(|m| m.draining_since.is_some()) {
            return Some(Reason::Draining(node.clone()));
        }
        if !replica.may_go(at) || !self.dependencies_done(task) {
            return Some(Reason::NotReady(id.task.clone()));
        }
        let held: Vec<&Attempt> = self.live_attempts_on(node).collect();
        (guards.slot_recheck && !has_room(grant, capacity, &held)).then(|| Reason::NoRoom(node.clone()))
    }

    pub(super) fn started(&mut self, id: &AttemptId, at: Millis, guards: Guards) -> Outcome {
        let attempt = match self.speaking(id, guards) {
            Ok(attempt) => attempt,
            Err(outcome) => return outcome,
        };
        match attempt.state {
            AttemptState::Running { .. } | AttemptState::Publishing { .. } => Outcome::Duplicate(id.task.clone()),
            AttemptState::Stopping { .. } => Outcome::Stale,
            AttemptState::Assigned | AttemptState::Ended { .. } => {
                let at = at.max(attempt.assigned_at);
                attempt.state = AttemptState::Running { since: at };
                let grant = attempt.grant.clone();
                self.open_usage(id, &grant, at);
                Outcome::Applied
            }
        }
    }

    fn open_usage(&mut self, id: &AttemptId, grant: &Grant, at: Millis) {
        let Some(task) = self.tasks.get(&id.task) else { return };
        let row = UsageRow {
            owner: task.spec.metadata.owner.clone(),
            project: task.spec.metadata.project.clone(),
            start: at,
            end: None,
            gpu_kind: grant.gpu_kind.clone(),
            gpu_count: u32::try_from(grant.gpus.len()).unwrap_or(u32::MAX),
            cpu_millis: grant.cpu_millis,
        };
        self.usage.insert(id.clone(), row);
    }

    /// First come, first kept: a source does not change under a task.
    pub(super) fn pinned(&mut self, id: &AttemptId, pins: &BTreeMap<Input, Pin>, guards: Guards) -> Outcome {
        if let Err(outcome) = self.speaking(id, guards) {
            return outcome;
        }
        let Some(task) = self.tasks.get_mut(&id.task) else { return Outcome::Stale };
        let had = task.pins.len();
        for (input, pin) in pins {
            task.pins.entry(*input).or_insert_with(|| pin.clone());
        }
        if task.pins.len() == had { Outcome::Duplicate(id.task.clone()) } else { Outcome::Applied }
    }

    pub(super) fn checkpointed(&mut self, id: &AttemptId, checkpoint: &CheckpointRef, guards: Guards) -> Outcome {
        match self.speaking(id, guards).map(|a| &a.state) {
            Err(outcome) => return outcome,
            Ok(AttemptState::Assigned) => return Outcome::Rejected(Reason::OutOfSequence(id.clone())),
            // Whole is whole, but nobody will go on from it.
            Ok(AttemptState::Stopping { .. }) => return Outcome::Stale,
            Ok(AttemptState::Running { .. } | AttemptState::Publishing { .. } | AttemptState::Ended { .. }) => {}
        }
        let Some(replica) = self.replica_mut(id) else { return Outcome::Stale };
        // Reports come in order, so that an older step can only be a repetition.
        if replica.checkpoint.as_ref().is_some_and(|c| c == checkpoint || c.step > checkpoint.step) {
            return Outcome::Duplicate(id.task.clone());
        }
        replica.checkpoint = Some(checkpoint.clone());
        Outcome::Applied
    }

    /// The right to publish. A lost holder's right went with it: its successor may publish over its files.
    pub(super) fn publishing(&mut self, id: &AttemptId, at: Millis, guards: Guards) -> Outcome {
        let attempt = match self.speaking(id, guards) {
            Ok(attempt) => attempt,
            Err(outcome) => return outcome,
        };
        match attempt.state {
            AttemptState::Publishing { .. } => Outcome::Duplicate(id.task.clone()),
            AttemptState::Assigned => Outcome::Rejected(Reason::OutOfSequence(id.clone())),
            AttemptState::Stopping { .. } => Outcome::Stale,
            AttemptState::Running { since: started_at } => {
                if guards.publish_hold
                    && let Some(holder) = self.writer_at_same_place(id)
                {
                    return Outcome::Rejected(Reason::PublishHeld(holder));
                }
                let Some(attempt) = self.attempt_mut(id) else { return Outcome::Stale };
                attempt.state = AttemptState::Publishing { started_at, since: at };
                Outcome::Applied
            }
            // Reached without the fence only.
            AttemptState::Ended { started_at, .. } => {
                attempt.state = AttemptState::Publishing { started_at: started_at.unwrap_or(at), since: at };
                Outcome::Applied
            }
        }
    }

    /// Who else may be writing to the destination of this attempt: files of two would lie under one manifest. One that
    /// is stopping may have been publishing, and has not heard of its end yet. Destinations are the same when they are
    /// written the same: that a volume's path and an absolute one mean one folder, only the node could tell.
    pub fn writer_at_same_place(&self, id: &AttemptId) -> Option<AttemptId> {
        let place = |id: &AttemptId| self.tasks.get(&id.task)?.spec.output.destination.as_ref();
        let mine = place(id)?;
        let mut others = self.live_attempts().filter(|other| other.id != *id && place(&other.id) == Some(mine));
        let writes = |other: &&Attempt| match &other.state {
            AttemptState::Publishing { .. } | AttemptState::Stopping { started_at: Some(_), .. } => true,
            AttemptState::Assigned
            | AttemptState::Running { .. }
            | AttemptState::Stopping { started_at: None, .. }
            | AttemptState::Ended { .. } => false,
        };
        others.find(writes).map(|other| other.id.clone())
    }

    pub(super) fn finished(&mut self, id: &AttemptId, result: &TaskResult, at: Millis, guards: Guards) -> Outcome {
        // The answer to the first of two was lost on its way.
        if self.attempt(id).and_then(Attempt::how) == Some(&AttemptEnd::Finished) {
            return Outcome::Duplicate(id.task.clone());
        }
        match self.speaking(id, guards).map(|a| &a.state) {
            Err(outcome) => return outcome,
            Ok(AttemptState::Assigned | AttemptState::Running { .. }) => {
                return Outcome::Rejected(Reason::OutOfSequence(id.clone()));
            }
            Ok(AttemptState::Stopping { .. }) => return Outcome::Stale,
            Ok(AttemptState::Publishing { .. } | AttemptState::Ended { .. }) => {}
        }
        self.end_attempt(id, AttemptEnd::Finished, at, at);
        if self.tasks.get(&id.task).is_some_and(|task| task.replicas.iter().all(Replica::finished)) {
            self.end_task(&id.task, TaskEnd::Completed { at, result: result.clone() }, at);
        }
        Outcome::Applied
    }

    pub(super) fn failed(&mut self, id: &AttemptId, failure: &Failure, at: Millis) -> Outcome {
        let how = AttemptEnd::Failed(failure.clone());
        if let Some(refused) = self.refuse_end(id, &how) {
            return refused;
        }
        self.end_attempt(id, how, at, at);
        if self.tasks.get(&id.task).is_some_and(|task| task.spec.service.is_some()) {
            self.restart_or_fail(id, failure, at);
            return Outcome::Applied;
        }
        match failure.class {
            FailureClass::Retryable => self.retry_or_fail(id, failure, at),
            FailureClass::Fatal | FailureClass::TimedOut => {
                self.end_task(&id.task, TaskEnd::Failed { at, failure: failure.clone() }, at);
            }
        }
        Outcome::Applied
    }

    /// The worker stopped it. If the task has not ended, nobody is at fault and the replica waits for its next turn.
    pub(super) fn stopped(&mut self, id: &AttemptId, at: Millis) -> Outcome {
        if let Some(refused) = self.refuse_end(id, &AttemptEnd::Stopped) {
            return refused;
        }
        self.end_attempt(id, AttemptEnd::Stopped, at, at);
        self.wait_again(id, "its worker stopped it".to_owned(), at, at);
        Outcome::Applied
    }

    pub(super) fn lease_expired(&mut self, id: &AttemptId, last_heard: Millis, at: Millis) -> Outcome {
        if let Some(refused) = self.refuse_end(id, &AttemptEnd::Lost) {
            return refused;
        }
        let node = self.attempt(id).map(|a| a.node.to_string()).unwrap_or_default();
        let node = self.members.get(&NodeId::new(node.as_str())).map_or(node, |m| m.name.clone());
        self.end_attempt(id, AttemptEnd::Lost, at, last_heard);
        let silent = at.since(last_heard).div_ceil(1000);
        let message = format!("attempt {} was lost: nothing was heard of node {node} for {silent} s", id.attempt);
        let failure = Failure { class: FailureClass::Retryable, message };
        match self.tasks.get(&id.task).is_some_and(|task| task.spec.service.is_some()) {
            true => self.restart_or_fail(id, &failure, at),
            false => self.retry_or_fail(id, &failure, at),
        }
        Outcome::Applied
    }

    /// Back to the queue with backoff, or the end of the task when its tries are used up.
    fn retry_or_fail(&mut self, id: &AttemptId, failure: &Failure, at: Millis) {
        let Some(task) = self.tasks.get(&id.task).filter(|task| task.ended.is_none()) else { return };
        let retry = task.spec.retry.clone();
        let failures = task.replicas.get(id.replica as usize).map_or(0, Replica::failures);
        if failures <= retry.limit {
            self.wait_again(id, failure.message.clone(), at, at + backoff(&retry, failures));
        } else {
            let failure = Failure {
                class: failure.class,
                message: format!("{} (attempt {failures}, retry.limit {})", failure.message, retry.limit),
            };
            self.end_task(&id.task, TaskEnd::Failed { at, failure }, at);
        }
    }

    pub(super) fn wait_again(&mut self, id: &AttemptId, reason: String, since: Millis, not_before: Millis) {
        if self.tasks.get(&id.task).is_none_or(|task| task.ended.is_some()) {
            return;
        }
        if let Some(replica) = self.replica_mut(id) {
            replica.pending_since = since;
            replica.pending_reason = reason;
            replica.not_before = not_before;
        }
    }

    /// Ends a live attempt and closes its usage row at `used_until`, which is never before the start nor after `at`.
    pub(super) fn end_attempt(&mut self, id: &AttemptId, how: AttemptEnd, at: Millis, used_until: Millis) {
        let Some(attempt) = self.attempt_mut(id) else { return };
        let started_at = attempt.state.started_at();
        let at = at.max(started_at.unwrap_or(at));
        attempt.state = AttemptState::Ended { started_at, at, how };
        if let Some(row) = self.usage.get_mut(id) {
            row.end = Some(used_until.min(at).max(row.start));
        }
    }

    /// Why an attempt cannot end this way now.
    fn refuse_end(&self, id: &AttemptId, how: &AttemptEnd) -> Option<Outcome> {
        let Some(attempt) = self.attempt(id) else {
            return Some(Outcome::Rejected(Reason::UnknownAttempt(id.clone())));
        };
        match &attempt.state {
            AttemptState::Ended { how: already, .. } if already == how => Some(Outcome::Duplicate(id.task.clone())),
            AttemptState::Ended { .. } => Some(Outcome::Stale),
            AttemptState::Assigned
            | AttemptState::Running { .. }
            | AttemptState::Publishing { .. }
            | AttemptState::Stopping { .. } => None,
        }
    }

    /// The attempt whose worker says something: there, live, and not of a revoked member.
    pub(super) fn speaking(&mut self, id: &AttemptId, guards: Guards) -> Result<&mut Attempt, Outcome> {
        let Some(attempt) = self.attempt(id) else {
            return Err(Outcome::Rejected(Reason::UnknownAttempt(id.clone())));
        };
        if guards.fence && !attempt.is_live() {
            return Err(Outcome::Stale);
        }
        if let Some(Reason::RevokedMember(node)) = self.refuse_member(&attempt.node) {
            return Err(Outcome::Rejected(Reason::RevokedMember(node)));
        }
        self.attempt_mut(id).ok_or(Outcome::Stale)
    }

    fn replica_mut(&mut self, id: &AttemptId) -> Option<&mut Replica> {
        self.tasks.get_mut(&id.task)?.replicas.get_mut(id.replica as usize)
    }

    pub(super) fn attempt_mut(&mut self, id: &AttemptId) -> Option<&mut Attempt> {
        self.replica_mut(id)?.attempts.iter_mut().rev().find(|attempt| attempt.id == *id)
    }
}

/// Wait before the next try after `failures` of them: doubles from `backoff_ms` up to `backoff_max_ms`.
pub(super) fn backoff(retry: &Retry, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(63);
    let wait = retry.backoff_ms.saturating_mul(1 << doublings).min(retry.backoff_max_ms);
    Duration::from_millis(wait)
}

/// Whether `grant` fits beside what is held: sums for cores and memory; disk beside what has not started, for the
/// capacity is what was free; GPUs by index, each once.
fn has_room(grant: &Grant, capacity: &Grant, held: &[&Attempt]) -> bool {
    let fits = |of: fn(&Grant) -> u64, counts: fn(&Attempt) -> bool| {
        let held = held.iter().filter(|a| counts(a));
        let sum = held.fold(of(grant), |sum, a| sum.saturating_add(of(&a.grant)));
        of(grant) == 0 || sum <= of(capacity)
    };
    let gpu_free = |at: usize, gpu: &u32| {
        let held = held.iter().any(|a| a.grant.gpus.contains(gpu));
        capacity.gpus.contains(gpu) && !grant.gpus[..at].contains(gpu) && !held
    };
    fits(|g| g.cpu_millis, |_| true)
        && fits(|g| g.memory_bytes, |_| true)
        && fits(|g| g.disk_bytes, |a| a.state.started_at().is_none())
        && grant.gpus.iter().enumerate().all(|(at, gpu)| gpu_free(at, gpu))
}
