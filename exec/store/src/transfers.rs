//! The worker's side of this crate: errors become failures for the ledger.

use std::path::Path;

use async_trait::async_trait;
use mloc_core::{
    id::AttemptId,
    ledger::entry::{CheckpointRef, Failure, TaskResult},
    task::spec::{Location, Pin},
};
use mloc_exec::{Arrived, Lineage, ModuleOutput, OnMoved, OnSaid, Transfers, checkpoint::Retention};

use crate::Store;

#[async_trait]
impl Transfers for Store {
    async fn pull(&self, source: &Location, pin: Option<&Pin>, tell: OnMoved, say: OnSaid) -> Result<Arrived, Failure> {
        let pulled = Store::pull(self, source, pin, tell, say).await?;
        Ok(Arrived { path: pulled.path, pin: pulled.pin, held: pulled.held })
    }

    fn make_room(&self, bytes: u64) {
        self.cache().make_room(bytes);
    }

    fn tidy(&self) {
        self.cache().tidy();
        self.cache().keep_bound();
    }

    async fn fetch_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        folder: &Path,
        tell: OnMoved,
    ) -> Result<Option<CheckpointRef>, Failure> {
        let fetched = Store::fetch_checkpoint(self, attempt, destination, folder, tell).await?;
        Ok(fetched.map(|f| f.checkpoint))
    }

    async fn push_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        step: u64,
        folder: &Path,
        retention: Retention,
        tell: OnMoved,
    ) -> Result<CheckpointRef, Failure> {
        Ok(Store::push_checkpoint(self, attempt, destination, step, folder, retention, tell).await?)
    }

    async fn sweep(&self, attempt: &AttemptId, destination: &Location) -> Result<(), Failure> {
        Ok(Store::sweep(self, attempt, destination).await?)
    }

    async fn published(&self, attempt: &AttemptId, destination: &Location) -> Result<Option<TaskResult>, Failure> {
        Ok(Store::published(self, attempt, destination).await?)
    }

    async fn publish(
        &self,
        attempt: &AttemptId,
        destination: Option<&Location>,
        folder: &Path,
        made: &ModuleOutput,
        lineage: Option<Lineage>,
        tell: OnMoved,
    ) -> Result<TaskResult, Failure> {
        Ok(Store::publish(self, attempt, destination, folder, made, lineage, tell).await?)
    }
}
