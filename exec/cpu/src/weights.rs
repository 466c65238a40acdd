//! How weights come in: by role, as rows of what their file holds.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::{kernels::product::BLOCK, matrix::Format};

/// Which tensor. Shapes are `[rows, columns]` as in `nn.Linear`: rows = outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `[vocabulary, hidden]`.
    Embedding,
    /// `[vocabulary, hidden]`; not asked for where it is tied.
    Head,
    /// `[hidden]`.
    FinalNorm,
    /// Of one layer.
    Layer(usize, Part),
}

/// Which tensor of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// `[hidden]`: before attention.
    AttentionNorm,
    /// `[hidden]`: before the feed-forward layer.
    FeedForwardNorm,
    /// `[hidden]`: after attention, where the architecture has post norms.
    AttentionPostNorm,
    /// `[hidden]`: after the feed-forward layer, likewise.
    FeedForwardPostNorm,
    /// `[head_dim]`, where the architecture has norms of queries and keys.
    QueryNorm,
    /// `[head_dim]`, likewise.
    KeyNorm,
    /// A matrix.
    Matrix(Matrix),
    /// `[rows of the matrix]`; may be absent.
    Bias(Matrix),
    /// `[experts, hidden]`, where the layer has experts.
    Router,
    /// An expert's gate, up or down, by its number.
    Expert(usize, Matrix),
}

/// A matrix of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Matrix {
    /// `[heads · head_dim, hidden]`.
    Query,
    /// `[kv_heads · head_dim, hidden]`.
    Key,
    /// `[kv_heads · head_dim, hidden]`.
    Value,
    /// `[hidden, heads · head_dim]`.
    Output,
    /// `[intermediate, hidden]`.
    Gate,
    /// `[intermediate, hidden]`.
    Up,
    /// `[hidden, intermediate]`.
    Down,
}

/// 32 weights: `scale · values[i]`. GGUF's Q8_0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block8 {
    /// Scale.
    pub scale: f16,
    /// Values.
    pub values: [i8; 32],
}

/// 32 weights: `scale · (nibble - 8)`. GGUF's Q4_0: byte i holds weight i in its lower half, weight i + 16 in its upper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block4 {
    /// Scale.
    pub scale: f16,
    /// Nibbles.
    pub nibbles: [u8; 16],
}

/// 32 weights: `scale · nibble + minimum`. GGUF's Q4_1; nibbles lie as in [`Block4`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockU4 {
    /// Scale.
    pub scale: f16,
    /// What the nibble 0 stands for.
    pub minimum: f16,
    /// Nibbles.
    pub nibbles: [u8; 16],
}

/// All values of a tensor, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Values<'a> {
    /// f32.
    F32(Cow<'a, [f32]>),
    /// bf16.
    Bf16(Cow<'a, [bf16]>),
    /// f16.
    F16(Cow<'a, [f16]>),
    /// Blocks of bytes; a row is a whole number of blocks.
    Int8(Cow<'a, [Block8]>),
    /// Blocks of nibbles; a row is a whole number of blocks.
    Int4(Cow<'a, [Block4]>),
    /// Blocks of nibbles above a minimum; a row is a whole number of blocks.
    Uint4(Cow<'a, [BlockU4]>),
}

impl Values<'_> {
    /// The format that holds them as they are.
    pub fn format(&self) -> Format {
        match self {
            Self::F32(_) => Format::F32,
            Self::Bf16(_) => Format::Bf16,
            Self::F16(_) => Format::F16,
            Self::Int8(_) => Format::Int8,
            Self::Int4(_) => Format::Int4,
            Self::Uint4(_) => Format::Uint4,
        }
    }

    /// How many values.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Int8(blocks) => blocks.len() * BLOCK,
            Self::Int4(blocks) => blocks.len() * BLOCK,
            Self::Uint4(blocks) => blocks.len() * BLOCK,
        }
    }

    /// One row as f32.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        fn blocks<B>(out: &mut [f32], blocks: &[B], from: usize, values: impl Fn(&B) -> [f32; 32]) {
            let row = out.chunks_mut(BLOCK).zip(&blocks[from / BLOCK..]);
            row.for_each(|(out, block)| out.copy_from_slice(&values(block)));
        }
        let (from, n) = (row * out.len(), out.len());
        match self {
            Self::F32(values) => out.copy_from_slice(&values[from..][..n]),
            Self::Bf16(values) => out.iter_mut().zip(&values[from..][..n]).for_each(|(out, v)| *out = v.to_f32()),
            Self::F16(values) => out.iter_mut().zip(&values[from..][..n]).for_each(|(out, v)| *out = v.to_f32()),
            Self::Int8(all) => blocks(out, all, from, Block8::values),
            Self::Int4(all) => blocks(out, all, from, Block4::values),
            Self::Uint4(all) => blocks(out, all, from, BlockU4::values),
        }
    }
}

