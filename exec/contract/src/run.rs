//! `run.json`: what a child is told.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use mloc_core::{
    capability::Grant,
    id::AttemptId,
    task::{
        TaskSpec,
        spec::{Input, Pin},
    },
};
use serde::{Deserialize, Serialize};

/// Version of [`Run`]'s file. Parent and child are the same binary, save while it is being replaced.
pub const RUN_VERSION: u32 = 1;

/// Header of a request to another shard: its number, from 0; [`OLDER`] and the number of a replica of an older version, of
/// those that can be asked; or [`NEWER`], any replica of a newer one. An answer 404 with [`LOST`] says that there is nobody.
pub const SHARD: &str = "mloc-shard";
/// In [`SHARD`].
pub const OLDER: &str = "older ";
/// In [`SHARD`].
pub const NEWER: &str = "newer";
/// Header of a request that another shard makes: its attempt. No client can say it.
pub const SIBLING: &str = "mloc-sibling";

/// Header of an answer that no replica gave: why.
pub const LOST: &str = "mloc-lost";

/// One attempt, as its child is to run it. Holds no secrets: those come by environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`RUN_VERSION`].
    pub v: u32,
    /// The attempt.
    pub attempt: AttemptId,
    /// The task.
    pub spec: TaskSpec,
    /// What it holds on this node.
    pub grant: Grant,
    /// What was pulled.
    pub inputs: Inputs,
    /// What the inputs are, where their sources have versions.
    #[serde(default)]
    pub pins: BTreeMap<Input, Pin>,
    /// When the attempt first started on this node, in milliseconds of its wall clock.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// An empty folder for what it makes.
    pub artifacts: PathBuf,
    /// Its checkpoints, those of earlier attempts on this node included.
    pub checkpoints: PathBuf,
    /// Where the child says what it made, durably, before it says so on the pipe.
    pub result: PathBuf,
    /// Threads to compute with.
    pub threads: usize,
    /// As how many devices the processor counts where no GPU is granted. A daemon says 1, for more make nothing faster
    /// there: it is how data parallelism is tried where there are no GPUs.
    #[serde(default = "Run::one")]
    pub cpu_devices: usize,
    /// Checkpoints to keep on this disk; 0 keeps all.
    pub keep_checkpoints: usize,
    /// This attempt's own folder for whatever a module needs while it runs; may hold what an earlier start left.
    #[serde(default)]
    pub work: PathBuf,
    /// How this node runs programs of its users; absent when it does not.
    #[serde(default)]
    pub programs: Option<Programs>,
    /// Memory that there is.
    #[serde(default)]
    pub memory: Memory,
    /// A Unix socket where the daemon passes requests on to other replicas of the service, where they are shards of one whole:
    /// HTTP/1.1 with the header [`SHARD`].
    #[serde(default)]
    pub siblings: Option<PathBuf>,
}

/// Memory that there is for an attempt, in bytes; 0 where nobody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What its container, or its machine, has in all.
    pub host_bytes: u64,
    /// What of that was free when it started.
    pub host_free_bytes: u64,
    /// What was free then on the granted GPU that had the least; 0 without GPUs.
    pub gpu_free_bytes: u64,
}

/// How a node runs programs of its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// Whether they are held to their folders.
    pub sandbox: Sandbox,
    /// Files and folders of the node that none of them may read: keys, tokens, what other attempts have.
    pub hidden: Vec<PathBuf>,
    /// How many processes one of them may have at once; with more all of them are killed.
    #[serde(default = "Programs::processes_unsaid")]
    pub processes: usize,
}

impl Programs {
    /// Far more than the data loaders of the largest machine; a loop of forks is ended before the node has no process ids
    /// left for its own work.
    pub const PROCESSES: usize = 4096;

    /// Run files of earlier versions do not say it.
    fn processes_unsaid() -> usize {
        Self::PROCESSES
    }
}

/// Whether programs are held to their folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// They are, or they do not run.
    #[default]
    Required,
    /// They are, as far as this machine can do it.
    BestEffort,
    /// They are not: they can do whatever the node's own user can.
    Off,
}

