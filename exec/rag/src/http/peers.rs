//! Other shards of the same service: asked for their part, given what belongs to them.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use futures::future::{BoxFuture, join_all};
use serde_json::Value;

use super::{App, Refusal, Shared};
use crate::shard::shard_of;

/// A request to another shard, below `/v1/rag/{service}/`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// HTTP's.
    pub method: Method,
    /// As `documents/doc-1`.
    pub path: String,
    /// Names and values behind the `?`, not yet encoded.
    pub query: Vec<(String, String)>,
    /// Of the body.
    pub content_type: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// What it answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// The way to other shards: any replica of a shard may answer for it. Who implements it bounds the time it takes.
pub trait Peers: Send + Sync {
    /// Asks a shard.
    ///
    /// The error says why it can't be asked.
    fn call(&self, shard: u32, call: Call) -> BoxFuture<'static, Result<Reply, String>>;
}

/// By this a shard knows that it is asked by another, and asks no further.
pub(super) const LOCAL: &str = "local";

impl App {
    /// Asks all other shards the same; `None` = that one did not answer, or not well.
    pub(super) async fn ask_others(&self, call: Call) -> BTreeMap<u32, Option<Value>> {
        let others = self.service.settings().sharding.others();
        let asked = others.map(|shard| {
            let asking = self.peers.as_ref().map(|peers| peers.call(shard, call.clone()));
            async move {
                let answer = match asking {
                    Some(asking) => asking.await,
                    None => Err("nobody leads to other shards here".to_owned()),
                };
                let said = match answer {
                    Ok(Reply { status: 200, body }) => Some(body),
                    Ok(Reply { status, body }) => {
                        tracing::warn!(shard, status, %body, "a shard refused its part");
                        None
                    }
                    Err(error) => {
                        tracing::warn!(shard, error, "a shard did not answer");
                        None
                    }
                };
                (shard, said)
            }
        });
        join_all(asked).await.into_iter().collect()
    }
}

/// Gives a request about a document to the shard it belongs to; `None` = that is this one, or it was given on already.
pub(super) async fn elsewhere(app: &Shared, id: &str, call: Call) -> Option<Result<Reply, Refusal>> {
    let sharding = app.service.settings().sharding;
    let local = call.query.iter().any(|(name, _)| name == LOCAL);
    if sharding.holds(id) || local {
        return None;
    }
    let shard = shard_of(id, sharding.count);
    let mut call = call;
    call.query.push((LOCAL.to_owned(), "true".to_owned()));
    let asked = match &app.peers {
        Some(peers) => peers.call(shard, call).await,
        None => Err("nobody leads to other shards here".to_owned()),
    };
    Some(asked.map_err(|error| {
        let message = format!("the document {id:?} belongs to shard {shard}, which does not answer: {error}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("shard_missing")
    }))
}
