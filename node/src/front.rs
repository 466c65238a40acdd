//! What others see of a node first: where REST listens, and the file that says so. REST answers from the process's first
//! moment on; before the node has joined a mesh it says what it waits for.

use std::{
    fs::{File, TryLockError},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use axum::Router;
use mloc_api::Door;
use mloc_core::id::NodeId;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

/// Where the daemon writes its addresses, for scripts, probes and tests.
const ADDRESS_FILE: &str = "node.json";
/// Held while a node runs on the data directory.
const LOCK_FILE: &str = "node.lock";

/// A listener and what stands behind it.
pub struct Front {
    /// Where REST listens.
    pub rest: SocketAddr,
    /// What the node waits for before it serves.
    pub waiting: watch::Sender<String>,
    door: Door,
    data_dir: PathBuf,
    _lock: File,
}

impl Front {
    /// Takes the data directory, listens, answers, and writes where. `data_dir` exists.
    ///
    /// # Errors
    /// When another node runs on the data directory, the address is taken, or a file can't be written.
    pub async fn open(
        bind: SocketAddr,
        data_dir: &Path,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let lock = lock(data_dir)?;
        let listener = TcpListener::bind(bind).await.with_context(|| {
            format!("REST can't listen on {bind}: is another node running here? --rest-bind takes another address")
        })?;
        let rest = listener.local_addr().context("the REST address")?;
        let waiting = watch::Sender::new("starting".to_owned());
        let door = Door::closed(waiting.subscribe());
        let (app, stop) = (door.router(), stop.clone());
        tracker.spawn(async move {
            let ended = tokio::select! {
                ended = axum::serve(listener, app) => ended,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                warn!(%error, "REST ended");
            }
        });
        let front = Self { rest, waiting, door, data_dir: data_dir.to_owned(), _lock: lock };
        // An earlier start's addresses would be taken for this one's.
        front.write(&json!({ "rest": rest.to_string() }))?;
        Ok(front)
    }

    /// Requests go to the node from now on.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn serve(&self, app: Router, node: &NodeId, gossip: SocketAddr) -> anyhow::Result<()> {
        self.door.open(app);
        self.write(&json!({ "node": node, "gossip": gossip.to_string(), "rest": self.rest.to_string() }))
    }

    /// The node is stopping.
    pub fn leave(&self) {
        self.door.leave();
    }

    fn write(&self, addresses: &Value) -> anyhow::Result<()> {
        let path = self.data_dir.join(ADDRESS_FILE);
        // Renamed into place: a reader sees all of it or nothing.
        let draft = path.with_extension("json.new");
        std::fs::write(&draft, format!("{addresses:#}\n"))
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Two nodes on one data directory would be one identity twice.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("write to the data directory: {}", path.display()))?;
    match file.try_lock() {
        // A file system without locks: ledger and journal have locks of their own.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another node runs on the data directory {}\nhint: `mloc healthz --data-dir {0}` asks it; --data-dir \
             takes another one",
            data_dir.display()
        ),
    }
}

/// Where the node of a data directory answers, from this machine.
///
/// # Errors
/// When none has started there.
pub fn rest_of(data_dir: &Path) -> anyhow::Result<SocketAddr> {
    let path = data_dir.join(ADDRESS_FILE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: no node has started with this data directory", path.display()))?;
    let known: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let rest = known["rest"].as_str().with_context(|| format!("{}: it names no REST address", path.display()))?;
    Ok(own(rest.parse().with_context(|| format!("{}: {rest}", path.display()))?))
}

/// How this machine reaches an address that it listens on.
pub fn own(rest: SocketAddr) -> SocketAddr {
    let ip = match rest.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, rest.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reaches_itself_where_it_listens() {
        for (listens, at) in [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("10.0.0.1:7", "10.0.0.1:7")] {
            assert_eq!(own(listens.parse().unwrap()).to_string(), at);
        }
    }
}
