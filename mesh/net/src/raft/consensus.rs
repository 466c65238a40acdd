//! The handle by which the rest of a node uses consensus.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use openraft::{
    ChangeMembers, Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState,
    async_runtime::watch::WatchReceiver,
    errors::{
        ChangeMembershipError, ClientWriteError, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
    },
    vote::RaftLeaderId,
};
use tokio::sync::{Mutex, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    codec,
    errors::{BootstrapError, ProposeError, ReadError, StartError, TransferError, VotersError},
    log::RaftLog,
    machine::{LedgerMachine, LedgerView},
    network::{Network, RaftWire},
    server::{MemberCheck, Server},
    settings::{ENTRY_BYTES_MAX, RaftSettings},
    types::{Command, Entry, NodeId, Outcome, RaftId, RaftNode, TypeConfig},
};

/// What consensus needs to start.
pub struct ConsensusStart {
    /// Folder of `raft.redb` and `raft.snapshot`; exists.
    pub dir: PathBuf,
    /// This node.
    pub me: NodeId,
    /// Durations and sizes.
    pub settings: RaftSettings,
    /// The way to the others.
    pub wire: Arc<dyn RaftWire>,
    /// Who of them may speak.
    pub is_member: MemberCheck,
}

/// Who leads, as this node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The highest term seen. A term has one leader at most.
    pub term: u64,
    /// The leader of that term, once it has been heard.
    pub leader: Option<NodeId>,
    /// That is this node. It may have been replaced without knowing it yet, and it may still have to apply entries of
    /// the leader before it: read by [`Consensus::read_index`], act by entries that were accepted.
    pub mine: bool,
}

/// One voter, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its raft id.
    pub id: RaftId,
    /// Its peer id.
    pub peer: NodeId,
    /// On the leader: how long raft has had no answer from it, zero for the leader itself; one that has never answered
    /// this leader is silent since the leader leads. `None` on the others.
    pub silent_for: Option<Duration>,
}

/// Figures for `/mesh`, `/metrics` and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftHealth {
    /// This node's raft id.
    pub id: RaftId,
    /// Who leads.
    pub leadership: Leadership,
    /// The voters this node knows. A node that was never a voter knows none.
    pub voters: Vec<Voter>,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// Index of the last entry in the ledger.
    pub applied: u64,
    /// Index at which the snapshot was taken, 0 without one.
    pub snapshot: u64,
    /// Durable transactions on `raft.redb` since the start.
    pub log_commits: u64,
    /// Why consensus has stopped, if it has.
    pub stopped: Option<String>,
}

