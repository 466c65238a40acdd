//! A node's configuration: file, then environment (`MLOC_…`), then flags; the later one wins.
//!
//! This file is the one place of the binary that reads node.yaml. `configs/node.yaml` documents every key.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use mloc_core::quantity;
use mloc_exec::Sandbox;
use serde::{Deserialize, Serialize};

use crate::places::Places;

/// node.yaml. Unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeConfig {
    /// Name for people; the host's when absent.
    pub name: Option<String>,
    /// What is logged, as `RUST_LOG` would say it, which stands above it.
    pub log: Option<String>,
    /// Key, ledger, journal, cache, attempts.
    pub data_dir: Option<PathBuf>,
    /// Gossip, QUIC.
    pub gossip: Listen,
    /// libp2p, QUIC and TCP.
    pub links: Listen,
    /// REST. There is nothing to advertise: no member dials another's REST.
    pub rest: RestListen,
    /// `HOST:PORT` of members' gossip addresses.
    pub seeds: Vec<String>,
    /// File that holds the join token.
    pub token_file: Option<PathBuf>,
    /// Found the mesh together with the other seeds, once so many of them are there.
    pub bootstrap_expect: Option<u32>,
    /// What it takes part in.
    pub role: Role,
    /// Durations for a LAN or a WAN.
    pub profile: Profile,
    /// Single durations, above the profile's.
    pub timing: Timing,
    /// Folders that tasks may read and write as `local`, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// What to offer instead of what was found.
    pub hardware: Hardware,
    /// Modules to offer.
    pub modules: Modules,
    /// S3 defaults; credentials come from the environment or from files.
    pub s3: S3,
    /// Other places, and the way there.
    pub store: Places,
    /// Pulled models and data sets.
    pub cache: CacheConfig,
    /// Files that come along with tasks.
    pub uploads: UploadsConfig,
    /// Secrets for `secretsFrom`: name → file that holds it.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Labels for `placement.nodeSelector`.
    pub labels: BTreeMap<String, String>,
}

/// Where to listen, and what others should dial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Listen {
    /// `IP:PORT`; port 0 takes a free one.
    pub bind: Option<SocketAddr>,
    /// `HOST:PORT` others dial, when it is not the bound one.
    pub advertise: Option<String>,
}

/// Where REST listens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RestListen {
    /// `IP:PORT`; port 0 takes a free one.
    pub bind: Option<SocketAddr>,
}

/// What a node takes part in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Role {
    /// Whether it may become a voter.
    pub vote: Vote,
    /// Whether it takes work.
    pub work: bool,
    /// Whether others can dial it. A node behind NAT says no, dials out itself and never votes.
    pub reachable: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self { vote: Vote::Auto, work: true, reachable: true }
    }
}

/// Voting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Vote {
    /// When it is stable and needed.
    #[default]
    Auto,
    /// Spot and edge nodes.
    Never,
}

/// Sets of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Profile {
    /// Voters within a few milliseconds.
    #[default]
    Lan,
    /// Voters in several cities.
    Wan,
}

/// Durations in milliseconds; absent ones come from the profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Timing {
    /// Between two heartbeats of the leader to voters.
    pub raft_heartbeat_ms: Option<u64>,
    /// Shortest silence before an election.
    pub election_min_ms: Option<u64>,
    /// Longest silence before an election.
    pub election_max_ms: Option<u64>,
    /// Between two rounds of gossip.
    pub gossip_interval_ms: Option<u64>,
    /// How long a member must be up to become a voter.
    pub voter_stable_ms: Option<u64>,
    /// How long a voter must be silent before another takes its place.
    pub voter_grace_ms: Option<u64>,
    /// How long a worker's silence lasts before its attempts go elsewhere.
    pub lease_ms: Option<u64>,
    /// Between two heartbeats of a worker.
    pub worker_heartbeat_ms: Option<u64>,
    /// Between two rounds of the orchestrator when nothing happens.
    pub tick_ms: Option<u64>,
}

/// Hardware to offer instead of what was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Hardware {
    /// Cores.
    pub cpu: Option<String>,
    /// Memory.
    pub memory: Option<String>,
    /// GPUs that exist in this file only: for trying the scheduler. They are named `simulated:…` everywhere.
    pub simulated: Simulated,
}

