//! Server-sent events: what has come in one write, a comment when nothing comes, an error event when it can't go on.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;

use crate::{
    hear::Line,
    tell::{Chunk, Tell},
};

/// Text of one write, about. More is there only for a client that reads slowly.
const WRITE_BYTES: usize = 16 << 10;

/// A comment: clients skip it.
const HEARTBEAT: &str = ": waiting\n\n";

struct Telling {
    line: Line,
    teller: Box<dyn Tell>,
    heartbeat: Duration,
    begun: bool,
    over: bool,
}

impl Telling {
    fn hear(
        &mut self,
        heard: Option<Result<(usize, mloc_engine::request::Event), crate::refusal::Refusal>>,
    ) -> Vec<Chunk> {
        match heard {
            Some(Ok((prompt, event))) => self.teller.hear(prompt, event),
            Some(Err(refusal)) => {
                self.over = true;
                self.teller.fail(&refusal)
            }
            None => {
                self.over = true;
                self.teller.close()
            }
        }
    }

    /// What is written next; `None` = the stream is over. Dropped while it waits, it has lost nothing.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let mut text = String::new();
        let write = |chunks: Vec<Chunk>, text: &mut String| chunks.iter().for_each(|chunk| chunk.write(text));
        if !self.begun {
            self.begun = true;
            write(self.teller.open(), &mut text);
        }
        while text.is_empty() && !self.over {
            let Ok(heard) = tokio::time::timeout(self.heartbeat, self.line.next()).await else {
                return Some(HEARTBEAT.to_owned());
            };
            write(self.hear(heard), &mut text);
        }
        while text.len() < WRITE_BYTES && !self.over {
            let Some(heard) = self.line.ready() else {
                break;
            };
            write(self.hear(Some(heard)), &mut text);
        }
        Some(text)
    }
}

/// The response. The client's going away drops it, and with it the line.
pub(super) fn response(line: Line, teller: Box<dyn Tell>, heartbeat: Duration) -> Response {
    let telling = Telling { line, teller, heartbeat, begun: false, over: false };
    let chunks = stream::unfold(telling, |mut telling| async {
        let text = telling.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), telling))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // A proxy that gathers what it passes on would make of a stream one late answer.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}
