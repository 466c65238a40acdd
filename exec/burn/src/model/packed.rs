//! A batch without its padding: the real tokens of all rows, one after another.
//!
//! Linear layers and norms see one tall matrix; attention works on [`Group`]s of neighbouring rows of equal length.
//! Positions count real tokens of a row from 0, wherever its padding stood.

use std::collections::BTreeMap;
#[cfg(feature = "kernels")]
use std::collections::BTreeSet;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::DecoderConfig;
use super::paged::{Beside, PagedChunk, Reading};
use super::rope::{Rotation, RotationTable, frequencies};
use crate::batch::Batch;
#[cfg(feature = "kernels")]
use crate::kernels::SightTensors;
use crate::random::Random;

/// Rows of equal length that are attended over together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The first token, in the packed order.
    pub start: usize,
    /// How many rows.
    pub rows: usize,
    /// Real tokens in each row.
    pub length: usize,
    /// Tokens of each row that came before, and are in a cache.
    pub past: usize,
}

impl Group {
    /// Tokens in the group.
    pub fn tokens(&self) -> usize {
        self.rows * self.length
    }
}

/// The real tokens of a batch and what the layers need to know about them.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Token ids, `[tokens]`.
    pub ids: Tensor<1, Int>,
    /// Rows for attention, in order, covering all tokens.
    pub groups: Vec<Group>,
    /// Where each token stood in the batch: row and column.
    pub slots: Vec<(usize, usize)>,
    /// The seed of this batch's dropout; `None` outside training.
    pub dropout_seed: Option<u64>,
    /// What is added to the embeddings; `None` outside training, or when nobody asked for it.
    pub embedding_noise: Option<EmbeddingNoise>,
    /// Where the tokens lie in a cache of blocks, in a step over one.
    pub(super) reading: Option<Reading>,
    /// Tokens with adapters of their own beside the model's.
    pub(super) beside: Vec<Beside>,
    /// Of all layers, or of those without a window and those with one; none in an encoder.
    rotations: Vec<Rotation>,
    /// By length, past and window.
    masks: BTreeMap<(usize, usize, Option<usize>), Tensor<4>>,
    /// What a kernel needs to know in their place, by window; none where a kernel must not be asked.
    #[cfg(feature = "kernels")]
    sights: BTreeMap<Option<usize>, SightTensors>,
}

impl Packed {
    /// Packs a batch for a model. Rows without a real token vanish.
    pub fn new(batch: &Batch, config: &DecoderConfig, device: &Device) -> Self {
        let real = |(ids, mask): (&Vec<i64>, &Vec<i64>)| -> Vec<(usize, i64)> {
            let columns = ids.iter().zip(mask).enumerate();
            columns.filter(|(_, (_, mask))| **mask != 0).map(|(column, (id, _))| (column, *id)).collect()
        };
        Layout::of(batch.input_ids.iter().zip(&batch.attention_mask).map(real)).packed(Some(config), device)
    }

