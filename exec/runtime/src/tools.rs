//! What attempts of this node are given by its owner. It may change while the node runs: an attempt takes what is there
//! when it needs it, and what it has begun with stays with it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use mloc_exec::{Programs, Transfers};

/// Secrets, the way to places, and how programs of users are run.
pub struct Tools {
    secrets: RwLock<BTreeMap<String, String>>,
    programs: RwLock<Option<Programs>>,
    transfers: RwLock<Arc<dyn Transfers>>,
}

impl Tools {
    pub(crate) fn new(
        secrets: BTreeMap<String, String>,
        transfers: Arc<dyn Transfers>,
        programs: Option<Programs>,
    ) -> Self {
        Self { secrets: RwLock::new(secrets), programs: RwLock::new(programs), transfers: RwLock::new(transfers) }
    }

    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        self.secrets.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn transfers(&self) -> Arc<dyn Transfers> {
        self.transfers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn programs(&self) -> Option<Programs> {
        self.programs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives these from now on. Programs of users are never shown a file that is `hidden`; whether they are run at all, and
    /// how they are held, does not change while the node runs.
    pub fn change(&self, secrets: BTreeMap<String, String>, transfers: Arc<dyn Transfers>, hidden: Vec<PathBuf>) {
        if let Some(programs) = &mut *self.programs.write().unwrap_or_else(PoisonError::into_inner) {
            // What was a secret file may still be one.
            programs.hidden.extend(hidden);
            programs.hidden.sort();
            programs.hidden.dedup();
        }
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
        *self.transfers.write().unwrap_or_else(PoisonError::into_inner) = transfers;
    }
}
