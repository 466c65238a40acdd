//! What can go wrong with consensus, told apart where the caller does different things about it.

use std::{path::PathBuf, time::Duration};

use super::{log::LogOpenError, settings::ENTRY_BYTES_MAX, snapshot::SnapshotError, types::NodeId};

/// Consensus did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `raft.redb` is in use, damaged, another node's, or cannot be read.
    #[error(transparent)]
    Log(#[from] LogOpenError),
    /// `raft.snapshot` is damaged or cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log begins after what the snapshot holds.
    #[error(
        "{path}: missing or too old: the log before entry {purged} was dropped in trust of it \
         (hint: move this node's data directory away and join again; if a restore broke off here, restore again)"
    )]
    SnapshotMissing {
        /// The snapshot file.
        path: PathBuf,
        /// The last entry that is gone from the log.
        purged: u64,
    },
    /// The two don't fit together.
    #[error("the raft log and its snapshot don't fit together: {0}")]
    Storage(String),
    /// Durations that contradict each other.
    #[error("raft settings: {0} (hint: heartbeat < electionMin < electionMax)")]
    Settings(String),
}

/// A mesh was not founded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// There is one already.
    #[error("this data directory already belongs to a mesh")]
    Founded,
    /// Consensus does not run.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// An entry was not committed, or nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The entry was not taken; ask the leader.
    #[error("this node does not lead ({})", lead(leader))]
    NotLeader {
        /// Who does, if anybody.
        leader: Option<NodeId>,
    },
    /// The entry may have been committed, or may be yet. Only an entry that `apply` recognises (a request id, a
    /// fence) may be proposed again.
    #[error("no majority confirmed the entry (after {after:?}); it may still be committed")]
    Unknown {
        /// Who leads now, if anybody.
        leader: Option<NodeId>,
        /// How long it was waited for; zero when another leader's log took its place.
        after: Duration,
    },
    /// It would not fit into a replication request.
    #[error("a ledger entry of {bytes} bytes is too large: the most is {ENTRY_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It cannot be written as bytes: a mistake in the entry's type.
    #[error("{0}")]
    Unencodable(String),
    /// Consensus does not run.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// A read would not have been linearizable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("this node does not lead ({})", lead(leader))]
    NotLeader {
        /// Who does, if anybody.
        leader: Option<NodeId>,
    },
    /// This node leads, or thinks so, but no majority says so.
    #[error("no majority of the voters answers")]
    NoQuorum,
    /// Consensus does not run.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// The voters were not changed, or nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VotersError {
    /// Ask the leader.
    #[error("this node does not lead ({})", lead(leader))]
    NotLeader {
        /// Who does, if anybody.
        leader: Option<NodeId>,
    },
    /// A change is under way, or this leader is too new.
    #[error("another change of the voters is under way")]
    Busy,
    /// Nothing can be changed while no majority answers.
    #[error("no majority of the voters answers")]
    NoQuorum,
    /// A newcomer did not catch up; nothing was changed.
    #[error("{peer} did not catch up within {after:?}: it does not vote yet")]
    CatchUp {
        /// The newcomer.
        peer: NodeId,
        /// How long it had.
        after: Duration,
    },
    /// No majority confirmed the change in time; it may still come to be.
    #[error("no majority confirmed the change of voters (after {after:?})")]
    Unknown {
        /// How long it was waited for.
        after: Duration,
    },
    /// raft does not allow it.
    #[error("raft refuses these voters: {0}")]
    Refused(String),
    /// Consensus does not run.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

impl From<ReadError> for VotersError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotLeader { leader } => Self::NotLeader { leader },
            ReadError::NoQuorum => Self::NoQuorum,
            ReadError::Stopped(why) => Self::Stopped(why),
        }
    }
}

/// The lead was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Nothing to hand over.
    #[error("this node does not lead ({})", lead(leader))]
    NotLeader {
        /// Who does, if anybody.
        leader: Option<NodeId>,
    },
    /// Only a voter can lead.
    #[error("{peer} is no voter")]
    NotAVoter {
        /// Who was to lead.
        peer: NodeId,
    },
    /// It did not take it.
    #[error("{peer} did not take the lead within {after:?}")]
    Refused {
        /// Who was to lead.
        peer: NodeId,
        /// How long it had.
        after: Duration,
    },
    /// Consensus does not run.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

fn lead(leader: &Option<NodeId>) -> String {
    leader.as_ref().map_or_else(|| "nobody does at the moment".to_owned(), |leader| format!("{leader} does"))
}
