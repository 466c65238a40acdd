//! How a child that said nothing more came to its end.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use mloc_core::worker::Exit;

use crate::launch;

/// How a process ended, as the worker takes it.
pub(crate) fn exit_of(status: io::Result<ExitStatus>) -> Exit {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        },
        Err(e) => Exit::NotStarted { why: format!("cannot wait for it: {e}") },
    }
}

/// A death by signal, with what the container knows of it. The worker has words for the other ends.
pub(crate) fn unsaid(exit: &Exit, oom_before: Option<u64>) -> Option<String> {
    let Exit::Signal(signal) = exit else { return None };
    let name = nix::sys::signal::Signal::try_from(*signal).map_or("unknown", |s| s.as_str());
    let killed = format!("the child was killed by signal {signal} ({name})");
    if *signal != 9 {
        return Some(format!("{killed}; its log may say why"));
    }
    let hint = "hint: ask for more resources.hardware.memory, or make batches or lengths smaller";
    match (oom_before, launch::oom_kills()) {
        (Some(before), Some(after)) if after > before => Some(format!(
            "{killed}: out of memory: the container's limit was hit {} times meanwhile\n{hint}",
            after - before
        )),
        (Some(_), Some(_)) => {
            Some(format!("{killed}; the container counts no out-of-memory kill: somebody or something else sent it"))
        }
        _ => Some(format!("{killed}; out of memory?\n{hint}")),
    }
}
