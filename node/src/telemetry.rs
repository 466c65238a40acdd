//! Logs: text for people, JSON lines for machines, on standard error. `RUST_LOG` chooses what.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise: our own words, and warnings of what we stand on.
const DEFAULT: &str = "warn,openraft=error,mloc=info,mloc_mesh=info,mloc_runtime=info,mloc_store=info,mloc_api=info";

/// Starts logging; the second call in a process does nothing.
pub fn start(json: bool) {
    start_at(json, DEFAULT);
}

/// Starts logging of errors only: for verbs whose output is the point.
pub fn start_quiet() {
    start_at(false, "error");
}

fn start_at(json: bool, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // Fails when a subscriber is set already: then that one logs.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}
