//! Where things lie below the data directory.

use std::path::{Path, PathBuf};

use mloc_core::id::AttemptId;
use sha2::{Digest, Sha256};

/// The worker's part of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// In an attempt's folder.
    pub const RUN: &str = "run.json";
    pub const LOG: &str = "attempt.log";
    pub const ARTIFACTS: &str = "artifacts";
    pub const RESULT: &str = "result.json";

    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.to_owned() }
    }

    pub fn attempts(&self) -> PathBuf {
        self.root.join("attempts")
    }

    /// One attempt's own: run file, log, artifacts. Task ids are minted by us, but come over the wire.
    pub fn attempt(&self, id: &AttemptId) -> PathBuf {
        self.attempts().join(one_name(&id.to_string()))
    }

    /// Whatever its module needs while it runs.
    pub fn work(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join("work")
    }

    pub fn log(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join(Self::LOG)
    }

    pub fn artifacts(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join(Self::ARTIFACTS)
    }

    pub fn result(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join(Self::RESULT)
    }

    pub fn run_file(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join(Self::RUN)
    }

    /// Checkpoints of the attempt that are being pushed.
    pub fn pushing(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join("pushing")
    }

    pub fn all_checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// A replica's checkpoints outlive its attempts.
    pub fn checkpoints(&self, id: &AttemptId) -> PathBuf {
        self.all_checkpoints().join(one_name(&format!("{}.{}", id.task, id.replica)))
    }
}

/// Where a result without a destination lies on its worker, below the data directory.
pub fn result_folder(data_dir: &Path, attempt: &AttemptId) -> PathBuf {
    Folders::new(data_dir).artifacts(attempt)
}

/// A name that stays below its folder, whatever it was made from.
fn one_name(text: &str) -> String {
    let fits =
        !text.starts_with('.') && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if fits { text.to_owned() } else { hex::encode(Sha256::digest(text)) }
}
