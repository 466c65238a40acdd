//! Operations that run as kernels of `mloc-kernels` where tensors lie on a GPU.
//!
//! Each is asked for with [`take`] by the code that has the same operation in plain tensors, which is the path on the
//! processor and what the kernel is compared with. Under fusion an operation is a step of its own in the stream of
//! deferred ones: its outputs are described at once, and computed with the rest.
//!
//! Not here yet: figures and gradients of logits (`loss.rs` keeps probabilities that others read), and products with
//! 4-bit weights that are not unpacked.

mod cube;
mod extension;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use mloc_kernels::attention::Sight;

use extension::Kernels;

/// Whether an operation on these tensors runs as a kernel: all on a GPU, in f32.
pub(crate) fn take<const D: usize, const N: usize>(tensors: [&Tensor<D>; N]) -> bool {
    let on_gpu = |tensor: &Tensor<D>| tensor.device() != Device::flex() && tensor.dtype() == DType::F32;
    tensors.into_iter().all(on_gpu)
}

/// The normalised rows, and the reciprocal root mean square of each.
pub(crate) fn rms_norm(x: &Tensor<2>, weight: &Tensor<2>, eps: f64) -> (Tensor<2>, Tensor<2>) {
    let (y, reciprocal) = Dispatch::rms_norm(x.clone().into_dispatch(), weight.clone().into_dispatch(), eps as f32);
    (Tensor::from_dispatch(y), Tensor::from_dispatch(reciprocal))
}

/// The gradient at the rows.
pub(crate) fn rms_norm_backward(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    reciprocal: &Tensor<2>,
    dy: &Tensor<2>,
) -> Tensor<2> {
    let [x, weight, reciprocal, dy] = [x, weight, reciprocal, dy].map(|tensor| tensor.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::rms_norm_backward(x, weight, reciprocal, dy))
}

/// The gradient at the weight, one row.
pub(crate) fn rms_norm_backward_weight(x: &Tensor<2>, reciprocal: &Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
    let [x, reciprocal, dy] = [x, reciprocal, dy].map(|tensor| tensor.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::rms_norm_backward_weight(x, reciprocal, dy))
}

/// The heads turned by their tokens' rows of the tables, `[tokens, 1, dim / 2]`, or back.
pub(crate) fn rotate(x: Tensor<2>, cos: &Tensor<3>, sin: &Tensor<3>, back: bool) -> Tensor<2> {
    let [cos, sin] = [cos, sin].map(|table| table.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::rotate(x.into_dispatch(), cos, sin, back))
}

/// `silu(gate) · up`.
pub(crate) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::swiglu(gate.clone().into_dispatch(), up.clone().into_dispatch()))
}

/// The gradients at gate and up.
pub(crate) fn swiglu_backward(gate: Tensor<2>, up: Tensor<2>, dy: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (d_gate, d_up) = Dispatch::swiglu_backward(gate.into_dispatch(), up.into_dispatch(), dy.into_dispatch());
    (Tensor::from_dispatch(d_gate), Tensor::from_dispatch(d_up))
}

/// The values of a matrix in 4-bit codes, f32; `scales` is one a block.
pub(crate) fn unpack_four_bit(
    packed: &Tensor<1, Int>,
    levels: Tensor<2>,
    scales: Tensor<2>,
    [outputs, inputs]: [usize; 2],
    block: usize,
) -> Tensor<2> {
    let packed = packed.clone().into_dispatch();
    let values =
        Dispatch::unpack_four_bit(packed, levels.into_dispatch(), scales.into_dispatch(), outputs, inputs, block);
    Tensor::from_dispatch(values)
}

/// What attention needs to know beside its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionSizes {
    pub kv_heads: usize,
    pub dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// Which keys queries see.
#[derive(Debug, Clone)]
pub(crate) struct SightTensors {
    of_queries: Tensor<2, Int>,
    of_keys: Tensor<2, Int>,
}

impl SightTensors {
    /// Of packed texts of these lengths.
    pub fn packed(lengths: impl IntoIterator<Item = usize>, window: Option<usize>, device: &Device) -> Self {
        let sight = Sight::packed(lengths, window);
        let tensor = |ranges: &[[u32; 2]]| {
            let values: Vec<i32> = ranges.as_flattened().iter().map(|index| *index as i32).collect();
            // The type is said, or the numbers would become the device's own integers, of four or eight bytes.
            Tensor::from_data(TensorData::new(values, [ranges.len(), 2]), (device, DType::I32))
        };
        Self { of_queries: tensor(sight.of_queries()), of_keys: tensor(sight.of_keys()) }
    }
}

/// Attention of packed texts: the mixed values, as q, and the logs of the sums of exponentials, `[queries, heads]`.
pub(crate) fn attention(qkv: [&Tensor<2>; 3], sight: &SightTensors, sizes: AttentionSizes) -> (Tensor<2>, Tensor<2>) {
    let [q, k, v] = qkv.map(|tensor| tensor.clone().into_dispatch());
    let [sight, seen_by] = [&sight.of_queries, &sight.of_keys].map(|ranges| ranges.clone().into_dispatch());
    let AttentionSizes { kv_heads, dim, scale } = sizes;
    let (out, log_sums) = Dispatch::attention(q, k, v, sight, seen_by, kv_heads, dim, scale);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(log_sums))
}

/// The gradients at q, k and v.
pub(crate) fn attention_backward(
    qkv: [&Tensor<2>; 3],
    sight: &SightTensors,
    [out, log_sums, d_out]: [&Tensor<2>; 3],
    sizes: AttentionSizes,
) -> [Tensor<2>; 3] {
    let [q, k, v] = qkv.map(|tensor| tensor.clone().into_dispatch());
    let [out, log_sums, d_out] = [out, log_sums, d_out].map(|tensor| tensor.clone().into_dispatch());
    let [sight, seen_by] = [&sight.of_queries, &sight.of_keys].map(|ranges| ranges.clone().into_dispatch());
    let AttentionSizes { kv_heads, dim, scale } = sizes;
    let (dq, dk, dv) =
        Dispatch::attention_backward(q, k, v, sight, seen_by, out, log_sums, d_out, kv_heads, dim, scale);
    [dq, dk, dv].map(Tensor::from_dispatch)
}
