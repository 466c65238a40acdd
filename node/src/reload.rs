//! node.yaml read again while the node runs: when its bytes change, or those of a file it names, and at SIGHUP.
//!
//! The bytes are compared, not times or inodes: a ConfigMap changes by a symlink that is swapped, a Nomad template by a
//! rename, an editor in either way or in place, and over NFS no event comes. What can change under running work is applied
//! ([`LIVE`]); for every other key the log says that it waits for a restart. A file that can't be meant is refused with
//! its problem, and what runs stays.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use serde_yaml::Value;
use sha2::{Digest, Sha256};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use crate::{config::NodeConfig, metrics::ConfigFigures};

/// Between two looks at the files. A kubelet takes a minute to bring a change anyway.
const LOOK: Duration = Duration::from_secs(2);
/// Keys that are applied while the node runs; see [`adopted`].
const LIVE: [&str; 7] = ["log", "labels", "secrets", "volumes", "s3", "store", "cache"];

/// Reads the configuration as the start did: file, then environment and flags.
pub type Read = Arc<dyn Fn() -> anyhow::Result<NodeConfig> + Send + Sync>;

/// A node's file, and how it and the files that it names are today.
#[derive(Clone)]
pub struct Source {
    file: PathBuf,
    read: Read,
}

/// The files that matter, each with its digest where it can be read.
pub type Seen = Vec<(PathBuf, Option<[u8; 32]>)>;

impl Source {
    /// `file`, read by `read`.
    pub fn new(file: PathBuf, read: Read) -> Self {
        Self { file, read }
    }

    /// A digest of every file that matters to a node that runs with `running`. Blocks: a network's file system may take
    /// its time.
    pub fn look(&self, running: &NodeConfig) -> Seen {
        let digest = |file: PathBuf| {
            let bytes = std::fs::read(&file).ok();
            (file, bytes.map(|bytes| Sha256::digest(bytes).into()))
        };
        let mut files = named(running);
        // Those of a file that was refused, or is new, matter too: mending one of them is a change.
        files.extend((self.read)().iter().flat_map(named));
        files.insert(self.file.clone());
        files.into_iter().map(digest).collect()
    }
}

/// Looks after a node's file.
pub struct Reload {
    /// Where its configuration comes from.
    pub source: Source,
    /// How its files were when `running` was read: a change while the node waits to join is one too.
    pub applied: Seen,
    /// What runs.
    pub running: NodeConfig,
    /// For /metrics.
    pub figures: watch::Sender<ConfigFigures>,
}

impl Reload {
    /// Until it is dropped. `apply` checks all of a configuration before it changes anything.
    pub async fn keep(mut self, apply: impl Fn(&NodeConfig) -> anyhow::Result<()> + Send) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return warn!(%error, "no signal can be listened for: node.yaml is not read again"),
        };
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!(file = %self.source.file.display(), live = LIVE.join(", "), "a changed file is read again; these keys need no restart");
        let mut before = self.look().await;
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                _ = ticks.tick() => false,
            };
            let now = self.look().await;
            // Twice the same: nobody is in the middle of writing it.
            let settled = std::mem::replace(&mut before, now.clone()) == now;
            if asked || (settled && now != self.applied) {
                // Both read files.
                tokio::task::block_in_place(|| self.read_again(&apply));
                // By now it may name other files.
                self.applied = self.look().await;
                before.clone_from(&self.applied);
            }
        }
    }

    fn read_again(&mut self, apply: &(impl Fn(&NodeConfig) -> anyhow::Result<()> + Send)) {
        let file = self.source.file.display();
        let read = match (self.source.read)() {
            Ok(read) => read,
            Err(error) => return self.refuse(&error),
        };
        let next = adopted(&self.running, &read);
        let live = differences(&self.running, &next);
        let waiting = differences(&next, &read);
        if let Err(error) = apply(&next) {
            return self.refuse(&error);
        }
        self.running = next;
        self.figures.send_replace(ConfigFigures { broken: false, waiting: waiting.len() });
        info!(%file, applied = %listed(&live), "the configuration was read again");
        for key in waiting {
            warn!(%file, %key, "this key has changed and needs a restart of the node: until then the old value stays");
        }
    }

    fn refuse(&self, error: &anyhow::Error) {
        self.figures.send_modify(|figures| figures.broken = true);
        error!(
            file = %self.source.file.display(), problem = %format!("{error:#}"),
            "the configuration was refused; what was read before stays"
        );
    }

    async fn look(&self) -> Seen {
        let (source, running) = (self.source.clone(), self.running.clone());
        tokio::task::spawn_blocking(move || source.look(&running)).await.unwrap_or_default()
    }
}

