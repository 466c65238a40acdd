//! OpenAI's API over a serving engine: the server that a serving child process runs, on a unix socket or a loopback port.
//!
//! ```text
//! model       the seam: what the server needs of what is served
//! server      the async shell: routes, bodies, streams, places       hear: from the engine's thread to a client
//! endpoint    one file each: fields → meant → engine requests → answer, all of it plain
//! fields      a row for each field of a request: used, without effect, or refused; nothing is silently ignored
//! schema      what a field may hold; the same words check it, refuse it and document it
//! generation  sampling, stops, limits    messages, tools, constraint  what else requests have in common
//! grammar     what an answer must match, where calls must come or a thought is open
//! calls       tool calls in text: Hermes/Qwen, Llama 3, Mistral      thought: <think>…</think>
//! answer      an answer's text, read for both                        tell: events to OpenAI's shapes
//! logprobs, ids, refusal, limits, metrics, openapi
//! ```
//!
//! Deliberately absent: TLS, authentication and accounts, which the node in front of it has; tensors; storage of
//! conversations.

pub mod answer;
pub mod calls;
pub mod constraint;
pub mod endpoint;
pub mod fields;
pub mod generation;
pub mod grammar;
pub mod hear;
pub mod ids;
pub mod limits;
pub mod logprobs;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod openapi;
pub mod refusal;
pub mod schema;
pub mod server;
pub mod tell;
pub mod thought;
pub mod tools;

pub use limits::Limits;
pub use model::Model;
pub use server::{Server, router, serve, serve_tcp};
