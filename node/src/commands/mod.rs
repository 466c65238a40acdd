//! The verbs.

pub mod client;
pub mod healthz;
pub mod run;
pub mod up;
