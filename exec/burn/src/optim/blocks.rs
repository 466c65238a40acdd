//! Values in 8 bits: blocks of 256 share a scale, their greatest magnitude, and each value is the nearest of 256 levels
//! between −1 and 1 (Dettmers et al., arXiv 2110.02861).
//!
//! The levels are the dynamic map of bitsandbytes ([`crate::quant`]'s too); what has no sign, a second moment, has twice as
//! many in each decade.

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::quant::levels::dynamic_map;

/// Elements that share a scale.
pub const BLOCK: usize = 256;
/// What is smaller keeps 32 bits: it is no burden, and norms and biases are sensitive.
pub const ELEMENTS_MIN: usize = 4096;

/// Whether the moments of a parameter are kept in blocks. Embeddings are not: most of their rows have no gradient at a
/// step, and their moments span more magnitudes than a block can hold (section 2.3 there, "stable embedding").
pub fn fit(name: &str, shape: &[usize]) -> bool {
    shape.iter().product::<usize>() >= ELEMENTS_MIN && !name.ends_with("embed_tokens.weight")
}

/// Which levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// From −1 to 1.
    Signed,
    /// From 0 to 1.
    Unsigned,
}

/// The levels in order, the midpoints between them, and where to begin to look for a value's level.
struct Table {
    levels: [f32; 256],
    midpoints: [f32; 255],
    /// For the first [`KEY_BITS`] bits of a float how many midpoints are below all floats that begin so.
    below: Box<[u8]>,
}

/// Sign, exponent and five bits of the fraction: at most four levels lie within what these leave open.
const KEY_BITS: u32 = 14;

static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(true));
static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(false));

impl Table {
    fn new(signed: bool) -> Self {
        let levels = dynamic_map(signed);
        let midpoints: [f32; 255] = std::array::from_fn(|i| (levels[i] + levels[i + 1]) / 2.0);
        let below = (0..1_u32 << KEY_BITS).map(|key| {
            let rest = u32::BITS - KEY_BITS;
            // Of negative floats the one with the greatest magnitude is the least.
            let open = if key >> (KEY_BITS - 1) == 1 { (1 << rest) - 1 } else { 0 };
            let least = f32::from_bits(key << rest | open);
            midpoints.partition_point(|midpoint| *midpoint < least) as u8
        });
        Self { below: below.collect(), levels, midpoints }
    }

    /// The code of the nearest level; halfway, of the lower one.
    fn nearest(&self, value: f32) -> u8 {
        let mut code = self.below[(value.to_bits() >> (u32::BITS - KEY_BITS)) as usize];
        while self.midpoints.get(usize::from(code)).is_some_and(|midpoint| *midpoint < value) {
            code += 1;
        }
        code
    }
}

impl Levels {
    fn table(self) -> &'static Table {
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }

    /// The 256 levels, in order.
    pub fn values(self) -> &'static [f32; 256] {
        &self.table().levels
    }
}

/// Values in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    levels: Levels,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

/// One block of them, to be changed.
pub(super) struct Block<'a> {
    table: &'static Table,
    codes: &'a mut [u8],
    scale: &'a mut f32,
}

impl Blocks {
    /// So many zeros.
    pub fn zeros(count: usize, levels: Levels) -> Self {
        let zero = levels.values().partition_point(|level| *level < 0.0) as u8;
        Self { levels, codes: vec![zero; count], scales: vec![0.0; count.div_ceil(BLOCK)] }
    }

    /// From what [`Self::codes`] and [`Self::scales`] gave; `None` if they do not belong together.
    pub fn from_parts(levels: Levels, codes: Vec<u8>, scales: Vec<f32>) -> Option<Self> {
        (codes.len().div_ceil(BLOCK) == scales.len()).then_some(Self { levels, codes, scales })
    }

    /// The code of each value.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale of each block.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The values.
    pub fn values(&self) -> Vec<f32> {
        let levels = self.levels.values();
        let blocks = self.codes.chunks(BLOCK).zip(&self.scales);
        blocks.flat_map(|(codes, scale)| codes.iter().map(move |code| levels[usize::from(*code)] * scale)).collect()
    }

