//! The verbs.

pub mod cache;
pub mod client;
pub mod run;
pub mod up;
