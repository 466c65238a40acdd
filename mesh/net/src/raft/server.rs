//! The answering side: hands a peer's request to the local raft, and puts snapshots together from their pieces.

use std::sync::Arc;

use openraft::{Raft, errors::Fatal, storage::Snapshot};
use tokio::sync::Mutex;

use super::{
    codec,
    machine::LedgerMachine,
    rpc::{Envelope, Refusal, Reply, Request, SnapshotPiece, SnapshotReply},
    snapshot,
    types::{NodeId, RaftId, TypeConfig, Vote},
};

/// More than any ledger that fits the memory of the nodes it is for; a length beyond it is a mistake or an attack.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// Says who may speak to consensus: the members of the replicated table that are not revoked.
///
/// It must not be the voters that this node knows: one that slept through a change of voters would never let its
/// leader speak again.
pub type MemberCheck = Arc<dyn Fn(&NodeId) -> bool + Send + Sync>;

pub(super) struct Server {
    pub me: RaftId,
    pub raft: Raft<TypeConfig, LedgerMachine>,
    pub is_member: MemberCheck,
    pub receiving: Mutex<Receiving>,
}

#[derive(Default)]
pub(super) struct Receiving {
    /// The one snapshot that is on its way.
    arriving: Option<Arriving>,
    /// The last one that was installed: when the answer to its last piece is lost, the leader asks again.
    installed: Option<String>,
}

/// A snapshot of which a part is here. Kept across broken connections; another snapshot takes its place.
struct Arriving {
    snapshot: String,
    total: u64,
    bytes: Vec<u8>,
}

impl Server {
    pub async fn handle(&self, from: &NodeId, body: &[u8]) -> Vec<u8> {
        let reply = self.reply(from, body).await.unwrap_or_else(Reply::Refused);
        codec::encode("raft reply", &reply).unwrap_or_else(|error| {
            tracing::error!(%error, "a raft reply could not be written");
            Vec::new()
        })
    }

    async fn reply(&self, from: &NodeId, body: &[u8]) -> Result<Reply, Refusal> {
        if !(self.is_member)(from) {
            tracing::warn!(peer = %from, "a raft request of a node that is no member was refused");
            return Err(Refusal::NotAMember);
        }
        let envelope: Envelope =
            codec::decode("raft request", body).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        if envelope.to != self.me {
            return Err(Refusal::OtherNode(self.me));
        }
        match envelope.request {
            Request::Append(rpc) => self.raft.append_entries(rpc).await.map(Reply::Append).map_err(stopped),
            Request::Vote(rpc) => self.raft.vote(rpc).await.map(Reply::Vote).map_err(stopped),
            Request::PreVote(rpc) => self.raft.pre_vote(rpc).await.map(Reply::Vote).map_err(stopped),
            Request::TransferLeader(rpc) => {
                self.raft.handle_transfer_leader(rpc).await.map(Reply::TransferLeader).map_err(stopped)
            }
            Request::SnapshotPiece(piece) => self.receive(from, piece).await.map(Reply::Snapshot),
        }
    }

    async fn receive(&self, from: &NodeId, piece: SnapshotPiece) -> Result<SnapshotReply, Refusal> {
        let mine: Vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(stopped)?;
        if piece.vote < mine {
            return Ok(SnapshotReply::Done(mine));
        }
        if piece.total > SNAPSHOT_BYTES_MAX {
            return Err(Refusal::BadSnapshot(format!("{} bytes are too many", piece.total)));
        }
        // Held while the last piece is installed, so that the same snapshot is not installed twice at a time.
        let mut receiving = self.receiving.lock().await;
        let Receiving { arriving: slot, installed } = &mut *receiving;
        if installed.as_ref() == Some(&piece.snapshot) {
            return Ok(SnapshotReply::Done(mine));
        }
        let arriving = match slot.take() {
            Some(same) if same.snapshot == piece.snapshot && same.total == piece.total => slot.insert(same),
            _ => slot.insert(Arriving { snapshot: piece.snapshot, total: piece.total, bytes: Vec::new() }),
        };
        let reached = arriving.bytes.len() as u64;
        if piece.offset == reached && reached + piece.data.0.len() as u64 <= piece.total {
            arriving.bytes.extend_from_slice(&piece.data.0);
        }
        let reached = arriving.bytes.len() as u64;
        if reached < piece.total {
            return Ok(SnapshotReply::Next(reached));
        }
        let Some(Arriving { bytes, snapshot: name, .. }) = slot.take() else { return Ok(SnapshotReply::Next(0)) };
        let (meta, _) = snapshot::decode(&format!("from {from}"), &bytes)
            .map_err(|error| Refusal::BadSnapshot(error.to_string()))?;
        let snapshot = Snapshot { meta, snapshot: bytes.into() };
        let answer = self.raft.install_full_snapshot(piece.vote, snapshot).await.map_err(stopped)?;
        if answer.vote == piece.vote {
            *installed = Some(name);
        }
        Ok(SnapshotReply::Done(answer.vote))
    }
}

fn stopped(error: impl Into<StoppedBy>) -> Refusal {
    Refusal::Stopped(error.into().0)
}

/// The two shapes in which openraft says that it has stopped.
struct StoppedBy(String);

impl From<Fatal<TypeConfig>> for StoppedBy {
    fn from(error: Fatal<TypeConfig>) -> Self {
        Self(error.to_string())
    }
}

impl From<openraft::errors::RaftError<TypeConfig>> for StoppedBy {
    fn from(error: openraft::errors::RaftError<TypeConfig>) -> Self {
        Self(error.to_string())
    }
}
