//! A loaded model: what the engine calls.

use std::sync::Arc;

use mloc_engine::forward::{BlockId, Chunk, Forward, ForwardError, Logits, Shape};

use crate::{
    adapter::Adapters,
    architecture::Architecture,
    cache::{Cache, CacheFormat},
    decoder::Decoder,
    isa::Isa,
    kernels::{Kernels, attention::SPAN, product::PANEL},
    load::{Held, Keep, LoadError, held},
    plan::Plan,
    pool::{Counts, Pool},
    stage::MOST_HEAD_DIM,
    step::{Destination, Step},
    weights::Weights,
    workspace::Workspace,
};

/// How a model runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// Instructions to use.
    pub isa: Isa,
    /// What matrices are held in.
    pub keep: Keep,
    /// Format of keys and values.
    pub cache: CacheFormat,
    /// Tokens a cache block: 32, 64 or 128.
    pub block_tokens: usize,
    /// Cache blocks. They take memory only once they are written.
    pub blocks: usize,
    /// Tokens of a sequence at most.
    pub max_length: usize,
}

/// A decoder on CPUs.
///
/// A sequence's logits are the same to the bit alone and in any batch, at any thread count, on any instruction set, and
/// however its tokens were cut into chunks: every number is one sum in one order that depends on the model and the
/// sequence's own positions. `tests/invariance.rs` holds it to that.
pub struct Model {
    architecture: Arc<Architecture>,
    decoder: Arc<Decoder>,
    cache: Arc<Cache>,
    adapters: Adapters,
    kernels: &'static Kernels,
    pool: Pool,
    work: Arc<Workspace>,
    shape: Shape,
    held: Held,
}

impl Model {
    /// Packs weights and reserves the cache.
    ///
    /// # Errors
    /// When numbers don't fit each other, tensors are missing or of another size, or memory or threads can't be had.
    pub fn load(architecture: Architecture, weights: &dyn Weights, settings: &Settings) -> Result<Self, LoadError> {
        let mut problems = architecture.problems();
        if architecture.head_dim > MOST_HEAD_DIM {
            problems.push(format!("head_dim {} is more than {MOST_HEAD_DIM}", architecture.head_dim));
        }
        if !problems.is_empty() {
            return Err(LoadError::Architecture(problems));
        }
        settings.check()?;
        let Settings { threads, isa, keep, cache, block_tokens, blocks, max_length } = *settings;
        let architecture = Arc::new(architecture);
        let a = &*architecture;
        let decoder = Decoder::load(a, weights, keep, threads)?;
        let cache = Cache::new(cache, a.layers.len(), a.kv_heads, a.head_dim, block_tokens, blocks);
        Ok(Self {
            decoder: Arc::new(decoder),
            cache: Arc::new(cache.map_err(LoadError::Memory)?),
            adapters: Adapters::new(Arc::clone(&architecture)),
            kernels: Kernels::of(isa),
            pool: Pool::new(threads).map_err(LoadError::Threads)?,
            work: Arc::new(Workspace::new(a, 1, threads)),
            shape: Shape { vocabulary: a.vocabulary, max_length, block_tokens, blocks },
            held: held(a, weights, keep),
            architecture,
        })
    }

    /// The model's adapters, to be loaded and unloaded from any thread.
    pub fn adapters(&self) -> Adapters {
        self.adapters.clone()
    }

    /// Bytes of weights that a step of one token reads.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.step_bytes(&self.architecture)
    }

    /// What its weights take.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// What the threads did so far.
    pub fn counts(&self) -> Counts {
        self.pool.counts()
    }

    /// What of a step breaks [`Chunk`]'s promises.
    fn problem(&self, step: &[Chunk]) -> Option<String> {
        for (index, chunk) in step.iter().enumerate() {
            let end = chunk.start + chunk.tokens.len();
            let blocks = end.div_ceil(self.shape.block_tokens);
            let outside = |token: &&u32| **token as usize >= self.shape.vocabulary;
            let problem = if chunk.tokens.is_empty() {
                "no tokens".to_owned()
            } else if let Some(token) = chunk.tokens.iter().find(outside) {
                format!("token {token} of {}", self.shape.vocabulary)
            } else if end > self.shape.max_length {
                format!("{end} tokens, {} at most", self.shape.max_length)
            } else if chunk.blocks.len() < blocks {
                format!("{} blocks for {end} tokens, {blocks} needed", chunk.blocks.len())
            } else if let Some(block) = chunk.blocks.iter().find(|block| block.0 as usize >= self.shape.blocks) {
                format!("block {} of {}", block.0, self.shape.blocks)
            } else {
                continue;
            };
            return Some(format!("chunk {index}: {problem}"));
        }
        None
    }
}

impl Settings {
    fn check(&self) -> Result<(), LoadError> {
        let problem = if self.threads == 0 {
            "threads is 0, at least 1 is needed".to_owned()
        } else if !self.isa.is_available() {
            format!("this processor has no {:?}, it has {:?}", self.isa, Isa::available())
        } else if self.block_tokens == 0
            || !self.block_tokens.is_multiple_of(PANEL)
            || !SPAN.is_multiple_of(self.block_tokens)
        {
            format!("block_tokens is {}, where 32, 64 or 128 would work", self.block_tokens)
        } else {
            return Ok(());
        };
        Err(LoadError::Settings(problem))
    }
}

impl Forward for Model {
    fn shape(&self) -> Shape {
        self.shape
    }

    /// # Panics
    /// When a chunk breaks what [`Chunk`] promises: tokens outside the vocabulary, too few blocks, an adapter that was
    /// unloaded.
    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError> {
        if let Some(problem) = self.problem(step) {
            panic!("{problem}");
        }
        let width = self.shape.vocabulary;
        let tokens: usize = step.iter().map(|chunk| chunk.tokens.len()).sum();
        if tokens == 0 {
            return Ok(Logits { values: Vec::new(), width });
        }
        if tokens > self.work.tokens {
            let room = tokens.next_power_of_two();
            self.work = Arc::new(Workspace::new(&self.architecture, room, self.pool.threads()));
        }
        let plan = Plan::new(&self.architecture, step, self.pool.threads(), |chunk| {
            chunk.adapter.map(|id| {
                let adapter = self.adapters.get(id);
                adapter.unwrap_or_else(|| panic!("adapter {} is not loaded", id.0))
            })
        });
        let mut values = vec![0.0; plan.rows * width];
        let job = Step::new(
            Arc::clone(&self.architecture),
            Arc::clone(&self.decoder),
            Arc::clone(&self.cache),
            self.kernels,
            Arc::clone(&self.work),
            plan,
            Destination(values.as_mut_ptr()),
        );
        self.pool.run(Arc::new(job));
        Ok(Logits { values, width })
    }

    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) {
        for (from, to) in pairs {
            self.cache.copy(from.0, to.0);
        }
    }
}
