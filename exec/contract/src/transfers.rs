//! How bytes come and go, as the worker needs it. Behind it stand `mloc-store` and, in tests, folders.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use mloc_core::{
    id::AttemptId,
    ledger::entry::{CheckpointRef, Failure, TaskResult},
    task::spec::{Location, Pin},
};

use crate::{checkpoint::Retention, lineage::Lineage, module::ModuleOutput};

/// A source that can be opened.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Where.
    pub path: PathBuf,
    /// What it is, in the source's own terms; `None` for sources without versions.
    pub pin: Option<Pin>,
    /// It is not evicted while this is open, in whatever process: a child that inherits it keeps it as well.
    pub held: Option<Arc<File>>,
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

/// Called with sentences for the attempt's log: what is waited for, what was found damaged. From any thread.
pub type OnSaid = Arc<dyn Fn(&str) + Send + Sync>;

/// A worker's way to sources and destinations. Every call may be dropped and made again: it goes on where it was.
/// A dropped call gives no file its name any more; a thread of it may be in the middle of a block, or an upload may be
/// taking its parts back, and holds [`OnMoved`] until it touches nothing: who must know when that is lets the closure own
/// something that says so.
#[async_trait]
pub trait Transfers: Send + Sync + 'static {
    /// Brings a source to this node (or uses it where it lies) and says where it can be opened: a folder, or the file
    /// where the source is one file. With a `pin` it is what was pinned, or an error.
    async fn pull(&self, source: &Location, pin: Option<&Pin>, tell: OnMoved, say: OnSaid) -> Result<Arrived, Failure>;

    /// Gives up pulled sources that nobody uses until so many bytes are free on their disk, or none is left. Blocks.
    fn make_room(&self, bytes: u64);

    /// Looks after pulled sources as a worker starts: what dead processes left goes, and what is beyond their bound.
    /// Blocks.
    fn tidy(&self);

    /// Brings the newest whole checkpoint of this task and replica into `folder`, which is emptied first, and says
    /// which it is. `None` when there is no whole one. Damaged ones are passed over and logged.
    async fn fetch_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        folder: &Path,
        tell: OnMoved,
    ) -> Result<Option<CheckpointRef>, Failure>;

    /// Puts a checkpoint's folder where other nodes can read it, and removes what does not stay.
    async fn push_checkpoint(
        &self,
        attempt: &AttemptId,
        destination: &Location,
        step: u64,
        folder: &Path,
        retention: Retention,
        tell: OnMoved,
    ) -> Result<CheckpointRef, Failure>;

    /// As a worker starts: clears away the temporary files that an attempt of it was writing to a destination on its own
    /// disks when the daemon died.
    async fn sweep(&self, attempt: &AttemptId, destination: &Location) -> Result<(), Failure>;

    /// What an earlier attempt of this task and replica published and could not report: nothing is left to compute.
    async fn published(&self, attempt: &AttemptId, destination: &Location) -> Result<Option<TaskResult>, Failure>;

    /// Publishes, only after the ledger has granted the right. Without a destination the files stay where they are, with
    /// the manifest beside them.
    async fn publish(
        &self,
        attempt: &AttemptId,
        destination: Option<&Location>,
        folder: &Path,
        made: &ModuleOutput,
        lineage: Option<Lineage>,
        tell: OnMoved,
    ) -> Result<TaskResult, Failure>;
}