/// Simulated hardware.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Simulated {
    /// GPUs.
    pub gpus: Vec<SimulatedGpus>,
}

/// Some equal simulated GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SimulatedGpus {
    /// Type, with or without `simulated:`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Memory of each.
    pub memory: String,
    /// How many.
    pub count: u32,
}

/// Modules to offer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Modules {
    /// These; all of this build when absent. `command` is neither named here nor among them.
    pub offer: Option<Vec<String>>,
    /// Programs of users.
    pub command: CommandModule,
}

/// Programs of users: whoever may submit a task runs what they like here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CommandModule {
    /// Whether this node runs them.
    pub enabled: bool,
    /// Whether they are held to their folders.
    pub sandbox: Sandbox,
    /// How many processes one of them may have at once; 4096 when absent.
    pub processes: Option<NonZeroUsize>,
}

/// S3 defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct S3 {
    /// Endpoint URL; `AWS_ENDPOINT_URL` when absent.
    pub endpoint: Option<String>,
    /// Region; `AWS_REGION` when absent.
    pub region: Option<String>,
    /// File with the access key id; `AWS_ACCESS_KEY_ID` when absent.
    pub access_key_id_file: Option<PathBuf>,
    /// File with the secret; `AWS_SECRET_ACCESS_KEY` when absent.
    pub secret_access_key_file: Option<PathBuf>,
    /// File with the token of temporary credentials; `AWS_SESSION_TOKEN` when absent.
    pub session_token_file: Option<PathBuf>,
    /// Whether requests go unsigned: public buckets, without credentials.
    pub anonymous: bool,
}

/// Pulled models and data sets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CacheConfig {
    /// Their folder; `cache` in the data directory when absent. Nodes on one host may share it.
    pub dir: Option<PathBuf>,
    /// What they may take while no task uses them; half of their disk when absent.
    pub max_bytes: Option<String>,
    /// How closely they are looked at before an attempt gets them.
    pub verify: Verify,
}

/// How closely cached files are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Those whose size or time changed are read.
    #[default]
    Changed,
    /// All are read.
    Always,
}

impl From<Verify> for mloc_store::Verify {
    fn from(verify: Verify) -> Self {
        match verify {
            Verify::Changed => Self::Changed,
            Verify::Always => Self::Always,
        }
    }
}

/// Files that come along with tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct UploadsConfig {
    /// What they may take; half of their disk when absent.
    pub max_bytes: Option<String>,
    /// How long they stay once no task names them any more; a day when absent.
    pub keep_for: Option<String>,
}

impl UploadsConfig {
    /// What they may take, when it is said, and how long they stay.
    ///
    /// # Errors
    /// When a text is no number of bytes, or no time.
    pub fn settle(&self) -> anyhow::Result<(Option<u64>, Duration)> {
        let bad = |key: &str, text: &str, e: quantity::BadQuantity| anyhow::anyhow!("uploads.{key}: `{text}`: {e}");
        let max = self.max_bytes.as_ref();
        let max = max.map(|text| quantity::bytes(text).map_err(|e| bad("maxBytes", text, e))).transpose()?;
        let keep = self.keep_for.as_ref();
        let keep = keep.map(|text| quantity::duration_ms(text).map_err(|e| bad("keepFor", text, e))).transpose()?;
        Ok((max, keep.map_or(Duration::from_secs(24 * 3600), Duration::from_millis)))
    }
}

/// Durations after profile and file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durations {
    /// Between two heartbeats of the leader to voters.
    pub raft_heartbeat: Duration,
    /// Shortest and longest silence before an election.
    pub election: (Duration, Duration),
    /// Between two rounds of gossip.
    pub gossip_interval: Duration,
    /// How long a member must be up to become a voter.
    pub voter_stable: Duration,
    /// How long a voter must be silent before another takes its place.
    pub voter_grace: Duration,
    /// A worker's lease.
    pub lease: Duration,
    /// Between two heartbeats of a worker.
    pub worker_heartbeat: Duration,
    /// Between two rounds of the orchestrator when nothing happens.
    pub tick: Duration,
}