/// Pulled inputs, by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The base model: a folder in Hugging Face layout, or a GGUF file.
    pub model: Option<PathBuf>,
    /// The adapter to start from: a folder in PEFT layout.
    pub adapter: Option<PathBuf>,
    /// The data, or the documents: a file or a folder of files.
    pub dataset: Option<PathBuf>,
    /// Held-out data.
    pub eval: Option<PathBuf>,
    /// The program of a `command` task, or of reward functions: a folder, or an archive.
    #[serde(default)]
    pub code: Option<PathBuf>,
    /// The reward model: as `model`.
    #[serde(default)]
    pub reward: Option<PathBuf>,
    /// What the trained model is held to: as `model`.
    #[serde(default)]
    pub reference: Option<PathBuf>,
    /// What values start from: as `model`.
    #[serde(default)]
    pub value: Option<PathBuf>,
    /// What makes vectors of texts: a folder in Hugging Face layout.
    #[serde(default)]
    pub embedder: Option<PathBuf>,
    /// What puts passages in order: as `embedder`.
    #[serde(default)]
    pub reranker: Option<PathBuf>,
}

impl Inputs {
    /// Where one of them stands.
    pub fn of(&mut self, input: Input) -> &mut Option<PathBuf> {
        match input {
            Input::Model => &mut self.model,
            Input::Adapter => &mut self.adapter,
            Input::Dataset => &mut self.dataset,
            Input::Eval => &mut self.eval,
            Input::Code => &mut self.code,
            Input::Reward => &mut self.reward,
            Input::Reference => &mut self.reference,
            Input::Value => &mut self.value,
            Input::Embedder => &mut self.embedder,
            Input::Reranker => &mut self.reranker,
        }
    }
}

/// The devices that a module computes on: what was granted, never silently another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    Cpu {
        /// As how many devices it counts: [`Run::cpu_devices`].
        count: usize,
    },
    /// CUDA devices 0..count, as `CUDA_VISIBLE_DEVICES` makes them appear.
    Cuda {
        /// How many.
        count: usize,
    },
    /// Hardware that exists in a configuration file only: work that needs a real device refuses.
    Simulated {
        /// Its name.
        kind: String,
    },
}

impl DeviceChoice {
    /// The devices of a grant.
    pub fn of(grant: &Grant) -> Self {
        if grant.gpus.is_empty() {
            Self::Cpu { count: 1 }
        } else if grant.gpu_kind.starts_with(mloc_core::capability::SIMULATED) {
            Self::Simulated { kind: grant.gpu_kind.clone() }
        } else {
            Self::Cuda { count: grant.gpus.len() }
        }
    }
}

/// A run file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}\nhint: `__attempt` is started by the daemon, not by hand")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It is no run file.
    #[error("{path}: no run file: {found}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// Another version wrote it.
    #[error(
        "{path}: run file of version {found}, this binary reads version {RUN_VERSION}\nhint: the binary was replaced while the daemon ran; restart the daemon"
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl Run {
    /// Reads a run file.
    ///
    /// # Errors
    /// [`RunFileError`]
    pub fn read(path: &Path) -> Result<Self, RunFileError> {
        let bytes = std::fs::read(path).map_err(|source| RunFileError::Unreadable { path: path.to_owned(), source })?;
        let malformed = |e: serde_json::Error| RunFileError::Malformed { path: path.to_owned(), found: e.to_string() };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        match value.get("v").and_then(serde_json::Value::as_u64) {
            Some(v) if v == u64::from(RUN_VERSION) => serde_json::from_value(value).map_err(malformed),
            Some(found) => Err(RunFileError::OtherVersion { path: path.to_owned(), found }),
            None => Err(RunFileError::Malformed { path: path.to_owned(), found: "it has no `v`".into() }),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        crate::checkpoint::write_whole(path, &bytes)
    }

    /// What it was granted to compute on.
    pub fn device(&self) -> DeviceChoice {
        match DeviceChoice::of(&self.grant) {
            DeviceChoice::Cpu { .. } => DeviceChoice::Cpu { count: self.cpu_devices.max(1) },
            granted => granted,
        }
    }

    fn one() -> usize {
        1
    }
}
