//! What the orchestrator does next: a function of ledger, live capabilities, leases and now.
//!
//! The shell owns the clock, raft and the links, and drives this:
//! ```text
//! on gaining leadership, own no-op applied   became_leader(now, ledger)
//! on a worker's Heartbeat                    on_heartbeat → send the answer
//! on a worker's Report                       on_report → Answer: send it; Propose: commit it, then answer_to(outcome)
//! on an applied entry, new gossip, a tick    decide → commit `propose`, send `send`
//! on a worker's answer to a sent message     on_worker_answer → commit what it returns
//! ```
//! Everything in here is soft: a new leader starts empty and errs on the side of waiting a lease too long. So it does
//! with usage: an attempt that no heartbeat named since it leads is counted up to the moment it took over, which is
//! past its last acknowledged heartbeat by at most the wait of the leader before (the lease or `placement.offlineFor`,
//! and the slack) and the election. What is sent follows from committed entries only. Three duties of the shell keep
//! the leases true:
//! - `became_leader` is called after the leader has applied an entry of its own term: before that, its ledger may lack
//!   assignments that the one before it committed, and workers would be told to stop them.
//! - `now` is wall time taken once, carried on by a monotonic clock: a step of the wall clock must not expire leases.
//! - heartbeats are answered only while a quorum was heard within [`Settings::slack_ms`]; else the shell answers
//!   `NotLeader`. A deposed leader may not know that it is one, and would keep alive what its successor gives up.

mod decide;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::{AttemptId, NodeId},
    ledger::{
        Entry, Ledger, Outcome, Reason,
        entry::{Failure, FailureClass},
        state::AttemptState,
    },
    service::scale::Watch,
    time::Millis,
    wire::{AttemptProgress, FromLeader, FromWorker, Heartbeat, Report, StopReason},
};

pub use crate::schedule::NodeView;

/// Times of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The lease in milliseconds, told to workers with each assignment. A minute of silence on a WAN is weather: only
    /// after it may another worker take the attempt.
    pub lease_ms: u64,
    /// How much longer than a worker the leader waits, in milliseconds: the longest time that a deposed leader may go
    /// on answering, and what clocks drift in a lease.
    pub slack_ms: u64,
    /// Wait before a message is sent again, in milliseconds; doubles up to `resend_max_ms`.
    pub resend_ms: u64,
    /// Longest such wait.
    pub resend_max_ms: u64,
    /// How long idempotency keys are kept, in milliseconds.
    pub keys_kept_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_ms: 60_000, slack_ms: 10_000, resend_ms: 1_000, resend_max_ms: 15_000, keys_kept_ms: 86_400_000 }
    }
}

/// The orchestrator's soft state.
#[derive(Clone, Debug)]
pub struct Leader {
    node: NodeId,
    settings: Settings,
    /// When each live attempt was last heard of, by a heartbeat that named it; by this leader's clock, as all that is
    /// compared with `now`.
    leases: BTreeMap<AttemptId, Millis>,
    /// Whose end was proposed because its lease was over. The commit may take a while, and a heartbeat in between must
    /// not bring the lease back: the worker would rely on it after the attempt has ended.
    given_up: BTreeSet<AttemptId>,
    progress: BTreeMap<AttemptId, AttemptProgress>,
    deliveries: BTreeMap<AttemptId, Delivery>,
    /// What the load of services has asked for, and since when.
    watch: Watch,
    /// When idempotency keys are looked through next.
    next_key_sweep: Millis,
}

/// The pacing of one message to a worker.
#[derive(Clone, Debug)]
struct Delivery {
    stop: bool,
    next: Millis,
    wait_ms: u64,
    done: bool,
}

/// What a report comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Reaction {
    /// Commit this, then answer with [`Leader::answer_to`] its outcome; with `Unavailable` if it cannot be committed.
    Propose(Entry),
    /// Answer at once: the ledger says it already.
    Answer(FromLeader),
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decisions {
    /// To be committed, in this order. Each may be refused; call [`Leader::decide`] again once they are applied.
    pub propose: Vec<Entry>,
    /// To be sent. It follows from what is committed; a loss is made up for by sending again.
    pub send: Vec<(NodeId, crate::wire::ToWorker)>,
}

impl Leader {
    /// A leader-to-be on this node.
    pub fn new(node: NodeId, settings: Settings) -> Self {
        Self {
            node,
            settings,
            leases: BTreeMap::new(),
            given_up: BTreeSet::new(),
            progress: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            watch: Watch::default(),
            next_key_sweep: Millis::default(),
        }
    }

    /// Takes over: every live attempt gets one full fresh lease, for nobody knows when it was last heard of.
    pub fn became_leader(&mut self, now: Millis, ledger: &Ledger) {
        self.leases = ledger.live_attempts().map(|attempt| (attempt.id.clone(), now)).collect();
        self.given_up.clear();
        self.progress.clear();
        self.deliveries.clear();
        self.watch = Watch::default();
        // By then a key from before is that old whatever clock stamped it: a retry across a failover, which keys are for,
        // must find it.
        self.next_key_sweep = now + std::time::Duration::from_millis(self.settings.keys_kept_ms);
    }

