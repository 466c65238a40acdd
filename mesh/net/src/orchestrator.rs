//! The orchestrator: while this node leads, what the ledger and the time ask for is proposed and sent. All deciding
//! is [`mloc_core::leader::Leader`]; this loop carries it out.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use mloc_core::{
    id::{AttemptId, NodeId},
    leader::{Leader, Reaction},
    time::Millis,
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
    handle::{LeaderView, MeshHandle, MeshUnavailable},
};

/// Messages to workers under way at once: a worker that does not answer holds up no other.
const SENDS_AT_ONCE: usize = 32;

/// A message to this node's own worker, and where its answer goes.
pub type WorkerMessage = (ToWorker, oneshot::Sender<FromWorker>);

impl MeshHandle {
    /// Runs until dropped. `tick` bounds how late a lease or a backoff is noticed.
    pub(crate) async fn orchestrate(self, worker: mpsc::Sender<WorkerMessage>, tick: Duration) {
        let mut leadership = self.inner.consensus.leadership();
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut led: Option<u64> = None;
        // Ended with this loop.
        let mut sends = JoinSet::new();
        loop {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
                () = self.inner.wake.notified() => {}
            }
            let LeaderView::Here { term, .. } = self.leader() else {
                if led.take().is_some() {
                    info!("another node orchestrates now");
                }
                continue;
            };
            // A majority confirms that this node leads, and everything committed before is applied: an attempt that the
            // ledger here does not show would get no lease.
            let asked = Instant::now();
            if let Err(error) = self.linearize().await {
                debug!(%error, "leads, but no majority confirms it");
                continue;
            }
            *self.inner.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
            if led != Some(term) {
                self.read(|ledger| self.with_leader(|leader| leader.became_leader(self.now(), ledger)));
                info!(term, "this node orchestrates");
                led = Some(term);
            }
            self.round(term, &worker, &mut sends).await;
        }
    }

    /// This process's steady time.
    pub fn now(&self) -> Millis {
        self.inner.clock.now()
    }

    fn confirmed_lately(&self) -> bool {
        let confirmed = *self.inner.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.is_some_and(|at| at.elapsed() < self.inner.slack)
    }

    /// One decision, carried out.
    async fn round(&self, term: u64, worker: &mpsc::Sender<WorkerMessage>, sends: &mut JoinSet<()>) {
        let nodes = self.node_views();
        let decisions = self.read(|ledger| self.with_leader(|leader| leader.decide(ledger, &nodes, self.now(), term)));
        for entry in decisions.propose {
            match self.propose(entry).await {
                Ok(outcome) => debug!(?outcome, "decided"),
                Err(error @ MeshUnavailable::Impossible(_)) => warn!(%error, "a decision can't be committed"),
                Err(error) => {
                    debug!(%error, "a decision waits");
                    return;
                }
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
    async fn send(self, node: NodeId, message: ToWorker, worker: mpsc::Sender<WorkerMessage>) {
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
        worker: &mpsc::Sender<WorkerMessage>,
    ) -> Result<FromWorker, MeshUnavailable> {
        if *node == self.inner.node {
            return Ok(deliver(worker, message).await);
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
            ToLeader::Heartbeat(_) if !self.confirmed_lately() => FromLeader::NotLeader { leader: None },
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

/// Hands a message to this node's worker.
pub(crate) async fn deliver(worker: &mpsc::Sender<WorkerMessage>, message: ToWorker) -> FromWorker {
    let (reply, answer) = oneshot::channel();
    let gone =
        || FromWorker::Refused { reason: "this node takes no work (role.work: false, or it is stopping)".into() };
    if worker.send((message, reply)).await.is_err() {
        return gone();
    }
    answer.await.unwrap_or_else(|_| gone())
}

/// Since when each member has been up without a break, as this node has seen it.
#[derive(Debug, Default)]
pub(crate) struct Uptimes {
    seen: BTreeMap<NodeId, (u64, Millis)>,
}

impl Uptimes {
    /// Takes what gossip shows now: `(node, generation)` of those alive. A new generation or a gap starts anew.
    pub fn observe(&mut self, alive: impl Iterator<Item = (NodeId, u64)>, now: Millis) {
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
    pub fn of(&self, node: &NodeId, now: Millis) -> Duration {
        self.seen.get(node).map_or(Duration::ZERO, |(_, since)| Duration::from_millis(now.since(*since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_or_a_gap_starts_the_uptime_anew() {
        let (mut up, node) = (Uptimes::default(), NodeId::new("n"));
        up.observe([(node.clone(), 1)].into_iter(), Millis(1_000));
        up.observe([(node.clone(), 1)].into_iter(), Millis(5_000));
        assert_eq!(up.of(&node, Millis(6_000)), Duration::from_secs(5));
        up.observe([(node.clone(), 2)].into_iter(), Millis(7_000));
        assert_eq!(up.of(&node, Millis(8_000)), Duration::from_secs(1));
        up.observe(std::iter::empty(), Millis(9_000));
        up.observe([(node.clone(), 2)].into_iter(), Millis(10_000));
        assert_eq!(up.of(&node, Millis(10_000)), Duration::ZERO);
    }
}
