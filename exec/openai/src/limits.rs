//! How much a server takes. All of it is bounded.

use std::time::Duration;

/// The bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Within this a body must have come: a client that dribbles holds no place.
    pub body_within: Duration,
    /// Messages of a conversation.
    pub messages: usize,
    /// Tools on offer.
    pub tools: usize,
    /// Answers to a prompt (`n`, `best_of`).
    pub choices: usize,
    /// Prompts, inputs or documents of one request.
    pub batch: usize,
    /// Requests on their way at once; more are refused with 429.
    pub requests: usize,
    /// Events of an answer that its client has not read. A client that falls further behind is cut off: its slot is
    /// worth more than its answer. About 100 bytes each, more with log-probabilities.
    pub unread_events: usize,
    /// A stream that has nothing to say says so this often, that nobody on the way takes it for dead.
    pub heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 16 << 20,
            body_within: Duration::from_secs(30),
            messages: 4096,
            tools: 128,
            choices: 128,
            batch: 2048,
            requests: 1024,
            unread_events: 1024,
            heartbeat: Duration::from_secs(15),
        }
    }
}
