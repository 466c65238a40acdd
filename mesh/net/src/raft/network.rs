//! The asking side: openraft's network over any wire that carries a request and brings back a reply.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use sha2::{Digest, Sha256};

use super::{
    codec::{self, Blob},
    machine::SnapshotBytes,
    rpc::{Envelope, Reply, Request, SnapshotPiece, SnapshotReply},
    settings::RaftSettings,
    types::{NodeId, RaftId, RaftNode, TypeConfig, Vote},
};

/// A link that breaks this many times in a row, without one piece of a snapshot getting across, is left to openraft.
const PIECE_FAILURES: u32 = 5;

/// Why a request came back without a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Nobody there now; worth another try later.
    #[error("{peer} cannot be reached: {why}")]
    Unreachable {
        /// Who was asked.
        peer: NodeId,
        /// What the link says.
        why: String,
    },
    /// The connection broke on the way; worth another try at once.
    #[error("the link to {peer} broke: {why}")]
    Broken {
        /// Who was asked.
        peer: NodeId,
        /// What the link says.
        why: String,
    },
}

/// Carries raft's requests: libp2p in a node, memory in tests.
///
/// Bodies have less than 1 MiB. The caller drops the future when it has waited long enough.
#[async_trait]
pub trait RaftWire: Send + Sync + 'static {
    /// Sends `body` to `peer`'s [`Consensus::handle`](super::Consensus::handle) and returns its answer.
    async fn call(&self, peer: &NodeId, body: Vec<u8>) -> Result<Vec<u8>, WireError>;
}

/// Makes a client for each raft node.
pub(super) struct Network {
    pub me: RaftId,
    pub wire: Arc<dyn RaftWire>,
    pub settings: RaftSettings,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: RaftId, node: &RaftNode) -> PeerClient {
        PeerClient {
            me: self.me,
            target,
            peer: node.peer.clone(),
            wire: self.wire.clone(),
            settings: self.settings.clone(),
        }
    }
}

/// Asks one raft node.
pub(super) struct PeerClient {
    me: RaftId,
    target: RaftId,
    peer: NodeId,
    wire: Arc<dyn RaftWire>,
    settings: RaftSettings,
}

impl PeerClient {
    async fn ask(&self, action: RPCTypes, request: Request, limit: Duration) -> Result<Reply, RPCError<TypeConfig>> {
        let envelope = Envelope { from: self.me, to: self.target, request };
        let body = codec::encode("raft request", &envelope).map_err(|error| NetworkError::new(&error))?;
        let answer = tokio::time::timeout(limit, self.wire.call(&self.peer, body)).await;
        let answer = answer.map_err(|_| Timeout { action, id: self.me, target: self.target, timeout: limit })?;
        let body = answer.map_err(|error| match error {
            WireError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            WireError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
        })?;
        match codec::decode("raft reply", &body).map_err(|error| NetworkError::new(&error))? {
            // Asking again at once would not change its mind.
            Reply::Refused(refusal) => {
                tracing::debug!(peer = %self.peer, %refusal, "a raft request was refused");
                Err(Unreachable::from_string(format!("{} refused: {refusal}", self.peer)).into())
            }
            reply => Ok(reply),
        }
    }

    fn unexpected(&self, reply: &Reply) -> RPCError<TypeConfig> {
        NetworkError::from_string(format!("{} gave the wrong kind of reply: {reply:?}", self.peer)).into()
    }

    async fn send_snapshot(&self, vote: Vote, bytes: &[u8]) -> Result<Vote, RPCError<TypeConfig>> {
        let snapshot = hex::encode(Sha256::digest(bytes));
        let total = bytes.len() as u64;
        let (mut offset, mut size, mut failures) = (0, 0, 0);
        loop {
            let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = begin.saturating_add(size).min(bytes.len());
            let piece = SnapshotPiece {
                vote,
                snapshot: snapshot.clone(),
                total,
                offset,
                data: Blob(bytes[begin..end].to_vec()),
            };
            let request = Request::SnapshotPiece(piece);
            match self.ask(RPCTypes::InstallSnapshot, request, self.settings.snapshot_timeout).await {
                Ok(Reply::Snapshot(SnapshotReply::Next(next))) => {
                    (offset, size, failures) = (next, self.settings.snapshot_piece, 0);
                }
                Ok(Reply::Snapshot(SnapshotReply::Done(vote))) => return Ok(vote),
                Ok(reply) => return Err(self.unexpected(&reply)),
                // Ask how far it got and go on. openraft would begin anew, and wait longer each time.
                Err(RPCError::Network(error)) if failures < PIECE_FAILURES => {
                    tracing::debug!(peer = %self.peer, %error, offset, "a piece of a snapshot is sent again");
                    (size, failures) = (0, failures + 1);
                    tokio::time::sleep(self.settings.heartbeat).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        // openraft offers one heartbeat's time, which is right for a heartbeat. Entries may be large and the link
        // slow, and cutting the same request off again and again would never get them across.
        let limit = if rpc.entries.is_empty() { option.hard_ttl() } else { self.settings.election_max };
        match self.ask(RPCTypes::AppendEntries, Request::Append(rpc), limit).await? {
            Reply::Append(response) => Ok(response),
            reply => Err(self.unexpected(&reply)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RPCTypes::Vote, Request::Vote(rpc), option.hard_ttl()).await? {
            Reply::Vote(response) => Ok(response),
            reply => Err(self.unexpected(&reply)),
        }
    }

    // openraft's default grants every pre-vote without asking anybody.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RPCTypes::Vote, Request::PreVote(rpc), option.hard_ttl()).await? {
            Reply::Vote(response) => Ok(response),
            reply => Err(self.unexpected(&reply)),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RPCTypes::TransferLeader, Request::TransferLeader(rpc), option.hard_ttl()).await? {
            Reply::TransferLeader(response) => Ok(response),
            reply => Err(self.unexpected(&reply)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, &snapshot.snapshot) => Ok(SnapshotResponse::new(sent?)),
        }
    }
}
