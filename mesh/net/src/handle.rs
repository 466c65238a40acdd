//! The mesh as the rest of the node sees it: who leads, what the ledger says, a way to commit and a way to members.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use mloc_core::{
    capability::Capability,
    id::{AttemptId, MeshId, NodeId, TaskId},
    leader::Leader,
    ledger::{Entry, Ledger, Outcome, Reason},
    schedule::{self, Explanation},
    task::TaskSpec,
    time::Millis,
    wire::{AttemptProgress, FromLeader, ToLeader},
};
use tokio::sync::{Notify, watch};

use crate::{
    calls::{Answer, Call, decode, encode},
    clock::SteadyClock,
    gossip::{Gossip, PublishError, keys},
    leadership::{Confirmed, leader_of},
    link::{
        Channel, LinkHandle, LinkStream, StreamKind, Traffic,
        files::{FileError, FileRequest, FileSource, IncomingFile},
    },
    quic_transport::{GossipEndpoint, LeaderHint, TransportStats},
    raft::{Backup, Consensus, ProposeError, RaftHealth, ReadError},
    voting::Voting,
};

/// Load is news for everybody: not more often than this.
const LOAD_EVERY: Duration = Duration::from_secs(5);

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderView {
    /// This node.
    Here {
        /// This node's id.
        node: NodeId,
        /// Its term.
        term: u64,
    },
    /// Another.
    There {
        /// It.
        node: NodeId,
        /// Its term.
        term: u64,
    },
    /// Nobody it has heard of.
    Unknown,
}

impl LeaderView {
    /// The leader and its term; term 0 when nobody leads.
    pub fn parts(self) -> (Option<NodeId>, u64) {
        match self {
            Self::Here { node, term } | Self::There { node, term } => (Some(node), term),
            Self::Unknown => (None, 0),
        }
    }
}

/// A member as this node sees it through gossip.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Whether gossip hears it.
    pub alive: bool,
    /// What it offers.
    pub capability: Option<Capability>,
    /// Its link addresses.
    pub addresses: Vec<String>,
}

/// Figures of this node's part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshHealth {
    /// Consensus.
    pub raft: RaftHealth,
    /// Gossip connections.
    pub gossip: TransportStats,
    /// Members with a link now.
    pub links: usize,
    /// Bytes of streams since the start, by what they are about.
    pub streams: Vec<(StreamKind, Traffic)>,
    /// Peers refused of late, or that refused this node, each reason once: strangers, other meshes, wrong tokens.
    pub refusals: usize,
}

/// The mesh can't do it just now; trying again may help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshUnavailable {
    /// This node does not lead.
    #[error("this node does not lead{}", leader.as_ref().map(|l| format!(" ({l} does)")).unwrap_or_default())]
    NotLeader {
        /// Who does, where known.
        leader: Option<NodeId>,
    },
    /// A majority of voters does not answer.
    #[error("the ledger can't commit just now: {0}")]
    NoQuorum(String),
    /// It can't be reached.
    #[error("the leader can't be reached: {0}")]
    Unreachable(String),
    /// It can never be committed.
    #[error("{0}")]
    Impossible(String),
}

/// The mesh. Cheap to clone.
#[derive(Clone)]
pub struct MeshHandle {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub node: NodeId,
    pub mesh: MeshId,
    pub consensus: Consensus,
    pub endpoint: Arc<GossipEndpoint>,
    pub gossip: Gossip,
    pub link: LinkHandle,
    /// The orchestrator's soft state: leases, progress. Held for the time of a plain function only.
    pub leader: Mutex<Leader>,
    /// Wakes the orchestrator before its next tick.
    pub wake: Notify,
    /// Since when this node may answer for the term it leads in.
    pub confirmed: Mutex<Option<ConfirmedLead>>,
    /// A deposed leader that has not noticed answers no heartbeats after this long without a majority.
    pub slack: Duration,
    /// Time that no step of the wall clock can move.
    pub clock: SteadyClock,
    /// Which nodes that gossip names as leader have said so themselves.
    pub confirmed_leaders: watch::Sender<Confirmed>,
    /// Uptimes and policy; held while voters change.
    pub voting: tokio::sync::Mutex<Voting>,
    /// When this node last said its load ([`SteadyClock::elapsed`]).
    pub load_said: Mutex<Option<Duration>>,
}

/// A majority confirmed that this node leads, and everything committed before, the leader's own first entry included,
/// was applied and its leases granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfirmedLead {
    /// In which term.
    pub term: u64,
    /// When it was asked ([`SteadyClock::elapsed`]: a leader that slept must ask anew).
    pub at: Duration,
}

impl MeshHandle {
    /// This node.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// This mesh.
    pub fn mesh_id(&self) -> &MeshId {
        &self.inner.mesh
    }

