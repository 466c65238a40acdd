//! A streamed answer: pieces pass as they come, citations come with the last one before `[DONE]`.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};

use super::{
    ChatError, Shared,
    chat::{Ground, head, honest_words, shown},
};
use crate::answer::Finder;

const DONE: &str = "data: [DONE]\n\n";

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn sse(chunks: impl futures::Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // A proxy that gathers what it passes on would make of a stream one late answer.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}

/// Chunks of an answer on their way.
pub(super) struct Passing {
    ground: Ground,
    finders: BTreeMap<u64, Finder>,
    /// The last that says how a choice ended or what it used: citations go with the very last of these.
    held: Option<Value>,
    /// What the last chunk looked like, without its choices.
    frame: Value,
}

impl Passing {
    pub(super) fn new(ground: Ground) -> Self {
        Self { ground, finders: BTreeMap::new(), held: None, frame: json!({ "object": "chat.completion.chunk" }) }
    }

    /// A chunk comes: what is passed on for it.
    pub(super) fn hear(&mut self, mut chunk: Value) -> Vec<Value> {
        let mut out: Vec<Value> = self.held.take().into_iter().collect();
        self.frame = chunk.clone();
        if let Some(frame) = self.frame.as_object_mut() {
            frame.shift_remove("choices");
            frame.shift_remove("usage");
        }
        let choices = chunk["choices"].as_array_mut();
        let mut ends = choices.as_ref().is_none_or(|choices| choices.is_empty());
        for choice in choices.into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(0);
            let piece = choice["delta"]["content"].as_str().map(str::to_owned);
            if let Some(piece) = &piece {
                self.finders.entry(index).or_default().feed(piece);
            }
            if choice["finish_reason"].is_null() {
                continue;
            }
            ends = true;
            if !self.ground.sentence.is_empty() && self.finders.contains_key(&index) {
                let words = format!("{}\n\n{}", piece.unwrap_or_default(), self.ground.sentence);
                choice["delta"]["content"] = words.into();
            }
        }
        if ends {
            self.held = Some(chunk);
        } else {
            out.push(chunk);
        }
        out
    }

    /// The stream is over: its last chunk, with citations.
    pub(super) fn close(&mut self) -> Value {
        let mut last = self.held.take().unwrap_or_else(|| {
            let mut chunk = self.frame.clone();
            chunk["choices"] = json!([]);
            chunk
        });
        let mut all = Vec::new();
        let mut unknown = Vec::new();
        for (index, finder) in &self.finders {
            let (citations, strange) = finder.resolve(&self.ground.hits);
            all.extend(shown(&citations, &json!(index)));
            unknown.extend(strange);
        }
        last["citations"] = all.into();
        last["rag"] = self.ground.said(&unknown);
        last
    }
}

/// The response. The client's going away drops it, and with it the model's stream.
pub(super) fn response(chunks: BoxStream<'static, Result<Value, ChatError>>, ground: Ground) -> Response {
    let state = (Some(chunks), Passing::new(ground), VecDeque::<String>::new());
    sse(stream::unfold(state, |(mut chunks, mut passing, mut ready)| async move {
        loop {
            if let Some(text) = ready.pop_front() {
                return Some((Ok(Bytes::from(text)), (chunks, passing, ready)));
            }
            match chunks.as_mut()?.next().await {
                Some(Ok(chunk)) => ready.extend(passing.hear(chunk).iter().map(event)),
                // As the model's server said it; what was told before it stays told.
                Some(Err(error)) => {
                    ready.push_back(event(&error.body));
                    chunks = None;
                }
                None => {
                    ready.extend([event(&passing.close()), DONE.to_owned()]);
                    chunks = None;
                }
            }
        }
    }))
}

/// The honest answer, as a stream.
pub(super) fn honest(app: &Shared, body: &Value, ground: &Ground) -> Response {
    let frame = head(app, body, "chat.completion.chunk");
    let chunk = |delta: Value, end: Value| {
        let mut chunk = frame.clone();
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": end }]);
        chunk
    };
    let mut passing = Passing::new(ground.silent());
    let words = json!({ "role": "assistant", "content": honest_words(ground) });
    let mut text: String = passing.hear(chunk(words, Value::Null)).iter().map(event).collect();
    text.extend(passing.hear(chunk(json!({}), "stop".into())).iter().map(event));
    text.push_str(&event(&passing.close()));
    text.push_str(DONE);
    sse(stream::iter([Ok(Bytes::from(text))]))
}