    /// Bytes they take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    /// Each block, in parallel.
    pub(super) fn par_blocks(&mut self) -> impl IndexedParallelIterator<Item = Block<'_>> {
        let table = self.levels.table();
        let blocks = self.codes.par_chunks_mut(BLOCK).zip(&mut self.scales);
        blocks.map(move |(codes, scale)| Block { table, codes, scale })
    }
}

impl Block<'_> {
    /// Its values; what a short block lacks is 0.
    pub(super) fn decode(&self) -> [f32; BLOCK] {
        let mut values = [0.0; BLOCK];
        for (value, code) in values.iter_mut().zip(&*self.codes) {
            *value = self.table.levels[usize::from(*code)] * *self.scale;
        }
        values
    }

    /// Replaces them, each by the nearest level.
    pub(super) fn encode(&mut self, values: &[f32; BLOCK]) {
        let values = &values[..self.codes.len()];
        let scale = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        // A block of zeros has no scale to divide by; any will do.
        let by = if scale == 0.0 { 1.0 } else { scale };
        for (code, value) in self.codes.iter_mut().zip(values) {
            *code = self.table.nearest(value / by);
        }
        *self.scale = scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(levels: Levels, values: &[f32]) -> Blocks {
        let mut blocks = Blocks::zeros(values.len(), levels);
        blocks.par_blocks().zip(values.par_chunks(BLOCK)).for_each(|(mut block, values)| {
            let mut whole = [0.0; BLOCK];
            whole[..values.len()].copy_from_slice(values);
            block.encode(&whole);
        });
        blocks
    }

    #[test]
    fn what_lies_on_a_level_is_kept_exactly() {
        for levels in [Levels::Signed, Levels::Unsigned] {
            let mut values = levels.values().to_vec();
            assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
            assert_eq!(values.last(), Some(&1.0));
            // The last block is short, and has a scale of its own.
            values.extend([0.5, 0.0]);
            let blocks = code(levels, &values);
            assert_eq!(blocks.values(), values);
            assert_eq!(blocks.scales(), [1.0, 0.5]);
            assert_eq!(blocks.bytes(), 258 + 8);
        }
        assert_eq!(Blocks::zeros(300, Levels::Signed).values(), vec![0.0; 300]);
        assert_eq!(code(Levels::Signed, &[0.0; 3]).values(), [0.0; 3]);
    }

    #[test]
    fn the_nearest_level_is_found_whatever_the_value_begins_with() {
        for table in [&*SIGNED, &*UNSIGNED] {
            let edges = table.midpoints.iter().flat_map(|m| [m.next_down(), *m, m.next_up()]);
            let spread = (0..40_000).map(|i| (i as f32 / 20_000.0 - 1.0).powi(5));
            let tiny = [0.0, -0.0, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, 1e-40, -1e-40, 1.0, -1.0];
            for value in edges.chain(spread).chain(tiny) {
                let wanted = table.midpoints.partition_point(|midpoint| *midpoint < value) as u8;
                assert_eq!(table.nearest(value), wanted, "{value:e}");
            }
        }
    }

    #[test]
    fn what_lies_between_is_off_by_half_a_gap_at_most() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 10f32.powi(-(i % 4))).collect();
        for (levels, sign) in [(Levels::Signed, -1.0), (Levels::Unsigned, 0.0)] {
            let values: Vec<f32> = values.iter().map(|v| v.max(sign * v.abs())).collect();
            let coded = code(levels, &values);
            for ((value, found), scale) in
                values.iter().zip(coded.values()).zip(coded.scales().iter().flat_map(|s| [s; BLOCK]))
            {
                let gap = levels.values().windows(2).find(|pair| pair[1] * scale >= *value).expect("a gap");
                assert!((found - value).abs() <= (gap[1] - gap[0]) * scale * 0.5001 + 1e-7, "{value} became {found}");
            }
        }
    }
}
