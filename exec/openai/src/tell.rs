//! What is common to everything that turns an engine's events into an answer: plain machines, one an endpoint.

use mloc_engine::request::{Event, Request};
use serde_json::Value;

use crate::refusal::Refusal;

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its name, where the endpoint has names.
    pub event: Option<&'static str>,
    /// What it says: JSON, or `[DONE]`.
    pub data: String,
}

impl Chunk {
    /// Without a name.
    pub fn unnamed(data: &Value) -> Self {
        Self { event: None, data: data.to_string() }
    }

    /// The last one.
    pub fn done() -> Self {
        Self { event: None, data: "[DONE]".into() }
    }

    /// As bytes of a stream.
    pub fn write(&self, into: &mut String) {
        if let Some(event) = self.event {
            into.push_str("event: ");
            into.push_str(event);
            into.push('\n');
        }
        into.push_str("data: ");
        into.push_str(&self.data);
        into.push_str("\n\n");
    }
}

/// A machine that tells an answer. It gathers the whole; where the answer is streamed it returns chunks besides.
pub trait Tell: Send {
    /// Before any event.
    fn open(&mut self) -> Vec<Chunk> {
        Vec::new()
    }

    /// An event of the request for this prompt, from 0; never one of failure.
    fn hear(&mut self, prompt: usize, event: Event) -> Vec<Chunk>;

    /// After the last event of each prompt.
    fn close(&mut self) -> Vec<Chunk>;

    /// It can't go on.
    fn fail(&mut self, refusal: &Refusal) -> Vec<Chunk> {
        vec![Chunk::unnamed(&refusal.body())]
    }

    /// The answer as one object, after the last event.
    fn whole(&mut self) -> Value;
}

/// What is to be done for a client: requests for an engine, and who tells what comes of them.
pub struct Job {
    /// One a prompt.
    pub requests: Vec<Request>,
    /// Events that can come of them.
    pub events_max: usize,
    /// Streamed, or told whole.
    pub streamed: bool,
    /// Who tells.
    pub teller: Box<dyn Tell>,
}
