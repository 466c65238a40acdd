use mloc_kernels::paged::{Cache, Shape, Texts, fits, forward, write};

use crate::device::{Device, each};

/// A text: its blocks, and the keys that it sees.
struct Text {
    blocks: Vec<u32>,
    seen: [u32; 2],
}

fn host(q: &[f64], [keys, values]: [&[f64]; 2], texts: &[Text], shape: Shape) -> Vec<f64> {
    let Shape { heads, kv_heads, dim, block_tokens, scale } = shape;
    let mut out = vec![0.0; q.len()];
    for (index, text) in texts.iter().enumerate() {
        for head in 0..heads {
            let own = (index * heads + head) * dim;
            let at = |position: u32| {
                let position = position as usize;
                let place = text.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens;
                (place * kv_heads + head / (heads / kv_heads)) * dim
            };
            let score = |position: u32| {
                let key = &keys[at(position)..][..dim];
                f64::from(scale) * q[own..own + dim].iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
            };
            let scores: Vec<f64> = (text.seen[0]..text.seen[1]).map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for (position, score) in (text.seen[0]..text.seen[1]).zip(scores) {
                let p = (score - top).exp() / sum;
                out[own..own + dim].iter_mut().zip(&values[at(position)..]).for_each(|(out, v)| *out += p * v);
            }
        }
    }
    out
}

/// Texts with blocks in no order.
fn texts(device: &mut Device, block_tokens: usize, ranges: &[[u32; 2]]) -> (Vec<Text>, usize) {
    let needs = |range: &[u32; 2]| (range[1] as usize).div_ceil(block_tokens);
    let blocks = ranges.iter().map(needs).sum::<usize>() + 3;
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let mut take =
        |count: usize| -> Vec<u32> { (0..count).map(|_| free.swap_remove(device.pick(0, free.len() - 1))).collect() };
    (ranges.iter().map(|range| Text { blocks: take(needs(range)), seen: *range }).collect(), blocks)
}

fn check(device: &mut Device, ranges: &[[u32; 2]], shape: Shape) {
    let (texts, blocks) = texts(device, shape.block_tokens, ranges);
    let places = blocks * shape.block_tokens;
    let row = shape.kv_heads * shape.dim;
    let [keys, values] = [(); 2].map(|()| device.values(places * row));
    let q: Vec<f64> = device.values(texts.len() * shape.heads * shape.dim);
    let width = texts.iter().map(|text| text.blocks.len()).max().unwrap_or(0).max(1);
    let table = |text: &Text| {
        let mut row = text.blocks.clone();
        // Read by nobody: far behind the last block.
        row.resize(width, u32::MAX);
        row
    };
    let tables: Vec<u32> = texts.iter().flat_map(table).collect();
    let seen: Vec<u32> = texts.iter().flat_map(|text| text.seen).collect();
    let cache = Cache { keys: device.put(&keys), values: device.put(&values), dtype: device.dtype };
    let on_device = Texts {
        tables: device.put_words(&tables),
        seen: device.put_words(&seen),
        count: texts.len(),
        longest: ranges.iter().map(|[first, end]| (end - first) as usize).max().unwrap_or(0),
    };
    let out = device.room_f32(q.len());
    forward(device.client(), &device.put_f32(&q), &cache, &on_device, &out, shape);
    let what = format!("{shape:?} {ranges:?}");
    let found = device.get_f32(&out);
    device.compare(&what, &found, &host(&q, [&keys, &values], &texts, shape), 16 * (shape.dim + on_device.longest));
}

#[test]
fn single_queries_over_blocks() {
    for mut device in each("paged attention") {
        for (case, dim) in [64, 128, 20, 256, 33].into_iter().enumerate() {
            // Half differs in how elements are read alone.
            if device.dtype.size() == 2 && case > 1 {
                continue;
            }
            let kv_heads = device.pick(1, 3);
            let shape = Shape {
                heads: kv_heads * device.pick(1, 5),
                kv_heads,
                dim,
                block_tokens: device.one_of(&[4, 16, 32]),
                scale: 1.0 / (dim as f32).sqrt(),
            };
            check(&mut device, &[[0, 1], [0, 33], [7, 90], [0, 0], [31, 64], [0, 32]], shape);
        }
    }
}

/// So long that it is cut into parts, some of which are empty.
#[test]
fn one_long_text_is_cut_and_joined() {
    for mut device in each("paged attention in parts") {
        let shape = Shape { heads: 4, kv_heads: 2, dim: 16, block_tokens: 16, scale: 0.3 };
        check(&mut device, &[[0, 1500]], shape);
        check(&mut device, &[[0, 700], [600, 700]], shape);
    }
}

#[test]
fn rows_are_written_to_their_places_and_nowhere_else() {
    for mut device in each("rows of a cache") {
        for width in [24, 7] {
            let before = [(); 2].map(|()| device.values(20 * width));
            let rows = [(); 2].map(|()| device.values(3 * width));
            let places = [17, 0, 4];
            let [keys, values] = before.each_ref().map(|values| device.put(values));
            let cache = Cache { keys, values, dtype: device.dtype };
            let put = rows.each_ref().map(|rows| device.put_f32(rows));
            write(device.client(), put.each_ref(), &device.put_words(&places), &cache, width);
            for ((before, rows), found) in before.iter().zip(&rows).zip([&cache.keys, &cache.values]) {
                let mut wanted = before.clone();
                for (row, place) in rows.chunks(width).zip(places) {
                    wanted[place as usize * width..][..width].copy_from_slice(row);
                }
                assert_eq!(device.get(found), wanted);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_known() {
    let shape = Shape { heads: 32, kv_heads: 2, dim: 128, block_tokens: 16, scale: 1.0 };
    assert!(fits(shape));
    assert!(!fits(Shape { kv_heads: 1, ..shape }) && !fits(Shape { dim: 320, ..shape }));
}
