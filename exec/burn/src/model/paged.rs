//! Steps of many texts at once over keys and values in blocks: what a serving engine asks a device for.
//!
//! ```text
//! cache     keys and values of all texts, in blocks that several may share
//! reading   where a step's tokens lie there, and what each of them sees
//! by_kernel the same for kernels, on a GPU
//! adapters  which tokens have which LoRA factors beside the weights
//! ```
//!
//! The paged attention of Kwon et al. (arXiv 2309.06180): a text's tokens lie in blocks anywhere, and the step says which.
//! On the processor this is the plain form that kernels are held to; for speed there is mloc-cpu.

mod adapters;
#[cfg(feature = "kernels")]
mod by_kernel;
mod cache;
mod reading;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, FloatDType, Tensor};

pub use self::adapters::AdapterSet;
pub(super) use self::adapters::Beside;
pub use self::cache::{PagedCache, PagedLayer};
pub use self::reading::Reading;
use super::packed::{Packed, int_tensor};
use super::parameter::into_values;
use super::rope::{RotationTable, frequencies};
use super::{Compute, Decoder};

/// Rows of logits that are on the device at a time: of a vocabulary of 150,000 they take 150 MB.
const LOGIT_ROWS: usize = 256;

/// Consecutive tokens of one text.
#[derive(Debug, Clone)]
pub struct PagedChunk<'a> {
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// The position of the first: as many tokens of this text are in the cache.
    pub start: usize,
    /// The text's blocks from its first token on.
    pub blocks: &'a [u32],
    /// The adapter it runs with.
    pub adapter: Option<Arc<AdapterSet>>,
    /// Of which of its tokens the logits are wanted.
    pub wanted: Range<usize>,
}

impl PagedChunk<'_> {
    /// Tokens of the text once this chunk is computed.
    fn end(&self) -> usize {
        self.start + self.tokens.len()
    }
}

/// How much room a decoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagedSizes {
    /// Blocks there are.
    pub blocks: usize,
    /// Tokens a block.
    pub block_tokens: usize,
    /// Tokens of one text at most.
    pub max_length: usize,
    /// What keys and values are held in.
    pub format: FloatDType,
}

impl PagedSizes {
    /// Bytes of a block in all layers of a model.
    pub fn block_bytes(&self, config: &super::DecoderConfig) -> usize {
        let element = match self.format {
            FloatDType::F64 => 8,
            FloatDType::F32 | FloatDType::Flex32 => 4,
            FloatDType::F16 | FloatDType::BF16 => 2,
        };
        2 * config.num_layers * config.num_kv_heads * config.head_dim * self.block_tokens * element
    }
}

/// A decoder with room for the texts that it serves. A text's logits don't depend on what is beside it in a step but for
/// the last bits of floats: products of other heights are summed in other orders.
#[derive(Debug)]
pub struct PagedDecoder {
    model: Decoder,
    cache: PagedCache,
    rotations: Vec<RotationTable>,
    max_length: usize,
}

impl PagedDecoder {
    /// Takes all of the cache's memory at once. Weights of the embedding and of the head are held in what the layers'
    /// products are computed in from now on.
    pub fn new(mut model: Decoder, sizes: PagedSizes) -> Self {
        let device = model.device().clone();
        model.hold_vocabulary(model.compute());
        let PagedSizes { blocks, block_tokens, max_length, format } = sizes;
        Self {
            cache: PagedCache::new(&model.config, blocks, block_tokens, format, &device),
            rotations: frequencies(&model.config)
                .iter()
                .map(|of| RotationTable::new(of, max_length, &device))
                .collect(),
            max_length,
            model,
        }
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Computes all chunks, writes their keys and values to the cache, and returns the logits that are wanted, row by row,
    /// in the order of the chunks.
    ///
    /// # Panics
    /// With a chunk without tokens, tokens outside the vocabulary, too few blocks or ones that there are not, or more than
    /// `max_length` tokens; and where the device gives up.
    pub fn step(&mut self, chunks: &[PagedChunk<'_>]) -> Vec<f32> {
        if chunks.is_empty() {
            return Vec::new();
        }
        chunks.iter().for_each(|chunk| self.check(chunk));
        let order = order(chunks);
        let chosen: Vec<&PagedChunk<'_>> = order.iter().map(|index| &chunks[*index]).collect();
        let device = self.model.device().clone();
        let packed = Packed::paged(&chosen, self.cache.block_tokens(), &self.model.config, &self.rotations, &device);
        let mut first = vec![0; chunks.len()];
        let mut row = 0;
        for index in order {
            first[index] = row;
            row += chunks[index].tokens.len();
        }
        let rows = chunks.iter().zip(first);
        let rows = rows.flat_map(|(chunk, first)| chunk.wanted.clone().map(move |token| (first + token) as i64));
        let hidden = self.model.hidden_paged(&packed, &mut self.cache);
        self.logits(&hidden, &rows.collect::<Vec<_>>(), &device)
    }

    /// Copies whole blocks, `(from, to)`, in this order.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        self.cache.copy(pairs);
    }

    /// A device looks at no index: what is beyond its memory it would read, or write.
    fn check(&self, chunk: &PagedChunk<'_>) {
        let (end, room) = (chunk.end(), chunk.blocks.len() * self.cache.block_tokens());
        assert!(!chunk.tokens.is_empty(), "a chunk without tokens");
        assert!(end <= self.max_length, "{end} tokens, {} at most", self.max_length);
        assert!(end <= room, "{end} tokens, and blocks of {room}");
        let (vocabulary, blocks) = (self.model.config.vocab_size, self.cache.blocks());
        let token = chunk.tokens.iter().find(|token| **token as usize >= vocabulary);
        assert!(token.is_none(), "token {token:?}, the vocabulary has {vocabulary}");
        let block = chunk.blocks.iter().find(|block| **block as usize >= blocks);
        assert!(block.is_none(), "block {block:?} of {blocks}");
    }

    fn logits(&self, hidden: &Tensor<2>, rows: &[i64], device: &Device) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows.len() * self.model.config.vocab_size);
        for rows in rows.chunks(LOGIT_ROWS) {
            let hidden = hidden.clone().select(0, int_tensor(rows.to_vec(), device));
            let logits = into_values(self.model.logits(hidden));
            if values.is_empty() && rows.len() < LOGIT_ROWS {
                return logits;
            }
            values.extend(logits);
        }
        values
    }
}

/// Chunks of one token first, which attend together; of those and of the others each those of an adapter side by side.
fn order(chunks: &[PagedChunk<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    let adapter = |chunk: &PagedChunk<'_>| chunk.adapter.as_ref().map_or(0, |set| Arc::as_ptr(set) as usize);
    order.sort_by_key(|index| (chunks[*index].tokens.len() > 1, adapter(&chunks[*index]), *index));
    order
}

/// What the products of a decoder are computed in, as a format for its cache.
pub fn cache_format(compute: Compute) -> FloatDType {
    compute.format()
}

#[cfg(test)]
mod tests;
