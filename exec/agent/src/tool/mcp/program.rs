//! A program that speaks MCP over its pipes: started with an environment of its own, and gone with all it started when it is
//! let go of.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};

use crate::settings::tools::McpStdio;

/// Variables any program needs.
const KEPT: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
/// Bytes of what it complains that are kept: the end says why it died.
const LAST_WORDS: usize = 2000;

/// A running program.
pub(super) struct Program {
    group: Option<Pid>,
    /// Reaped by the runtime once it is dropped.
    _child: Child,
    listener: JoinHandle<()>,
    words: Arc<Mutex<Vec<u8>>>,
}

impl Program {
    pub fn start(settings: &McpStdio) -> Result<(Self, ChildStdout, ChildStdin), String> {
        let (program, arguments) = settings.command.split_first().ok_or("its command is empty")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&settings.env);
        for name in KEPT.into_iter().chain(settings.env_from.iter().map(String::as_str)) {
            match std::env::var_os(name) {
                _ if settings.env.contains_key(name) => {}
                Some(value) => drop(command.env(name, value)),
                None if KEPT.contains(&name) => {}
                None => return Err(format!("the variable {name} is not set")),
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: what it started goes with it.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| format!("cannot start `{program}`: {e}"))?;
        let piped = "its pipes are not there";
        let (out, into) = (child.stdout.take().ok_or(piped)?, child.stdin.take().ok_or(piped)?);
        let err = child.stderr.take().ok_or(piped)?;
        let words = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::spawn(listen(err, words.clone()));
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok((Self { group, _child: child, listener, words }, out, into))
    }

    /// The end of what it complained.
    pub fn last_words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&words).trim().to_owned();
        if text.is_empty() { text } else { format!("\nit said: {text}") }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already, it has no group any more.
        self.group.and_then(|group| killpg(group, Signal::SIGKILL).ok());
        self.listener.abort();
    }
}

async fn listen(mut err: impl AsyncRead + Unpin, words: Arc<Mutex<Vec<u8>>>) {
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = err.read(&mut piece).await {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&piece[..read]);
        let excess = words.len().saturating_sub(LAST_WORDS);
        words.drain(..excess);
    }
}
