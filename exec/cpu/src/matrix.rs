//! Weights packed into panels at load: what the kernels read front to back, once a step.

use std::{
    fmt,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use half::{bf16, f16};
use memmap2::{Advice, MmapMut, MmapOptions};

use crate::{
    kernels::product::{BLOCK, INT4_BLOCK, INT8_BLOCK, PANEL, UINT4_BLOCK},
    weights::{Block4, Block8, BlockU4, Values},
};

/// How weights are kept and multiplied.
///
/// Logits of the same model differ from f32's by what rounding the weights does, and in the formats of integers by what
/// rounding the activations to bytes does (each block of 32 by its own scale); `tests/golden.rs` holds each to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// 32 bits a weight.
    F32,
    /// 16 bits a weight. Widened to f32 in registers, exactly: the same bits as [`Format::F32`] with rounded weights.
    /// The processor's own bf16 products are not used: they would round activations too, and no other instruction set
    /// could give the same bits.
    Bf16,
    /// 16 bits a weight (IEEE half), widened likewise.
    F16,
    /// 8.5 bits a weight: bytes with a half for each 32 (GGUF's Q8_0). Activations are rounded to bytes likewise.
    Int8,
    /// 4.5 bits a weight: nibbles with a half for each 32 (GGUF's Q4_0). Activations are rounded to bytes.
    Int4,
    /// 5 bits a weight: nibbles above a minimum, with a half for both for each 32 (GGUF's Q4_1). Activations are rounded
    /// to bytes.
    Uint4,
}

impl Format {
    /// All of them, the narrowest first.
    pub const ALL: [Self; 6] = [Self::Int4, Self::Uint4, Self::Int8, Self::Bf16, Self::F16, Self::F32];

    /// Whether activations are rounded to bytes.
    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::Uint4)
    }

    /// Whether packing values of another format loses nothing.
    pub(crate) fn holds(self, other: Self) -> bool {
        // Nibbles less 8 are bytes, and are above a minimum of -8 scales.
        self == Self::F32 || self == other || other == Self::Int4 && matches!(self, Self::Int8 | Self::Uint4)
    }

    /// The narrowest format that holds values of all of these. Where nibbles above a minimum meet bytes that is bytes,
    /// which hold such nibbles to half a 254th of a block's largest value: no other format keeps both in few bits.
    pub(crate) fn holding(formats: &[Self]) -> Self {
        match Self::ALL.into_iter().find(|format| formats.iter().all(|other| format.holds(*other))) {
            Some(Self::F32) | None if !formats.is_empty() && formats.iter().all(|f| f.is_integer()) => Self::Int8,
            Some(format) => format,
            None => Self::F32,
        }
    }

    fn panel_bytes(self, depth: usize) -> usize {
        match self {
            Self::F32 => PANEL * depth * 4,
            Self::Bf16 => PANEL * depth.next_multiple_of(2) * 2,
            Self::F16 => PANEL * depth * 2,
            Self::Int8 => depth.div_ceil(BLOCK) * INT8_BLOCK,
            Self::Int4 => depth.div_ceil(BLOCK) * INT4_BLOCK,
            Self::Uint4 => depth.div_ceil(BLOCK) * UINT4_BLOCK,
        }
    }

    /// Bytes of a packed matrix.
    pub(crate) fn packed_bytes(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(PANEL) * self.panel_bytes(columns)
    }

    /// Bytes of values that are kept as they come.
    pub(crate) fn bytes_of(self, values: usize) -> usize {
        match self {
            Self::F32 => values * 4,
            Self::Bf16 | Self::F16 => values * 2,
            Self::Int8 => values / BLOCK * size_of::<Block8>(),
            Self::Int4 => values / BLOCK * size_of::<Block4>(),
            Self::Uint4 => values / BLOCK * size_of::<BlockU4>(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Uint4 => "uint4",
        })
    }
}

/// `[rows, depth]` in panels.
pub(crate) struct PackedMatrix {
    pub format: Format,
    /// Columns that the kernels multiply: whole blocks for integers.
    pub depth: usize,
    pub panels: usize,
    panel_bytes: usize,
    data: MmapMut,
}

impl PackedMatrix {
    /// Packs rows: `source` says for each packed row which tensor's which row it is, or `None` for zeros.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn pack(
        format: Format,
        rows: usize,
        columns: usize,
        threads: usize,
        source: impl Fn(usize) -> Option<(usize, usize)> + Sync,
        tensors: &[&Values<'_>],
    ) -> std::io::Result<Self> {
        let mut matrix = Self::zeros(format, rows, columns)?;
        matrix.fill(0..matrix.panels, columns, threads, source, tensors);
        Ok(matrix)
    }

