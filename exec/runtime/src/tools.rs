//! What attempts of this node are given by its owner. It may change while the node runs: an attempt takes what is there
//! when it needs it, and what it has begun with stays with it.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use mloc_exec::Transfers;

use crate::cache::Cache;

/// Secrets, the way to places, and the cache's bound.
pub struct Tools {
    secrets: RwLock<BTreeMap<String, String>>,
    transfers: RwLock<Arc<dyn Transfers>>,
    cache: Arc<Cache>,
}

impl Tools {
    pub(crate) fn new(secrets: BTreeMap<String, String>, transfers: Arc<dyn Transfers>, cache: Arc<Cache>) -> Self {
        Self { secrets: RwLock::new(secrets), transfers: RwLock::new(transfers), cache }
    }

    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        self.secrets.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn transfers(&self) -> Arc<dyn Transfers> {
        self.transfers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives these from now on. Sources beyond a smaller bound go with the next one that is pulled.
    pub fn change(
        &self,
        secrets: BTreeMap<String, String>,
        transfers: Arc<dyn Transfers>,
        cache_bytes_max: Option<u64>,
    ) {
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
        *self.transfers.write().unwrap_or_else(PoisonError::into_inner) = transfers;
        self.cache.bound_to(cache_bytes_max);
    }
}
