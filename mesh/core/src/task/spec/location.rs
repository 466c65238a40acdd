//! Where a task's bytes come from and go to, and which of them they were.

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, NodeId};

/// Where bytes come from, or go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Location {
    /// A path under a volume that the node declares.
    Local {
        /// `VOLUME/relative/path`, or an absolute path under a declared volume.
        path: String,
    },
    /// An S3-compatible bucket.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key or prefix.
        path: String,
        /// Endpoint URL; the worker's configuration or environment when absent.
        endpoint: Option<String>,
        /// Region; the worker's configuration or environment when absent.
        region: Option<String>,
    },
    /// A Google Cloud Storage bucket.
    Gcs {
        /// Bucket.
        bucket: String,
        /// Key or prefix.
        path: String,
        /// Endpoint URL; the worker's configuration or Google's own when absent.
        endpoint: Option<String>,
    },
    /// A container of Azure Blob Storage.
    Azblob {
        /// Container.
        container: String,
        /// Key or prefix.
        path: String,
        /// Storage account; the worker's configuration or environment when absent.
        account: Option<String>,
        /// Endpoint URL; the account's own when absent.
        endpoint: Option<String>,
    },
    /// One file by its URL.
    Http {
        /// `http://` or `https://`, without credentials.
        url: String,
        /// SHA-256 of its bytes, hex: another file is refused.
        sha256: Option<String>,
    },
    /// A repository of the Hugging Face Hub.
    HuggingFace {
        /// `owner/name`.
        identifier: String,
        /// Branch, tag or commit.
        revision: String,
        /// Models and data sets have name spaces of their own.
        repo: HubRepo,
        /// A file or folder of the repository; all of it when absent.
        path: Option<String>,
        /// Configuration of a data set; its only or its default one when absent.
        config: Option<String>,
        /// Split of a data set, such as `train`; every split when absent.
        split: Option<String>,
    },
    /// A git repository.
    Git {
        /// Any URL that git takes, without credentials.
        url: String,
        /// Branch, tag or commit; the remote's HEAD when absent.
        revision: Option<String>,
        /// A file or folder of the tree; all of it when absent.
        path: Option<String>,
    },
    /// An artifact of a finished task.
    Task {
        /// Id or name of the task.
        identifier: String,
        /// Path among its artifacts; all of them when absent.
        path: Option<String>,
    },
    /// Files that came with the task: the node that took it serves them by digest.
    Submitted {
        /// That node.
        node: NodeId,
        /// SHA-256 of the list of them, hex.
        tree: String,
        /// Their path as the task names it, for people.
        path: String,
        /// Bytes of them all.
        bytes: u64,
    },
    /// Artifacts that stayed on a worker's disk: what [`Location::Task`] comes to where the task had no destination.
    Kept {
        /// The worker.
        node: NodeId,
        /// The attempt that made them.
        attempt: AttemptId,
        /// Path among them; all of them when absent.
        path: Option<String>,
    },
}

/// The two kinds of repository that tasks use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HubRepo {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// What a source was as a task's first attempt met it. Later attempts get the same, or an error that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version in the source's own terms: a commit; the ETag of a single object; else the SHA-256 of the sorted list
    /// of names, sizes and ETags.
    pub version: String,
    /// Files.
    pub files: u64,
    /// Bytes of them all.
    pub bytes: u64,
}

/// What a task's inputs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// The base model.
    Model,
    /// The adapter to start from.
    Adapter,
    /// The data, or the documents.
    Dataset,
    /// Held-out data.
    Eval,
    /// The program of a `command` task, or of reward functions.
    Code,
    /// The reward model.
    Reward,
    /// The model that the trained one is held to.
    Reference,
    /// The model that values start from.
    Value,
    /// The model that makes vectors of texts.
    Embedder,
    /// The model that puts passages in order.
    Reranker,
}

impl Location {
    /// The feature of the volume that a relative `local` path names. An absolute path names none: which volume it lies
    /// in, if in any, is each node's own configuration, which it does not gossip.
    pub(super) fn volume(&self) -> Option<String> {
        let Location::Local { path } = self else { return None };
        let name = path.split('/').next().filter(|name| !name.is_empty());
        name.map(|name| format!("volume:{name}"))
    }

    /// The name in the features `source:NAME` and `destination:NAME`, and after `type:` in a file, where what came along with
    /// the task is `local`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Location::Local { .. } => "local",
            Location::S3 { .. } => "s3",
            Location::Gcs { .. } => "gcs",
            Location::Azblob { .. } => "azblob",
            Location::Http { .. } => "http",
            Location::HuggingFace { .. } => "huggingface",
            Location::Git { .. } => "git",
            Location::Task { .. } | Location::Kept { .. } => "task",
            Location::Submitted { .. } => "submitted",
        }
    }

    /// The place below this one; itself without a path. A URL, a task and what a task brought have none below.
    pub fn below(&self, path: Option<&str>) -> Self {
        let mut place = self.clone();
        let Some(path) = path else { return place };
        let join = |whole: &mut String| *whole = format!("{}/{path}", whole.trim_end_matches('/'));
        match &mut place {
            Location::Local { path: whole }
            | Location::S3 { path: whole, .. }
            | Location::Gcs { path: whole, .. }
            | Location::Azblob { path: whole, .. } => join(whole),
            Location::HuggingFace { path: whole, .. }
            | Location::Git { path: whole, .. }
            | Location::Task { path: whole, .. }
            | Location::Kept { path: whole, .. } => match whole {
                Some(whole) => join(whole),
                None => *whole = Some(path.to_owned()),
            },
            Location::Http { .. } | Location::Submitted { .. } => {}
        }
        place
    }

    /// The one member that has it.
    pub fn held_by(&self) -> Option<&NodeId> {
        let (Location::Submitted { node, .. } | Location::Kept { node, .. }) = self else { return None };
        Some(node)
    }

    /// The split of a data set that it names.
    pub fn split(&self) -> Option<&str> {
        let Location::HuggingFace { split, .. } = self else { return None };
        split.as_deref()
    }
}
