//! What attempts of this node are given by its owner. It may change while the node runs: an attempt takes what is there
//! when it needs it, and what it has begun with stays with it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use mloc_exec::{Programs, Transfers};

/// Secrets, the way to places, and how programs of users are run: changed all at once.
pub struct Tools(RwLock<Given>);

struct Given {
    secrets: BTreeMap<String, String>,
    programs: Option<Programs>,
    transfers: Arc<dyn Transfers>,
}

impl Tools {
    pub(crate) fn new(
        secrets: BTreeMap<String, String>,
        transfers: Arc<dyn Transfers>,
        programs: Option<Programs>,
    ) -> Self {
        Self(RwLock::new(Given { secrets, programs, transfers }))
    }

    fn given(&self) -> RwLockReadGuard<'_, Given> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        self.given().secrets.get(name).cloned()
    }

    pub(crate) fn transfers(&self) -> Arc<dyn Transfers> {
        self.given().transfers.clone()
    }

    pub(crate) fn programs(&self) -> Option<Programs> {
        self.given().programs.clone()
    }

    /// Gives these from now on. Programs of users are never shown a file that is `hidden`; whether they are run at all, and
    /// how they are held, does not change while the node runs.
    pub fn change(&self, secrets: BTreeMap<String, String>, transfers: Arc<dyn Transfers>, hidden: Vec<PathBuf>) {
        let mut given = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(programs) = &mut given.programs {
            // What was a secret file may still be one.
            programs.hidden.extend(hidden);
            programs.hidden.sort();
            programs.hidden.dedup();
        }
        given.secrets = secrets;
        given.transfers = transfers;
    }
}
