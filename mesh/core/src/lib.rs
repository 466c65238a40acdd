//! All of MLOC that can be decided without I/O.
//!
//! The straight line from a file to a usage row, as this crate sees it:
//!
//! ```text
//! task.yaml → task::raw → task::validate → TaskSpec → ledger::Entry::Submit (raft commits it)
//!   → leader::decide → schedule::solve → Entry::Assigned (accepted by apply) → wire::ToWorker::Assign
//!   → worker::Worker (journal, child, reports) → Entry::{Started, Publishing, Finished} → ledger::usage
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`id`], [`time`], [`quantity`] | names, moments, amounts |
//! | [`capability`], [`fit`] | what a node can do, and whether a task fits it |
//! | [`task`] | what was typed (`raw`), what it means (`spec`), every problem at once (`validate`) |
//! | [`files`] | files by their digests: what a submission brings along, what a node asks another for |
//! | [`ledger`] | the replicated state: `apply` is total, usage is integers |
//! | [`service`] | tasks that stay up: which replicas come and go, how many, and which one a request goes to |
//! | [`schedule`] | `solve(problem)`, and `explain`: why a task does not run |
//! | [`survival`] | which losses a mesh survives, in words |
//! | [`leader`] | what the orchestrator does next, from ledger, members and time |
//! | [`worker`] | what a worker does next, from its journal and what it hears |
//! | [`wire`] | what leader and worker say to each other |
//!
//! Deliberately absent: tokio, clocks, randomness, files, sockets, burn, and `HashMap` in anything replicated.
//! Time and chance come in as arguments, so that every replica, test and simulation gets the same answer.

pub mod capability;
#[cfg(test)]
mod cases;
pub mod files;
pub mod fit;
pub mod id;
pub mod leader;
pub mod ledger;
pub mod quantity;
pub mod schedule;
pub mod service;
pub mod survival;
pub mod task;
pub mod time;
pub mod wire;
pub mod worker;
