//! A cluster in one process: nodes on temporary folders, joined by a wire of memory that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::watch;

use super::{
    super::{
        Consensus, ConsensusStart, ProposeError, RaftId, RaftSettings, RaftWire, WireError,
        types::{Ledger, NodeId, Outcome},
    },
    has, sample_entry,
};

/// Nothing here should take longer, however busy the machine; what waits for a condition gives up after it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn fast() -> RaftSettings {
    RaftSettings {
        heartbeat: Duration::from_millis(60),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
        propose_timeout: Duration::from_secs(5),
        catch_up_timeout: Duration::from_secs(20),
        snapshot_timeout: Duration::from_secs(5),
        ..RaftSettings::lan()
    }
}

/// Fails the test when `condition` does not come.
pub async fn within<T>(what: &str, condition: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, condition).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

#[derive(Default)]
pub struct Net {
    nodes: Mutex<BTreeMap<NodeId, Consensus>>,
    isolated: Mutex<BTreeSet<NodeId>>,
    /// Every so many requests one breaks, 0 for none.
    break_every: AtomicU64,
    calls: AtomicU64,
    pub longest: AtomicU64,
    /// How long a message is under way, in milliseconds.
    delay_ms: AtomicU64,
    /// Requests that an isolated node tried to send.
    lost: watch::Sender<u64>,
}

impl Net {
    pub fn isolate(&self, peer: &NodeId) {
        self.isolated.lock().unwrap().insert(peer.clone());
    }

    pub fn heal(&self) {
        self.isolated.lock().unwrap().clear();
    }

    pub fn break_every(&self, calls: u64) {
        self.break_every.store(calls, Ordering::Relaxed);
    }

    pub fn delay_ms(&self, delay: u64) {
        self.delay_ms.store(delay, Ordering::Relaxed);
    }

    /// Returns when isolated nodes have tried to send `more` more requests.
    pub async fn lost(&self, more: u64) {
        let mut lost = self.lost.subscribe();
        let enough = *lost.borrow() + more;
        within("lost requests", lost.wait_for(|lost| *lost >= enough)).await.unwrap();
    }
}

struct MemoryWire {
    me: NodeId,
    net: Arc<Net>,
}

#[async_trait]
impl RaftWire for MemoryWire {
    async fn call(&self, peer: &NodeId, body: Vec<u8>) -> Result<Vec<u8>, WireError> {
        let net = &self.net;
        net.longest.fetch_max(body.len() as u64, Ordering::Relaxed);
        let unreachable = |why: &str| WireError::Unreachable { peer: peer.clone(), why: why.to_owned() };
        {
            let isolated = net.isolated.lock().unwrap();
            if isolated.contains(&self.me) {
                net.lost.send_modify(|lost| *lost += 1);
            }
            if isolated.contains(&self.me) || isolated.contains(peer) {
                return Err(unreachable("cut"));
            }
        }
        let node = net.nodes.lock().unwrap().get(peer).cloned().ok_or_else(|| unreachable("down"))?;
        let delay = Duration::from_millis(net.delay_ms.load(Ordering::Relaxed));
        tokio::time::sleep(delay).await;
        let reply = node.handle(&self.me, &body).await;
        tokio::time::sleep(delay).await;
        let every = net.break_every.load(Ordering::Relaxed);
        if every > 0 && net.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(every) {
            return Err(WireError::Broken { peer: peer.clone(), why: "reply lost".to_owned() });
        }
        Ok(reply)
    }
}

pub struct Node {
    pub peer: NodeId,
    pub dir: TempDir,
    pub consensus: Consensus,
}

pub struct Cluster {
    pub net: Arc<Net>,
    pub settings: RaftSettings,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// `count` nodes that have been started and told nothing.
    pub async fn strangers(count: usize, settings: RaftSettings) -> Self {
        let mut this = Self { net: Arc::default(), settings, nodes: Vec::new() };
        for n in 0..count {
            let (peer, dir) = (NodeId::new(format!("12D3KooWnode{n}")), tempfile::tempdir().unwrap());
            let consensus = this.start(&peer, &dir).await;
            this.nodes.push(Node { peer, dir, consensus });
        }
        this
    }