    /// Who leads: raft's word where this node votes, elsewhere what gossip says and the named node has confirmed; of two
    /// the higher term.
    pub fn leader(&self) -> LeaderView {
        let raft = self.inner.consensus.leadership().borrow().clone();
        let members = self.inner.gossip.members().borrow().clone();
        leader_of(
            &self.inner.node,
            &raft,
            self.inner.consensus.votes(),
            &members,
            &self.inner.confirmed_leaders.borrow(),
        )
    }

    /// The time by which leases are counted and entries stamped: near the wall clock, and never going back. Whoever
    /// proposes an entry stamps it with this.
    pub fn now(&self) -> Millis {
        self.inner.clock.now()
    }

    /// The same as gossip and joiners are told it.
    pub(crate) fn leader_hint(&self) -> Option<LeaderHint> {
        let (node, term) = self.leader().parts();
        node.map(|node| LeaderHint { term, node })
    }

    /// Commits an entry. On the leader only.
    ///
    /// # Errors
    /// When this node does not lead or no majority answers; the entry's fate may then be unknown.
    pub async fn propose(&self, entry: Entry) -> Result<Outcome, MeshUnavailable> {
        let outcome = self.inner.consensus.propose(entry).await.map_err(|error| match error {
            ProposeError::NotLeader { leader } => MeshUnavailable::NotLeader { leader },
            ProposeError::TooLarge { .. } | ProposeError::Unencodable(_) => {
                MeshUnavailable::Impossible(error.to_string())
            }
            ProposeError::Unknown { .. } | ProposeError::Stopped(_) => MeshUnavailable::NoQuorum(error.to_string()),
        })?;
        self.inner.wake.notify_one();
        Ok(outcome)
    }

    /// Makes the reads that follow see every commit acknowledged before. On the leader only.
    ///
    /// # Errors
    /// When this node does not lead or no majority answers.
    pub async fn linearize(&self) -> Result<(), MeshUnavailable> {
        self.inner.consensus.read_index().await.map_err(|error| match error {
            ReadError::NotLeader { leader } => MeshUnavailable::NotLeader { leader },
            ReadError::NoQuorum | ReadError::Stopped(_) => MeshUnavailable::NoQuorum(error.to_string()),
        })
    }

    /// All of the ledger as of now, as the bytes of a backup file. On the leader only.
    ///
    /// # Errors
    /// When this node does not lead or no majority answers.
    pub async fn backup(&self, mloc: &str) -> Result<Bytes, MeshUnavailable> {
        // Asked before: what is committed meanwhile is in it too.
        let as_of = self.now();
        self.linearize().await?;
        let (ledger, term, index) = self.inner.consensus.ledger().copy();
        let backup = Backup::new(self.inner.mesh.clone(), (term, index), as_of, mloc, ledger);
        let encoded = tokio::task::spawn_blocking(move || backup.to_bytes()).await;
        let encoded = encoded.map_err(io::Error::other).and_then(|bytes| bytes);
        encoded
            .map_err(|error| MeshUnavailable::Impossible(format!("the ledger can't be written as a backup: {error}")))
    }