    /// Room for rows, to be filled.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn zeros(format: Format, rows: usize, columns: usize) -> std::io::Result<Self> {
        let (panels, panel_bytes) = (rows.div_ceil(PANEL), format.panel_bytes(columns));
        let depth = match format {
            Format::F32 | Format::F16 => columns,
            Format::Bf16 => columns.next_multiple_of(2),
            Format::Int8 | Format::Int4 | Format::Uint4 => columns.next_multiple_of(BLOCK),
        };
        Ok(Self { format, depth, panels, panel_bytes, data: reserve(panels * panel_bytes)? })
    }

    /// Packs the rows of some panels: as [`Self::pack`], rows counted from the first of them.
    pub(crate) fn fill(
        &mut self,
        panels: Range<usize>,
        columns: usize,
        threads: usize,
        source: impl Fn(usize) -> Option<(usize, usize)> + Sync,
        tensors: &[&Values<'_>],
    ) {
        let (format, bytes) = (self.format, self.panel_bytes);
        let queue =
            Mutex::new(self.data[panels.start * bytes..panels.end * bytes].chunks_mut(bytes.max(1)).enumerate());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, panels.len().max(1)) {
                scope.spawn(|| {
                    let mut row = vec![0.0; columns];
                    while let Some((panel, bytes)) = next() {
                        for lane in 0..PANEL {
                            let Some((tensor, at)) = source(panel * PANEL + lane) else { continue };
                            pack_row(format, bytes, lane, tensors[tensor], at, &mut row);
                        }
                    }
                });
            }
        });
    }

    /// One panel's bytes.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        &self.data[index * self.panel_bytes..][..self.panel_bytes]
    }

    /// Bytes of all panels.
    pub(crate) fn bytes(&self) -> usize {
        self.panels * self.panel_bytes
    }

    /// What a row stands for, as far as `out` reaches.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        let (panel, lane) = (self.panel(index / PANEL), index % PANEL);
        match self.format {
            Format::F32 => {
                let values: &[f32] = bytemuck::cast_slice(panel);
                out.iter_mut().enumerate().for_each(|(k, out)| *out = values[k * PANEL + lane]);
            }
            Format::Bf16 => {
                let values: &[bf16] = bytemuck::cast_slice(panel);
                out.iter_mut()
                    .enumerate()
                    .for_each(|(k, out)| *out = values[(k / 2 * PANEL + lane) * 2 + k % 2].to_f32());
            }
            Format::F16 => {
                let values: &[f16] = bytemuck::cast_slice(panel);
                out.iter_mut().enumerate().for_each(|(k, out)| *out = values[k * PANEL + lane].to_f32());
            }
            Format::Int8 => {
                for (block, out) in panel.chunks(INT8_BLOCK).zip(out.chunks_mut(BLOCK)) {
                    let (scale, weights) = (half_of(block, lane), &block[HALVES..]);
                    out.iter_mut().enumerate().for_each(|(k, out)| {
                        *out = (f32::from(weights[byte_of(lane, k)]) - 128.0) * scale;
                    });
                }
            }
            Format::Int4 => {
                for (block, out) in panel.chunks(INT4_BLOCK).zip(out.chunks_mut(BLOCK)) {
                    let (scale, weights) = (half_of(block, lane), &block[HALVES..]);
                    out.iter_mut().enumerate().for_each(|(k, out)| *out = (nibble_of(weights, lane, k) - 8.0) * scale);
                }
            }
            Format::Uint4 => {
                for (block, out) in panel.chunks(UINT4_BLOCK).zip(out.chunks_mut(BLOCK)) {
                    let (scale, minimum) = (half_of(block, lane), half_of(&block[HALVES..], lane));
                    let weights = &block[2 * HALVES..];
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(k, out)| *out = nibble_of(weights, lane, k) * scale + minimum);
                }
            }
        }
    }
}

/// Zeroed memory in huge pages where the system gives them: a step reads all of it, and a page table of small pages is
/// read with it.
///
/// # Errors
/// When there is no memory.
pub(crate) fn reserve(bytes: usize) -> std::io::Result<MmapMut> {
    let map = MmapOptions::new().len(bytes.max(1)).map_anon()?;
    // Advice: where the kernel can't follow it the pages are small and all works the same.
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage);
    Ok(map)
}

/// Bytes of one half for each row of a panel.
const HALVES: usize = PANEL * 2;

fn half_of(halves: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([halves[lane * 2], halves[lane * 2 + 1]]).to_f32()
}

