//! Consensus: the ledger, replicated by openraft, which nothing outside this folder names.
//!
//! | file | holds |
//! |---|---|
//! | `consensus` | [`Consensus`], the handle: start, propose, read, voters, transfer, shutdown |
//! | `voters` | [`plan_voters`]: who should vote, a plain function |
//! | `network`, `server`, `rpc` | asking, answering, and what is said, over any [`RaftWire`] |
//! | `machine` | committed entries into `Ledger::apply`; [`LedgerView`] for reads |
//! | `log`, `log_writer` | the log and the vote in `raft.redb`, committed in groups by one thread |
//! | `snapshot` | `raft.snapshot`: whole or not there |
//! | `backup` | [`Backup`]: the ledger as a file of its own |
//! | `stopped` | the files of a node that does not run: read, or laid down for a restored mesh |
//! | `codec`, `types`, `settings`, `errors` | bytes, the one type configuration, durations, what can go wrong |
//!
//! Deliberately absent: addresses (the wire finds peers by their ids), gossip, clocks in anything that decides, and
//! any knowledge of what an entry means.

mod backup;
mod codec;
mod consensus;
mod errors;
mod log;
mod log_writer;
mod machine;
mod network;
mod rpc;
mod server;
mod settings;
mod snapshot;
mod stopped;
#[cfg(test)]
mod tests;
mod types;
mod voters;

pub use backup::{Backup, BackupError, BackupHead};
pub(crate) use consensus::mint;
pub use consensus::{Consensus, ConsensusStart, Leadership, RaftHealth, Voter};
pub use errors::{BootstrapError, ProposeError, ReadError, StartError, TransferError, VotersError};
pub use log::LogOpenError;
pub use machine::LedgerView;
pub use network::{RaftWire, WireError};
pub use server::MemberCheck;
pub use settings::{ENTRY_BYTES_MAX, RaftSettings};
pub use snapshot::SnapshotError;
pub(crate) use stopped::lay_down;
pub use stopped::{Stopped, read_stopped};
pub use types::RaftId;
pub use voters::{Candidate, Standing, VoterPolicy, plan_voters};