    /// Looks at the ledger as this node has it. The closure must be short: appliers wait for it.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        self.inner.consensus.ledger().read(look)
    }

    /// How far a live attempt is, from its last heartbeat. On the leader only.
    pub fn progress(&self, attempt: &AttemptId) -> Option<AttemptProgress> {
        self.with_leader(|leader| leader.progress(attempt).cloned())
    }

    pub(crate) fn with_leader<T>(&self, look: impl FnOnce(&mut Leader) -> T) -> T {
        // A panic in a look leaves soft state at worst a heartbeat old.
        look(&mut self.inner.leader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Members as gossip shows them.
    pub fn views(&self) -> BTreeMap<NodeId, MemberView> {
        let members = self.inner.gossip.members();
        let members = members.borrow();
        let view = |peer: &crate::gossip::PeerView| MemberView {
            alive: peer.alive || peer.node == self.inner.node,
            capability: peer.capability(),
            addresses: peer.link_addresses(),
        };
        members.iter().map(|(id, peer)| (id.clone(), view(peer))).collect()
    }

    /// Voters, as this node knows them: whom the mesh needs a majority of today, so not those that are being promoted.
    pub fn voters(&self) -> Vec<NodeId> {
        self.inner.consensus.ledger().voters()
    }

    /// Figures for `/metrics`.
    pub fn health(&self) -> MeshHealth {
        MeshHealth {
            raft: self.inner.consensus.health(),
            gossip: self.inner.endpoint.stats(),
            links: self.inner.link.connected().borrow().len(),
            streams: self.inner.link.traffic(),
            refusals: self.inner.endpoint.refusals().len() + self.inner.link.refusals().len(),
        }
    }

    /// What the scheduler sees.
    pub(crate) fn node_views(&self) -> BTreeMap<NodeId, schedule::NodeView> {
        let to_view = |(id, member): (NodeId, MemberView)| {
            (id, schedule::NodeView { capability: member.capability, alive: member.alive })
        };
        self.views().into_iter().map(to_view).collect()
    }

    /// Why a task does or does not run; `None` when there is no such task.
    pub fn explain(&self, task: &TaskId, now: Millis) -> Option<Explanation> {
        let nodes = self.node_views();
        let leader = self.leader().parts().0;
        self.read(|ledger| {
            schedule::explain(&schedule::Problem { ledger, nodes: &nodes, leader: leader.as_ref(), now }, task)
        })
    }

    /// What [`Self::explain`] would say of a task that is not submitted.
    ///
    /// # Errors
    /// Why the ledger would refuse it.
    pub fn explain_if_submitted(
        &self,
        id: &TaskId,
        spec: &TaskSpec,
        now: Millis,
    ) -> Result<Option<Explanation>, Reason> {
        let nodes = self.node_views();
        let mut ledger = self.read(Ledger::clone);
        let entry = Entry::Submit {
            task: id.clone(),
            spec: Box::new(spec.clone()),
            request: mloc_core::id::RequestId::new(id.as_str()),
            body_digest: String::new(),
            at: now,
        };
        if let Outcome::Rejected(reason) = ledger.apply(&entry) {
            return Err(reason);
        }
        let leader = self.leader().parts().0;
        let problem = schedule::Problem { ledger: &ledger, nodes: &nodes, leader: leader.as_ref(), now };
        Ok(schedule::explain(&problem, id))
    }

    /// Asks the leader, wherever it is.
    ///
    /// # Errors
    /// When nobody leads or it can't be reached.
    pub async fn ask_leader(&self, message: ToLeader) -> Result<FromLeader, MeshUnavailable> {
        match self.leader() {
            LeaderView::Here { .. } => Ok(self.answer_worker(&self.inner.node.clone(), message).await),
            LeaderView::There { node, .. } => match self.call(&node, &Call::ToLeader(message)).await? {
                Answer::FromLeader(answer) => Ok(answer),
                other => Err(MeshUnavailable::Unreachable(format!("{node} answered something else: {other:?}"))),
            },
            LeaderView::Unknown => Err(MeshUnavailable::NotLeader { leader: None }),
        }
    }

    pub(crate) async fn call(&self, node: &NodeId, call: &Call) -> Result<Answer, MeshUnavailable> {
        let unreachable = |why: String| MeshUnavailable::Unreachable(format!("{node}: {why}"));
        let bytes = self
            .inner
            .link
            .request(node, Channel::Control, encode(call))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        match decode(&bytes).map_err(|error| unreachable(error.to_string()))? {
            Answer::Refused(why) => Err(unreachable(why)),
            answer => Ok(answer),
        }
    }

    /// A byte stream to a member.
    ///
    /// # Errors
    /// When it can't be reached.
    pub async fn open_stream(&self, node: &NodeId, kind: StreamKind) -> io::Result<LinkStream> {
        self.inner.link.open_stream(node, kind).await.map_err(io::Error::other)
    }

    /// Bytes of a file that a member has.
    ///
    /// # Errors
    /// When it can't be reached or does not give it.
    pub async fn open_file(&self, node: &NodeId, request: &FileRequest) -> Result<IncomingFile, FileError> {
        self.inner.link.open_file(node, request).await
    }

    /// Gives members what the source opens, until dropped.
    ///
    /// # Errors
    /// When files are being served already.
    pub fn serve_files(&self, source: Arc<dyn FileSource>) -> io::Result<impl Future<Output = ()> + use<>> {
        self.inner.link.serve_files(source).map_err(io::Error::other)
    }

    /// Tells the mesh what this node offers; returns when this node sees it itself. The load among it is said at most
    /// every 5 s.
    ///
    /// # Errors
    /// When it has too many bytes to be gossiped, however it is shortened: no work would come here.
    pub async fn publish_capability(&self, capability: &Capability) -> Result<(), PublishError> {
        let (text, load) = crate::gossip::capability::write(capability)?;
        // The load first: without it the node seems to have no room.
        if self.load_is_due() {
            self.inner.gossip.publish(keys::LOAD, &load).await?;
        }
        self.inner.gossip.publish(keys::CAPABILITY, &text).await?;
        let node = self.inner.node.clone();
        let shown = |members: &crate::gossip::Members| {
            members.get(&node).is_some_and(|me| me.values.get(keys::CAPABILITY) == Some(&text))
        };
        // An error means that gossip has ended, and with it this process.
        let _ = self.inner.gossip.members().wait_for(|members| shown(members)).await;
        Ok(())
    }

    fn load_is_due(&self) -> bool {
        let now = self.inner.clock.elapsed();
        let mut said = self.inner.load_said.lock().unwrap_or_else(PoisonError::into_inner);
        // A tick that comes a little early is not held up for another round.
        let due = said.is_none_or(|at| now.saturating_sub(at) >= LOAD_EVERY - LOAD_EVERY / 10);
        if due {
            *said = Some(now);
        }
        due
    }
}
