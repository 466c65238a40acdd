//! What a child says to its daemon, and what it is asked: one JSON object a line.
//!
//! Child to parent, on the descriptor that was its stdout:
//! ```json
//! {"v":1,"event":"hello","pid":4711,"version":"0.1.0","cpu_features":"x86_64+avx2+fma"}
//! {"v":1,"event":"phase","phase":"TRAINING"}
//! {"v":1,"event":"progress","step":3,"total_steps":10,"loss":2.5,"tokens_per_second":812.0}
//! {"v":1,"event":"log","level":"warn","text":"checkpoint of step 4 is damaged: …"}
//! {"v":1,"event":"checkpoint","step":5,"dir":"/…/step-0000000005","keep":2}
//! {"v":1,"event":"result","outputs":[{"path":"training_log.jsonl","kind":"training_logs"}],"summary":{}}
//! {"v":1,"event":"error","class":"Fatal","message":"…"}
//! ```
//! Exactly one `result` or `error` ends a run; `class` is absent when the run stopped because it was asked to. Unknown
//! events and unknown members are ignored; another `v` is an error. Parent to child, on stdin: `{"v":1,"ask":"stop"}`.
//! The end of stdin means that the daemon is gone: the child stops too.

use std::path::PathBuf;

use mloc_core::{
    ledger::entry::FailureClass,
    wire::{Phase, Progress},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::module::ModuleOutput;

/// Version of the protocol.
pub const PROTOCOL: u64 = 1;
/// Longest line either side takes, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The line that asks a child to stop.
pub const STOP: &str = "{\"v\":1,\"ask\":\"stop\"}\n";

/// One thing a child says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It is up: the first line.
    Hello {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// See [`crate::cpu_features`].
        cpu_features: String,
    },
    /// It does something else now.
    Phase {
        /// What.
        phase: Phase,
    },
    /// How far it is.
    Progress(Progress),
    /// A line for the attempt's log.
    Log {
        /// How grave.
        level: Level,
        /// One line.
        text: String,
    },
    /// A checkpoint is whole on this disk.
    Checkpoint {
        /// Optimizer steps done.
        step: u64,
        /// Its folder.
        dir: PathBuf,
        /// How many are to be kept at the shared place; 0 keeps all.
        keep: usize,
    },
    /// It is done; the files are on disk.
    Result(ModuleOutput),
    /// It ended without a result.
    Error {
        /// What another try would come to; absent when it was asked to stop.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class: Option<FailureClass>,
        /// For the user.
        message: String,
    },
}

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Told.
    Info,
    /// Something was not as it should be, and it goes on.
    Warn,
}

const KNOWN: [&str; 7] = ["hello", "phase", "progress", "log", "checkpoint", "result", "error"];

/// A line that is no event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// No JSON object, or not the members of its event.
    #[error("no event: {found} in `{line}`")]
    Malformed {
        /// What is wrong.
        found: String,
        /// The beginning of the line.
        line: String,
    },
    /// Another version.
    #[error(
        "event protocol version {found}, this daemon speaks {PROTOCOL}\nhint: the binary was replaced while the daemon ran; restart the daemon"
    )]
    OtherVersion {
        /// What it says.
        found: u64,
    },
}

impl Event {
    /// The line, its end included.
    pub fn to_line(&self) -> String {
        // Events hold strings, numbers and paths made here; a path that is not UTF-8 is said rather than lost.
        let mut value = serde_json::to_value(self).unwrap_or_else(|e| {
            serde_json::json!({"event": "error", "class": "Fatal", "message": format!("event cannot be written: {e}")})
        });
        value["v"] = PROTOCOL.into();
        format!("{value}\n")
    }

    /// Reads a line. `None` for an event of a later build that this one can do without.
    ///
    /// # Errors
    /// [`EventError`]
    pub fn of_line(line: &str) -> Result<Option<Self>, EventError> {
        let malformed = |found: String| EventError::Malformed { found, line: line.chars().take(120).collect() };
        let value: Value = serde_json::from_str(line).map_err(|e| malformed(e.to_string()))?;
        match value.get("v").and_then(Value::as_u64) {
            Some(PROTOCOL) => {}
            Some(found) => return Err(EventError::OtherVersion { found }),
            None => return Err(malformed("no `v`".into())),
        }
        match value.get("event").and_then(Value::as_str) {
            Some(kind) if KNOWN.contains(&kind) => {
                serde_json::from_value(value).map(Some).map_err(|e| malformed(e.to_string()))
            }
            Some(_) => Ok(None),
            None => Err(malformed("no `event`".into())),
        }
    }
}

/// Whether a line on stdin asks to stop. Unknown asks are ignored.
pub fn asks_to_stop(line: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return false };
    value["v"] == PROTOCOL && value["ask"] == "stop"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_their_lines() {
        let progress = Progress { step: 3, loss: Some(0.1), ..Default::default() };
        for event in [
            Event::Hello { pid: 1, version: "0.1.0".into(), cpu_features: "x86_64".into() },
            Event::Phase { phase: Phase::Training },
            Event::Progress(progress),
            Event::Log { level: Level::Warn, text: "two\nlines".into() },
            Event::Checkpoint { step: 5, dir: "/tmp/step-5".into(), keep: 2 },
            Event::Result(ModuleOutput::default()),
            Event::Error { class: None, message: "stopped".into() },
            Event::Error { class: Some(FailureClass::Fatal), message: "no".into() },
        ] {
            let line = event.to_line();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Event::of_line(&line), Ok(Some(event)));
        }
    }

    #[test]
    fn strange_lines_are_told_apart() {
        assert_eq!(Event::of_line(r#"{"v":1,"event":"weather","rain":true}"#), Ok(None));
        assert_eq!(Event::of_line(r#"{"v":2,"event":"hello"}"#), Err(EventError::OtherVersion { found: 2 }));
        for bad in ["", "hello", "[]", "{}", r#"{"v":1}"#, r#"{"v":1,"event":"phase","phase":"LUNCH"}"#] {
            assert!(matches!(Event::of_line(bad), Err(EventError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn only_a_stop_stops() {
        assert!(asks_to_stop(STOP));
        for other in ["", "stop", r#"{"v":2,"ask":"stop"}"#, r#"{"v":1,"ask":"hurry"}"#] {
            assert!(!asks_to_stop(other), "{other}");
        }
    }
}
