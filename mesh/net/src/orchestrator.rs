//! The orchestrator: while this node leads, what the ledger and the time ask for is proposed and sent. All deciding
//! is [`mloc_core::leader::Leader`]; this loop carries it out.

use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

use futures::{StreamExt, stream};
use mloc_core::{
    id::{AttemptId, NodeId},
    leader::{Leader, Reaction},
    wire::{FromLeader, FromWorker, Report, ToLeader, ToWorker},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tracing::{debug, info, warn};

use crate::{
    calls::{Answer, Call},
    handle::{ConfirmedLead, LeaderView, MeshHandle, MeshUnavailable},
};

/// Messages to workers under way at once: far more than those that wait for nodes that died just now (a message is given
/// up after half a minute, and sent again up to five times in that time), so that these hold up no other.
const SENDS_AT_ONCE: usize = 512;
/// Entries proposed at once: they share the durable commits that one by one would cost 15 ms each.
const PROPOSALS_AT_ONCE: usize = 64;

/// A message to this node's own worker, and where its answer goes.
pub type WorkerMessage = (ToWorker, oneshot::Sender<FromWorker>);

impl MeshHandle {
    /// Runs until dropped. `tick` bounds how late a lease or a backoff is noticed.
    pub(crate) async fn orchestrate(self, worker: WorkerInbox, tick: Duration) {
        let mut leadership = self.inner.consensus.leadership();
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut led: Option<u64> = None;
        // A step of the clock that leases have not been told of yet: a round without a majority must not lose it.
        let mut stepped: Option<Duration> = None;
        // Ended with this loop.
        let mut sends = JoinSet::new();
        loop {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
                () = self.inner.wake.notified() => {}
            }
            stepped = self.inner.clock.follow().or(stepped);
            let Some(term) = self.term_led() else {
                self.confirm_lead(None);
                if led.take().is_some() {
                    info!("another node orchestrates now");
                }
                continue;
            };
            // A majority confirms that this node leads, and everything committed before is applied: an attempt that the
            // ledger here does not show would get no lease.
            let asked = self.inner.clock.elapsed();
            if let Err(error) = self.linearize().await {
                debug!(%error, "leads, but no majority confirms it");
                continue;
            }
            if self.term_led() != Some(term) {
                continue; // confirmed, but perhaps of another term: the change wakes this loop
            }
            if led != Some(term) || stepped.is_some() {
                self.read(|ledger| self.with_leader(|leader| leader.became_leader(self.now(), ledger)));
                match stepped.take() {
                    Some(by) if led == Some(term) => {
                        warn!(seconds = by.as_secs(), "the clock stepped; leases begin anew")
                    }
                    Some(_) | None => info!(term, "this node orchestrates"),
                }
                led = Some(term);
            }
            self.confirm_lead(Some(ConfirmedLead { term, at: asked }));
            self.round(term, &worker, &mut sends).await;
        }
    }

    /// The term in which this node leads, as far as it knows.
    fn term_led(&self) -> Option<u64> {
        let raft = self.inner.consensus.leadership().borrow().clone();
        raft.mine.then_some(raft.term)
    }

    fn confirm_lead(&self, lead: Option<ConfirmedLead>) {
        *self.inner.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = lead;
    }

    /// Whether heartbeats may be answered in this term.
    fn confirmed_lately(&self, term: u64) -> bool {
        let confirmed = *self.inner.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        still_confirmed(confirmed, term, self.inner.clock.elapsed(), self.inner.slack)
    }

    /// One decision, carried out.
    async fn round(&self, term: u64, worker: &WorkerInbox, sends: &mut JoinSet<()>) {
        let nodes = self.node_views();
        let decisions = self.read(|ledger| self.with_leader(|leader| leader.decide(ledger, &nodes, self.now(), term)));
        // Many at once share a durable commit. They enter the log in this order all the same: each is handed to raft when
        // it is first polled, and that is in order. None waits for another's outcome either: `decide` looked at one
        // ledger for all of them, and `apply` refuses what does not fit any more.
        for chunk in decisions.propose.chunks(PROPOSALS_AT_ONCE) {
            let asked = self.inner.clock.elapsed();
            let proposed = chunk.iter().cloned().map(|entry| self.propose(entry));
            let mut outcomes = stream::iter(proposed).buffered(PROPOSALS_AT_ONCE);
            let (mut committed, mut waits) = (false, false);
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Ok(outcome) => {
                        committed = true;
                        debug!(?outcome, "decided");
                    }
                    Err(error @ MeshUnavailable::Impossible(_)) => warn!(%error, "a decision can't be committed"),
                    Err(error) => {
                        debug!(%error, "a decision waits");
                        waits = true;
                    }
                }
            }
            if waits || self.term_led() != Some(term) {
                return;
            }
            // A majority took these: it holds this node for the leader, and heartbeats need not wait for the rest.
            if committed {
                self.confirm_lead(Some(ConfirmedLead { term, at: asked }));
            }
        }
        while sends.try_join_next().is_some() {}
        for (node, message) in decisions.send {
            // What finds no place is due again after its pause: nothing is lost, and a silent node delays no other.
            if sends.len() >= SENDS_AT_ONCE {
                break;
            }
            let (mesh, worker) = (self.clone(), worker.clone());
            sends.spawn(async move { mesh.send(node, message, worker).await });
        }
    }

    /// One message to a worker, and what its answer asks for.
    async fn send(self, node: NodeId, message: ToWorker, worker: WorkerInbox) {
        let attempt = match &message {
            ToWorker::Assign(assign) => assign.attempt.clone(),
            ToWorker::Stop { attempt, .. } => attempt.clone(),
        };
        let answer = match self.send_to_worker(&node, message, &worker).await {
            Ok(answer) => answer,
            Err(error) => return debug!(%node, %attempt, %error, "a message to a worker waits"),
        };
        debug!(%node, %attempt, ?answer, "a worker answered");
        let entry = self.with_leader(|leader| leader.on_worker_answer(&attempt, &answer, self.now()));
        if let Some(entry) = entry
            && let Err(error) = self.propose(entry).await
        {
            debug!(%node, %attempt, %error, "a worker's refusal waits");
        }
    }

    async fn send_to_worker(
        &self,
        node: &NodeId,
        message: ToWorker,
        worker: &WorkerInbox,
    ) -> Result<FromWorker, MeshUnavailable> {
        if *node == self.inner.node {
            return worker.deliver(message).await.map_err(|gone| MeshUnavailable::Unreachable(gone.to_string()));
        }
        match self.call(node, &Call::ToWorker(message)).await? {
            Answer::FromWorker(answer) => Ok(answer),
            other => Err(MeshUnavailable::Unreachable(format!("{node} answered something else: {other:?}"))),
        }
    }

    /// What a worker says, answered by the leader; elsewhere it is told whom to ask.
    pub(crate) async fn answer_worker(&self, from: &NodeId, message: ToLeader) -> FromLeader {
        let LeaderView::Here { term, .. } = self.leader() else {
            return FromLeader::NotLeader { leader: self.leader().parts().0 };
        };
        match message {
            // A deposed leader may not know that it is one, and would keep alive what its successor gives up.
            ToLeader::Heartbeat(_) if !self.confirmed_lately(term) => FromLeader::NotLeader { leader: None },
            ToLeader::Heartbeat(heartbeat) if heartbeat.node == *from => {
                self.read(|ledger| self.with_leader(|leader| leader.on_heartbeat(ledger, heartbeat, self.now(), term)))
            }
            ToLeader::Heartbeat(heartbeat) => {
                warn!(%from, named = %heartbeat.node, "a heartbeat in another node's name was dropped");
                FromLeader::Unavailable { why: "a heartbeat must name its sender".into() }
            }
            ToLeader::Report { attempt, report } => self.answer_report(from, attempt, report, term).await,
        }
    }

    async fn answer_report(&self, from: &NodeId, attempt: AttemptId, report: Report, term: u64) -> FromLeader {
        // Entries of the leader before must be applied, or a live attempt would be called unknown.
        if let Err(error) = self.linearize().await {
            return FromLeader::Unavailable { why: error.to_string() };
        }
        let moment = self.now();
        let reaction = self
            .read(|ledger| self.with_leader(|leader| leader.on_report(ledger, from, attempt, report, moment, term)));
        match reaction {
            Reaction::Answer(answer) => answer,
            Reaction::Propose(entry) => match self.propose(entry).await {
                Ok(outcome) => Leader::answer_to(&outcome, term),
                Err(MeshUnavailable::NotLeader { leader }) => FromLeader::NotLeader { leader },
                Err(error) => FromLeader::Unavailable { why: error.to_string() },
            },
        }
    }
}

