//! Bytes between nodes, as this node gives and gets them: uploads and results that lie here go to members and to REST's
//! callers, those of others come over the mesh. The leader is asked what there is; bytes never pass it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::StreamExt;
use mloc_api::{
    Caller, ControlError, Files,
    files::{FileBytes, Uploaded},
    forward::Asking,
    view::{BroughtView, Missing, ResultView},
};
use mloc_core::{
    files::{BroughtTree, PeerFile, is_digest},
    id::{AttemptId, NodeId},
    ledger::entry::FailureClass,
    quantity::show_bytes,
    task::spec::Location,
};
use mloc_exec::{PeerBytes, PeerError, Peers};
use mloc_mesh::{
    handle::MeshHandle,
    link::files::{FileError, FileHead, FileRefusal, FileRequest, FileSource, OutgoingFile},
};
use mloc_runtime::result_folder;
use mloc_store::{Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tracing::{debug, info, warn};

use crate::uploads::{Collected, Uploads};

/// Bytes of a file read at once.
const PIECE_BYTES: usize = 256 << 10;
/// Between two looks for what may go, at most: what is kept for a day may stay some minutes longer.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Files of this node, and the way to those of others.
pub struct NodeFiles {
    mesh: MeshHandle,
    store: RwLock<Store>,
    uploads: Arc<Uploads>,
    data_dir: PathBuf,
}

impl NodeFiles {
    /// Files below this data directory; published results are read through the store.
    pub fn new(mesh: MeshHandle, store: Store, uploads: Arc<Uploads>, data_dir: PathBuf) -> Self {
        Self { mesh, store: RwLock::new(store), uploads, data_dir }
    }

    /// Reads published results through this store from now on.
    pub fn change(&self, store: Store) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store;
    }

    /// This node's way to places, as it is now.
    pub fn store(&self) -> Store {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Uploads) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let uploads = self.uploads.clone();
        let done = tokio::task::spawn_blocking(move || work(&uploads)).await;
        done.unwrap_or_else(|e| Err(ControlError::Internal(format!("uploads can't be looked at: {e}"))))
    }

    /// Opens a file that lies on this node, or that this node can read where it was published.
    async fn open_here(&self, what: &PeerFile, offset: u64, length: Option<u64>) -> Result<PeerBytes, FileRefusal> {
        let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
        let (total, sha256, bytes) = match what {
            PeerFile::Blob { sha256 } => {
                let (total, bytes) = self.open_blob(sha256, offset, end).await?;
                (total, sha256.clone(), bytes)
            }
            PeerFile::Artifact { attempt, destination, path } => {
                let file = match destination {
                    Some(destination) => self.store().open_published(attempt, destination, path, offset..end).await,
                    None => {
                        let folder = result_folder(&self.data_dir, attempt);
                        self.store().open_kept(attempt, &folder, path, offset..end).await
                    }
                };
                let file = file.map_err(|error| refusal(&error))?;
                (file.total, file.sha256, file.bytes)
            }
        };
        if offset > total {
            return Err(FileRefusal::Refused(format!("{what} has {total} bytes, and byte {offset} is beyond its end")));
        }
        Ok(PeerBytes { total, sha256: Some(sha256), length: end.min(total) - offset, bytes })
    }

    async fn open_blob(&self, sha256: &str, offset: u64, end: u64) -> Result<(u64, FileBytes), FileRefusal> {
        if !is_digest(sha256) {
            return Err(FileRefusal::Refused(format!("`{sha256}` is no SHA-256")));
        }
        let later = |e: io::Error| FileRefusal::Later(format!("the uploaded file {sha256} can't be read: {e}"));
        let (uploads, name) = (self.uploads.clone(), sha256.to_owned());
        let opened = tokio::task::spawn_blocking(move || uploads.read(&name)).await.map_err(io::Error::other);
        let Some((file, total)) = opened.and_then(|opened| opened).map_err(later)? else {
            return Err(FileRefusal::Unknown(format!("this node has no uploaded file {sha256}")));
        };
        let mut file = tokio::fs::File::from_std(file);
        file.seek(io::SeekFrom::Start(offset)).await.map_err(later)?;
        let part = file.take(end.saturating_sub(offset));
        Ok((total, ReaderStream::with_capacity(part, PIECE_BYTES).boxed()))
    }
}

/// Why this node does not give it, in a member's terms.
fn refusal(error: &StoreError) -> FileRefusal {
    match error {
        StoreError::NotFound { .. } | StoreError::Empty { .. } => FileRefusal::Unknown(error.to_string()),
        _ if error.class() == FailureClass::Retryable => FileRefusal::Later(error.to_string()),
        _ => FileRefusal::Refused(error.to_string()),
    }
}

#[async_trait]
impl FileSource for NodeFiles {
    async fn open(&self, asker: &NodeId, request: &FileRequest) -> Result<OutgoingFile, FileRefusal> {
        debug!(%asker, what = %request.what, offset = request.offset, "a member asks for a file");
        let file = self.open_here(&request.what, request.offset, request.length).await?;
        Ok(OutgoingFile { head: FileHead { total: file.total, sha256: file.sha256 }, bytes: file.bytes })
    }
}

