//! Entries about services: names, readiness, replicas that come and go, restarts. See [`crate::service`].

use super::{
    apply::Guards,
    attempts::backoff,
    entry::{Failure, FailureClass, Outcome, Reason},
    state::{AttemptState, Ledger, Replica, Task, TaskEnd},
    submit::REPLICAS_MAX,
};
use crate::{
    id::{AttemptId, TaskId},
    service::plan::{is_ready, wanted_of},
    time::Millis,
};

impl Ledger {
    /// The tasks that have a served name and have not ended, oldest first.
    pub fn versions_of(&self, name: &str) -> Vec<(&TaskId, &Task)> {
        let live = self.tasks.iter().filter(|(_, task)| task.ended.is_none());
        let named = |task: &Task| task.spec.service.as_ref().is_some_and(|service| service.served_name == name);
        let mut versions: Vec<(&TaskId, &Task)> = live.filter(|(_, task)| named(task)).collect();
        versions.sort_by_key(|(_, task)| task.seq);
        versions
    }

    /// The newest of them: the one that is wanted.
    pub fn current_of(&self, name: &str) -> Option<(&TaskId, &Task)> {
        self.versions_of(name).pop()
    }

    /// A new task, with the replicas that it begins with. One that follows another under its name begins with none: they
    /// are exchanged step by step, up to as many as the other has.
    pub(super) fn takes_its_name(&self, mut task: Task) -> Result<Task, Reason> {
        let Some(service) = &task.spec.service else { return Ok(task) };
        let Some((_, before)) = self.current_of(&service.served_name) else { return Ok(task) };
        let owner = &before.spec.metadata.owner;
        if *owner != task.spec.metadata.owner {
            return Err(Reason::NameTaken { name: service.served_name.clone(), owner: owner.clone() });
        }
        let scale = &service.scale;
        task.scaled_to = Some(before.desired().min(scale.max).max(scale.min));
        task.replicas.truncate(1);
        for replica in &mut task.replicas {
            replica.retired = true;
        }
        Ok(task)
    }

    pub(super) fn became_ready(&mut self, id: &AttemptId, at: Millis, guards: Guards) -> Outcome {
        let service = self.tasks.get(&id.task).is_some_and(|task| task.spec.service.is_some());
        let attempt = match self.speaking(id, guards) {
            Ok(attempt) => attempt,
            Err(outcome) => return outcome,
        };
        match attempt.state {
            _ if !service => Outcome::Rejected(Reason::NotAService(id.task.clone())),
            AttemptState::Running { since } => {
                if attempt.ready_at.is_some() {
                    return Outcome::Duplicate(id.task.clone());
                }
                attempt.ready_at = Some(at.max(since));
                Outcome::Applied
            }
            AttemptState::Assigned | AttemptState::Publishing { .. } => {
                Outcome::Rejected(Reason::OutOfSequence(id.clone()))
            }
            AttemptState::Stopping { .. } | AttemptState::Ended { .. } => Outcome::Stale,
        }
    }

    pub(super) fn scaled(&mut self, id: &TaskId, replicas: u32) -> Outcome {
        let Some(task) = self.tasks.get_mut(id) else { return Outcome::Rejected(Reason::UnknownTask(id.clone())) };
        let Some(service) = &task.spec.service else { return Outcome::Rejected(Reason::NotAService(id.clone())) };
        if task.ended.is_some() {
            return Outcome::Rejected(Reason::TaskEnded(id.clone()));
        }
        let (min, max, idle) = (service.scale.min, service.scale.max, task.spec.timeouts.idle_ms.is_some());
        let sleeps = replicas == 0 && idle;
        if !sleeps && !(min..=max).contains(&replicas) {
            return Outcome::Rejected(Reason::OutOfScale { task: id.clone(), min, max, idle });
        }
        if task.desired() == replicas {
            return Outcome::Stale;
        }
        task.scaled_to = Some(replicas);
        Outcome::Applied
    }

    /// All of a step or nothing of it: it was decided on a state that may have changed.
    pub(super) fn replicas(
        &mut self,
        id: &TaskId,
        start: &[u32],
        stop: &[u32],
        why: &str,
        at: Millis,
        guards: Guards,
    ) -> Outcome {
        let Some(task) = self.tasks.get(id) else { return Outcome::Rejected(Reason::UnknownTask(id.clone())) };
        let Some(service) = &task.spec.service else { return Outcome::Rejected(Reason::NotAService(id.clone())) };
        if task.ended.is_some() {
            return Outcome::Rejected(Reason::TaskEnded(id.clone()));
        }
        let name = service.served_name.clone();
        let Some(after) = step(task, start, stop, why, at) else { return Outcome::Stale };
        if guards.exchange_bounds
            && let Some(reason) = self.out_of_bounds(&name, id, &after)
        {
            return Outcome::Rejected(reason);
        }
        if let Some(task) = self.tasks.get_mut(id) {
            task.replicas = after;
        }
        Outcome::Applied
    }

