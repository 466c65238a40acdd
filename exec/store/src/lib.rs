//! Sources, destinations, checkpoints and manifests: how bytes come and go.
//!
//! ```text
//! Location + StoreConfig → Place (a folder of a volume, a prefix of a bucket)
//!   pull         source → where the attempt can open it       (transfer: chunks, resumed)
//!   checkpoints  folder → TASK/REPLICA/step-N/ and back       (manifest last, digests checked)
//!   publish      outputs → destination, once                  (manifest last, only where there is none)
//! ```
//!
//! Every file is whole under its name or not there; every error says where, what was found and what would work, and
//! whether another try is worth it. Left to others: when to do any of this (the attempt), and whether it may (the
//! ledger). Bytes never pass the leader; credentials never leave [`S3Config`].
//!
//! Deliberately absent: burn, redb, libp2p. Not here yet: the Hugging Face Hub, other clouds.

mod answer;
mod bucket;
mod checkpoints;
mod config;
mod disk;
mod error;
mod git;
mod manifest;
mod meter;
mod place;
mod publish;
mod pull;
mod remote;
mod transfer;
mod transfers;
mod volume;

use std::sync::Arc;

use mloc_core::task::spec::Location;

pub use self::{
    checkpoints::Fetched,
    config::{GitAccount, Patience, S3Config, Secret, StoreConfig},
    error::StoreError,
    manifest::{FORMAT, MANIFEST, Manifest},
    pull::{Pulled, PulledFile},
};

/// Kinds of places every node with this crate reaches, as tasks ask for them.
pub const FEATURES: [&str; 5] = ["source:local", "source:s3", "source:git", "destination:local", "destination:s3"];

/// A node's way to places. Cheap to clone; one is enough.
#[derive(Clone)]
pub struct Store {
    config: Arc<StoreConfig>,
    client: bucket::Client,
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
        let client = bucket::Client::new(&config.patience)?;
        Ok(Self { config: Arc::new(config), client })
    }

    /// What this node offers to tasks: [`FEATURES`], and `volume:NAME` for each declared volume.
    pub fn features(&self) -> Vec<String> {
        let volumes = self.config.volumes.keys().map(|name| format!("volume:{name}"));
        FEATURES.iter().map(|f| (*f).to_owned()).chain(volumes).collect()
    }

    /// Whether a place can be meant on this node: its volume is declared, its endpoint is a URL. Sends nothing.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(&self, location: &Location) -> Result<(), StoreError> {
        self.place(location).map(drop)
    }

    fn place(&self, location: &Location) -> Result<place::Place, StoreError> {
        place::Place::open(&self.config, &self.client, location)
    }
}