    /// What a live attempt last said of itself; nothing right after a change of leader.
    pub fn progress(&self, attempt: &AttemptId) -> Option<&AttemptProgress> {
        self.progress.get(attempt)
    }

    /// Renews the leases of the attempts a worker names, and says which of them must stop.
    pub fn on_heartbeat(&mut self, ledger: &Ledger, heartbeat: Heartbeat, now: Millis, term: u64) -> FromLeader {
        let Heartbeat { node, sent_at, attempts } = heartbeat;
        if ledger.members.get(&node).is_none_or(|member| member.revoked_at.is_some()) {
            return FromLeader::Unavailable { why: format!("node {node} is no member") };
        }
        let mut stop = Vec::new();
        for said in attempts {
            let id = said.attempt.clone();
            let live = ledger.attempt(&id).filter(|attempt| attempt.is_live() && attempt.node == node);
            let live = live.filter(|_| !self.given_up.contains(&id));
            let Some(live) = live else {
                stop.push((id, StopReason::Superseded));
                continue;
            };
            if matches!(live.state, AttemptState::Stopping { .. }) {
                stop.push((id.clone(), StopReason::Cancelled));
            } else if let Some(delivery) = self.deliveries.get_mut(&id) {
                delivery.done = true;
            }
            self.leases.insert(id.clone(), now);
            self.progress.insert(id, said);
        }
        FromLeader::Alive { term, sent_at, stop }
    }

    /// What a report comes to. `node` is who sent it: nobody speaks for an attempt of another node.
    pub fn on_report(
        &self,
        ledger: &Ledger,
        node: &NodeId,
        attempt: AttemptId,
        report: Report,
        now: Millis,
        term: u64,
    ) -> Reaction {
        let Some(known) = ledger.attempt(&attempt).filter(|known| known.node == *node) else {
            return Reaction::Answer(FromLeader::Stale { term, why: format!("no attempt {attempt} on this node") });
        };
        let committed = Reaction::Answer(FromLeader::Committed { term });
        match (&report, &known.state) {
            // The answer was lost on its way: no need to commit it again.
            (Report::Ready, AttemptState::Running { .. }) if known.ready_at.is_some() => return committed,
            (Report::Started, AttemptState::Running { .. } | AttemptState::Publishing { .. })
            | (Report::Publish, AttemptState::Publishing { .. }) => return committed,
            // Asked again every second, it is not worth a commit.
            (Report::Publish, AttemptState::Running { .. }) => {
                if let Some(holder) = ledger.writer_at_same_place(&attempt) {
                    return Reaction::Answer(FromLeader::Unavailable { why: Reason::PublishHeld(holder).to_string() });
                }
            }
            _ => {}
        }
        let at = now;
        Reaction::Propose(match report {
            Report::Started => Entry::Started { attempt, at },
            Report::Ready => Entry::Ready { attempt, at },
            Report::Pinned(pins) => Entry::Pinned { attempt, pins, at },
            Report::Checkpointed(checkpoint) => Entry::Checkpointed { attempt, checkpoint, at },
            Report::Publish => Entry::Publishing { attempt, at },
            Report::Finished(result) => Entry::Finished { attempt, result, at },
            Report::Failed(failure) => Entry::Failed { attempt, failure, at },
            Report::Stopped => Entry::Stopped { attempt, at },
        })
    }

    /// The answer to a report whose entry was applied with this outcome.
    pub fn answer_to(outcome: &Outcome, term: u64) -> FromLeader {
        match outcome {
            Outcome::Applied | Outcome::Duplicate(_) => FromLeader::Committed { term },
            Outcome::Stale => FromLeader::Stale { term, why: "the attempt is superseded or over".to_owned() },
            // It passes: the worker asks again, and then meets the other's manifest or an empty place.
            Outcome::Rejected(reason @ Reason::PublishHeld(_)) => FromLeader::Unavailable { why: reason.to_string() },
            Outcome::Rejected(reason) => FromLeader::Stale { term, why: reason.to_string() },
        }
    }

    /// What a worker answered to a message about an attempt. Returns what must be committed for it.
    pub fn on_worker_answer(&mut self, attempt: &AttemptId, answer: &FromWorker, now: Millis) -> Option<Entry> {
        match answer {
            FromWorker::Journalled => {
                // An assignment is in the inbox and will be reported on; a stop is repeated until it is reported.
                if let Some(delivery) = self.deliveries.get_mut(attempt)
                    && !delivery.stop
                {
                    delivery.done = true;
                }
                None
            }
            // There is a newer leader, and it sends what is to be sent.
            FromWorker::StaleTerm { highest: _ } => None,
            FromWorker::Refused { reason } => Some(Entry::Failed {
                attempt: attempt.clone(),
                failure: Failure {
                    class: FailureClass::Retryable,
                    message: format!("its worker refused it: {reason}"),
                },
                at: now,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
