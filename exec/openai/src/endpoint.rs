//! The endpoints, one file each: the fields of its request, what they mean, and how its answer is told.

pub mod adapters;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod rerank;
pub mod responses;
pub mod tokenize;

use std::sync::Arc;

use mloc_engine::forward::AdapterId;

use crate::{ids::Ids, limits::Limits, model::Model};

/// What an endpoint's plain code is given of the server.
#[derive(Clone)]
pub struct Context {
    /// What is served.
    pub model: Arc<dyn Model>,
    /// The bounds.
    pub limits: Limits,
    /// Makes names.
    pub ids: Arc<Ids>,
    /// Seconds since 1970.
    pub now: u64,
}

/// Which model a request runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its name at the API.
    pub name: String,
    /// The adapter; `None` = the base model.
    pub adapter: Option<AdapterId>,
}