/// Consensus on this node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    me: RaftNode,
    id: RaftId,
    settings: RaftSettings,
    raft: Raft<TypeConfig, LedgerMachine>,
    server: Server,
    log: RaftLog,
    ledger: LedgerView,
    leadership: watch::Receiver<Leadership>,
    /// Since when this node leads.
    leads_since: Arc<std::sync::Mutex<Option<Instant>>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Drop for Inner {
    /// The last handle went away without a stop: the task that follows the leadership must not keep raft alive.
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Consensus {
    /// Opens the data directory and starts to listen and, if this node votes, to take part.
    ///
    /// A new directory waits for a leader's word: a mesh is founded by [`bootstrap`](Self::bootstrap) alone.
    pub async fn start(start: ConsensusStart) -> Result<Self, StartError> {
        let ConsensusStart { dir, me, settings, wire, is_member } = start;
        let config = settings.config().map_err(|error| StartError::Settings(error.to_string()))?;
        let (log, id) = RaftLog::open(&dir, &me, mint)?;
        let opened = Self::open(&dir, &log, id, Arc::new(config), wire, &settings).await;
        let (raft, ledger) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                log.close().await;
                return Err(error);
            }
        };

        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let (seen, leadership) = watch::channel(leadership(&raft.server_metrics().borrow_watched().clone(), id));
        let leads_since = Arc::default();
        let follow = follow_leadership(raft.clone(), id, seen, Arc::clone(&leads_since));
        let span = tracing::info_span!("raft_leadership", raft = id);
        tasks.spawn(cancel.clone().run_until_cancelled_owned(follow.instrument(span)));
        tasks.close();

        let server = Server { me: id, raft: raft.clone(), is_member, receiving: Mutex::default() };
        let me = RaftNode { peer: me };
        let inner = Inner { me, id, settings, raft, server, log, ledger, leadership, leads_since, tasks, cancel };
        let this = Self { inner: Arc::new(inner) };
        let voters = this.voters();
        if voters.len() == 1 && voters[0].id == id {
            // Nobody else to wait for. An error would mean that raft stopped, which `health` tells.
            this.inner.raft.trigger().elect(false).await.ok();
        }
        Ok(this)
    }

    async fn open(
        dir: &std::path::Path,
        log: &RaftLog,
        id: RaftId,
        config: Arc<openraft::Config>,
        wire: Arc<dyn RaftWire>,
        settings: &RaftSettings,
    ) -> Result<(Raft<TypeConfig, LedgerMachine>, LedgerView), StartError> {
        let machine = LedgerMachine::open(dir)?;
        let ledger = machine.view();
        // openraft would take an empty state for the state at the purge point.
        if let Some(purged) = log.purged().map_err(|error| StartError::Storage(error.to_string()))?
            && *ledger.applied().borrow() < purged.index()
        {
            return Err(StartError::SnapshotMissing { path: dir.join("raft.snapshot"), purged: purged.index() });
        }
        let network = Network { me: id, wire, settings: settings.clone() };
        let raft = Raft::new(id, config, network, log.clone(), machine)
            .await
            .map_err(|error| StartError::Storage(error.to_string()))?;
        Ok((raft, ledger))
    }

    /// This node's raft id, minted with its data directory.
    pub fn raft_id(&self) -> RaftId {
        self.inner.id
    }

    /// Founds a mesh with this node as its one voter. Once in the life of a mesh, on an empty data directory.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        let founders = BTreeMap::from([(self.inner.id, self.inner.me.clone())]);
        self.inner.raft.initialize(founders).await.map_err(|error| match error {
            RaftError::APIError(InitializeError::NotAllowed(_)) => BootstrapError::Founded,
            other => BootstrapError::Stopped(other.to_string()),
        })
    }

    /// Commits an entry and returns what applying it came to. On the leader only.
    pub async fn propose(&self, entry: Entry) -> Result<Outcome, ProposeError> {
        let command = Command(entry);
        let bytes =
            codec::encode("ledger entry", &command).map_err(|error| ProposeError::Unencodable(error.to_string()))?;
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: bytes.len() });
        }
        let limit = self.inner.settings.propose_timeout;
        let Ok(written) = tokio::time::timeout(limit, self.inner.raft.client_write(command)).await else {
            return Err(ProposeError::Unknown { leader: self.leadership().borrow().leader.clone(), after: limit });
        };
        match written {
            Ok(written) => written.data.ok_or_else(|| ProposeError::Stopped("applied without an outcome".to_owned())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader { leader: peer(to) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(to))) => {
                Err(ProposeError::Unknown { leader: peer(to), after: Duration::ZERO })
            }
            Err(error) => Err(ProposeError::Stopped(error.to_string())),
        }
    }

    /// Returns when this node has made sure that it leads now and has applied everything that was committed before
    /// the call: a read of [`ledger`](Self::ledger) after it is linearizable. On the leader only.
    pub async fn read_index(&self) -> Result<(), ReadError> {
        let limit = self.inner.settings.propose_timeout;
        let ensured = tokio::time::timeout(limit, self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        match ensured {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(ReadError::NotLeader { leader: peer(to) })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(error))) => Err(ReadError::Stopped(error.to_string())),
        }
    }

    /// The applied ledger. Behind the truth unless [`read_index`](Self::read_index) came first.
    pub fn ledger(&self) -> &LedgerView {
        &self.inner.ledger
    }

    /// Who leads; changes with every election.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Whether this node votes, as far as it knows.
    pub fn votes(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().any(|id| id == self.inner.id)
    }

    /// The voters this node knows. Only the leader's answer is current.
    pub fn voters(&self) -> Vec<Voter> {
        self.voters_in(&self.inner.raft.metrics().borrow_watched().clone())
    }

    fn voters_in(&self, metrics: &RaftMetrics<TypeConfig>) -> Vec<Voter> {
        let leads_for =
            self.inner.leads_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed());
        let membership = metrics.membership_config.membership();
        let heard = |id: RaftId| -> Option<Duration> {
            let heartbeat = metrics.heartbeat.as_ref()?;
            if id == self.inner.id {
                return Some(Duration::ZERO);
            }
            heartbeat.get(&id).copied().flatten().map(|at| at.elapsed()).or(leads_for)
        };
        let known = membership.voter_ids().filter_map(|id| membership.get_node(&id).map(|node| (id, node)));
        known.map(|(id, node)| Voter { id, peer: node.peer.clone(), silent_for: heard(id) }).collect()
    }

    /// The target of a change of voters that a leader began and did not live to end: call
    /// [`change_voters`](Self::change_voters) with it before any new plan. Until then both the old and the new voters
    /// must agree to every entry.
    pub fn unfinished_change(&self) -> Option<BTreeMap<RaftId, NodeId>> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let [_, .., target] = membership.get_joint_config().as_slice() else { return None };
        let node = |id: &RaftId| membership.get_node(id).map(|node| (*id, node.peer.clone()));
        Some(target.iter().filter_map(node).collect())
    }

    /// Makes `target` the voters, in one joint change after the newcomers have caught up. On the leader only.
    ///
    /// Who is no voter afterwards is no part of raft afterwards.
    pub async fn change_voters(&self, target: &BTreeMap<RaftId, NodeId>) -> Result<(), VotersError> {
        // A leader that has committed nothing in its own term yet may not change the voters: wait until it has.
        self.read_index().await?;
        let present: BTreeSet<RaftId> = self.voters().into_iter().map(|voter| voter.id).collect();
        let limit = self.inner.settings.catch_up_timeout;
        let mut caught_up = Ok(());
        for (id, peer) in target.iter().filter(|(id, _)| !present.contains(id)) {
            let added = self.inner.raft.add_learner(*id, RaftNode { peer: peer.clone() }, true);
            caught_up = match tokio::time::timeout(limit, added).await {
                Ok(added) => added.map(|_| ()).map_err(voters_error),
                Err(_) => Err(VotersError::CatchUp { peer: peer.clone(), after: limit }),
            };
            if caught_up.is_err() {
                break;
            }
        }
        if caught_up.is_ok() {
            let ids: BTreeSet<RaftId> = target.keys().copied().collect();
            let changed = tokio::time::timeout(limit, self.inner.raft.change_membership(ids, false)).await;
            caught_up = match changed {
                Ok(changed) => changed.map(|_| ()).map_err(voters_error),
                Err(_) => Err(VotersError::Unknown { after: limit }),
            };
        }
        self.drop_learners().await;
        caught_up
    }

    /// Learners exist only on their way to a vote; one that was left on the way is taken out by the next change.
    async fn drop_learners(&self) {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let learners: BTreeSet<RaftId> = metrics.membership_config.membership().learner_ids().collect();
        if learners.is_empty() || metrics.current_leader != Some(self.inner.id) {
            return;
        }
        let dropped = self.inner.raft.change_membership(ChangeMembers::RemoveNodes(learners), true);
        match tokio::time::timeout(self.inner.settings.propose_timeout, dropped).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "learners stay for now"),
            Err(_) => tracing::warn!("learners stay for now: no quorum"),
        }
    }

    /// Asks `to`, a voter, to lead, and waits until it does. On the leader only.
    pub async fn transfer_leader(&self, to: &NodeId) -> Result<(), TransferError> {
        let Some(target) = self.voters().into_iter().find(|voter| voter.peer == *to) else {
            return Err(TransferError::NotAVoter { peer: to.clone() });
        };
        if !self.inner.leadership.borrow().mine {
            return Err(TransferError::NotLeader { leader: self.inner.leadership.borrow().leader.clone() });
        }
        let trigger = self.inner.raft.trigger();
        trigger.transfer_leader(target.id).await.map_err(|error| TransferError::Stopped(error.to_string()))?;
        let mut leadership = self.leadership();
        let limit = self.inner.settings.election_max * 2;
        let moved = leadership.wait_for(|now| now.leader.as_ref() == Some(to));
        match tokio::time::timeout(limit, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(TransferError::Stopped("consensus is shutting down".to_owned())),
            Err(_) => Err(TransferError::Refused { peer: to.clone(), after: limit }),
        }
    }

    /// Hands the lead to another voter, for a drain or a shutdown: to the one with the longest log, and of equals to
    /// the one heard last. Only those that `may` lead are asked. Returns whether somebody else leads.
    pub async fn hand_over(&self, may: impl Fn(&NodeId) -> bool) -> bool {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let reached = |id: RaftId| metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
        let fresh = |silent: Duration| silent <= self.inner.settings.election_max;
        let mut heirs = self.voters_in(&metrics);
        heirs.retain(|voter| voter.id != self.inner.id && voter.silent_for.is_some_and(fresh) && may(&voter.peer));
        heirs.sort_by_key(|voter| (Reverse(reached(voter.id)), voter.silent_for));
        for heir in heirs {
            if !self.inner.leadership.borrow().mine {
                break;
            }
            if let Err(error) = self.transfer_leader(&heir.peer).await {
                tracing::warn!(%error, "the lead could not be handed over");
            }
        }
        !self.inner.leadership.borrow().mine
    }

    /// Answers a raft request that `from` sent by its [`RaftWire`].
    pub async fn handle(&self, from: &NodeId, body: &[u8]) -> Vec<u8> {
        self.inner.server.handle(from, body).await
    }

    /// Figures of this moment.
    pub fn health(&self) -> RaftHealth {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let index = |id: &Option<super::types::LogId>| id.map_or(0, |id| id.index());
        RaftHealth {
            id: self.inner.id,
            leadership: self.inner.leadership.borrow().clone(),
            voters: self.voters_in(&metrics),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            log_commits: self.inner.log.commits(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Returns when consensus has stopped by itself (the disk fails, say), with the reason: time to end the process.
    pub async fn failed(&self) -> String {
        let mut metrics = self.inner.raft.metrics();
        loop {
            if let Err(error) = &metrics.borrow_watched().running_state {
                return error.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft stopped".to_owned();
            }
        }
    }

    /// Hands the lead over if there is somebody to take it, stops, and closes the files.
    pub async fn shutdown(&self) {
        self.hand_over(|_| true).await;
        self.stop().await;
    }

    /// Stops without a word to the others, as a crash would, but gives the files back.
    pub async fn stop(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.wait().await;
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "raft did not stop cleanly");
        }
        self.inner.log.close().await;
    }
}

