//! Everything about the files a model and its data come in that needs no tensor library: tokenizers, chat templates,
//! GGUF, training data.
//!
//! Plain Rust on purpose: what is here can be read, tested and used (by a server, by a data check) without a device.
//! Turning the rows it yields into tensors, and training on them, is left to the rest of the crate.

pub mod chat_template;
pub mod dataset;
pub mod gguf;
#[cfg(test)]
mod golden;
pub mod layout;
pub mod tokenizer;
pub mod train_tokenizer;
