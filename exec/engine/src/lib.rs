//! The serving engine without tensors: which sequences compute which tokens next, where their keys and values live,
//! what is sampled from the logits, and what text comes of it.
//!
//! ```text
//! request    what a client asks for and what it hears: Request in, Events out
//! forward    the seam to a model: chunks of tokens in, rows of logits out
//! vocabulary the seam to a tokenizer: ids to bytes and text
//!
//! run        the engine's thread, and the handle that leads to it
//! admission  whether a request can be answered; settings
//! engine     a step: plan, forward, take, tell
//!
//! schedule   which sequences compute which tokens in the next step; the promises E1 to E6
//! sequence   one answer's tokens, and where it stands
//! blocks     cache blocks: who holds them, what they hold, which is given away next
//! guess      what may come next, to be checked in one step
//! adapters   adapters by name, kept until the last request with them ends
//!
//! answer     one answer, from rows of logits to tokens, text and its end
//! sample     a row of logits to a token; draw: chance as a function of seed, answer and place
//! constrain  what an answer must match, by llguidance
//! text       tokens to text as it comes; stop strings
//! stats      what is counted
//! ```
//!
//! An answer depends on its request alone: not on what else is in a step, how its prompt was cut, what was found in the
//! cache, thrown out of it, or guessed (`tests/properties.rs`); but for the last bits of a model's floats.
//!
//! Deliberately absent: tensors, HTTP, async, clocks; and embeddings, which have no next token: a model that makes them
//! needs nothing of what is here. A model behind [`forward::Forward`] may compute on hand-written CPU kernels or on a GPU.

pub mod adapters;
pub mod admission;
pub mod answer;
pub mod blocks;
pub mod constrain;
pub mod draw;
pub mod engine;
pub mod forward;
pub mod guess;
pub mod request;
pub mod run;
pub mod sample;
pub mod schedule;
pub mod sequence;
pub mod stats;
pub mod text;
pub mod vocabulary;
