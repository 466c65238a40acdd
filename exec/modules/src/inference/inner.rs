//! The model, asked by what stands in front of it in the same process: documents, tools. Its own API answers, as it would
//! a client's.

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, header},
};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use http_body_util::BodyExt;
use mloc_agent::model::sse::Events;
use mloc_rag::http::{Chat, ChatError, Told};
use serde_json::{Value, json};
use tower::ServiceExt;

/// What answers /v1/chat/completions.
#[derive(Clone)]
pub struct Inner(pub Router);

impl Inner {
    /// The answer's bytes, where it is one.
    ///
    /// # Errors
    /// What the model refuses.
    pub async fn ask(&self, body: Value) -> Result<BoxStream<'static, Result<Bytes, String>>, ChatError> {
        let broken = |text: String| ChatError { status: 500, body: json!({"error": {"message": text}}) };
        let request = Request::post("/v1/chat/completions").header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_string())).map_err(|error| broken(error.to_string()))?;
        let Ok(response) = self.0.clone().oneshot(request).await;
        let status = response.status();
        if !status.is_success() {
            let bytes = response.into_body().collect().await.map_err(|error| broken(error.to_string()))?.to_bytes();
            let said = serde_json::from_slice(&bytes);
            let body = said.unwrap_or_else(|_| json!({"error": {"message": String::from_utf8_lossy(&bytes)}}));
            return Err(ChatError { status: status.as_u16(), body });
        }
        let bytes = response.into_body().into_data_stream();
        Ok(bytes.map(|bytes| bytes.map_err(|error| error.to_string())).boxed())
    }
}

impl Chat for Inner {
    fn complete(&self, body: Value) -> BoxFuture<'static, Result<Told, ChatError>> {
        let inner = self.clone();
        Box::pin(async move {
            let streams = body.get("stream") == Some(&Value::Bool(true));
            let mut bytes = inner.ask(body).await?;
            if streams {
                return Ok(Told::Stream(events(bytes)));
            }
            let mut whole = Vec::new();
            while let Some(piece) = bytes.next().await {
                whole.extend_from_slice(&piece.map_err(failed)?);
            }
            serde_json::from_slice(&whole).map(Told::Whole).map_err(|error| failed(error.to_string()))
        })
    }
}

fn failed(text: String) -> ChatError {
    ChatError { status: 500, body: json!({"error": {"message": text, "type": "server_error"}}) }
}

/// Bytes of one event at most: arguments of a call may come in one.
const EVENT_BYTES: usize = 4 << 20;

/// Data of server-sent events, without the last word.
fn events(bytes: BoxStream<'static, Result<Bytes, String>>) -> BoxStream<'static, Result<Value, ChatError>> {
    let told = bytes.scan(Events::new(EVENT_BYTES), |events, piece| {
        let mut told = Vec::new();
        match piece {
            Err(text) => told.push(Err(failed(text))),
            Ok(piece) => {
                let read = events.take(&piece, |data| told.extend(of_data(&data)));
                told.extend(read.err().map(|error| Err(failed(error.to_string()))));
            }
        }
        std::future::ready(Some(futures::stream::iter(told)))
    });
    told.flatten().boxed()
}

fn of_data(data: &str) -> Option<Result<Value, ChatError>> {
    if data == "[DONE]" {
        return None;
    }
    Some(match serde_json::from_str::<Value>(data) {
        Ok(value) if value.get("error").is_some() => Err(ChatError { status: 500, body: value }),
        Ok(value) => Ok(value),
        Err(error) => Err(failed(format!("an event that is no JSON: {error}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_their_data_however_they_are_cut() {
        let text = "data: {\"a\":1}\n\n: still here\n\ndata: {\"b\":\"\u{e9}\"}\n\ndata: [DONE]\n\n".as_bytes();
        for cut in 1..text.len() {
            let pieces: Vec<_> = text.chunks(cut).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let told: Vec<_> = events(futures::stream::iter(pieces).boxed()).collect().await;
            assert_eq!(told, [Ok(json!({"a": 1})), Ok(json!({"b": "\u{e9}"}))]);
        }
        let broken = [Ok(Bytes::from_static(b"data: {\"error\":{\"message\":\"lost\"}}\n\n")), Err("gone".to_owned())];
        let told: Vec<_> = events(futures::stream::iter(broken).boxed()).collect().await;
        assert_eq!(told.iter().filter(|one| one.is_err()).count(), 2, "{told:?}");
    }
}