#[async_trait]
impl Peers for NodeFiles {
    async fn open(
        &self,
        node: &NodeId,
        what: &PeerFile,
        offset: u64,
        length: Option<u64>,
    ) -> Result<PeerBytes, PeerError> {
        let refused = |why: FileRefusal, text: String| match why {
            FileRefusal::Unknown(_) => PeerError::Unknown(text),
            FileRefusal::Refused(_) => PeerError::Refused(text),
            FileRefusal::Later(_) => PeerError::Unreachable(text),
        };
        if node == self.mesh.node() {
            return self.open_here(what, offset, length).await.map_err(|why| refused(why.clone(), why.to_string()));
        }
        let request = FileRequest { what: what.clone(), offset, length };
        match self.mesh.open_file(node, &request).await {
            Ok(file) => {
                let FileHead { total, sha256 } = file.head;
                Ok(PeerBytes { total, sha256, length: file.length, bytes: file.bytes })
            }
            Err(FileError::Refused { node, why }) => Err(refused(why.clone(), format!("node {node}: {why}"))),
            Err(error @ (FileError::Link(_) | FileError::Broken { .. })) => {
                Err(PeerError::Unreachable(error.to_string()))
            }
        }
    }
}

#[async_trait]
impl Files for NodeFiles {
    fn node(&self) -> NodeId {
        self.mesh.node().clone()
    }

    async fn uploaded(&self, sha256: &str) -> Result<Uploaded, ControlError> {
        let sha256 = sha256.to_owned();
        self.blocking(move |uploads| uploads.have(&sha256)).await
    }

    async fn upload(&self, sha256: &str, offset: u64, length: u64, bytes: FileBytes) -> Result<Uploaded, ControlError> {
        self.uploads.receive(sha256, offset, length, bytes).await
    }

    async fn missing(&self, tree: &str) -> Result<Vec<Missing>, ControlError> {
        let tree = tree.to_owned();
        self.blocking(move |uploads| uploads.missing(&tree, SystemTime::now())).await
    }

    async fn keep(&self, brought: &BTreeMap<String, BroughtTree>) -> Result<(), ControlError> {
        let brought = brought.clone();
        self.blocking(move |uploads| uploads.keep(&brought, SystemTime::now())).await
    }

    async fn artifact(&self, result: &ResultView, path: &str, range: Range<u64>) -> Result<FileBytes, ControlError> {
        let odd = |what: &str| ControlError::Internal(format!("the ledger does not say {what} of this result"));
        let attempt: AttemptId = result.attempt.parse().map_err(|_| odd("the attempt"))?;
        let made_on = Some(&result.node).filter(|node| !node.is_empty()).ok_or_else(|| odd("the node"))?;
        let made_on = NodeId::new(made_on.as_str());
        let (offset, length) = (range.start, Some(range.end - range.start));
        let what = PeerFile::Artifact { attempt, destination: result.destination.clone(), path: path.to_owned() };
        // Where it was published this node may reach it by itself.
        let why_not_here = match (&result.destination, made_on == *self.mesh.node()) {
            (Some(_), false) => match self.open_here(&what, offset, length).await {
                Ok(file) => return Ok(file.bytes),
                Err(why) => Some(why),
            },
            (Some(_), true) | (None, _) => None,
        };
        match Peers::open(self, &made_on, &what, offset, length).await {
            Ok(file) => Ok(file.bytes),
            Err(there) => {
                let here = why_not_here.map(|why| format!("; this node itself can't read it either: {why}"));
                let text =
                    format!("`{path}` can't be read on {}: {there}{}", result.node_name, here.unwrap_or_default());
                Err(match there {
                    PeerError::Unreachable(_) => ControlError::Unavailable(text),
                    PeerError::Unknown(_) => ControlError::NotFound(format!("such file any more: {text}")),
                    PeerError::Refused(_) => ControlError::Conflict(text),
                })
            }
        }
    }
}

/// Clears away uploads that no task needs any more, for ever. What the leader does not say is not known, and kept.
pub async fn collect_uploads(uploads: Arc<Uploads>, node: NodeId, asking: Asking) {
    let every = COLLECT_EVERY.min(uploads.keep_for() / 4);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        ticks.tick().await;
        let path = format!("/api/v1/files?node={node}");
        let collected = match asking.read::<Vec<BroughtView>>(&Caller::admin(), &path).await {
            Ok(live) => {
                let named: BTreeSet<String> = live.into_iter().map(|b| b.tree).filter(|tree| is_digest(tree)).collect();
                let here = uploads.clone();
                let done = tokio::task::spawn_blocking(move || here.collect(&named, SystemTime::now())).await;
                done.unwrap_or_default()
            }
            Err(why) => Collected {
                kept_because: Some(format!("which of them tasks still need is not known: {why}")),
                ..Collected::default()
            },
        };
        if collected.files > 0 {
            info!(
                files = collected.files,
                bytes = show_bytes(collected.bytes),
                "uploads that no task needs were removed"
            );
        }
        // Each reason once: an outage is not news every minute.
        if let Some(why) = collected.kept_because.as_ref().filter(|why| said.as_ref() != Some(*why)) {
            warn!(why, "uploads are kept");
        }
        said = collected.kept_because;
    }
}

/// What of a task's sources came along with it.
pub fn brought_of<'s>(
    sources: impl Iterator<Item = &'s Location>,
) -> impl Iterator<Item = (NodeId, String, String, u64)> {
    sources.filter_map(|source| {
        let Location::Submitted { node, tree, path, bytes } = source else { return None };
        Some((node.clone(), tree.clone(), path.clone(), *bytes))
    })
}
