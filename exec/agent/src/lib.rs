//! Agents: a model that is asked, calls tools and is told what came of it, until it answers. What happened is a log on
//! disk, and the log is all there is: a run that was killed goes on from it.
//!
//! ```text
//! settings   an agent as it is written: model, tools, budgets; every problem at once
//! message    a conversation, as this crate keeps it         event     what happens in a run, one record each
//!
//! run        the machine: what happened → what is to be done next; no clock, no disk, no network
//!   judge    whether a call may be made   circle    the same calls again   schema    arguments against a schema
//!
//! log        records on disk: torn lines, what is durable when
//! drive      the thin shell of one run: does what the machine says, and tells it what came of it
//! feed       what happens in a run, for those who listen
//! runs       all runs of an agent: a folder, what is live, what goes on after a kill
//! http       runs over HTTP: start, follow, approve, cancel; refusal: why not
//!
//! model      the seam to a model: openai (over HTTP, with sse), scripted (by a function, for tests)
//! tool       the seam to tools: mcp, http_tool, retrieve, code; toolbox: by name, with patience and a limit on output
//! client     the HTTP client they share
//! ```
//!
//! Promises, each with its test. A1: a tool call whose end is in the log is never made again (`tests/kill.rs`). A2: a call that
//! was begun and has no end is made again only when its tool is idempotent; else the model hears that its outcome is unknown.
//! A3: no run is longer than its budgets, whatever its model does (`tests/machine.rs`).
//!
//! Deliberately absent: tensors, the mesh, tasks and modules; accounts and TLS, which the node in front has; memory from one run
//! to the next; a terminal. A log is not shared between machines: a run goes on where it began.

pub mod client;
pub mod drive;
pub mod event;
pub mod feed;
pub mod http;
pub mod log;
pub mod message;
pub mod model;
pub mod refusal;
pub mod run;
pub mod runs;
pub mod settings;
pub mod tool;

pub use message::{Assistant, Message, ToolCall, Usage};
pub use runs::{Agent, Runs};
pub use settings::Settings;
