//! An answer on its way from a replica: counted as under way until its end, given up when its node is lost, and an event
//! stream that breaks ends with an event that says so.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, Response, header},
};
use futures::{Stream, StreamExt, stream};
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use mloc_core::id::NodeId;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::Services;

/// A node that gossip does not hear, and that sends nothing for so long, is gone: gossip alone may be wrong.
const SILENCE: Duration = Duration::from_secs(5);

/// A request is under way until this is dropped.
pub(super) struct Under(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Under {
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

struct Coming {
    body: BodyDataStream<Incoming>,
    events: bool,
    services: Arc<dyn Services>,
    node: NodeId,
    _pump: AbortOnDropHandle<()>,
    _under: Under,
}

/// The answer as the client gets it.
pub(super) fn watched(
    response: Response<Incoming>,
    pump: AbortOnDropHandle<()>,
    under: Under,
    services: Arc<dyn Services>,
    node: NodeId,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        parts.headers.remove(name);
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let events = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
    let body = BodyDataStream::new(body);
    let coming = Coming { body, events, services, node, _pump: pump, _under: under };
    Response::from_parts(parts, Body::from_stream(pieces(coming)))
}

fn pieces(coming: Coming) -> impl Stream<Item = Result<Bytes, String>> {
    stream::unfold(Some(coming), |coming| async move {
        let mut coming = coming?;
        let lost = async {
            loop {
                coming.services.unheard(&coming.node).await;
                tokio::time::sleep(SILENCE).await;
                // Heard again meanwhile?
                if tokio::time::timeout(Duration::ZERO, coming.services.unheard(&coming.node)).await.is_ok() {
                    return format!("node {} is not heard of any more", coming.node);
                }
            }
        };
        let why = tokio::select! {
            biased;
            piece = coming.body.next() => match piece {
                Some(Ok(piece)) => return Some((Ok(piece), Some(coming))),
                None => return None,
                Some(Err(error)) => format!("the connection broke: {error}"),
            },
            why = lost => why,
        };
        let why = format!("the replica was lost before the end of its answer: {why}");
        // Nothing follows: the replica and its count go here.
        Some((if coming.events { Ok(error_event(&why)) } else { Err(why) }, None))
    })
}

/// What was cut off ends with the empty line, and so is no event.
fn error_event(why: &str) -> Bytes {
    let error = json!({"error": {"message": why, "type": "server_error", "param": null, "code": "replica_lost"}});
    Bytes::from(format!("\n\nevent: error\ndata: {error}\n\n"))
}
