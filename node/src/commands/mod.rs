//! The verbs.

pub mod artifacts;
pub mod client;
pub mod run;
pub mod up;
