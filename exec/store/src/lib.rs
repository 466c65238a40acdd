//! Sources, destinations, checkpoints and manifests: how bytes come and go.
//!
//! ```text
//! Location + StoreConfig → kinds: one row each kind of place
//!     → Source  a folder of a volume, or a Remote   (files of one version, read in ranges; other nodes' too)
//!     → Git     a commit of a repository            (a pack, a tree of files, large ones through transfer)
//!     → Area    a folder of a volume, a prefix of a bucket, a branch of a repository (a result is one commit there)
//!   pull         Source → where the attempt can open it       (cache: each content once; transfer: chunks, resumed)
//!   checkpoints  folder → TASK/REPLICA/step-N/ and back       (manifest last, digests checked)
//!   publish      outputs → destination, once                  (manifest last, only where there is none)
//!   artifact     a file of a result → whoever asks for it     (what the manifest names, nothing else)
//! ```
//!
//! Every file is whole under its name or not there; every error says where, what was found and what would work, and
//! whether another try is worth it. Left to others: when to do any of this (the attempt), and whether it may (the
//! ledger). Bytes never pass the leader; credentials never leave [`StoreConfig`].
//!
//! A new kind of place is a file with its opener, a row in `kinds`, and its account in [`StoreConfig`].
//!
//! Deliberately absent: burn, redb, libp2p.

mod answer;
mod artifact;
mod azblob;
mod bucket;
mod cache;
mod checkpoints;
mod client;
mod config;
mod disk;
mod error;
mod folder;
mod gcs;
mod git;
mod http;
mod hub;
mod kinds;
mod leftovers;
mod manifest;
mod meter;
mod mirror;
mod patience;
mod peer;
mod place;
mod publish;
mod pull;
mod rate;
mod remote;
mod s3;
mod service;
mod transfer;
mod transfers;
mod volume;

use std::sync::Arc;

use mloc_core::task::spec::Location;
use mloc_exec::Peers;

pub use self::{
    artifact::ArtifactFile,
    cache::{Cache, CacheConfig, Holding, Verified, Verify},
    checkpoints::Fetched,
    config::{AzblobConfig, GcsConfig, GitAccount, HttpAccount, HubConfig, S3Config, Secret, StoreConfig},
    error::StoreError,
    leftovers::UPLOADING,
    manifest::{FORMAT, MANIFEST, Manifest},
    meter::bytes_moved,
    mirror::Mirror,
    patience::Patience,
    pull::{Pulled, PulledFile},
};

/// A node's way to places. Cheap to clone; one is enough.
#[derive(Clone)]
pub struct Store {
    config: Arc<StoreConfig>,
    client: client::Client,
    limit: rate::Limit,
    cache: cache::Cache,
    peers: Option<Arc<dyn Peers>>,
}

impl Store {
    /// Makes the HTTP client; sends nothing.
    ///
    /// # Errors
    /// [`StoreError::Unready`] when the client cannot be made.
    pub fn new(mut config: StoreConfig) -> Result<Self, StoreError> {
        for folder in config.volumes.values_mut() {
            // Relative to where the node was started; it stays so if the process goes elsewhere.
            *folder = std::path::absolute(&*folder).map_err(|e| StoreError::disk("find", folder, e))?;
        }
        let dir = &mut config.cache.dir;
        *dir = std::path::absolute(&*dir).map_err(|e| StoreError::disk("find", dir, e))?;
        let client = client::Client::new(&config.patience)?;
        let limit = rate::Limit::new(config.rate_limit);
        let cache = cache::Cache::new(config.cache.clone());
        Ok(Self { config: Arc::new(config), client, limit, cache, peers: None })
    }

    /// The same with a way to the files of other nodes.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn Peers>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// Where pulled sources are kept.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What this node offers to tasks: `source:KIND` and `destination:KIND` for each kind of place that this build
    /// reaches, and `volume:NAME` for each declared volume.
    pub fn features(&self) -> Vec<String> {
        let volumes = self.config.volumes.keys().map(|name| format!("volume:{name}"));
        // Offline, sources may be in the cache; destinations are not.
        let reached = |f: &String| !self.config.offline || !f.starts_with("destination:") || f == "destination:local";
        kinds::features().filter(reached).chain(volumes).collect()
    }

    fn area(&self, location: &Location) -> Result<Box<dyn place::Area>, StoreError> {
        let area = kinds::area(self, location)?;
        match location {
            Location::Local { .. } => Ok(area),
            _ if self.config.offline => Err(StoreError::offline_destination(area.url())),
            _ => Ok(area),
        }
    }
}
