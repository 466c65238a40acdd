//! Small random models, a plain forward in f64 to hold them against, and steps without an engine.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use mloc_cpu::{
    CacheFormat, Format, Keep, Model, Settings,
    adapter::Adapted,
    architecture::{Activation, Architecture, Experts, Layer, Rope},
    isa::Isa,
    weights::{Matrix, Part, Role, Values, Weights},
};
use mloc_engine::forward::{AdapterId, BlockId, Chunk, Forward, Wanted};
use rand::{Rng, SeedableRng, rngs::StdRng};

pub const MATRICES: [Matrix; 7] =
    [Matrix::Query, Matrix::Key, Matrix::Value, Matrix::Output, Matrix::Gate, Matrix::Up, Matrix::Down];

pub struct Tensors {
    pub architecture: Architecture,
    pub tensors: BTreeMap<Role, Vec<f32>>,
}

impl Weights for Tensors {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        self.tensors.get(&role).map(|values| Values::F32(values.as_slice().into()))
    }
}

pub fn shape(a: &Architecture, matrix: Matrix) -> (usize, usize) {
    let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    match matrix {
        Matrix::Query => (queries, a.hidden),
        Matrix::Key | Matrix::Value => (keys, a.hidden),
        Matrix::Output => (a.hidden, queries),
        Matrix::Gate | Matrix::Up => (a.intermediate, a.hidden),
        Matrix::Down => (a.hidden, a.intermediate),
    }
}

/// A Llama of two layers, no size of which is a multiple of a panel.
pub fn plain() -> Architecture {
    Architecture {
        vocabulary: 77,
        hidden: 40,
        intermediate: 50,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        layers: vec![Layer { window: None, rope: 0 }; 2],
        ropes: vec![rope(6, 10_000.0)],
        norm_epsilon: 1e-5,
        attention_scale: 1.0 / 12_f32.sqrt(),
        activation: Activation::Silu,
        qk_norm: false,
        post_norms: false,
        embedding_scale: 1.0,
        attention_soft_cap: None,
        logit_soft_cap: None,
        tied: true,
        experts: None,
    }
}

/// All that an architecture can have at once: Gemma's extras, windows, two ropes, one of them partial, biases.
pub fn everything() -> Architecture {
    Architecture {
        layers: vec![
            Layer { window: Some(20), rope: 1 },
            Layer { window: None, rope: 0 },
            Layer { window: Some(7), rope: 0 },
        ],
        ropes: vec![rope(6, 1e6), Rope { scale: 1.2, ..rope(4, 1e4) }],
        heads: 6,
        activation: Activation::GeluTanh,
        qk_norm: true,
        post_norms: true,
        embedding_scale: 6.3,
        attention_soft_cap: Some(5.0),
        logit_soft_cap: Some(3.0),
        tied: false,
        ..plain()
    }
}

/// Mixtral's kind: experts in all layers, weights that sum to 1.
pub fn mixture() -> Architecture {
    let sparse = vec![true; 2];
    Architecture {
        experts: Some(Experts { count: 5, per_token: 2, intermediate: 30, normalised: true, sparse }),
        tied: false,
        ..plain()
    }
}

/// Qwen 3's kind: experts in some layers, weights as the router gives them; and post norms, which no family has with them.
pub fn sparse_mixture() -> Architecture {
    let sparse = vec![true, false, true];
    Architecture {
        layers: vec![Layer { window: None, rope: 0 }; 3],
        qk_norm: true,
        post_norms: true,
        experts: Some(Experts { count: 7, per_token: 3, intermediate: 50, normalised: false, sparse }),
        ..plain()
    }
}

/// What a layer's feed-forward block is made of: the experts' shapes are those of a model of their width.
fn experts_of(a: &Architecture, layer: usize) -> Option<(&Experts, Architecture)> {
    let experts = a.experts.as_ref().filter(|experts| experts.sparse[layer])?;
    Some((experts, Architecture { intermediate: experts.intermediate, ..a.clone() }))
}

