//! Keys and values of all sequences, in blocks.
//!
//! A head's keys lie as `[block_tokens / 32, head_dim, 32 positions]` and its values as
//! `[head_dim / 32, block_tokens, 32 values]`: panels, which the same kernels read as weights.
#![expect(unsafe_code, reason = "threads of a step write keys and values of different tokens")]

use half::f16;
use memmap2::MmapRaw;

use crate::{kernels::product::PANEL, matrix::reserve};

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFormat {
    /// 32 bits.
    F32,
    /// 16 bits (IEEE half, 11 significant bits): half the bytes of a long context.
    F16,
}

impl CacheFormat {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Bytes of one block in all layers, for a model of such sizes: what there is room for can be told before it is reserved.
pub fn block_bytes(format: CacheFormat, layers: usize, kv_heads: usize, head_dim: usize, block_tokens: usize) -> usize {
    layers * kv_heads * head_bytes(format, head_dim, block_tokens)
}

/// Of one head of one block: values are padded to whole panels.
fn head_bytes(format: CacheFormat, head_dim: usize, block_tokens: usize) -> usize {
    (head_dim + head_dim.next_multiple_of(PANEL)) * block_tokens * format.bytes()
}

pub(crate) struct Cache {
    pub format: CacheFormat,
    pub block_tokens: usize,
    pub head_dim: usize,
    blocks: usize,
    kv_heads: usize,
    layers: usize,
    data: MmapRaw,
}

impl Cache {
    /// # Errors
    /// When the address space has no such room. Pages take memory only when they are first written.
    pub(crate) fn new(
        format: CacheFormat,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        block_tokens: usize,
        blocks: usize,
    ) -> std::io::Result<Self> {
        let data = reserve(blocks * block_bytes(format, layers, kv_heads, head_dim, block_tokens))?.into();
        Ok(Self { format, block_tokens, head_dim, blocks, kv_heads, layers, data })
    }

    /// Bytes of one head of one block.
    fn head_bytes(&self) -> usize {
        head_bytes(self.format, self.head_dim, self.block_tokens)
    }

    /// Bytes from one block to the next in a layer.
    pub(crate) fn block_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Bytes from a head's keys to its values.
    pub(crate) fn values_at(&self) -> usize {
        self.head_dim * self.block_tokens * self.format.bytes()
    }

    /// A head's keys in block 0 of a layer.
    pub(crate) fn head(&self, layer: usize, head: usize) -> *mut u8 {
        assert!(layer < self.layers && head < self.kv_heads);
        self.data.as_mut_ptr().wrapping_add(layer * self.blocks * self.block_bytes() + head * self.head_bytes())
    }

    /// Writes one token's key and value of one head.
    ///
    /// # Safety
    /// Nobody else reads or writes this token's place.
    pub(crate) unsafe fn write(
        &self,
        layer: usize,
        head: usize,
        block: u32,
        offset: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!((block as usize) < self.blocks && offset < self.block_tokens);
        assert!(key.len() == self.head_dim && value.len() == self.head_dim);
        let base = self.head(layer, head).wrapping_add(block as usize * self.block_bytes());
        let keys = offset / PANEL * self.head_dim * PANEL + offset % PANEL;
        let values = self.head_dim * self.block_tokens + offset * PANEL;
        for d in 0..self.head_dim {
            let (key_at, value_at) = (keys + d * PANEL, values + d / PANEL * self.block_tokens * PANEL + d % PANEL);
            // SAFETY: within the block, which the assertions hold; by the caller this place is the token's own.
            unsafe {
                match self.format {
                    CacheFormat::F32 => {
                        *base.cast::<f32>().add(key_at) = key[d];
                        *base.cast::<f32>().add(value_at) = value[d];
                    }
                    CacheFormat::F16 => {
                        *base.cast::<f16>().add(key_at) = f16::from_f32(key[d]);
                        *base.cast::<f16>().add(value_at) = f16::from_f32(value[d]);
                    }
                }
            }
        }
    }

    /// Copies a block in all layers. Nothing else runs.
    pub(crate) fn copy(&self, from: u32, to: u32) {
        assert!(
            (from as usize) < self.blocks && (to as usize) < self.blocks,
            "block {from} or {to} of {}",
            self.blocks
        );
        let bytes = self.block_bytes();
        for layer in 0..self.layers {
            let base = self.head(layer, 0);
            // SAFETY: both lie within the cache, and no step is under way; `copy` allows them to be the same.
            unsafe {
                let (from, to) = (base.add(from as usize * bytes), base.add(to as usize * bytes));
                std::ptr::copy(from, to, bytes);
            }
        }
    }
}
