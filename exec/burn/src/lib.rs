//! A plain machine-learning library on Burn: models, tokenizers, LoRA, losses, optimisation, generation.
//!
//! It knows nothing of tasks, meshes or stores, and nothing here is async: a caller drives it from its own thread.
//!
//! ```text
//! weights   a folder of safetensors (or a GGUF file) as named f32 tensors
//! model     config.json -> a decoder; forward, and a backward pass written by hand
//! kernels   where tensors lie on a GPU: operations of the model as kernels of mloc-kernels
//! processor where they lie in the host's memory: the same operations as single passes over it
//! quant     matrices in 4 bits, NF4 and FP4
//! lora      low-rank adapters on its linear layers, in PEFT's file format
//! loss      cross-entropy over the target positions only
//! loss_scale  keeps small gradients within the range of f16
//! memory    what training will need, before anything is there
//! preference  DPO and reward models: losses over pairs of a chosen and a rejected answer
//! operations  how many floating-point operations a step needs
//! spent     where its time goes
//! allocator memory that steps ask for again and again
//! optim     AdamW in 32 and 8 bits, Adafactor, SGD; global-norm clipping; schedule: the learning rate at a step
//! objective what a step minimises: a batch's loss and gradient; cross-entropy is the first
//! parallel  a step's micro-batches dealt to the devices of one machine
//! train     Trainer: step, save, resume, export
//! embedding texts as vectors and scores of pairs, by an encoder, with sentence-transformers' files
//! logprobs  log-probabilities of given tokens, and the gradient of what is made of them
//! rl        PPO's and GRPO's arithmetic on such log-probabilities
//! generate  greedy and sampled continuation with a key-value cache
//! export    model folders in Hugging Face's layout, in shards where they are large, and GGUF files
//! ```
//!
//! Deliberately absent: autodiff. The backward pass of the decoder is a page long, keeps only
//! the activations it needs, and never touches a frozen weight's gradient. Losses outside this crate
//! may still use Burn's autodiff on the hidden states and hand their gradient to [`model::Decoder::backward`].

pub mod allocator;
pub mod batch;
pub mod device;
pub mod embedding;
pub mod export;
pub mod formats;
pub mod generate;
#[cfg(feature = "kernels")]
pub(crate) mod kernels;
pub mod logprobs;
pub mod lora;
pub mod loss;
pub mod loss_scale;
pub mod memory;
pub mod model;
pub mod objective;
pub mod operations;
pub mod optim;
pub mod parallel;
pub mod preference;
pub(crate) mod processor;
pub mod quant;
pub mod random;
pub mod rl;
pub mod schedule;
pub mod spent;
pub mod train;
pub mod weights;
