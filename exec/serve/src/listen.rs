//! The server of a model on a Unix socket, with threads of its own: for callers that are not async.

use std::{
    future::IntoFuture,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use mloc_openai::{
    Limits, Model, Server,
    model::{Adapter, ModelError},
    server::unix_now,
};
use tokio::{
    net::UnixListener,
    runtime::{Handle, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Bytes of a socket's path, one less than what the system takes.
const PATH_MAX: usize = 107;
/// Threads that read and write for clients. Those that compute are the model's.
const THREADS: usize = 2;

/// A server that runs.
pub struct Listening {
    runtime: Runtime,
    task: JoinHandle<io::Result<()>>,
    stop: CancellationToken,
    socket: PathBuf,
    /// Where the folder that was given has too long a path.
    _elsewhere: Option<tempfile::TempDir>,
}

/// An adapter to be served from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAdapter {
    /// At the API it is `served_name:name`.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// Loads adapters into a model.
///
/// # Errors
/// The first one that doesn't fit, by name.
pub fn load_adapters(model: &dyn Model, named: &[NamedAdapter]) -> Result<Vec<Adapter>, String> {
    let load = |adapter: &NamedAdapter| {
        let NamedAdapter { name, path } = adapter;
        let id = model.load_adapter(&path.display().to_string()).map_err(|error| {
            let (ModelError::Asked(text) | ModelError::Missing(text) | ModelError::Failed(text)) = error;
            format!("adapter {name}: {text}")
        })?;
        Ok(Adapter { name: name.clone(), id, path: path.clone(), created: unix_now() })
    };
    named.iter().map(load).collect()
}

/// OpenAI's API over a model and adapters of it. `random` names answers.
pub fn routes(model: Arc<dyn Model>, adapters: Vec<Adapter>, limits: Limits, random: u64) -> Router {
    mloc_openai::router(Arc::new(Server::new(model, adapters, limits, random, unix_now)))
}

impl Listening {
    /// Threads for a server that is about to start.
    ///
    /// # Errors
    /// The system gives none.
    pub fn threads() -> io::Result<Runtime> {
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()
    }

    /// Serves these routes, on these threads, on a socket in a folder.
    ///
    /// # Errors
    /// There can be no socket.
    pub fn start(runtime: Runtime, routes: Router, folder: &Path) -> io::Result<Self> {
        let mut socket = folder.join("openai.sock");
        let mut elsewhere = None;
        if socket.as_os_str().len() > PATH_MAX {
            // For this user alone, as the folder that was given.
            let short = tempfile::Builder::new().prefix("mloc-").tempdir()?;
            socket = short.path().join("openai.sock");
            elsewhere = Some(short);
        }
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // What an earlier start left.
            _ => {}
        }
        let listener = {
            let _within = runtime.enter();
            UnixListener::bind(&socket)?
        };
        let stop = CancellationToken::new();
        let serve = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
        let task = runtime.spawn(serve.into_future());
        Ok(Self { runtime, task, stop, socket, _elsewhere: elsewhere })
    }

    /// Its threads.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Ends when the server is to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it has ended, which it does not do by itself.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Takes no more clients; those there are have so long to get their answers.
    pub fn stop(self, within: Duration) {
        self.stop.cancel();
        let Self { runtime, task, .. } = self;
        // Who is not done by then is cut off with the runtime.
        let _ = runtime.block_on(async { tokio::time::timeout(within, task).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}
