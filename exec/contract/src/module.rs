//! What a module is.

use std::{collections::BTreeMap, io, path::Path};

use mloc_core::ledger::entry::FailureClass;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::RunContext;

/// Runs tasks of one type, in a process of its own: a plain loop, without async.
pub trait Module: Send + Sync {
    /// The task type it runs, as in `spec.taskType`.
    fn name(&self) -> &'static str;

    /// Features a node with this module offers beside its name, such as `adapter:lora`.
    fn features(&self) -> Vec<String> {
        Vec::new()
    }

    /// Sets up the process that is to run it, before that has a thread for it.
    fn set_up_process(&self) {}

    /// Runs one attempt from `ctx.resume()` (or the start) to its end.
    ///
    /// # Errors
    /// [`ModuleError`]: the class says whether another try is worth it.
    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError>;
}

/// What a module leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleOutput {
    /// The files to publish.
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// Figures of the run for people and programs: losses before and after, answers, tokens.
    #[serde(default)]
    pub summary: BTreeMap<String, Value>,
}

/// A file to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Path below the artifacts folder and below the destination, with `/`.
    pub path: String,
    /// Its kind: `adapter_weights`, `training_logs`, …
    pub kind: String,
}

/// How a run ends without a result. The text says where, what was found, and what would work.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The world was in the way: disk, memory, a device. Another try may do.
    #[error("{0}")]
    Retryable(String),
    /// The task's own error: it would happen again.
    #[error("{0}")]
    Fatal(String),
    /// It was asked to stop, and did.
    #[error("stopped as asked")]
    Cancelled,
}

impl ModuleError {
    /// An error of this machine's disk.
    pub fn disk(action: &str, path: &Path, source: &io::Error) -> Self {
        Self::Retryable(format!("cannot {action} {}: {source}", path.display()))
    }

    /// What another try would come to; `None` when it was asked to stop.
    pub fn class(&self) -> Option<FailureClass> {
        match self {
            ModuleError::Retryable(_) => Some(FailureClass::Retryable),
            ModuleError::Fatal(_) => Some(FailureClass::Fatal),
            ModuleError::Cancelled => None,
        }
    }
}
