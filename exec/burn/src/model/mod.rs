//! Decoder-only transformers: configuration, layers, forward and backward.
//!
//! ```text
//! config     what config.json means; families as rows of a table
//! packed     a batch with its padding removed: the form every layer works on
//! parameter  a named tensor, trainable or frozen; gradients by name
//! weight     a linear layer's weight: in f32, in half of it, or in 4 bits; what products are computed in
//! adapter    LoRA and DoRA beside such a weight
//! linear, norm, rope, attention, layer      each with its forward and its backward
//! decoder    the stack: load, random, forward, backward, logits
//! score      a head of few outputs in place of the vocabulary: rewards, values
//! cache      keys and values of past tokens, for generation
//! ```
//!
//! Activations are `[tokens, width]`: padding is taken out before the first layer, so no arithmetic is spent on it
//! and no layer needs a padding mask.

pub mod adapter;
pub mod attention;
pub mod cache;
pub mod config;
pub mod decoder;
pub mod layer;
pub mod linear;
pub mod norm;
pub mod packed;
pub mod parameter;
pub mod rope;
pub mod score;
pub mod weight;

pub use cache::KeyValueCache;
pub use config::{ConfigError, DecoderConfig};
pub use decoder::{Decoder, Tape};
pub use packed::Packed;
pub use parameter::{Gradients, Parameter, Parameters};
pub use score::ScoreHead;
pub use weight::{Compute, Held, Weight};
