//! The operations on tensors of cubecl: outputs are made, kernels launched.

use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::{DType, TensorMetadata};
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use mloc_kernels::attention::{Gradients, Inputs, SightBuffers};
use mloc_kernels::cross_entropy::Logits;
use mloc_kernels::four_bit::{Matrix, Scales};
use mloc_kernels::rms_norm::Rows;
use mloc_kernels::rope::{Direction, Heads};
use mloc_kernels::{Buffer, attention, cross_entropy, four_bit, paged, rms_norm, rope, swiglu};

use super::extension::Kernels;

impl Kernels for CubeBackend {
    fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> (CubeTensor, CubeTensor) {
        let [x, weight] = [x, weight].map(into_contiguous);
        let shape = rows_of(&x);
        let (y, reciprocal) = (like(&x), empty(&x, [shape.rows, 1]));
        let [x_at, weight_at, y_at, reciprocal_at] = [&x, &weight, &y, &reciprocal].map(buffer);
        rms_norm::forward(&x.client, &x_at, &weight_at, &y_at, &reciprocal_at, eps, shape);
        (y, reciprocal)
    }

    fn rms_norm_backward(x: CubeTensor, weight: CubeTensor, reciprocal: CubeTensor, dy: CubeTensor) -> CubeTensor {
        let [x, weight, reciprocal, dy] = [x, weight, reciprocal, dy].map(into_contiguous);
        let dx = like(&x);
        let [x_at, weight_at, reciprocal_at, dy_at, dx_at] = [&x, &weight, &reciprocal, &dy, &dx].map(buffer);
        rms_norm::backward(&x.client, &x_at, &weight_at, &reciprocal_at, &dy_at, &dx_at, rows_of(&x));
        dx
    }

    fn rms_norm_backward_weight(x: CubeTensor, reciprocal: CubeTensor, dy: CubeTensor) -> CubeTensor {
        let [x, reciprocal, dy] = [x, reciprocal, dy].map(into_contiguous);
        let shape = rows_of(&x);
        let d_weight = empty(&x, [1, shape.width]);
        let [x_at, reciprocal_at, dy_at, d_weight_at] = [&x, &reciprocal, &dy, &d_weight].map(buffer);
        rms_norm::backward_weight(&x.client, &x_at, &reciprocal_at, &dy_at, &d_weight_at, shape);
        d_weight
    }

    fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, back: bool) -> CubeTensor {
        let [x, cos, sin] = [x, cos, sin].map(into_contiguous);
        let y = like(&x);
        let (rows, dim) = (rows_of(&x), 2 * cos.meta.shape()[2]);
        let shape = Heads { tokens: rows.rows, heads: rows.width / dim, dim, dtype: rows.dtype };
        let direction = if back { Direction::Backward } else { Direction::Forward };
        let [x_at, cos_at, sin_at, y_at] = [&x, &cos, &sin, &y].map(buffer);
        rope::rotate(&x.client, &x_at, &cos_at, &sin_at, &y_at, direction, 1.0, shape);
        y
    }

    fn swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
        let [gate, up] = [gate, up].map(into_contiguous);
        let y = like(&gate);
        let [gate_at, up_at, y_at] = [&gate, &up, &y].map(buffer);
        swiglu::forward(&gate.client, &gate_at, &up_at, &y_at, dtype_to_elem_type(gate.dtype));
        y
    }

    fn swiglu_backward(gate: CubeTensor, up: CubeTensor, dy: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [gate, up, dy] = [gate, up, dy].map(into_contiguous);
        let (d_gate, d_up) = (like(&gate), like(&up));
        let [gate_at, up_at, dy_at, d_gate_at, d_up_at] = [&gate, &up, &dy, &d_gate, &d_up].map(buffer);
        let dtype = dtype_to_elem_type(gate.dtype);
        swiglu::backward(&gate.client, &gate_at, &up_at, &dy_at, &d_gate_at, &d_up_at, dtype);
        (d_gate, d_up)
    }

    fn unpack_four_bit(
        packed: CubeTensor,
        levels: CubeTensor,
        scales: CubeTensor,
        outputs: usize,
        inputs: usize,
        block: usize,
    ) -> CubeTensor {
        let [packed, levels, scales] = [packed, levels, scales].map(into_contiguous);
        let values = empty(&levels, [outputs, inputs]);
        let [packed, levels_at, scales] = [&packed, &levels, &scales].map(buffer);
        let matrix = Matrix { outputs, inputs, block, packed, levels: levels_at, scales: Scales::Plain(scales) };
        four_bit::unpack(&levels.client, &matrix, &buffer(&values), dtype_to_elem_type(values.dtype));
        values
    }

    fn product_four_bit(
        x: CubeTensor,
        packed: CubeTensor,
        levels: CubeTensor,
        codes: CubeTensor,
        map: CubeTensor,
        scales: CubeTensor,
        offset: f32,
        outputs: usize,
        block: usize,
        double: bool,
    ) -> CubeTensor {
        let [x, packed, levels, codes, map, scales] = [x, packed, levels, codes, map, scales].map(into_contiguous);
        let Rows { rows, width: inputs, dtype } = rows_of(&x);
        let y = empty(&x, [rows, outputs]);
        let [packed, levels, codes, map, scales] = [&packed, &levels, &codes, &map, &scales].map(buffer);
        let scales = match double {
            true => Scales::Double { codes, map, scales, offset },
            false => Scales::Plain(scales),
        };
        let matrix = Matrix { outputs, inputs, block, packed, levels, scales };
        four_bit::product(&x.client, &buffer(&x), &matrix, &buffer(&y), rows, dtype);
        y
    }

    fn cross_entropy(logits: CubeTensor, targets: CubeTensor) -> CubeTensor {
        let [logits, targets] = [logits, targets].map(into_contiguous);
        let shape = logits_of(&logits);
        let figures = empty(&logits, [shape.rows, cross_entropy::FIGURES]);
        let [logits_at, targets_at, figures_at] = [&logits, &targets, &figures].map(buffer);
        cross_entropy::figures(&logits.client, &logits_at, &targets_at, &figures_at, shape);
        figures
    }

    fn cross_entropy_backward(
        logits: CubeTensor,
        targets: CubeTensor,
        figures: CubeTensor,
        weights: CubeTensor,
        smoothing: f32,
    ) -> CubeTensor {
        let [logits, targets, figures, weights] = [logits, targets, figures, weights].map(into_contiguous);
        // In place, where nobody else has the logits.
        let d_logits = if logits.can_mut() { logits.clone() } else { like(&logits) };
        let [logits_at, targets, figures, weights, d_at] =
            [&logits, &targets, &figures, &weights, &d_logits].map(buffer);
        let shape = logits_of(&logits);
        cross_entropy::gradient(&logits.client, &logits_at, &targets, &figures, &weights, &d_at, smoothing, shape);
        d_logits
    }

    fn attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        sight: CubeTensor,
        seen_by: CubeTensor,
        kv_heads: usize,
        dim: usize,
        scale: f32,
    ) -> (CubeTensor, CubeTensor) {
        let [q, k, v, sight, seen_by] = [q, k, v, sight, seen_by].map(into_contiguous);
        let shape = attention_of(&q, &k, kv_heads, dim, scale);
        let (out, log_sums) = (like(&q), empty(&q, [shape.queries, shape.heads]));
        let inputs = inputs_of([&q, &k, &v, &sight, &seen_by]);
        attention::forward(&q.client, &inputs, &buffer(&out), &buffer(&log_sums), shape);
        (out, log_sums)
    }

    fn attention_backward(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        sight: CubeTensor,
        seen_by: CubeTensor,
        out: CubeTensor,
        log_sums: CubeTensor,
        d_out: CubeTensor,
        kv_heads: usize,
        dim: usize,
        scale: f32,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [q, k, v, sight, seen_by] = [q, k, v, sight, seen_by].map(into_contiguous);
        let [out, log_sums, d_out] = [out, log_sums, d_out].map(into_contiguous);
        let shape = attention_of(&q, &k, kv_heads, dim, scale);
        let (dq, dk, dv) = (like(&q), like(&k), like(&v));
        let inputs = inputs_of([&q, &k, &v, &sight, &seen_by]);
        let [out, log_sums, d_out] = [&out, &log_sums, &d_out].map(buffer);
        let gradients = Gradients { dq: buffer(&dq), dk: buffer(&dk), dv: buffer(&dv) };
        attention::backward(&q.client, &inputs, &out, &log_sums, &d_out, &gradients, shape);
        (dq, dk, dv)
    }

    fn write_paged(
        new_keys: CubeTensor,
        new_values: CubeTensor,
        places: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let [new_keys, new_values, places] = [new_keys, new_values, places].map(into_contiguous);
        // In place, where nobody else holds what would change.
        let [keys, values] = [keys, values].map(|kept| if kept.can_mut() { kept } else { kept.copy() });
        let width = rows_of(&keys).width;
        let cache = cache_of(&keys, &values);
        let rows = [&new_keys, &new_values].map(buffer);
        paged::write(&keys.client, rows.each_ref(), &buffer(&places), &cache, width);
        (keys, values)
    }

    fn paged_attention(
        q: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        tables: CubeTensor,
        seen: CubeTensor,
        kv_heads: usize,
        dim: usize,
        block_tokens: usize,
        longest: usize,
        scale: f32,
    ) -> CubeTensor {
        let [q, keys, values, tables, seen] = [q, keys, values, tables, seen].map(into_contiguous);
        let out = like(&q);
        let queries = rows_of(&q);
        let [tables, seen] = [&tables, &seen].map(buffer);
        let texts = paged::Texts { tables, seen, count: queries.rows, longest };
        let shape = paged::Shape { heads: queries.width / dim, kv_heads, dim, block_tokens, scale };
        paged::forward(&q.client, &buffer(&q), &cache_of(&keys, &values), &texts, &buffer(&out), shape);
        out
    }
}