fn rope(len: usize, base: f32) -> Rope {
    let inverse_frequencies = (0..len).map(|i| base.powf(-(i as f32) / len as f32)).collect();
    Rope { inverse_frequencies, scale: 1.0 }
}

pub fn random(architecture: Architecture, biases: bool, seed: u64) -> Tensors {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fill = |n: usize, scale: f32, mean: f32| -> Vec<f32> {
        (0..n).map(|_| mean + scale * (rng.random::<f32>() * 2.0 - 1.0)).collect()
    };
    let a = &architecture;
    let mut tensors = BTreeMap::new();
    tensors.insert(Role::Embedding, fill(a.vocabulary * a.hidden, 1.0, 0.0));
    tensors.insert(Role::FinalNorm, fill(a.hidden, 0.5, 1.0));
    if !a.tied {
        tensors.insert(Role::Head, fill(a.vocabulary * a.hidden, 0.4, 0.0));
    }
    for layer in 0..a.layers.len() {
        let norms = [Part::AttentionNorm, Part::FeedForwardNorm, Part::AttentionPostNorm, Part::FeedForwardPostNorm];
        for norm in &norms[..if a.post_norms { 4 } else { 2 }] {
            tensors.insert(Role::Layer(layer, *norm), fill(a.hidden, 0.5, 1.0));
        }
        if a.qk_norm {
            tensors.insert(Role::Layer(layer, Part::QueryNorm), fill(a.head_dim, 0.5, 1.0));
            tensors.insert(Role::Layer(layer, Part::KeyNorm), fill(a.head_dim, 0.5, 1.0));
        }
        let experts = experts_of(a, layer);
        let in_attention = |m: &Matrix| !matches!(m, Matrix::Gate | Matrix::Up | Matrix::Down);
        for matrix in MATRICES.into_iter().filter(|m| experts.is_none() || in_attention(m)) {
            let (rows, columns) = shape(a, matrix);
            let scale = 1.7 / (columns as f32).sqrt();
            tensors.insert(Role::Layer(layer, Part::Matrix(matrix)), fill(rows * columns, scale, 0.0));
            if biases {
                tensors.insert(Role::Layer(layer, Part::Bias(matrix)), fill(rows, 0.3, 0.0));
            }
        }
        if let Some((experts, of_expert)) = experts {
            tensors.insert(Role::Layer(layer, Part::Router), fill(experts.count * a.hidden, 0.5, 0.0));
            for expert in 0..experts.count {
                for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
                    let (rows, columns) = shape(&of_expert, matrix);
                    let values = fill(rows * columns, 1.7 / (columns as f32).sqrt(), 0.0);
                    tensors.insert(Role::Layer(layer, Part::Expert(expert, matrix)), values);
                }
            }
        }
    }
    Tensors { architecture, tensors }
}

pub fn settings() -> Settings {
    Settings {
        threads: 2,
        isa: Isa::best(),
        keep: Keep::all(Format::F32),
        cache: CacheFormat::F32,
        block_tokens: 32,
        blocks: 64,
        max_length: 400,
    }
}

pub fn load(tensors: &Tensors, settings: &Settings) -> Model {
    Model::load(tensors.architecture.clone(), tensors, settings).expect("a sound model")
}

pub fn tokens(a: &Architecture, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..a.vocabulary as u32)).collect()
}

/// A sequence's chunk, with blocks `first_block..`.
pub fn chunk(tokens: &[u32], start: usize, first_block: u32, wanted: Wanted) -> Chunk {
    let blocks = (first_block..first_block + 13).map(BlockId).collect();
    Chunk { tokens: tokens.to_vec(), start, blocks, adapter: None, wanted }
}