#[cfg(test)]
impl Consensus {
    /// Raft itself, for tests that must stop half way.
    pub(super) fn raft(&self) -> &Raft<TypeConfig, LedgerMachine> {
        &self.inner.raft
    }

    /// The disk is gone.
    pub(super) async fn break_disk(&self) {
        self.inner.log.close().await;
    }
}

/// 63 bits, so that the id fits every language's integers on its way through JSON tools; never 0.
pub(crate) fn mint() -> RaftId {
    (rand::random::<u64>() >> 1).max(1)
}

fn peer(to: ForwardToLeader<TypeConfig>) -> Option<NodeId> {
    to.leader_node.map(|node| node.peer)
}

fn voters_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> VotersError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => VotersError::NotLeader { leader: peer(to) },
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => VotersError::Unknown { after: Duration::ZERO },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
        )) => VotersError::Busy,
        RaftError::APIError(other) => VotersError::Refused(other.to_string()),
        RaftError::Fatal(error) => VotersError::Stopped(error.to_string()),
    }
}

fn leadership(metrics: &openraft::metrics::RaftServerMetrics<TypeConfig>, me: RaftId) -> Leadership {
    let mine = metrics.state == ServerState::Leader;
    // A leader that was voted out goes on naming itself: nobody tells it who came after it.
    let leader = metrics.current_leader.filter(|leader| mine || *leader != me);
    let node = leader.and_then(|id| metrics.membership_config.membership().get_node(&id).cloned());
    Leadership { term: metrics.vote.leader_id().term(), leader: node.map(|node| node.peer), mine }
}

async fn follow_leadership(
    raft: Raft<TypeConfig, LedgerMachine>,
    me: RaftId,
    seen: watch::Sender<Leadership>,
    leads_since: Arc<std::sync::Mutex<Option<Instant>>>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = leadership(&metrics.borrow_watched().clone(), me);
        seen.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                let since = now.mine.then(Instant::now);
                *leads_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
                tracing::info!(term = now.term, leader = ?now.leader, mine = now.mine, "leadership");
                *before = now;
            }
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
