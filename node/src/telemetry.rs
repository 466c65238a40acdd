//! Logs: text for people, JSON lines for machines, on standard error. `RUST_LOG` chooses what, or node.yaml's `log`.

use std::{io::IsTerminal, sync::Arc};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged unless somebody says otherwise: our own words, and warnings of what we stand on.
const DEFAULT: &str = "warn,openraft=error,mloc=info,mloc_mesh=info,mloc_runtime=info,mloc_store=info,mloc_api=info";

/// Takes node.yaml's `log`.
type Choose = dyn Fn(Option<&str>) + Send + Sync;

/// Chooses what is logged from now on.
#[derive(Clone)]
pub struct Level(Arc<Choose>);

impl Level {
    /// As node.yaml's `log` says, which was checked; what is usual without it. `RUST_LOG` stays above both.
    pub fn choose(&self, log: Option<&str>) {
        (self.0)(log);
    }
}

/// Starts logging; the second call in a process changes nothing.
pub fn start(json: bool) -> Level {
    start_at(json, DEFAULT)
}

/// Starts logging of errors only: for verbs whose output is the point.
pub fn start_quiet() -> Level {
    start_at(false, "error")
}

/// Starts logging in an attempt's process: warnings, for people who read its log.
pub fn start_child() -> Level {
    start_at(false, "warn")
}

/// Whether a text says what to log.
///
/// # Errors
/// What is wrong with it, and what would do.
pub fn check(log: &str) -> anyhow::Result<()> {
    let read = EnvFilter::try_new(log).map(drop);
    read.context("expected a level (`info`, `debug`) or `TARGET=LEVEL` parts with commas: `warn,mloc_mesh=debug`")
}

fn start_at(json: bool, default: &'static str) -> Level {
    let filter = move |log: Option<&str>| {
        let given = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(log.unwrap_or(default)));
        given.unwrap_or_else(|_| EnvFilter::new(default))
    };
    let colours = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter(None)).with_ansi(colours).with_writer(std::io::stderr);
    // `try_init` fails when a subscriber is set already: then that one logs. `reload` fails when it is gone.
    if json {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Level(Arc::new(move |log| drop(handle.reload(filter(log)))))
    } else {
        let builder = builder.with_target(false).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Level(Arc::new(move |log| drop(handle.reload(filter(log)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_refused_with_what_would_do() {
        for good in ["info", "warn,mloc_mesh=debug", "mloc=trace"] {
            check(good).unwrap();
        }
        let error = format!("{:#}", check("mloc=loud").unwrap_err());
        assert!(error.contains("expected a level"), "{error}");
    }
}
