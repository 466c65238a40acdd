//! Files of another node as a source: what came along with a task, and results that stayed on a worker's disk. Both
//! have lists with digests, so that nothing of them can change unseen.

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use mloc_core::{
    files::{PeerFile, TREE_BYTES_MAX, Tree},
    id::{AttemptId, NodeId},
    task::spec::{Location, Pin},
};
use mloc_exec::{PeerError, Peers};

use crate::{
    Store, disk,
    error::StoreError,
    manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    patience::{Patience, patiently},
    place::Source,
    remote::{Body, Digest, Listing, Object, Remote},
};

/// A source on another node, or on this one.
#[derive(Clone)]
pub(crate) struct Peer {
    peers: Arc<dyn Peers>,
    node: NodeId,
    what: What,
    patience: Patience,
}

#[derive(Clone, Debug)]
enum What {
    /// A tree by its digest, and the path people know it by.
    Brought { tree: String, path: String },
    /// A result, or a part of it.
    Kept { attempt: AttemptId, path: Option<String> },
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on node {}", self.what, self.node)
    }
}

impl Peer {
    /// A source that lies on a node.
    pub fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
        let peer = Self::open(store.peers.as_ref(), location, store.config.patience);
        peer.map(|peer| Source::Remote(Box::new(peer))).ok_or_else(|| StoreError::unsupported(location))
    }

    fn open(peers: Option<&Arc<dyn Peers>>, location: &Location, patience: Patience) -> Option<Self> {
        let (node, what) = match location {
            Location::Submitted { node, tree, path, bytes: _ } => {
                (node, What::Brought { tree: tree.clone(), path: path.clone() })
            }
            Location::Kept { node, attempt, path } => {
                (node, What::Kept { attempt: attempt.clone(), path: path.clone() })
            }
            Location::Local { .. }
            | Location::S3 { .. }
            | Location::Gcs { .. }
            | Location::Azblob { .. }
            | Location::Http { .. }
            | Location::HuggingFace { .. }
            | Location::Git { .. }
            | Location::Task { .. } => return None,
        };
        Some(Self { peers: peers?.clone(), node: node.clone(), what, patience })
    }

    fn failed(&self, name: &str, error: PeerError) -> StoreError {
        let place = self.url(name);
        let hint = match self.what {
            What::Brought { .. } => "the node that took the task does not have them any more: submit the task again",
            What::Kept { .. } => {
                "a worker keeps its newest results only: give the task whose artifacts these are an output.destination"
            }
        };
        match error {
            PeerError::Unreachable(found) => self.broken(place, found),
            PeerError::Unknown(found) | PeerError::Refused(found) => {
                StoreError::NotFound { place, found, hint: hint.to_owned() }
            }
        }
    }

    fn broken(&self, place: String, found: String) -> StoreError {
        StoreError::Unreachable { place, endpoint: format!("node {}", self.node), tries: 1, found }
    }

    /// A small file, whole. Tries again by itself.
    async fn get(&self, what: &PeerFile, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        patiently(self.patience, || self.get_once(what, bytes_max)).await
    }

    async fn get_once(&self, what: &PeerFile, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let opened = self.peers.open(&self.node, what, 0, None).await;
        let mut opened = opened.map_err(|e| self.failed("", e))?;
        if opened.total > bytes_max {
            let found = format!("its list of files has {} bytes, at most {bytes_max} are read", opened.total);
            return Err(StoreError::Damaged { place: self.url(""), found });
        }
        let mut bytes = Vec::new();
        while let Some(piece) = opened.bytes.try_next().await.map_err(|e| self.broken(self.url(""), e.to_string()))? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    async fn list_brought(&self, digest: &str) -> Result<Listing, StoreError> {
        let damaged = |found: String| StoreError::Damaged { place: self.url(""), found };
        let bytes = self.get(&PeerFile::Blob { sha256: digest.to_owned() }, TREE_BYTES_MAX).await?;
        let found = disk::stamp_bytes(&bytes).sha256;
        if found != digest {
            return Err(damaged(format!("SHA-256 of its list of files is {found}, the task says {digest}")));
        }
        let tree = Tree::read(&bytes).map_err(|e| damaged(e.to_string()))?;
        let object = |file: mloc_core::files::TreeFile| Object {
            name: file.path,
            key: file.sha256.clone(),
            bytes: file.bytes,
            etag: Some(file.sha256.clone()),
            digest: Some(Digest::Sha256(file.sha256)),
        };
        let objects = tree.files.into_iter().map(object).collect();
        Ok(Listing { objects, one: !tree.folder, version: Some(format!("sha256:{digest}")) })
    }

    async fn list_kept(&self, attempt: &AttemptId, path: Option<&str>) -> Result<Listing, StoreError> {
        let list = PeerFile::Artifact { attempt: attempt.clone(), destination: None, path: MANIFEST.to_owned() };
        let bytes = self.get(&list, MANIFEST_BYTES_MAX).await?;
        let manifest = Manifest::read(&self.url(MANIFEST), &bytes)?;
        let (mut objects, mut one) = (Vec::new(), false);
        for file in manifest.files {
            let name = match path {
                None => file.path.clone(),
                Some(path) if file.path == path => {
                    one = true;
                    path.rsplit('/').next().unwrap_or(path).to_owned()
                }
                Some(path) => match file.path.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')) {
                    Some(rest) => rest.to_owned(),
                    None => continue,
                },
            };
            let (etag, digest) = (Some(file.sha256.clone()), Some(Digest::Sha256(file.sha256)));
            objects.push(Object { name, key: file.path, bytes: file.bytes, etag, digest });
        }
        if objects.is_empty() {
            let found = format!("{attempt} left no such file");
            let hint = "`mloc artifacts ls TASK` lists what there is".to_owned();
            return Err(StoreError::NotFound { place: self.url(""), found, hint });
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { objects, one, version: None })
    }
}

#[async_trait]
impl Remote for Peer {
    fn url(&self, name: &str) -> String {
        let below = |base: String| if name.is_empty() { base } else { format!("{base}/{name}") };
        match &self.what {
            What::Brought { path, .. } => below(path.clone()),
            What::Kept { attempt, path } => {
                let path = path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
                below(format!("artifacts of {attempt}{path}"))
            }
        }
    }

    fn patience(&self) -> Patience {
        self.patience
    }

    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        match &self.what {
            What::Brought { tree, .. } => self.list_brought(tree).await,
            What::Kept { attempt, path } => self.list_kept(attempt, path.as_deref()).await,
        }
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let what = match &self.what {
            What::Brought { .. } => PeerFile::Blob { sha256: object.key.clone() },
            What::Kept { attempt, .. } => {
                PeerFile::Artifact { attempt: attempt.clone(), destination: None, path: object.key.clone() }
            }
        };
        let length = range.end.saturating_sub(range.start);
        let opened = self.peers.open(&self.node, &what, range.start, Some(length)).await;
        let opened = opened.map_err(|e| self.failed(&object.name, e))?;
        if opened.total != object.bytes {
            let found = format!("it has {} bytes, its list says {}", opened.total, object.bytes);
            return Err(StoreError::Damaged { place: self.url(&object.name), found });
        }
        let (here, place) = (self.clone(), self.url(&object.name));
        Ok(opened.bytes.map_err(move |e| here.broken(place.clone(), e.to_string())).boxed())
    }

    /// Digests don't change.
    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        Ok(object.clone())
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.broken(self.url(&object.name), format!("the answer ended at byte {at} of {}", object.bytes))
    }
}
