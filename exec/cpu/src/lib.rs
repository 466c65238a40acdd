//! Inference on CPUs: a decoder behind the engine's `Forward`, on kernels written for it.
//!
//! ```text
//! architecture  what a decoder looks like, in plain numbers
//! weights       how weights come in: by role, as rows of f32, bf16, bytes or nibbles
//! model         a loaded model: Settings, Forward
//! adapter       LoRA adapters, loaded and unloaded while the model runs
//! isa           instruction sets, found at run time
//! pool          threads that compute a job phase by phase
//!
//! matrix        weights packed into panels        cache      keys and values in blocks
//! decoder       a model's packed weights          plan       what one step computes
//! step          its phases and chunks             products, stage, attending   what a chunk does
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
pub mod isa;
mod kernels;
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
pub use decoder::LoadError;
pub use matrix::Format;
pub use model::{Model, Settings};