impl NodeConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read or has unknown keys or wrong types; says where.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read node config {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("node config {}", path.display()))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Self = serde_yaml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// What serde cannot see.
    ///
    /// # Errors
    /// The first thing that can't be meant.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.bootstrap_expect == Some(0) {
            bail!(
                "bootstrapExpect: 0 nodes found no mesh; write the number of seeds that must be there, or leave it out"
            );
        }
        if let Some(log) = &self.log {
            crate::telemetry::check(log).with_context(|| format!("log: `{log}`"))?;
        }
        for name in self.volumes.keys() {
            if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
                bail!("volumes: `{name}` is no volume name: letters, digits, `-` and `_`");
            }
        }
        if let Some(text) = &self.cache.max_bytes {
            self.cache_bytes_max().with_context(|| format!("cache.maxBytes: `{text}`"))?;
        }
        self.uploads.settle()?;
        let s3 = &self.s3;
        let files = [&s3.access_key_id_file, &s3.secret_access_key_file, &s3.session_token_file];
        if s3.anonymous && files.iter().any(|file| file.is_some()) {
            bail!("s3: anonymous requests are not signed, and there are files with credentials: leave one of them out");
        }
        if s3.access_key_id_file.is_some() != s3.secret_access_key_file.is_some() {
            bail!("s3: accessKeyIdFile and secretAccessKeyFile go together");
        }
        self.store.check()?;
        if self.modules.offer.iter().flatten().any(|name| name == "command") {
            bail!(
                "modules.offer: `command` runs whatever a user sends: switch it on with modules.command.enabled: true"
            );
        }
        let d = self.durations();
        if d.election.0 >= d.election.1 {
            bail!("timing: electionMinMs must be less than electionMaxMs");
        }
        if d.raft_heartbeat * 2 > d.election.0 {
            bail!("timing: raftHeartbeatMs must be at most half of electionMinMs, or every hiccup is an election");
        }
        if d.worker_heartbeat * 3 > d.lease {
            bail!("timing: leaseMs must span at least three workerHeartbeatMs, or a lost message costs an attempt");
        }
        Ok(())
    }

    /// What pulled sources may take, when it is said.
    ///
    /// # Errors
    /// When the text is no number of bytes.
    pub fn cache_bytes_max(&self) -> anyhow::Result<Option<u64>> {
        let bytes = |text: &String| quantity::bytes(text);
        Ok(self.cache.max_bytes.as_ref().map(bytes).transpose()?)
    }

    /// The cache of pulled sources, as the store takes it.
    ///
    /// # Errors
    /// Those of [`Self::cache_bytes_max`].
    pub fn cache(&self) -> anyhow::Result<mloc_store::CacheConfig> {
        let of_data_dir = || self.data_dir.as_ref().map(|dir| dir.join("cache"));
        let usual = mloc_store::CacheConfig::default().dir;
        Ok(mloc_store::CacheConfig {
            dir: self.cache.dir.clone().or_else(of_data_dir).unwrap_or(usual),
            bytes_max: self.cache_bytes_max()?,
            verify: self.cache.verify.into(),
        })
    }

    /// Files of this node that no program of a user may read.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let s3 = [&self.s3.access_key_id_file, &self.s3.secret_access_key_file, &self.s3.session_token_file];
        let some = s3.into_iter().chain([&self.token_file]).flatten();
        some.chain(self.secrets.values()).chain(self.store.secret_files()).cloned().collect()
    }

    /// Durations after profile and file.
    pub fn durations(&self) -> Durations {
        let wan = self.profile == Profile::Wan;
        let t = &self.timing;
        let pick = |given: Option<u64>, lan: u64, on_wan: u64| {
            Duration::from_millis(given.unwrap_or(if wan { on_wan } else { lan }))
        };
        Durations {
            raft_heartbeat: pick(t.raft_heartbeat_ms, 150, 1_000),
            election: (pick(t.election_min_ms, 800, 4_000), pick(t.election_max_ms, 1_600, 8_000)),
            gossip_interval: pick(t.gossip_interval_ms, 500, 1_000),
            voter_stable: pick(t.voter_stable_ms, 60_000, 60_000),
            voter_grace: pick(t.voter_grace_ms, 600_000, 600_000),
            // A minute of silence on a WAN is weather: only after it may another worker take the attempt.
            lease: pick(t.lease_ms, 60_000, 60_000),
            worker_heartbeat: pick(t.worker_heartbeat_ms, 1_000, 5_000),
            tick: pick(t.tick_ms, 500, 1_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = NodeConfig::parse("name: a\nseedz: []\n").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("seedz") && text.contains("line 2"), "{text}");
        let error = NodeConfig::parse("rest: {bind: '127.0.0.1:1', advertise: 'a:1'}\n").unwrap_err();
        assert!(format!("{error:#}").contains("rest: unknown field `advertise`"), "{error:#}");
    }

    #[test]
    fn the_documented_file_is_a_configuration() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/node.yaml");
        let config = NodeConfig::read(&path).unwrap();
        assert_eq!(config.durations(), NodeConfig::default().durations(), "it shows the defaults");
    }

    #[test]
    fn programs_of_users_are_off_and_held_to_their_folders_unless_somebody_says_otherwise() {
        let modules = |text: &str| NodeConfig::parse(text).map(|config| config.modules);
        assert_eq!(
            modules("name: a").unwrap().command,
            CommandModule { enabled: false, sandbox: Sandbox::Required, processes: None }
        );
        let on = modules("modules: {offer: [sft], command: {enabled: true, sandbox: best-effort}}").unwrap();
        assert_eq!((on.command.enabled, on.command.sandbox), (true, Sandbox::BestEffort));
        assert!(
            format!("{:#}", modules("modules: {offer: [command]}").unwrap_err()).contains("modules.command.enabled")
        );
        assert!(
            format!("{:#}", modules("modules: {command: {sandbox: perhaps}}").unwrap_err()).contains("best-effort")
        );
        let config =
            NodeConfig::parse("tokenFile: /t\nsecrets: {A: /a}\ns3: {accessKeyIdFile: /i, secretAccessKeyFile: /k}");
        assert_eq!(config.unwrap().secret_files(), ["/i", "/k", "/t", "/a"].map(PathBuf::from));
    }

    #[test]
    fn durations_follow_the_profile_and_single_ones_win() {
        let config = NodeConfig::parse("profile: wan\ntiming: {leaseMs: 30000}\n").unwrap();
        assert_eq!(config.durations().election.0, Duration::from_secs(4));
        assert_eq!(config.durations().lease, Duration::from_secs(30));
        assert!(NodeConfig::parse("timing: {raftHeartbeatMs: 1000}").is_err());
        assert!(NodeConfig::parse("bootstrapExpect: 0").is_err());
    }

    #[test]
    fn what_hints_name_is_taken_and_what_cannot_be_meant_is_refused() {
        let s3 = "s3: {accessKeyIdFile: /a, secretAccessKeyFile: /b, sessionTokenFile: /c}\ncache: {maxBytes: 200GiB, dir: /srv/mloc, verify: always}\n";
        assert_eq!(NodeConfig::parse(s3).unwrap().cache_bytes_max().unwrap(), Some(200 << 30));
        assert!(NodeConfig::parse("s3: {anonymous: true}\n").unwrap().s3.anonymous);
        let uploads = "uploads: {maxBytes: 10GiB, keepFor: 2h}\n";
        let two_hours = Duration::from_secs(7200);
        assert_eq!(NodeConfig::parse(uploads).unwrap().uploads.settle().unwrap(), (Some(10 << 30), two_hours));
        let error = format!("{:#}", NodeConfig::parse("uploads: {keepFor: long}\n").unwrap_err());
        assert!(error.starts_with("uploads.keepFor: `long`: expected "), "{error}");
        for bad in [
            "s3: {anonymous: true, sessionTokenFile: /c}\n",
            "s3: {accessKeyIdFile: /a}\n",
            "cache: {maxBytes: many}\n",
        ] {
            let error = format!("{:#}", NodeConfig::parse(bad).unwrap_err());
            assert!(error.starts_with("s3: ") || error.starts_with("cache.maxBytes: `many`: expected "), "{error}");
        }
    }
}