fn buffer(tensor: &CubeTensor) -> Buffer {
    Buffer::new(tensor.handle.clone(), tensor.meta.num_elements())
}

/// Room for f32 on the device of `like`, without gaps between rows: kernels know none.
fn empty(like: &CubeTensor, shape: [usize; 2]) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::from(shape), DType::F32)
}

fn like(tensor: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), tensor.shape(), tensor.dtype)
}

fn rows_of(x: &CubeTensor) -> Rows {
    let shape = x.meta.shape();
    Rows { rows: shape[0], width: shape[1], dtype: dtype_to_elem_type(x.dtype) }
}

fn logits_of(logits: &CubeTensor) -> Logits {
    let Rows { rows, width: vocabulary, dtype } = rows_of(logits);
    Logits { rows, vocabulary, dtype }
}

fn cache_of(keys: &CubeTensor, values: &CubeTensor) -> paged::Cache {
    paged::Cache { keys: buffer(keys), values: buffer(values), dtype: dtype_to_elem_type(keys.dtype) }
}

fn attention_of(q: &CubeTensor, k: &CubeTensor, kv_heads: usize, dim: usize, scale: f32) -> attention::Shape {
    let (queries, keys) = (rows_of(q), rows_of(k));
    let heads = queries.width / dim;
    attention::Shape { queries: queries.rows, keys: keys.rows, heads, kv_heads, dim, scale, dtype: queries.dtype }
}

fn inputs_of(tensors: [&CubeTensor; 5]) -> Inputs {
    let [q, k, v, queries, keys] = tensors.map(buffer);
    Inputs { q, k, v, sight: SightBuffers { queries, keys } }
}
