//! Why a run is not started, or not reached.

use std::{io, path::PathBuf};

use crate::{event::CallId, log::LogError, run::OutOfPlace};

/// Why a run is not started, or not reached.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// As many are live as may be.
    #[error("{0} runs are on their way already")]
    Full(usize),
    /// It is about to end.
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// There is none.
    #[error("there is no run `{0}`")]
    Unknown(String),
    /// It is over, or waits for another process.
    #[error("the run `{0}` is not on its way")]
    NotLive(String),
    /// Nobody is asked about this call.
    #[error("nobody is asked about the call {0}")]
    NotAsked(CallId),
    /// Another process has the folder.
    #[error("{}: another process works there\nhint: stop it, or give this agent a folder of its own", .0.display())]
    InUse(PathBuf),
    /// A log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A log is no run's.
    #[error("{}: {found}", path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What was found.
        found: OutOfPlace,
    },
    /// The disk or its permissions.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}
