use mloc_kernels::attention::{Gradients, Inputs, Shape, Sight, backward, forward};

use crate::device::{Device, compare, each};
use crate::gradient::differences;

/// Out and the logs of sums.
fn host(q: &[f64], k: &[f64], v: &[f64], sight: &[[u32; 2]], shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let Shape { queries, heads, kv_heads, dim, .. } = shape;
    let mut out = vec![0.0; queries * heads * dim];
    let mut log_sums = vec![0.0; queries * heads];
    for query in 0..queries {
        for head in 0..heads {
            let of = |x: &[f64], row: usize, heads: usize, head: usize| -> Vec<f64> {
                x[(row * heads + head) * dim..][..dim].to_vec()
            };
            let own = of(q, query, heads, head);
            let keys = sight[query][0] as usize..sight[query][1] as usize;
            let kv_head = head / (heads / kv_heads);
            let score = |key| {
                let dot: f64 = own.iter().zip(of(k, key, kv_heads, kv_head)).map(|(a, b)| a * b).sum();
                dot * f64::from(shape.scale)
            };
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            if !scores.is_empty() {
                log_sums[query * heads + head] = top + sum.ln();
            }
            for (key, score) in keys.zip(scores) {
                let p = (score - top).exp() / sum;
                for (out, v) in out[(query * heads + head) * dim..][..dim].iter_mut().zip(of(v, key, kv_heads, kv_head))
                {
                    *out += p * v;
                }
            }
        }
    }
    (out, log_sums)
}

/// The gradients by the formula, given what [`host`] returns.
fn host_backward(values: [&[f64]; 4], sight: &[[u32; 2]], forward: (&[f64], &[f64]), shape: Shape) -> [Vec<f64>; 3] {
    let [q, k, v, d_out] = values;
    let (out, log_sums) = forward;
    let Shape { queries, heads, kv_heads, dim, .. } = shape;
    let scale = f64::from(shape.scale);
    let [mut dq, mut dk, mut dv] = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
    for query in 0..queries {
        for head in 0..heads {
            let own = (query * heads + head) * dim;
            let dot = |a: &[f64], a_at: usize, b: &[f64], b_at: usize| -> f64 {
                a[a_at..a_at + dim].iter().zip(&b[b_at..b_at + dim]).map(|(a, b)| a * b).sum()
            };
            let delta = dot(d_out, own, out, own);
            for key in sight[query][0] as usize..sight[query][1] as usize {
                let at = (key * kv_heads + head / (heads / kv_heads)) * dim;
                let p = (dot(q, own, k, at) * scale - log_sums[query * heads + head]).exp();
                let ds = p * (dot(d_out, own, v, at) - delta) * scale;
                for d in 0..dim {
                    dq[own + d] += ds * k[at + d];
                    dk[at + d] += ds * q[own + d];
                    dv[at + d] += p * d_out[own + d];
                }
            }
        }
    }
    [dq, dk, dv]
}

struct Found {
    out: Vec<f64>,
    log_sums: Vec<f64>,
    gradients: [Vec<f64>; 3],
}

fn on_device(device: &Device, [q, k, v, d_out]: [&[f64]; 4], sight: &Sight, shape: Shape) -> Found {
    let client = device.client();
    let inputs = Inputs { q: device.put(q), k: device.put(k), v: device.put(v), sight: sight.to_device(client) };
    let (out, log_sums) = (device.room(q.len()), device.room_f32(shape.queries * shape.heads));
    forward(client, &inputs, &out, &log_sums, shape);
    let gradients = Gradients { dq: device.room(q.len()), dk: device.room(k.len()), dv: device.room(v.len()) };
    backward(client, &inputs, &out, &log_sums, &device.put(d_out), &gradients, shape);
    Found {
        out: device.get(&out),
        log_sums: device.get_f32(&log_sums),
        gradients: [&gradients.dq, &gradients.dk, &gradients.dv].map(|g| device.get(g)),
    }
}