/// Whether a majority confirmed the lead in this very term, and less than `slack` ago. Of an earlier term it says
/// nothing: another leader may have committed what the ledger here does not show yet.
fn still_confirmed(confirmed: Option<ConfirmedLead>, term: u64, now: Duration, slack: Duration) -> bool {
    confirmed.is_some_and(|lead| lead.term == term && now.saturating_sub(lead.at) < slack)
}

/// The way to this node's worker.
#[derive(Clone, Debug)]
pub(crate) enum WorkerInbox {
    /// It takes work.
    Open(mpsc::Sender<WorkerMessage>),
    /// `role.work: false`.
    TakesNone,
}

/// The worker did not answer: it is starting or stopping. Nothing is known of the message, and it is sent again.
#[derive(Debug, thiserror::Error)]
#[error("this node's worker does not answer (it is starting or stopping)")]
pub(crate) struct WorkerGone;

impl WorkerInbox {
    /// Hands over a message. Only a node that takes no work refuses it for good: for the ledger a refusal ends the
    /// attempt, and while a worker stops, its child may still run.
    pub async fn deliver(&self, message: ToWorker) -> Result<FromWorker, WorkerGone> {
        let Self::Open(worker) = self else {
            return Ok(FromWorker::Refused { reason: "this node takes no work (role.work: false)".into() });
        };
        let (reply, answer) = oneshot::channel();
        worker.send((message, reply)).await.map_err(|_| WorkerGone)?;
        answer.await.map_err(|_| WorkerGone)
    }
}

