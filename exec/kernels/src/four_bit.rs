//! Weights in 4-bit codes (NF4 and FP4: Dettmers et al., arXiv 2305.14314): unpacked, or multiplied as they are.
//!
//! An element is `levels[code] · scale of its block`; blocks run over the flattened, row-major matrix `[out, in]`; two
//! codes a byte, the first in the high half. Scales are f32, or in turn `map[code] · scale of 256 codes + offset`.
//!
//! [`unpack`] writes the matrix, for a product on tensor cores: 0.5 + b bytes an element, b of them for the element
//! itself, the minimum; as separate operations it was some 30. [`product`] multiplies a few rows, as generation does, and
//! writes nothing but the result: 0.5 bytes an element and the scales, the minimum, an eighth of what f32 takes. Products
//! of many rows are bound by arithmetic, not by memory: unpack, then multiply.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::buffer::{Buffer, Team, UNITS, cubes, cubes_of_units};
use crate::reduce::cube_sum;

/// A matrix in 4-bit codes, on the device.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Rows.
    pub outputs: usize,
    /// Columns; a multiple of [`CODES`].
    pub inputs: usize,
    /// Elements that share a scale; a multiple of [`CODES`].
    pub block: usize,
    /// Two codes a byte; as many elements as bytes.
    pub packed: Buffer,
    /// What the 16 codes stand for, f32.
    pub levels: Buffer,
    /// One a block.
    pub scales: Scales,
}

/// The scales of blocks.
#[derive(Debug, Clone)]
pub enum Scales {
    /// f32.
    Plain(Buffer),
    /// In turn 8-bit codes.
    Double {
        /// One byte a block. There are as many bytes behind the handle as make whole words.
        codes: Buffer,
        /// What the 256 codes stand for, f32.
        map: Buffer,
        /// One for 256 codes, f32.
        scales: Buffer,
        /// Added to all.
        offset: f32,
    },
}

/// Codes in a word, which is what a unit reads at once.
pub const CODES: usize = 8;
/// Codes of scales that share a scale.
const SCALES_BLOCK: usize = 256;
/// The most rows that [`product`] multiplies.
pub const MOST_ROWS: usize = 8;

impl Matrix {
    /// Whether these kernels can read it: rows and blocks must be whole words.
    pub fn fits(inputs: usize, block: usize) -> bool {
        inputs.is_multiple_of(CODES) && block.is_multiple_of(CODES)
    }

    /// What the kernels take of the scales: words of codes, map, scales, offset, and whether there are codes. Without
    /// codes the scales stand in for the other two, which are not read.
    fn scales(&self) -> (BufferArg, BufferArg, BufferArg, f32, bool) {
        match &self.scales {
            Scales::Plain(scales) => (scales.argument(), scales.argument(), scales.argument(), 0.0, false),
            Scales::Double { codes, map, scales, offset } => {
                (codes.argument(), map.argument(), scales.argument(), *offset, true)
            }
        }
    }
}

/// Writes the matrix to `values`, `[outputs, inputs]` of type `dtype`.
pub fn unpack(client: &Client, matrix: &Matrix, values: &Buffer, dtype: ElemType) {
    let words = matrix.outputs * matrix.inputs / CODES;
    let (codes, map, scales, offset, double) = matrix.scales();
    unpack_kernel::launch(
        client,
        cubes_of_units(words),
        CubeDim::new_1d(UNITS),
        4,
        matrix.packed.argument(),
        matrix.levels.argument(),
        codes,
        map,
        scales,
        values.argument(),
        offset,
        words,
        matrix.block / CODES,
        double,
        dtype,
    );
}

/// Writes `x · matrixᵀ` to `y`, `[rows, outputs]`, for `x` of `[rows, inputs]`, both of type `dtype`.
///
/// # Panics
///
/// With more than [`MOST_ROWS`] rows.
pub fn product(client: &Client, x: &Buffer, matrix: &Matrix, y: &Buffer, rows: usize, dtype: ElemType) {
    assert!(rows <= MOST_ROWS, "{rows} rows; unpack the matrix for more than {MOST_ROWS}");
    let words = matrix.inputs / CODES;
    let team = Team { units: (words.next_power_of_two() as u32).clamp(32, 128), ..Team::new(client, words) };
    let (codes, map, scales, offset, double) = matrix.scales();
    product_kernel::launch(
        client,
        cubes(matrix.outputs),
        team.dim(),
        4,
        x.argument(),
        matrix.packed.argument(),
        matrix.levels.argument(),
        codes,
        map,
        scales,
        y.argument(),
        offset,
        matrix.outputs,
        words,
        matrix.block / CODES,
        rows,
        double,
        team.units,
        team.planes,
        dtype,
    );
}