/// Logits of all tokens, the prompt cut at `cuts`, in steps of its own.
pub fn alone(
    model: &mut Model,
    tokens: &[u32],
    cuts: &[usize],
    first_block: u32,
    adapter: Option<AdapterId>,
) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&tokens.len()]) {
        let chunk = Chunk { adapter, ..chunk(&tokens[from..to], from, first_block, Wanted::All) };
        let logits = model.forward(&[chunk]).expect("a step");
        rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
        from = to;
    }
    rows
}

/// The largest difference, relative to the row's largest magnitude.
pub fn difference(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0_f64;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let difference = (f64::from(*found) - expected).abs() / largest;
            assert!(difference.is_finite(), "{found} against {expected}");
            worst = worst.max(difference);
        }
    }
    worst
}

/// A random adapter of rank `rank` on these matrices of every layer.
pub fn adapter(a: &Architecture, matrices: &[Matrix], rank: usize, seed: u64) -> Vec<Adapted> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fill =
        |n: usize, scale: f32| -> Vec<f32> { (0..n).map(|_| scale * (rng.random::<f32>() * 2.0 - 1.0)).collect() };
    let mut adapted = Vec::new();
    for layer in 0..a.layers.len() {
        for &matrix in matrices {
            let (rows, columns) = shape(a, matrix);
            let (a, b) = (fill(rank * columns, 0.3), fill(rows * rank, 0.3));
            adapted.push(Adapted { layer, matrix, a, b, rank, scale: 0.7 });
        }
    }
    adapted
}

/// The weights with an adapter merged in.
pub fn merged(tensors: &Tensors, adapted: &[Adapted]) -> Tensors {
    let mut all = tensors.tensors.clone();
    for part in adapted {
        let (rows, columns) = shape(&tensors.architecture, part.matrix);
        let matrix = all.get_mut(&Role::Layer(part.layer, Part::Matrix(part.matrix))).expect("a matrix");
        for row in 0..rows {
            for column in 0..columns {
                let low = (0..part.rank).map(|r| part.b[row * part.rank + r] * part.a[r * columns + column]);
                matrix[row * columns + column] += part.scale * low.sum::<f32>();
            }
        }
    }
    Tensors { architecture: tensors.architecture.clone(), tensors: all }
}

