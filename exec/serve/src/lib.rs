//! A model's files behind OpenAI's API: what joins the libraries that know of files, of steps and of clients.
//!
//! ```text
//! open         a path → a model that serves: a decoder behind an engine, an encoder that embeds, one that ranks
//! settings     how
//!
//! decoder      a language model: its files, the engine's thread
//! room         how much cache there is beside its weights
//! processor    it computes on the processor
//! device       it computes on a GPU, by tensors
//! shape        config.json → what the processor's decoder is built of
//! weights      tensors by their names in files → by role
//! blocks       tensors as files store them → what the processor multiplies
//! adapters     PEFT folders → the processor's adapters
//! generator    the API's seam, answered by an engine
//! defaults     generation_config.json
//!
//! vocabulary   a tokenizer as the engine sees it: bytes of single tokens
//! talk         conversations by the chat template; which calls and thoughts a model writes
//!
//! encoders     embedders and rerankers behind the same seam
//! listen       a server on a Unix socket, for callers that are not async
//! ```
//!
//! Deliberately absent: tasks and nodes (a module calls this), routes (the API's), sampling on a GPU.

mod adapters;
mod blocks;
mod decoder;
mod defaults;
mod device;
mod encoders;
mod generator;
pub mod listen;
mod open;
mod processor;
mod room;
mod settings;
mod shape;
mod talk;
mod vocabulary;
mod weights;

/// The API.
pub use mloc_openai as openai;

pub use self::{
    decoder::{Decoder, Facts},
    encoders::{Encoder, relevance},
    generator::Generator,
    open::{ServeError, Served, open},
    settings::{Calls, Number, On, Settings, Thoughts},
    vocabulary::TokenizerVocabulary,
};
