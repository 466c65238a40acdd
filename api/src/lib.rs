//! REST, OpenAPI and the dashboard, over the [`Control`] trait.
//!
//! | module | holds |
//! |---|---|
//! | [`control`] | what REST needs from the node: the one trait this crate is written against |
//! | [`view`] | what clients see |
//! | [`error`] | RFC 9457 problem bodies, and which status a refusal is |
//! | [`auth`] | user tokens, and what their holders may do |
//! | [`access`] | who calls: the machine's own user on loopback, or whom a bearer token names |
//! | [`routes`] | paths to `Control` calls |
//! | [`door`] | the first to answer: before the node has joined, and while it leaves |
//! | [`files`] | bytes through the node that took the request: what comes along with a task, and artifacts |
//! | [`forward`] | any node takes any request: HTTP/1 to the leader over a mesh stream, once |
//! | [`services`] | requests to services through any node: which replica, again elsewhere, errors as clients know them |
//! | [`dashboard`] | the page at `/` |
//!
//! Deliberately absent: the mesh, the ledger's rules, modules. A route that decides something belongs in core.

pub mod access;
pub mod auth;
mod body;
pub mod control;
pub mod dashboard;
pub mod door;
pub mod error;
pub mod files;
pub mod forward;
mod range;
pub mod routes;
pub mod services;
pub mod view;

pub use access::Access;
pub use auth::{Caller, UserTokens};
pub use control::Control;
pub use door::Door;
pub use error::ControlError;
pub use files::Files;
pub use routes::{Parts, link_router, rest_router};
pub use services::Services;

/// The largest task.yaml that is taken, in bytes.
pub const MAX_TASK_BYTES: usize = 256 * 1024;