    fn out_of_bounds(&self, name: &str, id: &TaskId, after: &[Replica]) -> Option<Reason> {
        let versions = self.versions_of(name);
        let of = |version: &TaskId, task: &Task| match version == id {
            true => (count(after, |_| true), count(after, is_ready)),
            false => (count(&task.replicas, |_| true), count(&task.replicas, is_ready)),
        };
        let (wanted, ready) =
            versions.iter().map(|(id, task)| of(id, task)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let own = versions.iter().find(|(version, _)| *version == id).map(|(_, task)| task)?;
        let service = own.spec.service.as_ref()?;
        let own_most = (service.scale.max as usize).saturating_add(service.update.max_surge as usize);
        let more = count(after, |_| true) > count(&own.replicas, |_| true);
        if more && (count(after, |_| true) > own_most || wanted > most(&versions)) {
            return Some(Reason::TooManyReplicas(name.to_owned()));
        }
        let ready_now = versions.iter().map(|(_, task)| count(&task.replicas, is_ready)).sum::<usize>();
        (ready < ready_now && ready < least_ready(&versions)).then(|| Reason::TooFewReady(name.to_owned()))
    }

    /// Another try with backoff. A version that was never ready fails as other tasks do; one that was is restarted for
    /// ever, whatever its failure: it has shown that it can.
    pub(super) fn restart_or_fail(&mut self, id: &AttemptId, failure: &Failure, at: Millis) {
        let Some(task) = self.tasks.get(&id.task).filter(|task| task.ended.is_none()) else { return };
        let Some(replica) = task.replicas.get(id.replica as usize) else { return };
        let retry = task.spec.retry.clone();
        let failures = replica.failures_in_a_row();
        let proven = task.replicas.iter().flat_map(|replica| &replica.attempts).any(|a| a.ready_at.is_some());
        let again = failure.class == FailureClass::Retryable && failures <= retry.limit;
        if proven || again {
            return self.wait_again(id, failure.message.clone(), at, at + backoff(&retry, failures));
        }
        let message = match failure.class {
            FailureClass::Retryable => {
                format!("{} (attempt {failures}, retry.limit {}; it was never ready)", failure.message, retry.limit)
            }
            FailureClass::Fatal | FailureClass::TimedOut => failure.message.clone(),
        };
        self.end_task(&id.task, TaskEnd::Failed { at, failure: Failure { class: failure.class, message } }, at);
    }
}

/// The replicas after a step; `None` when it does not fit or changes nothing.
fn step(task: &Task, start: &[u32], stop: &[u32], why: &str, at: Millis) -> Option<Vec<Replica>> {
    let mut replicas = task.replicas.clone();
    for number in stop {
        let replica = replicas.get_mut(*number as usize).filter(|replica| !replica.retired)?;
        replica.retired = true;
        replica.pending_reason = why.to_owned();
        if let Some(attempt) = replica.attempts.last_mut().filter(|attempt| attempt.is_live()) {
            attempt.state = AttemptState::Stopping { started_at: attempt.state.started_at(), since: at };
        }
    }
    for number in start {
        if *number as usize >= replicas.len() && *number < REPLICAS_MAX {
            // The next number of a shard may lie further on: those between are nobody's yet.
            replicas.resize(*number as usize, Replica { retired: true, pending_since: at, ..Replica::default() });
            replicas.push(Replica { pending_since: at, ..Replica::default() });
            continue;
        }
        let free = |replica: &&mut Replica| replica.retired && replica.live().is_none();
        let replica = replicas.get_mut(*number as usize).filter(free)?;
        replica.retired = false;
        (replica.pending_since, replica.not_before) = (at, Millis(0));
        replica.pending_reason.clear();
    }
    (!start.is_empty() || !stop.is_empty()).then_some(replicas)
}

fn count(replicas: &[Replica], such: impl Fn(&Replica) -> bool) -> usize {
    replicas.iter().filter(|replica| !replica.retired && such(replica)).count()
}

/// Replicas that all versions of a name may have together.
pub(super) fn most(versions: &[(&TaskId, &Task)]) -> usize {
    let services = || versions.iter().filter_map(|(_, task)| task.spec.service.as_ref());
    let max = services().map(|service| service.scale.max).max().unwrap_or(0);
    let surge = services().map(|service| service.update.max_surge).max().unwrap_or(0);
    (max as usize).saturating_add(surge as usize)
}

/// Replicas of a name that no step may leave fewer ready than.
pub(super) fn least_ready(versions: &[(&TaskId, &Task)]) -> usize {
    let Some((_, current)) = versions.last() else { return 0 };
    let unavailable = current.spec.service.as_ref().map_or(0, |service| service.update.max_unavailable);
    current.desired().saturating_sub(unavailable) as usize
}

/// Ready ones among the wanted of all versions.
pub(super) fn ready_of(versions: &[(&TaskId, &Task)]) -> usize {
    versions.iter().map(|(_, task)| wanted_of(task).filter(|(_, replica)| is_ready(replica)).count()).sum()
}
