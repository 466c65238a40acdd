//! The verbs.

pub mod client;
pub mod run;
pub mod up;