/// The code of element `index` of the eight of a word; the even ones are in the high halves of their bytes.
#[cube]
fn code(word: u32, #[comptime] index: u32) -> usize {
    let shift = comptime!(8 * (index / 2) + 4 * (1 - index % 2));
    ((word >> shift) & 15u32) as usize
}

/// The scale of a block.
#[cube]
fn scale_of(block: usize, codes: &[u32], map: &[f32], scales: &[f32], offset: f32, #[comptime] double: bool) -> f32 {
    if comptime!(double) {
        let shift = 8u32 * ((block % 4) as u32);
        let code = ((codes[block / 4] >> shift) & 255u32) as usize;
        map[code] * scales[block / SCALES_BLOCK] + offset
    } else {
        scales[block]
    }
}

/// A unit has a word. Words of codes lie as the host's bytes do: the first byte is the lowest.
#[cube(launch)]
fn unpack_kernel<F: Float, N: Size>(
    packed: &[u32],
    levels: &[f32],
    codes: &[u32],
    map: &[f32],
    scales: &[f32],
    values: &mut [Vector<F, N>],
    offset: f32,
    words: usize,
    words_of_block: usize,
    #[comptime] double: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS < 16 {
        table[UNIT_POS as usize] = levels[UNIT_POS as usize];
    }
    sync_cube();
    let unit = ABSOLUTE_POS;
    if unit < words {
        let word = packed[unit];
        let scale = scale_of(unit / words_of_block, codes, map, scales, offset, double);
        #[unroll]
        for half in 0..2u32 {
            let mut out = Vector::<f32, N>::new(0.0);
            #[unroll]
            for lane in 0..4u32 {
                out.insert(comptime!(lane as usize), table[code(word, comptime!(4 * half + lane))] * scale);
            }
            values[unit * 2 + comptime!(half as usize)] = Vector::cast_from(out);
        }
    }
}

/// A cube has an output: a row of the matrix with every row of x.
#[cube(launch)]
fn product_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    packed: &[u32],
    levels: &[f32],
    codes: &[u32],
    map: &[f32],
    scales: &[f32],
    y: &mut [F],
    offset: f32,
    outputs: usize,
    words: usize,
    words_of_block: usize,
    #[comptime] rows: usize,
    #[comptime] double: bool,
    #[comptime] units: u32,
    #[comptime] planes: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS < 16 {
        table[UNIT_POS as usize] = levels[UNIT_POS as usize];
    }
    sync_cube();
    let output = CUBE_POS;
    if output < outputs {
        let mut sums = Array::<f32>::new(rows);
        let mut i = UNIT_POS as usize;
        while i < words {
            let at = output * words + i;
            let word = packed[at];
            let scale = scale_of(at / words_of_block, codes, map, scales, offset, double);
            let mut values = Array::<f32>::new(8usize);
            #[unroll]
            for index in 0..8u32 {
                values[comptime!(index as usize)] = table[code(word, index)];
            }
            #[unroll]
            for row in 0..rows {
                let mut sum = 0.0f32;
                #[unroll]
                for half in 0..2usize {
                    let part = Vector::<f32, N>::cast_from(x[(row * words + i) * 2 + half]);
                    #[unroll]
                    for lane in 0..4usize {
                        sum += part.extract(lane) * values[comptime!(4 * half + lane)];
                    }
                }
                sums[row] += sum * scale;
            }
            i += units as usize;
        }
        #[unroll]
        for row in 0..rows {
            let sum = cube_sum(sums[row], units, planes);
            if UNIT_POS == 0 {
                y[row * outputs + output] = F::cast_from(sum);
            }
        }
    }
}
