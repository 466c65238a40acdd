//! Sources, destinations, checkpoints and manifests: how bytes come and go.
//!
//! ```text
//! Location + StoreConfig → kinds: one row each kind of place
//!     → Source  a folder of a volume, or a Remote   (files of one version, read in ranges)
//!     → Git     a commit of a repository                    (a pack, a tree of files, LFS through transfer)
//!     → Area    a folder of a volume, a prefix of a bucket
//!   pull         Source → where the attempt can open it       (transfer: chunks, resumed)
//!   checkpoints  folder → TASK/REPLICA/step-N/ and back       (manifest last, digests checked)
//!   publish      outputs → destination, once                  (manifest last, only where there is none)
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
mod azblob;
mod bucket;
mod checkpoints;
mod client;
mod config;
mod disk;
mod error;
mod folder;
mod gcs;
mod git;
mod kinds;
mod manifest;
mod meter;
mod place;
mod publish;
mod pull;
mod remote;
mod s3;
mod service;
mod transfer;
mod transfers;
mod volume;

use std::sync::Arc;

use mloc_core::task::spec::Location;

pub use self::{
    checkpoints::Fetched,
    config::{AzblobConfig, GcsConfig, GitAccount, Patience, S3Config, Secret, StoreConfig},
    error::StoreError,
    manifest::{FORMAT, MANIFEST, Manifest},
    pull::{Pulled, PulledFile},
};

/// A node's way to places. Cheap to clone; one is enough.
#[derive(Clone)]
pub struct Store {
    config: Arc<StoreConfig>,
    client: client::Client,
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
        let client = client::Client::new(&config.patience)?;
        Ok(Self { config: Arc::new(config), client })
    }

    /// What this node offers to tasks: `source:KIND` and `destination:KIND` for each kind of place that this build
    /// reaches, and `volume:NAME` for each declared volume.
    pub fn features(&self) -> Vec<String> {
        let volumes = self.config.volumes.keys().map(|name| format!("volume:{name}"));
        kinds::features().chain(volumes).collect()
    }

    fn source(&self, location: &Location) -> Result<place::Source, StoreError> {
        kinds::source(self, location)
    }

    fn area(&self, location: &Location) -> Result<Box<dyn place::Area>, StoreError> {
        kinds::area(self, location)
    }
}