/// Since when each member has been up without a break, as this node has seen it. Counted by a clock without steps: a
/// corrected wall clock makes nobody stable.
#[derive(Debug, Default)]
pub(crate) struct Uptimes {
    seen: BTreeMap<NodeId, (u64, Duration)>,
}

impl Uptimes {
    /// Takes what gossip shows now: `(node, generation)` of those alive. A new generation or a gap starts anew.
    pub fn observe(&mut self, alive: impl Iterator<Item = (NodeId, u64)>, now: Duration) {
        let mut next = BTreeMap::new();
        for (node, generation) in alive {
            let since = match self.seen.get(&node) {
                Some((same, since)) if *same == generation => *since,
                Some(_) | None => now,
            };
            next.insert(node, (generation, since));
        }
        self.seen = next;
    }

    /// How long a member has been up.
    pub fn of(&self, node: &NodeId, now: Duration) -> Duration {
        self.seen.get(node).map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_or_a_gap_starts_the_uptime_anew() {
        let (mut up, node, s) = (Uptimes::default(), NodeId::new("n"), Duration::from_secs);
        up.observe([(node.clone(), 1)].into_iter(), s(1));
        up.observe([(node.clone(), 1)].into_iter(), s(5));
        assert_eq!(up.of(&node, s(6)), s(5));
        up.observe([(node.clone(), 2)].into_iter(), s(7));
        assert_eq!(up.of(&node, s(8)), s(1));
        up.observe(std::iter::empty(), s(9));
        up.observe([(node.clone(), 2)].into_iter(), s(10));
        assert_eq!(up.of(&node, s(10)), Duration::ZERO);
    }

    #[test]
    fn a_lead_is_confirmed_for_its_own_term_and_for_a_while() {
        let (lead, s) = (Some(ConfirmedLead { term: 5, at: Duration::from_secs(100) }), Duration::from_secs);
        assert!(still_confirmed(lead, 5, s(109), s(10)));
        assert!(!still_confirmed(lead, 5, s(110), s(10)), "too long ago");
        assert!(!still_confirmed(lead, 6, s(101), s(10)), "elected again: nothing is known to be applied");
        assert!(!still_confirmed(None, 5, s(101), s(10)), "the lead was lost");
    }

    fn stop() -> ToWorker {
        use mloc_core::{id::TaskId, wire::StopReason};
        let attempt = AttemptId { task: TaskId::new("t"), replica: 0, attempt: 1 };
        ToWorker::Stop { term: 1, attempt, why: StopReason::Cancelled }
    }

    #[tokio::test]
    async fn only_a_node_that_takes_no_work_refuses_it() {
        let refused = WorkerInbox::TakesNone.deliver(stop()).await.unwrap();
        assert!(matches!(refused, FromWorker::Refused { reason } if reason.contains("role.work: false")));

        let (to_worker, mut inbox) = mpsc::channel(1);
        let worker = WorkerInbox::Open(to_worker);
        let dropping = async { drop(inbox.recv().await) };
        let (unanswered, ()) = tokio::join!(worker.deliver(stop()), dropping);
        assert!(unanswered.unwrap_err().to_string().contains("does not answer"), "sent again, not failed");
        let answering = async { inbox.recv().await.unwrap().1.send(FromWorker::Journalled).unwrap() };
        let (answered, ()) = tokio::join!(worker.deliver(stop()), answering);
        assert_eq!(answered.unwrap(), FromWorker::Journalled);
        drop(inbox);
        worker.deliver(stop()).await.unwrap_err();
    }
}