fn nibble_of(weights: &[u8], lane: usize, k: usize) -> f32 {
    f32::from(weights[byte_of(lane, k % 16)] >> (k / 16 * 4) & 15)
}

/// Where weight `k` (of a block) of a row lies among a block's bytes: four of a row in a lane, 16 rows in a vector.
fn byte_of(lane: usize, k: usize) -> usize {
    k / 4 * 128 + lane / 16 * 64 + lane % 16 * 4 + k % 4
}

fn pack_row(format: Format, panel: &mut [u8], lane: usize, values: &Values<'_>, at: usize, row: &mut [f32]) {
    /// Blocks of a row, as the format has them.
    fn put<B>(from: &[B], at: usize, columns: usize, to: std::slice::ChunksMut<'_, u8>, one: impl Fn(&mut [u8], &B)) {
        let count = columns / BLOCK;
        from[at * count..][..count].iter().zip(to).for_each(|(block, to)| one(to, block));
    }
    let columns = row.len();
    match (format, values) {
        (Format::Int8, Values::Int8(from)) => {
            put(from, at, columns, panel.chunks_mut(INT8_BLOCK), |to, block| put8(to, lane, block));
        }
        (Format::Int8, Values::Int4(from)) => {
            put(from, at, columns, panel.chunks_mut(INT8_BLOCK), |to, block| put8(to, lane, &block.into()));
        }
        (Format::Int4, Values::Int4(from)) => {
            put(from, at, columns, panel.chunks_mut(INT4_BLOCK), |to, block| put4(to, lane, block));
        }
        (Format::Uint4, Values::Uint4(from)) => {
            put(from, at, columns, panel.chunks_mut(UINT4_BLOCK), |to, block| put_u4(to, lane, block));
        }
        (Format::Uint4, Values::Int4(from)) => {
            put(from, at, columns, panel.chunks_mut(UINT4_BLOCK), |to, block| put_u4(to, lane, &block.into()));
        }
        _ => {
            values.row(at, row);
            pack_floats(format, panel, lane, row);
        }
    }
}

fn pack_floats(format: Format, panel: &mut [u8], lane: usize, row: &[f32]) {
    let block = |from: &[f32]| std::array::from_fn(|i| from.get(i).copied().unwrap_or(0.0));
    match format {
        Format::F32 => {
            let to: &mut [f32] = bytemuck::cast_slice_mut(panel);
            row.iter().enumerate().for_each(|(k, &v)| to[k * PANEL + lane] = v);
        }
        Format::Bf16 => {
            let to: &mut [bf16] = bytemuck::cast_slice_mut(panel);
            row.iter().enumerate().for_each(|(k, &v)| to[(k / 2 * PANEL + lane) * 2 + k % 2] = bf16::from_f32(v));
        }
        Format::F16 => {
            let to: &mut [f16] = bytemuck::cast_slice_mut(panel);
            row.iter().enumerate().for_each(|(k, &v)| to[k * PANEL + lane] = f16::from_f32(v));
        }
        Format::Int8 => {
            let blocks = row.chunks(BLOCK).zip(panel.chunks_mut(INT8_BLOCK));
            blocks.for_each(|(from, to)| put8(to, lane, &Block8::quantise(&block(from))));
        }
        Format::Int4 => {
            let blocks = row.chunks(BLOCK).zip(panel.chunks_mut(INT4_BLOCK));
            blocks.for_each(|(from, to)| put4(to, lane, &Block4::quantise(&block(from))));
        }
        Format::Uint4 => {
            let blocks = row.chunks(BLOCK).zip(panel.chunks_mut(UINT4_BLOCK));
            // What pads the last block is no value of it: it would pull the minimum to 0.
            let block = |from: &[f32]| std::array::from_fn(|i| from[i.min(from.len() - 1)]);
            blocks.for_each(|(from, to)| put_u4(to, lane, &BlockU4::quantise(&block(from))));
        }
    }
}

fn put8(to: &mut [u8], lane: usize, block: &Block8) {
    put_half(to, lane, block.scale);
    for (k, &value) in block.values.iter().enumerate() {
        to[HALVES + byte_of(lane, k)] = value as u8 ^ 0x80;
    }
}

fn put4(to: &mut [u8], lane: usize, block: &Block4) {
    put_half(to, lane, block.scale);
    put_nibbles(&mut to[HALVES..], lane, &block.nibbles);
}

fn put_u4(to: &mut [u8], lane: usize, block: &BlockU4) {
    put_half(to, lane, block.scale);
    put_half(&mut to[HALVES..], lane, block.minimum);
    put_nibbles(&mut to[2 * HALVES..], lane, &block.nibbles);
}

