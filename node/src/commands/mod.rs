//! The verbs.

pub mod agent;
pub mod artifacts;
pub mod backup;
pub mod bench;
pub mod cache;
pub mod chat;
pub mod client;
pub mod doctor;
pub mod healthz;
pub mod restore;
pub mod run;
pub mod up;