/// Files that hold secrets.
fn named(config: &NodeConfig) -> BTreeSet<PathBuf> {
    config.secret_files().into_iter().collect()
}

/// What runs, with [`LIVE`] keys as they are read now.
fn adopted(running: &NodeConfig, read: &NodeConfig) -> NodeConfig {
    let read = read.clone();
    NodeConfig {
        log: read.log,
        labels: read.labels,
        secrets: read.secrets,
        volumes: read.volumes,
        s3: read.s3,
        store: read.store,
        cache: read.cache,
        ..running.clone()
    }
}

/// Paths of keys in which two configurations differ, as one would write them: `timing.leaseMs`.
fn differences(one: &NodeConfig, other: &NodeConfig) -> Vec<String> {
    let mut found = Vec::new();
    let value = |config: &NodeConfig| serde_yaml::to_value(config).unwrap_or_default();
    compare("", &value(one), &value(other), &mut found);
    found
}

fn compare(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    let (Value::Mapping(left), Value::Mapping(right)) = (one, other) else {
        if one != other {
            found.push(path.to_owned());
        }
        return;
    };
    let mut keys: Vec<&str> = left.keys().chain(right.keys()).filter_map(Value::as_str).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let of = |map: &serde_yaml::Mapping| map.get(key).cloned().unwrap_or_default();
        compare(&path, &of(left), &of(right), found);
    }
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() { "nothing but files it names, or comments".to_owned() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NodeConfig {
        NodeConfig::parse(text).unwrap()
    }

    #[test]
    fn what_differs_is_named_as_it_is_written() {
        let one = config("name: a\nlabels: {zone: a, rack: '1'}\ntiming: {leaseMs: 60000}\nseeds: [a:1]\n");
        let other = config("name: a\nlabels: {zone: b, row: '2'}\ntiming: {leaseMs: 50000}\nseeds: [a:1, b:1]\n");
        let all = ["labels.rack", "labels.row", "labels.zone", "seeds", "timing.leaseMs"];
        assert_eq!(differences(&one, &other), all);
        assert!(differences(&one, &one).is_empty());
    }

    /// A key is in one of the two lists, whichever keys there will be.
    #[test]
    fn what_is_applied_is_what_live_says_and_the_rest_waits() {
        let running = config("");
        let all = "name: n\nlog: debug\nlabels: {a: b}\nsecrets: {s: /s}\nvolumes: {v: /v}\ns3: {region: r}\n\
                   cache: {maxBytes: 1GiB}\nstore: {offline: true}\nrole: {vote: never}\nrest: {bind: '127.0.0.1:1'}\nhardware: {cpu: '2'}\n";
        let read = config(all);
        let next = adopted(&running, &read);
        let applied = differences(&running, &next);
        let live = |path: &String| LIVE.contains(&path.split('.').next().unwrap_or_default());
        assert!(applied.iter().all(live), "{applied:?}");
        assert_eq!(applied.len(), LIVE.len(), "each of them: {applied:?}");
        assert_eq!(differences(&next, &read), ["hardware.cpu", "name", "rest.bind", "role.vote"]);
    }
}
