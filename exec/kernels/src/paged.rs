//! Attention of single new tokens over keys and values in blocks (Kwon et al., arXiv 2309.06180), and what writes them
//! there.
//!
//! A cache is `[places, kv_heads · dim]`; block b has `block_tokens` places from `b · block_tokens` on, and a text's tokens
//! lie in the blocks of its row of `tables`. Each text has one query, `[texts, heads · dim]`, f32.
//!
//! A cube has a text, a head of keys with all query heads that share it, and a part of the keys that the text sees: every
//! key and value is read once, `4 · dim · b / 2` bytes a key and head of keys with elements of b bytes, the minimum. Texts
//! are cut into parts so that a few long ones fill a device too (Dao et al., Flash-Decoding); a second kernel joins the
//! parts. It is bound by memory: two products of as many operations as bytes leave tensor cores nothing to do.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::attention::MOST_DIM;
use crate::buffer::{Buffer, cubes_of_units, vector_size};

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct Cache {
    /// `[places, kv_heads · dim]`.
    pub keys: Buffer,
    /// As keys.
    pub values: Buffer,
    /// The type of their elements; f32, f16 or bf16.
    pub dtype: ElemType,
}

/// The texts of a step.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Each text's blocks, 32-bit whole numbers, `[texts, table_width]`; what is behind its last one is not read.
    pub tables: Buffer,
    /// Of each text the first key that it sees and one past the last, 32-bit whole numbers, `[texts, 2]`.
    pub seen: Buffer,
    /// How many.
    pub count: usize,
    /// The longest of the ranges in `seen`: how finely texts are cut.
    pub longest: usize,
}

/// The sizes of an attention over blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Heads of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head; at most [`MOST_DIM`].
    pub dim: usize,
    /// Tokens a block.
    pub block_tokens: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// Query heads that may share a head of keys.
pub const MOST_SHARED: usize = 16;

/// Keys that a cube looks at together, where shared memory has room for as many.
const TILES: [usize; 4] = [32, 16, 8, 4];
/// Units of a cube.
const UNITS: usize = 128;
/// Cubes that fill any device.
const CUBES: usize = 1024;
/// Below every score, and still finite: a difference of two infinities would be no number.
const LOWEST: f32 = -1e30;

/// What is known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    shared: usize,
    dim: usize,
    block_tokens: usize,
    /// Keys that a cube looks at together.
    tile: usize,
}

impl Sizes {
    /// With the largest tile that fits a device.
    fn fitting(client: &Client, shape: Shape) -> Self {
        let Shape { heads, kv_heads, dim, block_tokens, .. } = shape;
        let most = client.properties().hardware.max_shared_memory_size;
        let sizes = TILES.map(|tile| Self { shared: heads / kv_heads, dim, block_tokens, tile });
        sizes.into_iter().find(|sizes| 4 * sizes.shared_elements() <= most).unwrap_or(sizes[TILES.len() - 1])
    }

    /// Of f32, in shared memory: queries, keys or values, scores, and three figures of each head.
    fn shared_elements(self) -> usize {
        self.elements() + self.tile * self.stride() + self.scores() + 3 * self.shared
    }

    /// From one row of a tile to the next: an element more than it has, so that units reading a row each meet in different
    /// banks.
    fn stride(self) -> usize {
        self.dim + 1
    }

    /// Elements of the result of a cube.
    fn elements(self) -> usize {
        self.shared * self.dim
    }

    /// Elements of the result that a unit has.
    fn each(self) -> usize {
        self.elements().div_ceil(UNITS)
    }

    /// Scores of a tile.
    fn scores(self) -> usize {
        self.shared * self.tile
    }
}

/// Whether [`forward`] can do it.
pub fn fits(shape: Shape) -> bool {
    shape.dim <= MOST_DIM && shape.heads / shape.kv_heads <= MOST_SHARED
}

