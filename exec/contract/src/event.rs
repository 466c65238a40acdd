//! What a child says to its daemon, and what it is asked: one JSON object a line.
//!
//! Child to parent, on the descriptor that was its stdout:
//! ```json
//! {"v":1,"event":"hello","pid":4711,"version":"0.1.0","cpu_features":"x86_64+avx2+fma"}
//! {"v":1,"event":"phase","phase":"TRAINING"}
//! {"v":1,"event":"progress","step":3,"total_steps":10,"loss":2.5,"tokens_per_second":812.0}
//! {"v":1,"event":"log","level":"warn","text":"checkpoint of step 4 is damaged: …"}
//! {"v":1,"event":"needs","bytes":1234567890,"advice":"gradient_checkpointing: true needs 812.0 MiB"}
//! {"v":1,"event":"checkpoint","step":5,"dir":"/…/step-0000000005","keep":2,"best":3}
//! {"v":1,"event":"serving","port":41007}
//! {"v":1,"event":"result","outputs":[{"path":"training_log.jsonl","kind":"training_logs"}],"summary":{}}
//! {"v":1,"event":"error","class":"Fatal","message":"…"}
//! ```
//! Exactly one `result` or `error` ends a run; `class` is absent when the run stopped because it was asked to. Programs of
//! `command` speak it too, with the liberties that `exec/modules/COMMAND.md` gives them. Unknown events and unknown members are ignored; another `v` is an error. Parent to child, on stdin: `{"v":1,"ask":"stop"}`,
//! with `"checkpoint":false` when nobody will go on from one. The end of stdin means that the daemon is gone: the child
//! stops too.

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
/// Longest message of a failure, in bytes: it is committed by every voter and shown to people.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// The line that asks a child to stop.
pub const STOP: &str = "{\"v\":1,\"ask\":\"stop\"}\n";
/// The line that asks a child to stop without a checkpoint.
pub const STOP_WITHOUT_CHECKPOINT: &str = "{\"v\":1,\"ask\":\"stop\",\"checkpoint\":false}\n";

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
    /// What it will need of memory where it computes, told before its first step. Nobody waits for it: it is there for the
    /// words about a child that is killed.
    Needs {
        /// At its fullest moment, in bytes.
        bytes: u64,
        /// What would need less, for the user; empty where nothing is known to.
        #[serde(default)]
        advice: String,
    },
    /// A checkpoint is whole on this disk.
    Checkpoint {
        /// Optimizer steps done.
        step: u64,
        /// Its folder.
        dir: PathBuf,
        /// How many are to be kept at the shared place; 0 keeps all.
        #[serde(default)]
        keep: usize,
        /// The step of the best one so far, which is kept however old it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        best: Option<u64>,
    },
    /// It is a service's and listens for HTTP/1.1; it is asked once its health is good. The newest one counts.
    Serving {
        /// A port of 127.0.0.1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// A Unix socket, which counts before a port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        socket: Option<PathBuf>,
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

const KNOWN: [&str; 9] = ["hello", "phase", "progress", "log", "needs", "checkpoint", "serving", "result", "error"];

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
    /// The line, its end included. One that nobody would take is shortened: a result lies in its file, of a text
    /// beginning and end are kept.
    pub fn to_line(&self) -> String {
        let line = self.whole_line();
        if line.len() < LINE_BYTES_MAX {
            return line;
        }
        match self {
            Event::Log { level, text } => Event::Log { level: *level, text: bounded(text, MESSAGE_BYTES_MAX) },
            Event::Error { class, message } => {
                Event::Error { class: *class, message: bounded(message, MESSAGE_BYTES_MAX) }
            }
            Event::Result(_) => Event::Result(ModuleOutput::default()),
            other => other.clone(),
        }
        .whole_line()
    }

    fn whole_line(&self) -> String {
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

/// What a line on stdin asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Whether a checkpoint is wanted.
    pub checkpoint: bool,
}

/// The stop that a line on stdin asks for. Unknown asks are ignored.
pub fn asks_to_stop(line: &str) -> Option<Stop> {
    let value = serde_json::from_str::<Value>(line).ok()?;
    let stop = value["v"] == PROTOCOL && value["ask"] == "stop";
    stop.then(|| Stop { checkpoint: value["checkpoint"] != false })
}

/// A text of at most so many bytes (and a line that says what is missing): its beginning and its end.
pub fn bounded(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let half = bytes_max / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    format!("{}\n… {} bytes left out …\n{}", &text[..head], tail - head, &text[tail..])
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
            Event::Needs { bytes: 3 << 30, advice: "bf16: true".into() },
            Event::Checkpoint { step: 5, dir: "/tmp/step-5".into(), keep: 2, best: None },
            Event::Checkpoint { step: 6, dir: "/tmp/step-6".into(), keep: 2, best: Some(3) },
            Event::Serving { port: Some(41_007), socket: None },
            Event::Serving { port: None, socket: Some("/run/x.sock".into()) },
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
        assert_eq!(asks_to_stop(STOP), Some(Stop { checkpoint: true }));
        assert_eq!(asks_to_stop(STOP_WITHOUT_CHECKPOINT), Some(Stop { checkpoint: false }));
        for other in ["", "stop", r#"{"v":2,"ask":"stop"}"#, r#"{"v":1,"ask":"hurry"}"#] {
            assert_eq!(asks_to_stop(other), None, "{other}");
        }
    }

    #[test]
    fn no_line_is_longer_than_what_is_taken() {
        let long = "ä".repeat(LINE_BYTES_MAX);
        let summary = [("text".to_owned(), Value::from(long.as_str()))].into();
        for event in [
            Event::Log { level: Level::Info, text: long.clone() },
            Event::Error { class: Some(FailureClass::Fatal), message: long.clone() },
            Event::Result(ModuleOutput { outputs: vec![], summary }),
        ] {
            let line = event.to_line();
            assert!(line.len() < LINE_BYTES_MAX);
            assert!(matches!(Event::of_line(&line), Ok(Some(_))));
        }
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(bounded("äbcdefgä", 4), "ä\n… 6 bytes left out …\nä");
    }
}
