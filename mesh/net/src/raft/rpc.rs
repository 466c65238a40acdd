//! What raft nodes say to each other: one request, one reply, each with the codec's version byte.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::{
    codec::Blob,
    types::{RaftId, TypeConfig, Vote},
};

/// A request with its two ends. The ends are raft ids: a node whose data directory was lost has another one, and must
/// not answer for the votes of the one before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub from: RaftId,
    pub to: RaftId,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    SnapshotPiece(SnapshotPiece),
}

/// A part of a snapshot file. The first one of a transfer is empty: its answer says where to go on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotPiece {
    /// The sender's vote: a receiver that knows a later one refuses the snapshot.
    pub vote: Vote,
    /// SHA-256 of the whole file, hex: names the transfer, so that a broken one is continued and not mixed up.
    pub snapshot: String,
    /// Bytes of the whole file.
    pub total: u64,
    /// Where this part begins.
    pub offset: u64,
    pub data: Blob,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    Snapshot(SnapshotReply),
    Refused(Refusal),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum SnapshotReply {
    /// The next part begins here.
    Next(u64),
    /// All of it was received; installed, or refused for a later vote. Either way this is the receiver's vote.
    Done(Vote),
}

/// Why a request was not even looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is raft node {0}: the one asked for has lost its data directory")]
    OtherNode(RaftId),
    #[error("it does not take us for a member of its mesh")]
    NotAMember,
    #[error("it cannot read the request: {0}")]
    Unreadable(String),
    #[error("its consensus has stopped: {0}")]
    Stopped(String),
    #[error("the snapshot was refused: {0}")]
    BadSnapshot(String),
}