/// Where weights come from: a checkpoint, opened. Asked from several threads at once.
pub trait Weights: Sync {
    /// A tensor by its role, or `None` where there is none.
    fn get(&self, role: Role) -> Option<Values<'_>>;

    /// The format of what [`Self::get`] gives. Whoever can tell it without reading the tensor does.
    fn format(&self, role: Role) -> Option<Format> {
        self.get(role).map(|values| values.format())
    }
}

impl Block8 {
    /// The nearest block: the scale is the largest magnitude / 127, rounded to f16.
    pub fn quantise(values: &[f32; 32]) -> Self {
        let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let factor = inverse(scale);
        Self { scale, values: values.map(|v| (v * factor).round_ties_even().clamp(-127.0, 127.0) as i8) }
    }

    /// What it stands for.
    pub fn values(&self) -> [f32; 32] {
        self.values.map(|v| f32::from(v) * self.scale.to_f32())
    }
}

impl Block4 {
    /// The nearest block: the value of largest magnitude becomes -8, as in Q4_0, so that its sign has the longer side.
    pub fn quantise(values: &[f32; 32]) -> Self {
        let extreme = values.iter().fold(0.0_f32, |a, &b| if b.abs() > a.abs() { b } else { a });
        let scale = f16::from_f32(extreme / -8.0);
        let factor = inverse(scale);
        let nibble = |v: f32| ((v * factor).round_ties_even() + 8.0).clamp(0.0, 15.0) as u8;
        Self { scale, nibbles: std::array::from_fn(|i| nibble(values[i]) | nibble(values[i + 16]) << 4) }
    }

    /// The nibble of one weight, 0..=15.
    pub fn nibble(&self, index: usize) -> u8 {
        self.nibbles[index % 16] >> (index / 16 * 4) & 15
    }

    /// What it stands for.
    pub fn values(&self) -> [f32; 32] {
        std::array::from_fn(|i| (f32::from(self.nibble(i)) - 8.0) * self.scale.to_f32())
    }
}

impl From<&Block4> for Block8 {
    /// The same values.
    fn from(block: &Block4) -> Self {
        Self { scale: block.scale, values: std::array::from_fn(|i| block.nibble(i) as i8 - 8) }
    }
}

impl BlockU4 {
    /// The nearest block: nibble 0 is the smallest value, 15 the largest.
    pub fn quantise(values: &[f32; 32]) -> Self {
        let least = values.iter().fold(f32::INFINITY, |a, b| a.min(*b));
        let most = values.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let (scale, minimum) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
        let (factor, from) = (inverse(scale), minimum.to_f32());
        let nibble = |v: f32| ((v - from) * factor).round_ties_even().clamp(0.0, 15.0) as u8;
        Self { scale, minimum, nibbles: std::array::from_fn(|i| nibble(values[i]) | nibble(values[i + 16]) << 4) }
    }

    /// What it stands for.
    pub fn values(&self) -> [f32; 32] {
        let (scale, minimum) = (self.scale.to_f32(), self.minimum.to_f32());
        std::array::from_fn(|i| f32::from(self.nibbles[i % 16] >> (i / 16 * 4) & 15) * scale + minimum)
    }
}

impl From<&Block4> for BlockU4 {
    /// The same values, for a scale below 8,188: eight times as much is a half still.
    fn from(block: &Block4) -> Self {
        let minimum = f16::from_f32(-8.0 * block.scale.to_f32());
        Self { scale: block.scale, minimum, nibbles: block.nibbles }
    }
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}