    /// Packs rows of ids for an encoder, which sees all of a row and has no rotary positions; and each token's position.
    pub(super) fn unmasked<'a>(rows: impl Iterator<Item = &'a [i64]>, device: &Device) -> (Self, Vec<usize>) {
        let layout = Layout::of(rows.map(|row| row.iter().copied().enumerate().collect()));
        let positions = layout.positions.clone();
        (layout.packed(None, device), positions)
    }

    /// New tokens of one text of which `past` tokens are already cached.
    pub fn continuation(ids: &[i64], past: usize, config: &DecoderConfig, device: &Device) -> Self {
        Self::continuations(&[(past, vec![ids.to_vec()])], config, device)
    }

    /// New tokens of many texts: groups of (tokens that are already cached, new tokens of each text), where the texts of
    /// a group have as many new tokens each.
    pub fn continuations(texts: &[(usize, Vec<Vec<i64>>)], config: &DecoderConfig, device: &Device) -> Self {
        let mut layout = Layout::default();
        for (past, rows) in texts {
            let length = rows.first().map_or(0, Vec::len);
            layout.groups.push(Group { start: layout.ids.len(), rows: rows.len(), length, past: *past });
            for row in rows {
                let text = layout.slots.last().map_or(0, |(text, _)| text + 1);
                layout.slots.extend((0..length).map(|column| (text, column)));
                layout.positions.extend(*past..past + length);
                layout.ids.extend(row);
            }
        }
        layout.packed(Some(config), device)
    }

    /// A step over a cache of blocks.
    pub(super) fn paged(
        chunks: &[&PagedChunk<'_>],
        block_tokens: usize,
        config: &DecoderConfig,
        rotations: &[RotationTable],
        device: &Device,
    ) -> Self {
        let (reading, groups) = Reading::new(chunks, block_tokens, config, device);
        let of = |chunk: &&PagedChunk<'_>| chunk.start as i64..(chunk.start + chunk.tokens.len()) as i64;
        let positions = int_tensor(chunks.iter().flat_map(of).collect(), device);
        let slots = chunks.iter().enumerate().flat_map(|(row, chunk)| (0..chunk.tokens.len()).map(move |c| (row, c)));
        let ids = chunks.iter().flat_map(|chunk| chunk.tokens.iter().map(|id| i64::from(*id)));
        Self {
            ids: int_tensor(ids.collect(), device),
            groups,
            slots: slots.collect(),
            dropout_seed: None,
            embedding_noise: None,
            reading: Some(reading),
            beside: Beside::of(chunks),
            rotations: rotations.iter().map(|table| table.at(positions.clone())).collect(),
            masks: BTreeMap::new(),
            #[cfg(feature = "kernels")]
            sights: BTreeMap::new(),
        }
    }

    /// Each row's first real token, as indices into the packed tokens; rows without any have none.
    pub fn first_of_rows(&self) -> Vec<i64> {
        let rows = self.groups.iter().flat_map(|group| (0..group.rows).map(|row| group.start + row * group.length));
        rows.map(|index| index as i64).collect()
    }

    /// Each row's last real token, as indices into the packed tokens; rows without any have none.
    pub fn last_of_rows(&self) -> Vec<i64> {
        let row_of = |index: usize| self.slots.get(index).map(|(row, _)| *row);
        (0..self.slots.len()).filter(|index| row_of(*index) != row_of(index + 1)).map(|index| index as i64).collect()
    }

    /// The rotary positions of layers with a window, or of those without.
    pub fn rotation(&self, windowed: bool) -> Option<&Rotation> {
        if windowed { self.rotations.last() } else { self.rotations.first() }
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.slots.len()
    }

    /// What is added to the scores of a group, `[1, 1, queries, keys]`; `None` = nothing is hidden.
    pub fn mask(&self, group: &Group, window: Option<usize>) -> Option<&Tensor<4>> {
        self.masks.get(&(group.length, group.past, window))
    }

    /// What each token sees, for a kernel; `None` where it must not be asked.
    #[cfg(feature = "kernels")]
    pub(super) fn sight(&self, window: Option<usize>) -> Option<&SightTensors> {
        self.sights.get(&window)
    }
}

/// Tokens side by side, before they are on a device.
#[derive(Default)]
struct Layout {
    ids: Vec<i64>,
    positions: Vec<usize>,
    slots: Vec<(usize, usize)>,
    groups: Vec<Group>,
}

impl Layout {
    /// Of rows of real tokens with their columns.
    fn of(rows: impl Iterator<Item = Vec<(usize, i64)>>) -> Self {
        let mut layout = Self::default();
        for (row, tokens) in rows.enumerate() {
            let (start, length) = (layout.ids.len(), tokens.len());
            for (position, (column, id)) in tokens.into_iter().enumerate() {
                layout.positions.push(position);
                layout.ids.push(id);
                layout.slots.push((row, column));
            }
            match layout.groups.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.length == length => last.rows += 1,
                _ => layout.groups.push(Group { start, rows: 1, length, past: 0 }),
            }
        }
        layout
    }

    /// With what a decoder's layers need, or an encoder's.
    fn packed(self, decoder: Option<&DecoderConfig>, device: &Device) -> Packed {
        let Self { ids, positions, slots, groups } = self;
        let rotations = decoder.map(frequencies).unwrap_or_default();
        Packed {
            ids: int_tensor(ids, device),
            rotations: rotations.iter().map(|of| Rotation::new(of, &positions, device)).collect(),
            masks: decoder.map(|config| masks(&groups, config, device)).unwrap_or_default(),
            #[cfg(feature = "kernels")]
            sights: decoder.map(|config| sights(&groups, config, device)).unwrap_or_default(),
            groups,
            slots,
            dropout_seed: None,
            embedding_noise: None,
            reading: None,
            beside: Vec::new(),
        }
    }
}