fn random(device: &mut Device, shape: Shape) -> [Vec<f64>; 4] {
    let Shape { queries, keys, heads, kv_heads, dim, .. } = shape;
    let q = device.values(queries * heads * dim);
    let [k, v] = [(); 2].map(|()| device.values(keys * kv_heads * dim));
    [q, k, v, device.values(queries * heads * dim)]
}

fn check(device: &mut Device, sight: &Sight, shape: Shape) {
    let what = format!("{shape:?} {:?}", sight.of_queries());
    let [q, k, v, d_out] = random(device, shape);
    let values = [&q[..], &k, &v, &d_out];
    let found = on_device(device, values, sight, shape);
    let (out, log_sums) = host(&q, &k, &v, sight.of_queries(), shape);
    let terms = 16 * (shape.dim + shape.keys);
    device.compare(&format!("out {what}"), &found.out, &out, terms);
    device.compare(&format!("log_sums {what}"), &found.log_sums, &log_sums, terms);
    let gradients = host_backward(values, sight.of_queries(), (&out, &log_sums), shape);
    for ((name, found), wanted) in ["dq", "dk", "dv"].iter().zip(&found.gradients).zip(&gradients) {
        // Half: out is rounded before the backward pass uses it.
        let slack = if device.dtype.size() == 2 { 1 << 20 } else { 16 };
        device.compare(&format!("{name} {what}"), found, wanted, terms * slack);
    }
}

#[test]
fn packed_texts_windows_and_shared_heads() {
    for mut device in each("attention") {
        for (case, dim) in [64, 20, 128, 33, 256, 8, 12].into_iter().enumerate() {
            // Half differs in how elements are read and written alone.
            if device.dtype.size() == 2 && case > 1 {
                continue;
            }
            let kv_heads = device.pick(1, 3);
            let heads = kv_heads * device.pick(1, 3);
            let lengths: Vec<usize> = (0..device.pick(1, 3)).map(|_| device.pick(0, 50)).chain([1]).collect();
            let window = device.one_of(&[None, Some(1), Some(7), Some(40)]);
            let sight = Sight::packed(lengths.iter().copied(), window);
            let tokens = lengths.iter().sum();
            let scale = 1.0 / (dim as f32).sqrt();
            let shape = Shape { queries: tokens, keys: tokens, heads, kv_heads, dim, scale, dtype: device.dtype };
            check(&mut device, &sight, shape);
        }
    }
}

/// As when texts are continued, whose keys are in a cache: more keys than queries, in any order, and a query without any.
#[test]
fn continuations_and_queries_that_see_nothing() {
    for mut device in each("attention of continuations") {
        let sight = Sight::new(vec![[0, 70], [70, 71], [0, 0], [20, 90], [5, 40]], 97);
        let dtype = device.dtype;
        for dim in [32, 80] {
            let shape = Shape { queries: 5, keys: 97, heads: 4, kv_heads: 2, dim, scale: 0.2, dtype };
            check(&mut device, &sight, shape);
        }
    }
}

#[test]
fn the_gradients_are_those_of_finite_differences() {
    for mut device in each("attention gradients") {
        let sight = Sight::packed([5, 3, 9], Some(4));
        let dtype = device.dtype;
        let shape = Shape { queries: 17, keys: 17, heads: 4, kv_heads: 2, dim: 6, scale: 0.4, dtype };
        let [q, k, v, d_out] = random(&mut device, shape);
        let found = on_device(&device, [&q, &k, &v, &d_out], &sight, shape);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| {
            host(q, k, v, sight.of_queries(), shape).0.iter().zip(&d_out).map(|(o, d)| o * d).sum::<f64>()
        };
        let wanted = [
            differences(&q, |q| loss(q, &k, &v)),
            differences(&k, |k| loss(&q, k, &v)),
            differences(&v, |v| loss(&q, &k, v)),
        ];
        for ((name, found), wanted) in ["dq", "dk", "dv"].iter().zip(&found.gradients).zip(&wanted) {
            compare(name, found, wanted, if dtype.size() == 2 { 1e-2 } else { 1e-5 });
        }
    }
}
