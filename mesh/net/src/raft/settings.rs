//! How fast consensus beats, and how much it keeps. Every duration can be set, so that tests are fast.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An entry may have this many bytes. A replication request carries at least one entry and must stay below the 1 MiB
/// of a control message.
pub const ENTRY_BYTES_MAX: usize = 768 << 10;

/// Durations and sizes of consensus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftSettings {
    /// The leader is heard this often. Longer than a round trip, or replies come too late to count.
    pub heartbeat: Duration,
    /// A follower that hears nothing for a random time from here …
    pub election_min: Duration,
    /// … up to here asks for an election. Also the leader's lease, and the time for one request with entries.
    pub election_max: Duration,
    /// A proposal or a linearizable read gives up after this; a proposal's fate is then unknown.
    pub propose_timeout: Duration,
    /// A new voter must have caught up within this, or the change of voters is given up.
    pub catch_up_timeout: Duration,
    /// One piece of a snapshot must be answered within this, and the last one installed.
    pub snapshot_timeout: Duration,
    /// Bytes of a snapshot in one request.
    pub snapshot_piece: usize,
    /// A snapshot is taken after this many entries.
    pub snapshot_every: u64,
    /// This many entries before the snapshot are kept, for followers that are only a little behind.
    pub keep_entries: u64,
}

impl RaftSettings {
    /// For nodes within a few milliseconds of one another.
    pub fn lan() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(800),
            election_max: Duration::from_millis(1600),
            propose_timeout: Duration::from_secs(10),
            catch_up_timeout: Duration::from_secs(60),
            snapshot_timeout: Duration::from_secs(30),
            snapshot_piece: 256 << 10,
            snapshot_every: 5000,
            keep_entries: 1000,
        }
    }

    /// For voters on different continents: round trips of 300 ms, bursts of loss.
    pub fn wan() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            election_min: Duration::from_secs(4),
            election_max: Duration::from_secs(8),
            propose_timeout: Duration::from_secs(30),
            catch_up_timeout: Duration::from_secs(300),
            snapshot_timeout: Duration::from_secs(60),
            ..Self::lan()
        }
    }

    pub(super) fn config(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: "mloc".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            // Bytes are what counts, and the log's reader bounds those.
            max_payload_entries: 1024,
            // A snapshot is taken first, or sending one would not help a follower that lags this far.
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // A node that cannot win must not disturb a leader that the others hear well.
            enable_pre_vote: Some(true),
            // A leader that comes back from a restart asks the others before it leads again.
            enable_leader_restore: Some(false),
            removed_leader_step_down: openraft::StepDownPolicy::After(millis(self.heartbeat)),
            // A peer that is away costs a request each time; twice a heartbeat is often enough to notice its return.
            backoff: format!("{}ms ..{}ms", millis(self.heartbeat).max(1), millis(self.election_max).max(2)),
            ..Default::default()
        }
        .validate()
    }
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self::lan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_are_valid() {
        RaftSettings::lan().config().unwrap();
        RaftSettings::wan().config().unwrap();
    }
}