/// NEFTune (Jain et al., arXiv 2310.05914): uniform noise on the embeddings of a batch in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingNoise {
    /// Each element is moved by this much at most.
    pub magnitude: f64,
    /// What it is drawn from.
    pub seed: u64,
}

impl EmbeddingNoise {
    /// The noise of strength `alpha` for rows of `length` tokens (padding counts, as in the reference) and embeddings of
    /// `width` elements: alpha / √(length · width) at most.
    pub fn new(alpha: f64, length: usize, width: usize, seed: u64) -> Self {
        Self { magnitude: alpha / ((length * width).max(1) as f64).sqrt(), seed }
    }

    /// The noise on `[tokens, width]`.
    pub fn values(&self, dims: [usize; 2], device: &Device) -> Tensor<2> {
        let mut random = Random::stream(self.seed, "embedding noise");
        let magnitude = self.magnitude as f32;
        let values = (0..dims[0] * dims[1]).map(|_| magnitude * (2.0 * random.uniform() - 1.0)).collect::<Vec<_>>();
        Tensor::from_data(TensorData::new(values, dims), device)
    }
}

/// What is added to the score of a key that a query must not see. Finite: a difference of two infinities would be no number.
pub(crate) const HIDDEN: f32 = -1e30;

/// Whole numbers as a tensor on `device`.
pub fn int_tensor(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// What tokens see in each of the model's layers, where a kernel may want to know it: on a GPU, with no past in a cache.
#[cfg(feature = "kernels")]
fn sights(groups: &[Group], config: &DecoderConfig, device: &Device) -> BTreeMap<Option<usize>, SightTensors> {
    if *device == Device::flex() || groups.iter().any(|group| group.past > 0) {
        return BTreeMap::new();
    }
    let lengths = || groups.iter().flat_map(|group| std::iter::repeat_n(group.length, group.rows));
    let windows: BTreeSet<Option<usize>> = config.windows.iter().copied().collect();
    windows.into_iter().map(|window| (window, SightTensors::packed(lengths(), window, device))).collect()
}

/// The masks that some group and some layer need.
fn masks(
    groups: &[Group],
    config: &DecoderConfig,
    device: &Device,
) -> BTreeMap<(usize, usize, Option<usize>), Tensor<4>> {
    let queries_per_kv = config.num_heads / config.num_kv_heads;
    let mut masks = BTreeMap::new();
    for &Group { length, past, .. } in groups {
        for &window in &config.windows {
            // One token that sees everything needs no mask.
            if length > 1 || window.is_some_and(|w| past >= w) {
                masks
                    .entry((length, past, window))
                    .or_insert_with(|| causal_mask(past, length, window, queries_per_kv, device));
            }
        }
    }
    masks
}

/// 0 where a query may look, [`HIDDEN`] elsewhere. Query heads that share a key head lie one after another
/// among the rows, hence the repetition.
fn causal_mask(past: usize, length: usize, window: Option<usize>, queries_per_kv: usize, device: &Device) -> Tensor<4> {
    let keys = past + length;
    let mut one = vec![HIDDEN; length * keys];
    for query in 0..length {
        let last = past + query;
        let first = window.map_or(0, |w| (last + 1).saturating_sub(w));
        one[query * keys + first..=query * keys + last].fill(0.0);
    }
    let values = one.repeat(queries_per_kv);
    Tensor::from_data(TensorData::new(values, [1, 1, queries_per_kv * length, keys]), device)
}
