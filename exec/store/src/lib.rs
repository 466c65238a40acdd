//! Sources, destinations, checkpoints and manifests: how bytes come and go.
//!
//! ```text
//! Location + StoreConfig → kinds: one row each kind of place → what it comes to on this node (place)
//!   Source   folder     a volume's file or folder, used where it lies                    volume: which paths may be
//!            git        a commit of a repository: a pack, a tree, large files by transfer
//!            Remote     files of one version, read in ranges
//!                       bucket (service: s3, gcs, azblob; answer), http, hub, peer (other nodes' files)
//!   Area     folder, bucket, hub (a result is one commit there)
//!
//! pull         Source → cache → where the attempt can open it    mirror: from where    transfer: chunks, resumed
//! checkpoints  folder → TASK/REPLICA/step-N/ and back            manifest last, digests checked
//! publish      outputs → destination, once                       manifest last, only where there is none; leftovers
//! artifact     a file of a result → whoever asks for it          what the manifest names, nothing else
//! transfers    all of this as the worker calls it
//!
//! config       what the node's owner says              patience   how long a bad line is borne
//! client       requests, redirects, TLS                meter, rate   bytes told, and held to the node's limit
//! disk         files whole or not at all, durable      error      what went wrong, and what would work
//! ```
//!
//! Every file is whole under its name or not there; every error says where, what was found and what would work, and
//! whether another try is worth it. Left to others: when to do any of this (the attempt), and whether it may (the
//! ledger). Bytes never pass the leader; credentials never leave [`StoreConfig`].
//!
//! A new kind of place is a file with its opener, a row in `kinds`, and its account in [`StoreConfig`]; what node.yaml
//! calls that is the node's.
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
