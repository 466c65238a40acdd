//! The serving engine without tensors: which sequences compute which tokens next, where their keys and values live,
//! what is sampled from the logits, and what text comes of it.
//!
//! ```text
//! request    what a client asks for and what it hears: Request in, Events out
//! forward    the seam to a model: chunks of tokens in, rows of logits out
//! vocabulary the seam to a tokenizer: ids to bytes and text
//! ```
//!
//! Deliberately absent: tensors, HTTP, async, clocks. A model behind [`forward::Forward`] may compute on hand-written CPU
//! kernels or on a GPU.

pub mod forward;
pub mod request;
pub mod vocabulary;