fn put_half(to: &mut [u8], lane: usize, half: f16) {
    to[lane * 2..][..2].copy_from_slice(&half.to_le_bytes());
}

fn put_nibbles(to: &mut [u8], lane: usize, nibbles: &[u8; 16]) {
    nibbles.iter().enumerate().for_each(|(k, &nibbles)| to[byte_of(lane, k)] = nibbles);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(format: Format, rows: usize, columns: usize, values: Values<'_>) -> PackedMatrix {
        let place = |row: usize| (row < rows).then_some((0, row));
        PackedMatrix::pack(format, rows, columns, 2, place, &[&values]).expect("memory")
    }

    fn unpacked(matrix: &PackedMatrix, rows: usize, columns: usize) -> Vec<f32> {
        let mut all = vec![0.0; rows * columns];
        all.chunks_mut(columns).enumerate().for_each(|(row, out)| matrix.row(row, out));
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn packing_keeps_each_weight_to_its_formats_precision(
            rows in 1_usize..70,
            columns in 1_usize..100,
            seed in prop::collection::vec(-3.0_f32..3.0, 64),
        ) {
            let values: Vec<f32> = (0..rows * columns).map(|i| seed[i % 64] * (1.0 + (i / 64) as f32 * 0.01)).collect();
            for format in Format::ALL {
                let matrix = packed(format, rows, columns, Values::F32((&values[..]).into()));
                for (was, is) in values.chunks(columns).zip(unpacked(&matrix, rows, columns).chunks(columns)) {
                    for (was, is) in was.chunks(BLOCK).zip(is.chunks(BLOCK)) {
                        let largest = was.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                        for (was, is) in was.iter().zip(is) {
                            // Half a step, a whole one at the short side of the nibbles; scales are halves (2⁻¹¹).
                            let most = match format {
                                Format::F32 => 0.0,
                                Format::Bf16 => was.abs() / 256.0,
                                Format::F16 => was.abs() / 2048.0 + 1e-7,
                                Format::Int8 => largest * (0.5 / 127.0 + 1.0 / 2048.0) + 1e-6,
                                Format::Int4 => largest * (1.0 / 8.0 + 1.0 / 2048.0) + 1e-6,
                                // Values may span two largest magnitudes; scale and minimum are halves.
                                Format::Uint4 => largest * (1.0 / 15.0 + 2.0 / 1024.0) + 1e-6,
                            };
                            prop_assert!((was - is).abs() <= most, "{format}: {was} became {is}, largest {largest}");
                        }
                    }
                }
            }
        }

        #[test]
        fn blocks_of_a_file_are_kept_bit_for_bit(
            bytes in prop::collection::vec(any::<i8>(), 32),
            nibbles in prop::collection::vec(any::<u8>(), 16),
            scale in -9.0_f32..9.0,
            minimum in -9.0_f32..9.0,
        ) {
            let (scale, minimum) = (f16::from_f32(scale), f16::from_f32(minimum));
            let (values, nibbles) = (std::array::from_fn(|i| bytes[i]), std::array::from_fn(|i| nibbles[i]));
            let eights = vec![Block8 { scale, values }; 33 * 2];
            let fours = vec![Block4 { scale, nibbles }; 33 * 2];
            let above = vec![BlockU4 { scale, minimum, nibbles }; 33 * 2];
            for values in [Values::Int8(eights.into()), Values::Int4(fours.into()), Values::Uint4(above.into())] {
                let mut expected = vec![0.0; 33 * 64];
                expected.chunks_mut(64).enumerate().for_each(|(row, out)| values.row(row, out));
                for format in Format::ALL.into_iter().filter(|format| format.holds(values.format())) {
                    prop_assert_eq!(&unpacked(&packed(format, 33, 64, values.clone()), 33, 64), &expected, "{}", format);
                }
            }
        }
    }

    #[test]
    fn several_formats_have_one_that_holds_them() {
        use Format::{Bf16, F16, F32, Int4, Int8, Uint4};
        for (formats, wanted) in [
            (&[Int4, Int4][..], Int4),
            (&[Int4, Int8], Int8),
            (&[Uint4, Int4], Uint4),
            (&[Uint4, Int8, Int4], Int8),
            (&[Bf16, Bf16], Bf16),
            (&[Bf16, F16], F32),
            (&[Int8, F16], F32),
            (&[], Int4),
        ] {
            assert_eq!(Format::holding(formats), wanted, "{formats:?}");
        }
    }
}