/// Writes to `out`, `[texts, heads · dim]`, f32, for each query the values that it sees, mixed by
/// `softmax(scale · q · keys)`. A text that sees nothing gets zeros.
///
/// # Panics
///
/// With a shape that does not [fit](fits).
pub fn forward(client: &Client, q: &Buffer, cache: &Cache, texts: &Texts, out: &Buffer, shape: Shape) {
    assert!(fits(shape), "{shape:?}: heads of {MOST_DIM} elements at most, {MOST_SHARED} of which may share keys");
    let Shape { heads, kv_heads, dim, scale, .. } = shape;
    if texts.count == 0 {
        return;
    }
    let parts = (CUBES / (texts.count * kv_heads)).clamp(1, texts.longest.div_ceil(4 * TILES[0]).max(1));
    let rows = texts.count * heads * parts;
    let sums = Buffer::new(client.empty(4 * rows * dim), rows * dim);
    let figures = Buffer::new(client.empty(4 * rows * 2), rows * 2);
    let sizes = Sizes::fitting(client, shape);
    part_kernel::launch(
        client,
        CubeCount::Static(texts.count as u32, kv_heads as u32, parts as u32),
        CubeDim::new_1d(UNITS as u32),
        vector_size(dim, cache.dtype).min(4),
        q.argument(),
        cache.keys.argument(),
        cache.values.argument(),
        texts.tables.argument(),
        texts.seen.argument(),
        sums.argument(),
        figures.argument(),
        texts.tables.elements / texts.count,
        kv_heads,
        parts,
        scale,
        sizes,
        cache.dtype,
    );
    join_kernel::launch(
        client,
        cubes_of_units(texts.count * heads * dim),
        CubeDim::new_1d(crate::buffer::UNITS),
        sums.argument(),
        figures.argument(),
        out.argument(),
        texts.count * heads * dim,
        dim,
        parts,
    );
}

/// Writes rows of keys and values, f32, `[tokens, width]`, to their places, `[tokens]`, in a cache.
pub fn write(client: &Client, [keys, values]: [&Buffer; 2], places: &Buffer, cache: &Cache, width: usize) {
    let vector = vector_size(width, cache.dtype).min(4);
    let vectors = keys.elements / vector;
    if vectors == 0 {
        return;
    }
    for (from, to) in [(keys, &cache.keys), (values, &cache.values)] {
        write_kernel::launch(
            client,
            cubes_of_units(vectors),
            CubeDim::new_1d(crate::buffer::UNITS),
            vector,
            from.argument(),
            places.argument(),
            to.argument(),
            vectors,
            width / vector,
            cache.dtype,
        );
    }
}

/// A unit has a vector of a row.
#[cube(launch)]
fn write_kernel<C: Float, N: Size>(
    rows: &[Vector<f32, N>],
    places: &[u32],
    cache: &mut [Vector<C, N>],
    vectors: usize,
    width: usize,
    #[define(C)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS;
    if unit < vectors {
        let place = places[unit / width] as usize;
        cache[place * width + unit % width] = Vector::cast_from(rows[unit]);
    }
}

/// Copies keys, or values, of one head out of their blocks; those behind `end` become 0.
#[cube]
fn load<C: Float, N: Size>(
    from: &[Vector<C, N>],
    tables: &[u32],
    to: &mut Shared<[f32]>,
    table: usize,
    first: usize,
    end: usize,
    row_vectors: usize,
    head_start: usize,
    #[comptime] sizes: Sizes,
) {
    let per_row = sizes.dim / N::value();
    let mut at = UNIT_POS as usize;
    while at < sizes.tile * per_row {
        let row = at / per_row;
        let column = at % per_row;
        let position = first + row;
        let mut value = Vector::<f32, N>::new(0.0);
        if position < end {
            let block = tables[table + position / sizes.block_tokens] as usize;
            let place = block * sizes.block_tokens + position % sizes.block_tokens;
            value = Vector::cast_from(from[place * row_vectors + head_start + column]);
        }
        let start = row * comptime!(sizes.stride()) + column * N::value();
        #[unroll]
        for lane in 0..N::value() {
            to[start + lane] = value.extract(lane);
        }
        at += UNITS;
    }
}

