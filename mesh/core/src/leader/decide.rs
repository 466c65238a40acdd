//! The leader's turn: leases that are over, replicas that can go, messages that are due.

use std::collections::BTreeMap;

use super::{Decisions, Delivery, Leader};
use crate::{
    id::NodeId,
    ledger::{
        Entry, Ledger,
        state::{Attempt, AttemptState},
    },
    schedule::{NodeView, Problem, solve},
    service,
    time::Millis,
    wire::{Assign, StopReason, ToWorker},
};

/// Idempotency keys are looked through so often: they are kept for a day, give or take.
const KEY_SWEEP_MS: u64 = 600_000;

impl Leader {
    /// Everything that follows from the ledger, the nodes and the moment. Calling it again before its proposals are
    /// applied repeats them, and `apply` refuses the repetition.
    pub fn decide(&mut self, ledger: &Ledger, nodes: &BTreeMap<NodeId, NodeView>, now: Millis, term: u64) -> Decisions {
        let mut decisions = Decisions::default();
        self.forget_the_dead(ledger);
        self.expire_leases(ledger, now, &mut decisions);
        self.sweep_keys(ledger, now, &mut decisions);
        decisions.propose.extend(self.watch.scale(ledger, &self.progress, now));
        decisions.propose.extend(service::plan(ledger, now));
        let problem = Problem { ledger, nodes, leader: Some(&self.node), now };
        decisions.propose.extend(solve(&problem).into_iter().map(|assignment| assignment.entry(now)));
        self.deliver(ledger, now, term, &mut decisions);
        decisions
    }

    fn forget_the_dead(&mut self, ledger: &Ledger) {
        let live = |id: &_| ledger.attempt(id).is_some_and(Attempt::is_live);
        self.leases.retain(|id, _| live(id));
        self.given_up.retain(live);
        self.progress.retain(|id, _| live(id));
        self.deliveries.retain(|id, _| live(id));
    }

    fn expire_leases(&mut self, ledger: &Ledger, now: Millis, decisions: &mut Decisions) {
        for attempt in ledger.live_attempts() {
            let last_heard = *self.leases.entry(attempt.id.clone()).or_insert(now);
            let spec = ledger.tasks.get(&attempt.id.task).map(|task| &task.spec);
            // Its worker computes on so long: given away earlier, that work would be lost.
            let offline_for_ms = spec.and_then(|spec| spec.placement.offline_for_ms).unwrap_or(0);
            let longest = self.settings.lease_ms.max(offline_for_ms).saturating_add(self.settings.slack_ms);
            if now.since(last_heard) > longest {
                self.given_up.insert(attempt.id.clone());
                decisions.propose.push(Entry::LeaseExpired { attempt: attempt.id.clone(), last_heard, at: now });
            }
        }
    }

    fn sweep_keys(&mut self, ledger: &Ledger, now: Millis, decisions: &mut Decisions) {
        if now < self.next_key_sweep {
            return;
        }
        // Keys bear the stamps of whoever took the task: of a clock that is ahead they are kept so much longer.
        self.next_key_sweep = now + std::time::Duration::from_millis(KEY_SWEEP_MS);
        let before = Millis(now.0.saturating_sub(self.settings.keys_kept_ms));
        if ledger.keys.values().flat_map(|keys| keys.values()).any(|key| key.at < before) {
            decisions.propose.push(Entry::KeysForgotten { before });
        }
    }

    fn deliver(&mut self, ledger: &Ledger, now: Millis, term: u64, decisions: &mut Decisions) {
        for attempt in ledger.live_attempts() {
            let stop = match attempt.state {
                AttemptState::Assigned => false,
                AttemptState::Stopping { .. } => true,
                // It said so itself: it needs no telling.
                AttemptState::Running { .. } | AttemptState::Publishing { .. } | AttemptState::Ended { .. } => continue,
            };
            let fresh = Delivery { stop, next: now, wait_ms: self.settings.resend_ms, done: false };
            let delivery = self.deliveries.entry(attempt.id.clone()).or_insert_with(|| fresh.clone());
            if delivery.stop != stop {
                *delivery = fresh;
            }
            if delivery.done || now < delivery.next {
                continue;
            }
            delivery.next = now + std::time::Duration::from_millis(delivery.wait_ms);
            delivery.wait_ms = delivery.wait_ms.saturating_mul(2).min(self.settings.resend_max_ms);
            let message = if stop {
                Some(ToWorker::Stop { term, attempt: attempt.id.clone(), why: StopReason::Cancelled })
            } else {
                self.assign(ledger, attempt, term)
            };
            decisions.send.extend(message.map(|message| (attempt.node.clone(), message)));
        }
    }

    fn assign(&self, ledger: &Ledger, attempt: &Attempt, term: u64) -> Option<ToWorker> {
        let task = ledger.tasks.get(&attempt.id.task)?;
        Some(ToWorker::Assign(Box::new(Assign {
            term,
            attempt: attempt.id.clone(),
            spec: ledger.resolved(task),
            grant: attempt.grant.clone(),
            checkpoint: ledger.replica(&attempt.id)?.checkpoint.clone(),
            pins: task.pins.clone(),
            lease_ms: self.settings.lease_ms,
        })))
    }
}
