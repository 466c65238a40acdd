//! Writes the CUDA C++ of every kernel, as it would be compiled on a device of a given architecture, without one.
//!
//! `cuda_source FOLDER 90` for sm_90. What comes out is for NVRTC: see `compile_cuda.py` beside the crate's manifest.

mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use mloc_kernels::{Buffer, attention, cross_entropy, four_bit, paged, rms_norm, rope, swiglu};

use server::{Architecture, Recorder, SETTINGS, WRITTEN};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(version)) = (arguments.next(), arguments.next().and_then(|v| v.parse().ok())) else {
        eprintln!("cuda_source needs a folder and an architecture, as 90");
        return ExitCode::FAILURE;
    };
    // Shared memory of a cube, as CUDA's programming guide has it for each compute capability.
    let shared_memory = match version {
        90 | 100 => 227 << 10,
        80 | 87 => 163 << 10,
        _ => 99 << 10,
    };
    let settings = (PathBuf::from(folder), Architecture { version, shared_memory });
    SETTINGS.set(settings).expect("set once");
    let client = Recorder::client();
    for kind in [FloatKind::F32, FloatKind::BF16, FloatKind::F16] {
        launch_all(&client, ElemType::Float(kind));
    }
    cubecl::future::block_on(client.sync()).expect("it runs nothing");
    let written = WRITTEN.lock().expect("nobody panicked");
    for outcome in written.iter() {
        match outcome {
            Ok(line) => println!("{line}"),
            Err(why) => eprintln!("{why}"),
        }
    }
    match written.iter().all(Result::is_ok) && !written.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Every kernel once, in the sizes of a model of 8 billion parameters, and in sizes that fit nothing.
fn launch_all(client: &Client, dtype: ElemType) {
    let room = |elements: usize| Buffer::new(client.empty(elements * 4), elements);
    for (rows, width) in [(4, 4096), (3, 577)] {
        let shape = rms_norm::Rows { rows, width, dtype };
        let [x, weight, y, r] = [rows * width, width, rows * width, rows].map(room);
        rms_norm::forward(client, &x, &weight, &y, &r, 1e-5, shape);
        rms_norm::backward(client, &x, &weight, &r, &x, &y, shape);
        rms_norm::backward_weight(client, &x, &r, &y, &weight, shape);
        swiglu::forward(client, &x, &x, &y, dtype);
        swiglu::backward(client, &x, &x, &y, &x, &y, dtype);
    }
    for dim in [128, 6] {
        let shape = rope::Heads { tokens: 5, heads: 8, dim, dtype };
        let [x, table] = [5 * 8 * dim, 5 * dim / 2].map(room);
        rope::rotate(client, &x, &table, &table, &x, rope::Direction::Forward, 1.0, shape);
    }
    for vocabulary in [128_256, 1023] {
        let shape = cross_entropy::Logits { rows: 2, vocabulary, dtype };
        let [logits, targets, figures] = [2 * vocabulary, 2, 2 * cross_entropy::FIGURES].map(room);
        cross_entropy::figures(client, &logits, &targets, &figures, shape);
        cross_entropy::gradient(client, &logits, &targets, &figures, &targets, &logits, 0.1, shape);
    }
    for double in [false, true] {
        let [packed, levels, one] = [4096 * 8, 16, 1024].map(room);
        let scales = match double {
            false => four_bit::Scales::Plain(one),
            true => four_bit::Scales::Double { codes: one.clone(), map: one.clone(), scales: one, offset: 0.5 },
        };
        let matrix = four_bit::Matrix { outputs: 16, inputs: 4096, block: 64, packed, levels, scales };
        let [x, values] = [8 * 4096, 16 * 4096].map(room);
        four_bit::unpack(client, &matrix, &values, dtype);
        for rows in [1, four_bit::MOST_ROWS] {
            four_bit::product(client, &x, &matrix, &values, rows, dtype);
        }
    }
    for dim in [64, 128, 256, 33] {
        let sight = attention::Sight::packed([70, 9], Some(50));
        let shape = attention::Shape { queries: 79, keys: 79, heads: 4, kv_heads: 2, dim, scale: 0.1, dtype };
        let [q, k, log_sums] = [79 * 4 * dim, 79 * 2 * dim, 79 * 4].map(room);
        let inputs = attention::Inputs { q: q.clone(), k: k.clone(), v: k.clone(), sight: sight.to_device(client) };
        attention::forward(client, &inputs, &q, &log_sums, shape);
        let gradients = attention::Gradients { dq: q.clone(), dk: k.clone(), dv: k };
        attention::backward(client, &inputs, &q, &log_sums, &q, &gradients, shape);
    }
    for dim in [64, 128, 256, 33] {
        let shape = paged::Shape { heads: 8, kv_heads: 2, dim, block_tokens: 32, scale: 0.1 };
        let [q, rows, cached] = [8 * dim, 2 * dim, 64 * 2 * dim].map(room);
        let [tables, seen, places] = [2, 2, 1].map(room);
        let cache = paged::Cache { keys: cached.clone(), values: cached, dtype };
        paged::write(client, [&rows, &rows], &places, &cache, 2 * dim);
        paged::forward(client, &q, &cache, &paged::Texts { tables, seen, count: 1, longest: 64 }, &q, shape);
    }
}