/// A part of the keys of a text, for the query heads of one head of keys: sums of values weighted by exponentials, and of
/// each head the highest score and the sum of exponentials.
#[cube(launch)]
fn part_kernel<C: Float, N: Size>(
    q: &[f32],
    keys: &[Vector<C, N>],
    values: &[Vector<C, N>],
    tables: &[u32],
    seen: &[u32],
    sums: &mut [f32],
    figures: &mut [f32],
    table_width: usize,
    kv_heads: usize,
    parts: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(C)] _dtype: ElemType,
) {
    let each = comptime!(sizes.each());
    let elements = comptime!(sizes.elements());
    let stride = comptime!(sizes.stride());
    let unit = UNIT_POS as usize;
    let text = CUBE_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let part = CUBE_POS_Z as usize;
    let row_vectors = kv_heads * (sizes.dim / N::value());
    let head_start = kv_head * (sizes.dim / N::value());
    let table = text * table_width;

    // The part's keys: whole tiles, but for the text's last one.
    let first_seen = seen[2 * text] as usize;
    let end_seen = seen[2 * text + 1] as usize;
    let mut count = 0usize;
    if end_seen > first_seen {
        count = end_seen - first_seen;
    }
    let tiles = (count + comptime!(sizes.tile - 1)) / sizes.tile;
    let mut first = first_seen + part * tiles / parts * sizes.tile;
    let end = min(first_seen + (part + 1) * tiles / parts * sizes.tile, end_seen);

    let mut queries = Shared::<[f32]>::new_slice(elements);
    // Keys, and when scores are known, values.
    let mut tile = Shared::<[f32]>::new_slice(comptime!(sizes.tile * sizes.stride()));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(sizes.scores()));
    let mut highest = Shared::<[f32]>::new_slice(sizes.shared);
    let mut shrink = Shared::<[f32]>::new_slice(sizes.shared);
    let mut total = Shared::<[f32]>::new_slice(sizes.shared);
    let mut mixed = Array::<f32>::new(each);

    // Heads that share keys lie side by side.
    let query_start = (text * kv_heads + kv_head) * elements;
    let mut at = unit;
    while at < elements {
        queries[at] = q[query_start + at] * scale;
        at += UNITS;
    }
    if unit < sizes.shared {
        highest[unit] = f32::new(LOWEST);
        total[unit] = 0.0f32;
    }
    while first < end {
        sync_cube();
        load(keys, tables, &mut tile, table, first, end, row_vectors, head_start, sizes);
        sync_cube();
        let mut at = unit;
        while at < comptime!(sizes.scores()) {
            let key = at % sizes.tile;
            let head = at / sizes.tile;
            let mut score = f32::new(LOWEST);
            if first + key < end {
                score = 0.0f32;
                for d in 0..sizes.dim {
                    score += queries[head * sizes.dim + d] * tile[key * stride + d];
                }
            }
            scores[at] = score;
            at += UNITS;
        }
        sync_cube();
        load(values, tables, &mut tile, table, first, end, row_vectors, head_start, sizes);
        if unit < sizes.shared {
            let before = highest[unit];
            let mut higher = before;
            for key in 0..sizes.tile {
                higher = max(higher, scores[unit * sizes.tile + key]);
            }
            let less = (before - higher).exp();
            let mut sum = total[unit] * less;
            for key in 0..sizes.tile {
                let score = scores[unit * sizes.tile + key];
                let mut e = 0.0f32;
                // What is hidden is exactly LOWEST.
                if score > LOWEST {
                    e = (score - higher).exp();
                }
                scores[unit * sizes.tile + key] = e;
                sum += e;
            }
            highest[unit] = higher;
            shrink[unit] = less;
            total[unit] = sum;
        }
        sync_cube();
        #[unroll]
        for i in 0..each {
            let element = unit + comptime!(i * UNITS);
            if element < elements {
                let head = element / sizes.dim;
                let d = element % sizes.dim;
                let mut sum = mixed[i] * shrink[head];
                for key in 0..sizes.tile {
                    sum += scores[head * sizes.tile + key] * tile[key * stride + d];
                }
                mixed[i] = sum;
            }
        }
        first += sizes.tile;
    }
    sync_cube();
    #[unroll]
    for i in 0..each {
        let element = unit + comptime!(i * UNITS);
        if element < elements {
            let head = element / sizes.dim;
            let row = (text * kv_heads * sizes.shared + kv_head * sizes.shared + head) * parts + part;
            sums[row * sizes.dim + element % sizes.dim] = mixed[i];
        }
    }
    if unit < sizes.shared {
        let row = (text * kv_heads * sizes.shared + kv_head * sizes.shared + unit) * parts + part;
        figures[2 * row] = highest[unit];
        figures[2 * row + 1] = total[unit];
    }
}

/// Joins the parts of each text and head. A unit has an element.
#[cube(launch)]
fn join_kernel(sums: &[f32], figures: &[f32], out: &mut [f32], elements: usize, dim: usize, parts: usize) {
    let unit = ABSOLUTE_POS;
    if unit < elements {
        let row = unit / dim;
        let mut highest = f32::new(LOWEST);
        for part in 0..parts {
            highest = max(highest, figures[2 * (row * parts + part)]);
        }
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for part in 0..parts {
            let at = row * parts + part;
            let weight = (figures[2 * at] - highest).exp();
            total += figures[2 * at + 1] * weight;
            sum += sums[at * dim + unit % dim] * weight;
        }
        let mut mixed = 0.0f32;
        if total > 0.0f32 {
            mixed = sum / total;
        }
        out[unit] = mixed;
    }
}