/// Logits of each position by the formulas, in f64: no cache, no blocks, no batches.
pub fn reference(model: &Tensors, tokens: &[u32]) -> Vec<Vec<f64>> {
    let a = &model.architecture;
    let tensor = |role: Role| -> Vec<f64> { model.tensors[&role].iter().map(|v| f64::from(*v)).collect() };
    let embedding = tensor(Role::Embedding);
    let mut x: Vec<Vec<f64>> = tokens
        .iter()
        .map(|t| {
            embedding[*t as usize * a.hidden..][..a.hidden].iter().map(|v| v * f64::from(a.embedding_scale)).collect()
        })
        .collect();
    for (index, layer) in a.layers.iter().enumerate() {
        let part = |part: Part| tensor(Role::Layer(index, part));
        let linear = |matrix: Matrix, x: &[f64]| -> Vec<f64> {
            let weights = part(Part::Matrix(matrix));
            let mut y = product(&weights, x);
            if model.tensors.contains_key(&Role::Layer(index, Part::Bias(matrix))) {
                y.iter_mut().zip(part(Part::Bias(matrix))).for_each(|(y, b)| *y += b);
            }
            y
        };
        let after = |y: Vec<f64>, norm: Part| if a.post_norms { rms(&y, &part(norm), a) } else { y };
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let normed = rms(x, &part(Part::AttentionNorm), a);
            let turned = |y: Vec<f64>, norm: Part| -> Vec<f64> {
                let heads = y.chunks(a.head_dim).map(|head| {
                    let head = if a.qk_norm { rms(head, &part(norm), a) } else { head.to_vec() };
                    turn(&head, &a.ropes[layer.rope], position)
                });
                heads.flatten().collect()
            };
            queries.push(turned(linear(Matrix::Query, &normed), Part::QueryNorm));
            keys.push(turned(linear(Matrix::Key, &normed), Part::KeyNorm));
            values.push(linear(Matrix::Value, &normed));
        }
        for position in 0..x.len() {
            let seen = (position + 1).saturating_sub(layer.window.unwrap_or(usize::MAX))..position + 1;
            let mut attended = Vec::new();
            for head in 0..a.heads {
                let kv = head / (a.heads / a.kv_heads) * a.head_dim;
                let query = &queries[position][head * a.head_dim..][..a.head_dim];
                let score = |p: usize| {
                    let dot: f64 = query.iter().zip(&keys[p][kv..]).map(|(q, k)| q * k).sum();
                    cap(dot * f64::from(a.attention_scale), a.attention_soft_cap)
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                attended.extend((0..a.head_dim).map(|d| {
                    let weighted = weights.iter().zip(seen.clone()).map(|(w, p)| w * values[p][kv + d]);
                    weighted.sum::<f64>() / sum
                }));
            }
            let out = after(linear(Matrix::Output, &attended), Part::AttentionPostNorm);
            x[position].iter_mut().zip(out).for_each(|(x, y)| *x += y);
            let normed = rms(&x[position], &part(Part::FeedForwardNorm), a);
            let gated = |gate: Vec<f64>, up: Vec<f64>| -> Vec<f64> {
                gate.iter().zip(up).map(|(g, u)| activate(*g, a.activation) * u).collect()
            };
            let out = match experts_of(a, index) {
                None => linear(Matrix::Down, &gated(linear(Matrix::Gate, &normed), linear(Matrix::Up, &normed))),
                Some((experts, _)) => {
                    let mut out = vec![0.0; a.hidden];
                    for (expert, weight) in chosen(experts, &product(&part(Part::Router), &normed)) {
                        let of = |matrix: Matrix, x: &[f64]| product(&part(Part::Expert(expert, matrix)), x);
                        let hidden = gated(of(Matrix::Gate, &normed), of(Matrix::Up, &normed));
                        out.iter_mut().zip(of(Matrix::Down, &hidden)).for_each(|(sum, y)| *sum += weight * y);
                    }
                    out
                }
            };
            let out = after(out, Part::FeedForwardPostNorm);
            x[position].iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
    }
    let head = if a.tied { embedding } else { tensor(Role::Head) };
    let norm = tensor(Role::FinalNorm);
    let logits = x.iter().map(|x| product(&head, &rms(x, &norm, a)));
    logits.map(|row| row.into_iter().map(|y| cap(y, a.logit_soft_cap)).collect()).collect()
}

/// The most probable experts and their weights.
fn chosen(experts: &Experts, logits: &[f64]) -> Vec<(usize, f64)> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    let mut all: Vec<(usize, f64)> = logits.iter().map(|logit| logit.exp() / sum).enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(experts.per_token);
    let kept: f64 = if experts.normalised { all.iter().map(|(_, weight)| weight).sum() } else { 1.0 };
    all.into_iter().map(|(expert, weight)| (expert, weight / kept)).collect()
}

fn product(weights: &[f64], x: &[f64]) -> Vec<f64> {
    weights.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms(x: &[f64], weight: &[f64], a: &Architecture) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(a.norm_epsilon)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * factor * w).collect()
}

fn turn(head: &[f64], rope: &Rope, position: usize) -> Vec<f64> {
    let (mut out, half) = (head.to_vec(), rope.inverse_frequencies.len());
    for (i, frequency) in rope.inverse_frequencies.iter().enumerate() {
        let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
        let (x, y, scale) = (head[i], head[i + half], f64::from(rope.scale));
        out[i] = (x * cosine - y * sine) * scale;
        out[i + half] = (y * cosine + x * sine) * scale;
    }
    out
}

fn cap(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}