    /// `count` nodes, all of them voters; node 0 founded the mesh and leads.
    pub async fn voters(count: usize, settings: RaftSettings) -> Self {
        let this = Self::strangers(count, settings).await;
        this.nodes[0].consensus.bootstrap().await.unwrap();
        this.leader().await;
        this.nodes[0].consensus.change_voters(&this.ids(0..count)).await.unwrap();
        this
    }

    async fn start(&self, peer: &NodeId, dir: &TempDir) -> Consensus {
        let wire = MemoryWire { me: peer.clone(), net: self.net.clone() };
        let start = ConsensusStart {
            dir: dir.path().to_owned(),
            me: peer.clone(),
            settings: self.settings.clone(),
            wire: Arc::new(wire),
            is_member: Arc::new(|peer| peer.to_string().starts_with("12D3KooWnode")),
        };
        let consensus = Consensus::start(start).await.unwrap();
        self.net.nodes.lock().unwrap().insert(peer.clone(), consensus.clone());
        consensus
    }

    /// As `kill -9` would.
    pub async fn kill(&self, n: usize) {
        self.net.nodes.lock().unwrap().remove(&self.nodes[n].peer);
        self.nodes[n].consensus.stop().await;
    }

    pub async fn restart(&mut self, n: usize) {
        let consensus = self.start(&self.nodes[n].peer, &self.nodes[n].dir).await;
        self.nodes[n].consensus = consensus;
    }

    pub fn ids(&self, nodes: impl IntoIterator<Item = usize>) -> BTreeMap<RaftId, NodeId> {
        nodes.into_iter().map(|n| (self.nodes[n].consensus.raft_id(), self.nodes[n].peer.clone())).collect()
    }

    fn up(&self) -> Vec<usize> {
        let nodes = self.net.nodes.lock().unwrap();
        let isolated = self.net.isolated.lock().unwrap();
        let up = |n: &usize| nodes.contains_key(&self.nodes[*n].peer) && !isolated.contains(&self.nodes[*n].peer);
        (0..self.nodes.len()).filter(up).collect()
    }

    /// Waits until a node that is up leads.
    pub async fn leader(&self) -> usize {
        let leads = self.up().into_iter().map(|n| {
            let mut leadership = self.nodes[n].consensus.leadership();
            Box::pin(async move {
                leadership.wait_for(|now| now.mine).await.unwrap();
                n
            })
        });
        let leads: Vec<_> = leads.collect();
        within("a leader", futures::future::select_all(leads)).await.0
    }

    /// Commits `sample_entry(n)` as a node would that was handed it: asks whoever leads, until it is known to be in.
    pub async fn submit(&self, n: u64) -> Outcome {
        let submit = async {
            let mut at = self.up()[0];
            loop {
                let to = match self.nodes[at].consensus.propose(sample_entry(n)).await {
                    Ok(outcome) => return outcome,
                    Err(ProposeError::NotLeader { leader } | ProposeError::Unknown { leader, .. }) => leader,
                    Err(error) => panic!("{error}"),
                };
                let up = self.up();
                let named = to.and_then(|to| up.iter().copied().find(|n| self.nodes[*n].peer == to));
                at = match named {
                    Some(named) if named != at => named,
                    _ => self.leader().await,
                };
            }
        };
        within("a commit", submit).await
    }

    /// Waits until node `n` has applied the samples `of`.
    pub async fn has(&self, n: usize, of: std::ops::Range<u64>) {
        let ledger = self.nodes[n].consensus.ledger().clone();
        let all = |ledger: &Ledger| of.clone().all(|sample| has(ledger, sample));
        let what = format!("node {n} has {of:?}");
        within(&what, ledger.applied().wait_for(|_| ledger.read(all))).await.unwrap();
    }

    pub async fn stop(self) {
        for node in &self.nodes {
            node.consensus.stop().await;
        }
    }
}
