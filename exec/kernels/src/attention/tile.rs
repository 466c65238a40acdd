//! Tiles in shared memory, and products of them that units share out among themselves.
//!
//! Unit (x, y) of `side` × `side` has the rows `y + side·i` and the columns `x + side·j` of a product. Rows of a tile lie
//! one element further apart than they are long, so that units reading a row each meet in different banks.

use cubecl::client::Client;
use cubecl::prelude::*;

/// Sizes of tiles, known when a kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tiles {
    /// Units along each axis of a cube.
    pub side: usize,
    /// Rows of a tile, of queries and of keys; a multiple of `side`.
    pub rows: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl Tiles {
    /// The largest ones whose `elements`, of f32, fit the device's shared memory. Less than 16 × 16 units are slow: they are
    /// for wide heads on devices with little of it.
    pub fn fitting(client: &Client, dim: usize, elements: impl Fn(Self) -> usize) -> Self {
        let most = client.properties().hardware.max_shared_memory_size;
        let sizes = [(16, 64), (16, 32), (16, 16), (8, 8), (4, 4)].map(|(side, rows)| Self { side, rows, dim });
        let smallest = sizes[sizes.len() - 1];
        sizes.into_iter().find(|tiles| 4 * elements(*tiles) <= most).unwrap_or(smallest)
    }

    /// A cube's units.
    pub fn cube_dim(self) -> CubeDim {
        CubeDim::new_2d(self.side as u32, self.side as u32)
    }

    /// Cubes that it takes: tiles of rows by heads.
    pub fn cubes(self, rows: usize, heads: usize) -> CubeCount {
        CubeCount::Static(rows.div_ceil(self.rows) as u32, heads as u32, 1)
    }

    /// Rows, or columns, of a product that a unit has.
    pub fn each(self) -> usize {
        self.rows / self.side
    }

    /// Elements of a head that a unit has.
    pub fn columns(self) -> usize {
        self.dim.div_ceil(self.side)
    }

    /// From one row of a tile of heads to the next.
    pub fn stride(self) -> usize {
        self.columns() * self.side + 1
    }

    /// Of a tile of heads.
    pub fn head_elements(self) -> usize {
        self.rows * self.stride()
    }

    /// Of a tile of scores.
    pub fn score_elements(self) -> usize {
        self.rows * self.rows
    }
}

/// Copies a tile of one head out of `from`, whose rows are `row_vectors` long; rows behind the last one and elements
/// behind the head's last one become 0.
#[cube]
pub(super) fn load<F: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut Shared<[f32]>,
    first_row: usize,
    rows: usize,
    row_vectors: usize,
    head_start: usize,
    #[comptime] tiles: Tiles,
) {
    let per_row = comptime!(tiles.columns() * tiles.side) / N::value();
    let real = tiles.dim / N::value();
    let mut at = UNIT_POS as usize;
    while at < tiles.rows * per_row {
        let row = at / per_row;
        let column = at % per_row;
        let mut value = Vector::<f32, N>::new(0.0);
        if first_row + row < rows && column < real {
            value = Vector::cast_from(from[(first_row + row) * row_vectors + head_start + column]);
        }
        let start = row * comptime!(tiles.stride()) + column * N::value();
        #[unroll]
        for lane in 0..N::value() {
            to[start + lane] = value.extract(lane);
        }
        at += comptime!(tiles.side * tiles.side);
    }
}

/// `a · bᵀ` of two tiles of heads: the unit's elements, row by row.
#[cube]
pub(super) fn scores(a: &Shared<[f32]>, b: &Shared<[f32]>, #[comptime] tiles: Tiles) -> Array<f32> {
    let each = comptime!(tiles.each());
    let stride = comptime!(tiles.stride());
    let mut out = Array::<f32>::new(comptime!(each * each));
    let mut of_a = Array::<f32>::new(each);
    for d in 0..tiles.dim {
        #[unroll]
        for i in 0..each {
            of_a[i] = a[(UNIT_POS_Y as usize + comptime!(i * tiles.side)) * stride + d];
        }
        #[unroll]
        for j in 0..each {
            let of_b = b[(UNIT_POS_X as usize + comptime!(j * tiles.side)) * stride + d];
            #[unroll]
            for i in 0..each {
                out[comptime!(i * each + j)] += of_a[i] * of_b;
            }
        }
    }
    out
}

/// Adds `p · b` of a tile of scores and one of heads to the unit's sums: rows as above, elements `x + side·c` of the head.
#[cube]
pub(super) fn accumulate(p: &Shared<[f32]>, b: &Shared<[f32]>, sums: &mut Array<f32>, #[comptime] tiles: Tiles) {
    let each = comptime!(tiles.each());
    let columns = comptime!(tiles.columns());
    let mut of_p = Array::<f32>::new(each);
    for j in 0..tiles.rows {
        #[unroll]
        for i in 0..each {
            of_p[i] = p[(UNIT_POS_Y as usize + comptime!(i * tiles.side)) * comptime!(tiles.rows) + j];
        }
        #[unroll]
        for c in 0..columns {
            let of_b = b[j * comptime!(tiles.stride()) + UNIT_POS_X as usize + comptime!(c * tiles.side)];
            #[unroll]
            for i in 0..each {
                sums[comptime!(i * columns + c)] += of_p[i] * of_b;
            }
        }
    }
}

/// Writes the unit's elements of a product to a tile of scores.
#[cube]
pub(super) fn keep(elements: &Array<f32>, to: &mut Shared<[f32]>, #[comptime] tiles: Tiles) {
    let each = comptime!(tiles.each());
    #[unroll]
    for i in 0..each {
        #[unroll]
        for j in 0..each {
            let row = UNIT_POS_Y as usize + comptime!(i * tiles.side);
            let column = UNIT_POS_X as usize + comptime!(j * tiles.side);
            to[row * comptime!(tiles.rows) + column] = elements[comptime!(i * each + j)];
        }
    }
}

/// Writes the unit's sums to the rows of one head of `to`, whose rows are `width` long.
#[cube]
pub(super) fn store<F: Float>(
    sums: &Array<f32>,
    to: &mut [F],
    first_row: usize,
    rows: usize,
    width: usize,
    head_start: usize,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.columns());
    #[unroll]
    for i in 0..comptime!(tiles.each()) {
        let row = first_row + UNIT_POS_Y as usize + comptime!(i * tiles.side);
        #[unroll]
        for c in 0..columns {
            let column = UNIT_POS_X as usize + comptime!(c * tiles.side);
            if row < rows && column < tiles.dim {
                to[row * width + head_start + column] = F::cast_from(sums[comptime!(i * columns + c)]);
            }
        }
    }
}

/// The range that holds all ranges of the rows of a tile; (0, 0) if all are empty.
#[cube]
pub(super) fn span(ranges: &[u32], first_row: usize, rows: usize, #[comptime] tiles: Tiles) -> (usize, usize) {
    let mut first = ranges.len();
    let mut end = 0usize;
    let last_row = min(first_row + comptime!(tiles.rows), rows);
    let mut row = first_row;
    while row < last_row {
        let from = ranges[2 * row] as usize;
        let to = ranges[2 * row + 1] as usize;
        if from < to {
            first = min(first, from);
            end = max(end, to);
        }
        row += 1;
    }
    (first, end)
}
