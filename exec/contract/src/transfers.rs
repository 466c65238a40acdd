//! How bytes come and go, as the worker needs it. Behind it stand `mloc-store` and, in tests, folders.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use mloc_core::{
    id::AttemptId,
    ledger::entry::{CheckpointRef, Failure, TaskResult},
    task::spec::{Location, Pin},
};

use crate::module::Output;

/// A source that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Where.
    pub path: PathBuf,
    /// What it is, in the source's own terms; `None` for sources without versions.
    pub pin: Option<Pin>,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes at their goal, those of an earlier try included.
    pub done: u64,
    /// Bytes in all; 0 while nobody knows.
    pub total: u64,
}

/// Called with each step of a transfer, from any thread: must be quick.
pub type OnMoved = Arc<dyn Fn(Moved) + Send + Sync>;

/// Called when so many bytes are to be free on a pull's disk and are not: frees what it can. Blocks.
pub type MakeRoom = Arc<dyn Fn(u64) + Send + Sync>;

/// A worker's way to sources and destinations. Every call may be dropped and made again: it goes on where it was.
/// A dropped call gives no file its name any more; a thread of it may be in the middle of a block, and holds
/// [`OnMoved`] until it touches nothing: who must know when that is lets the closure own something that says so.
#[async_trait]
pub trait Transfers: Send + Sync + 'static {
    /// Brings a source below `folder` (or uses it where it lies) and says where it can be opened: a folder, or the
    /// file where the source is one file. With a `pin` it is what was pinned, or an error. Asks for `room` before it
    /// says that there is none.
    async fn pull(
        &self,
        source: &Location,
        pin: Option<&Pin>,
        folder: &Path,
        room: MakeRoom,
        tell: OnMoved,
    ) -> Result<Arrived, Failure>;

    /// Brings the newest whole checkpoint of this task and replica into `folder`, which is emptied first, and says
    /// which it is. `None` when there is no whole one. Damaged ones are passed over and logged.
    async fn fetch_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        folder: &Path,
        tell: OnMoved,
    ) -> Result<Option<CheckpointRef>, Failure>;

    /// Puts a checkpoint's folder where other nodes can read it, and removes all but the newest `keep` (0 keeps all).
    async fn push_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        step: u64,
        folder: &Path,
        keep: usize,
        tell: OnMoved,
    ) -> Result<CheckpointRef, Failure>;

    /// What an earlier attempt of this task and replica published and could not report: nothing is left to compute.
    async fn published(&self, attempt: &AttemptId, destination: &Location) -> Result<Option<TaskResult>, Failure>;

    /// Publishes, only after the ledger has granted the right. Without a destination the files stay where they are.
    async fn publish(
        &self,
        attempt: &AttemptId,
        destination: Option<&Location>,
        folder: &Path,
        outputs: &[Output],
        summary: BTreeMap<String, serde_json::Value>,
        tell: OnMoved,
    ) -> Result<TaskResult, Failure>;
}
