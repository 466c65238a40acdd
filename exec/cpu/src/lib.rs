//! Inference on CPUs: a decoder behind the engine's `Forward`, on kernels written for it.
//!
//! ```text
//! architecture  what a decoder looks like, in plain numbers
//! weights       how weights come in: by role, as rows of floats, bytes or nibbles
//! model         a loaded model: Settings, Forward
//! adapter       LoRA adapters, loaded and unloaded while the model runs
//! isa           instruction sets, found at run time
//! pool          threads that compute a job phase by phase
//!
//! matrix        weights packed into panels        cache      keys and values in blocks
//! decoder       a model's packed weights          load       from tensors to them
//! plan          what one step computes            step       its phases and chunks
//! products, experts, stage, attending   what a chunk does
//! workspace     activations between products      buffer     memory that threads share by parts
//! kernels       the inner loops
//! ```
//!
//! Every number is one sum in one order, whatever the batch, the threads or the processor: `kernels/product.rs` says how.
//!
//! Deliberately absent: files, configurations, tokenizers (the caller maps them), batching and sampling (the engine's),
//! async, burn.

pub mod adapter;
pub mod architecture;
mod attending;
mod buffer;
mod cache;
mod decoder;
mod experts;
pub mod isa;
mod kernels;
mod load;
mod matrix;
mod model;
mod plan;
pub mod pool;
mod products;
mod stage;
mod step;
pub mod weights;
mod workspace;

pub use cache::{CacheFormat, block_bytes};
pub use load::{Held, Keep, LoadError, held};
pub use matrix::Format;
pub use model::{Model, Settings};
