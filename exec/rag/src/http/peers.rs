//! Other shards of the same service: asked for their part, given what belongs to them.

use std::collections::BTreeMap;

use axum::{
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
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

impl Call {
    /// Without a body.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), content_type: None, body: Vec::new() }
    }

    /// A POST of JSON.
    pub(super) fn json(path: &str, body: &Value) -> Self {
        let content_type = Some("application/json".to_owned());
        Self { content_type, body: body.to_string().into(), ..Self::new(Method::POST, path) }
    }

    /// With one more pair behind the `?`.
    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }
}

/// What it answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// Seconds after which it might be otherwise.
    pub retry_after: Option<u32>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body of an answer that is good, read.
    pub(super) fn json(&self) -> Result<Value, String> {
        let said = || String::from_utf8_lossy(&self.body).chars().take(300).collect::<String>();
        if self.status != 200 {
            return Err(format!("it answers {}: {}", self.status, said()));
        }
        serde_json::from_slice(&self.body).map_err(|error| format!("its answer is no JSON ({error}): {}", said()))
    }
}

impl IntoResponse for Reply {
    /// As it was answered.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], self.body).into_response();
        let after = self.retry_after.map(HeaderValue::from);
        response.headers_mut().extend(after.map(|after| (header::RETRY_AFTER, after)));
        response
    }
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A shard of this version of the service.
    Shard(u32),
    /// A shard of an older version: the first, the second and so on of those that can be asked.
    Older(u32),
    /// Any shard of a newer version.
    Newer,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoReply {
    /// There is no such shard, or none that can be asked.
    #[error("{0}")]
    Nobody(String),
    /// It was asked, or could not be reached.
    #[error("{0}")]
    Failed(String),
}

/// The way to other shards: any replica of a shard may answer for it. Who implements it bounds the time it takes: an answer
/// waits for no shard longer than that.
pub trait Peers: Send + Sync {
    /// Asks a shard.
    fn call(&self, to: To, call: Call) -> BoxFuture<'static, Result<Reply, NoReply>>;
}

/// By this a shard knows that it is asked by another about its own documents, and asks no further.
pub(super) const LOCAL: &str = "local";
/// Seconds after which a shard that is away may be there again: it is started elsewhere.
const AGAIN_S: u32 = 5;

impl App {
    /// Asks a shard.
    pub(super) async fn ask(&self, to: To, call: Call) -> Result<Reply, NoReply> {
        match &self.peers {
            Some(peers) => peers.call(to, call).await,
            None => Err(NoReply::Nobody("nobody leads to other shards here".to_owned())),
        }
    }

    /// Asks shards the same; `None` = that one did not answer, or not well.
    pub(super) async fn ask_shards(
        &self,
        shards: impl IntoIterator<Item = u32>,
        call: &Call,
    ) -> BTreeMap<u32, Option<Value>> {
        let asked = shards.into_iter().map(|shard| async move {
            let answer = self.ask(To::Shard(shard), call.clone()).await.map_err(|error| error.to_string());
            let answer = answer.and_then(|reply| reply.json());
            let said = answer.inspect_err(|error| tracing::warn!(shard, error, "a shard did not answer"));
            (shard, said.ok())
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
    Some(asked(app, shard_of(id, sharding.count), id, call.with(LOCAL, "true")).await)
}

/// A shard's answer about a document that belongs to it.
pub(super) async fn asked(app: &Shared, shard: u32, id: &str, call: Call) -> Result<Reply, Refusal> {
    let hint = if call.method == Method::GET { "" } else { "\nhint: send it again when the shard is back" };
    app.ask(To::Shard(shard), call).await.map_err(|error| {
        missing(format!("the document {id:?} belongs to shard {shard}, which does not answer: {error}{hint}"))
    })
}

/// A shard is away, or has not all of its documents yet.
pub(super) fn missing(message: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("shard_missing").again_after(AGAIN_S)
}
