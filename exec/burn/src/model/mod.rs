//! Transformers, decoders and encoders: configuration, layers, forward and backward.
//!
//! ```text
//! config     what config.json means: a decoder's sizes and switches
//! architectures  the families of decoders that are known, as rows of a table
//! packed     a batch with its padding removed: the form every layer works on
//! parameter  a named tensor, trainable or frozen; gradients by name
//! weight     a linear layer's weight: in f32, in half of it, or in 4 bits; what products are computed in
//! adapter    LoRA and DoRA beside such a weight
//! linear, norm, layer_norm, rope, activation  the smallest parts, each with its forward and its backward
//! dot_product, attention, mlp, experts, feed_forward, layer  what is made of them, the same
//! decoder    the stack: load, random, forward, backward, logits
//! encoder    BERT: all of a text seen at once, for embeddings and for scores of pairs
//! maker      where a model's tensors come from
//! head       the head over the vocabulary
//! score      a head of few outputs in place of the vocabulary: rewards, values
//! cache      keys and values of past tokens, for generation
//! paged      the same in blocks, for a serving engine: a step of many texts at once
//! ```
//!
//! Activations are `[tokens, width]`: padding is taken out before the first layer, so no arithmetic is spent on it
//! and no layer needs a padding mask.

pub mod activation;
pub mod adapter;
pub mod architectures;
pub mod attention;
pub mod cache;
pub mod config;
pub mod decoder;
pub mod dot_product;
pub mod encoder;
pub mod experts;
pub mod feed_forward;
pub mod head;
pub mod layer;
pub mod layer_norm;
pub mod linear;
mod maker;
pub mod mlp;
pub mod norm;
pub mod packed;
pub mod paged;
pub mod parameter;
pub mod rope;
pub mod score;
pub mod weight;

pub use activation::Activation;
pub use cache::KeyValueCache;
pub use config::{ConfigError, DecoderConfig, ExpertsConfig, Rope, RopeScaling};
pub use decoder::{Decoder, Tape};
pub use encoder::{Encoder, EncoderConfig, EncoderInput, EncoderRow};
pub use head::Head;
pub use packed::Packed;
pub use parameter::{Gradients, Parameter, Parameters};
pub use score::ScoreHead;
pub use weight::{Compute, Held, Weight};
