//! A task's state as REST shows it, read off its replicas and its end. Nothing stores it.

use super::{
    entry::{Failure, TaskResult},
    state::{Attempt, AttemptEnd, AttemptState, Task, TaskEnd},
};
use crate::{
    id::{AttemptId, NodeId},
    time::Millis,
};

/// Where a task stands. With several replicas it is as far as its furthest live one.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// It waits for its turn, for what it depends on, or for a backoff to pass.
    Pending {
        /// Since when.
        since: Millis,
        /// Why it came back to the queue; empty the first time.
        reason: String,
        /// Not tried again before this moment; 0 the first time.
        not_before: Millis,
    },
    /// A node was chosen; its worker has not started.
    Scheduled {
        /// The attempt.
        attempt: AttemptId,
        /// The node.
        node: NodeId,
        /// Since when.
        since: Millis,
    },
    /// It runs.
    Running {
        /// The attempt.
        attempt: AttemptId,
        /// The node.
        node: NodeId,
        /// Since when.
        since: Millis,
        /// Whether it holds the right to publish.
        publishing: bool,
    },
    /// Every replica finished.
    Completed {
        /// When.
        at: Millis,
        /// The attempt that finished last, and its node.
        by_attempt: Option<(AttemptId, NodeId)>,
    },
    /// It cannot succeed.
    Failed {
        /// When.
        at: Millis,
        /// Why.
        failure: Failure,
        /// The attempt that failed or was lost last, and its node; `None` when none did, as with a broken dependency.
        by_attempt: Option<(AttemptId, NodeId)>,
    },
    /// A user did not want it any more. Its worker may still be stopping.
    Cancelled {
        /// When.
        at: Millis,
        /// Who.
        by: String,
        /// The last attempt, and its node, if there was one.
        last_attempt: Option<(AttemptId, NodeId)>,
    },
}

/// Of the newest attempts of all replicas that are such, the one that was assigned last.
fn last_attempt(task: &Task, such: impl Fn(&Attempt) -> bool) -> Option<(AttemptId, NodeId)> {
    let newest = task.replicas.iter().filter_map(|replica| replica.attempts.last());
    let last = newest.filter(|attempt| such(attempt)).max_by_key(|attempt| attempt.assigned_at)?;
    Some((last.id.clone(), last.node.clone()))
}

impl TaskState {
    /// The state of a task.
    pub fn of(task: &Task) -> Self {
        match &task.ended {
            Some(TaskEnd::Completed { at, result: TaskResult { .. } }) => {
                let by_attempt = last_attempt(task, |a| matches!(a.how(), Some(AttemptEnd::Finished)));
                return TaskState::Completed { at: *at, by_attempt };
            }
            Some(TaskEnd::Failed { at, failure }) => {
                let failed = |a: &Attempt| matches!(a.how(), Some(AttemptEnd::Failed(_) | AttemptEnd::Lost));
                let by_attempt = last_attempt(task, failed);
                return TaskState::Failed { at: *at, failure: failure.clone(), by_attempt };
            }
            Some(TaskEnd::Cancelled { at, by }) => {
                return TaskState::Cancelled { at: *at, by: by.clone(), last_attempt: last_attempt(task, |_| true) };
            }
            None => {}
        }
        let mut scheduled = None;
        for attempt in task.replicas.iter().filter_map(|replica| replica.live()) {
            let running = |since: Millis, publishing: bool| TaskState::Running {
                attempt: attempt.id.clone(),
                node: attempt.node.clone(),
                since,
                publishing,
            };
            match &attempt.state {
                AttemptState::Running { since } => return running(*since, false),
                AttemptState::Publishing { started_at, .. } => return running(*started_at, true),
                AttemptState::Assigned => {
                    scheduled.get_or_insert_with(|| TaskState::Scheduled {
                        attempt: attempt.id.clone(),
                        node: attempt.node.clone(),
                        since: attempt.assigned_at,
                    });
                }
                // Stopping attempts belong to ended tasks and to retired replicas; ended ones are not live.
                AttemptState::Stopping { .. } | AttemptState::Ended { .. } => {}
            }
        }
        let waiting = task.replicas.iter().find(|replica| !replica.finished() && !replica.retired);
        if waiting.is_none() && task.spec.service.is_some() {
            let reason = match task.desired() {
                0 => "it has no replicas, for nobody asked: a request wakes it",
                _ => "its replicas are being exchanged",
            };
            let since = task.replicas.iter().map(|replica| replica.pending_since).max().unwrap_or(task.submitted_at);
            let not_before = Millis::default();
            return scheduled.unwrap_or(TaskState::Pending { since, reason: reason.to_owned(), not_before });
        }
        scheduled.unwrap_or_else(|| TaskState::Pending {
            since: waiting.map_or(task.submitted_at, |r| r.pending_since),
            reason: waiting.map(|r| r.pending_reason.clone()).unwrap_or_default(),
            not_before: waiting.map(|r| r.not_before).unwrap_or_default(),
        })
    }

    /// Its name in REST and tables.
    pub fn name(&self) -> &'static str {
        match self {
            TaskState::Pending { .. } => "PENDING",
            TaskState::Scheduled { .. } => "SCHEDULED",
            TaskState::Running { .. } => "RUNNING",
            TaskState::Completed { .. } => "COMPLETED",
            TaskState::Failed { .. } => "FAILED",
            TaskState::Cancelled { .. } => "CANCELLED",
        }
    }

    /// Whether it will not change any more.
    pub fn is_terminal(&self) -> bool {
        match self {
            TaskState::Completed { .. } | TaskState::Failed { .. } | TaskState::Cancelled { .. } => true,
            TaskState::Pending { .. } | TaskState::Scheduled { .. } | TaskState::Running { .. } => false,
        }
    }
}
