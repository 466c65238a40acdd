//! Operations that run as kernels of `mloc-kernels` where tensors lie on a GPU.
//!
//! Each is asked for with [`take`] by the code that has the same operation in plain tensors, which is the path on the
//! processor and what the kernel is compared with. Under fusion an operation is a step of its own in the stream of
//! deferred ones: its outputs are described at once, and computed with the rest.
//!
//! What is here is compiled with feature `kernels`, and has not been run on a GPU; the kernels themselves are compared with
//! the host's numbers by `exec/kernels/tests`, on whatever device is there.

mod cube;
mod extension;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use mloc_kernels::attention::Sight;
pub(crate) use mloc_kernels::four_bit::MOST_ROWS;

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

/// A matrix in 4-bit codes whose scales are f32, one a block, or in turn codes.
pub(crate) struct FourBit<'a> {
    pub packed: &'a Tensor<1, Int>,
    /// What the 16 codes stand for, one row.
    pub levels: Tensor<2>,
    pub scales: FourBitScales<'a>,
    pub outputs: usize,
    /// Elements that share a scale.
    pub block: usize,
}

/// As one row each.
pub(crate) enum FourBitScales<'a> {
    Plain(&'a Tensor<2>),
    /// `map[code] · scale of 256 codes + offset`.
    Double {
        codes: &'a Tensor<1, Int>,
        map: Tensor<2>,
        scales: &'a Tensor<2>,
        offset: f32,
    },
}

/// `x · matrixᵀ` for a few rows of f32, at most [`MOST_ROWS`]: nothing is unpacked.
pub(crate) fn product_four_bit(x: &Tensor<2>, matrix: FourBit<'_>) -> Tensor<2> {
    let FourBit { packed, levels, scales, outputs, block } = matrix;
    // Where there are no codes, the others stand in for what is not read.
    let (codes, map, scales, offset, double) = match scales {
        FourBitScales::Plain(scales) => (packed, levels.clone(), scales, 0.0, false),
        FourBitScales::Double { codes, map, scales, offset } => (codes, map, scales, offset, true),
    };
    let [packed, codes] = [packed, codes].map(|bytes| bytes.clone().into_dispatch());
    let [x, levels, map, scales] = [x.clone(), levels, map, scales.clone()].map(Tensor::into_dispatch);
    let y = Dispatch::product_four_bit(x, packed, levels, codes, map, scales, offset, outputs, block, double);
    Tensor::from_dispatch(y)
}

/// The figures of each row of logits, `[rows, 5]`; [`mloc_kernels::cross_entropy`] has their order.
pub(crate) fn cross_entropy(logits: &Tensor<2>, targets: &Tensor<1, Int>) -> Tensor<2> {
    let (logits, targets) = (logits.clone().into_dispatch(), targets.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy(logits, targets))
}

/// The gradient at the logits, in their memory where nobody else has them, given their figures and a weight for each row.
pub(crate) fn cross_entropy_backward(
    logits: Tensor<2>,
    targets: &Tensor<1, Int>,
    figures: &Tensor<2>,
    weights: &[f32],
    smoothing: f64,
) -> Tensor<2> {
    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [weights.len(), 1]), &logits.device());
    let (logits, weights) = (logits.into_dispatch(), weights.into_dispatch());
    let (targets, figures) = (targets.clone().into_dispatch(), figures.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy_backward(logits, targets, figures, weights, smoothing as f32))
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
        Self::of(&Sight::packed(lengths, window), device)
    }

    /// On a device.
    pub fn of(sight: &Sight, device: &Device) -> Self {
        let tensor = |ranges: &[[u32; 2]]| {
            let values: Vec<i32> = ranges.as_flattened().iter().map(|index| *index as i32).collect();
            words(&values, device).reshape([ranges.len(), 2])
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

/// Whole numbers of 32 bits. The type is said, or they would become the device's own integers, of four or eight bytes.
pub(crate) fn words(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::I32))
}

/// Ids of tokens as such.
pub(crate) fn indices(ids: &[i64], device: &Device) -> Tensor<1, Int> {
    words(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>(), device)
}

/// Texts with one new token each, whose keys and values lie in blocks.
#[derive(Debug, Clone)]
pub(crate) struct PagedTexts {
    /// Each text's blocks, `[texts · table width]`.
    pub tables: Tensor<1, Int>,
    /// First key that each sees and one past the last, `[texts · 2]`.
    pub seen: Tensor<1, Int>,
    /// The longest of those ranges.
    pub longest: usize,
}

/// Keys and values, `[places, kv heads · dim]`, with new rows of each at `places`. What is given away is written in place
/// where nobody else holds it.
pub(crate) fn write_paged(rows: [Tensor<2>; 2], places: &Tensor<1, Int>, kept: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
    let [new_keys, new_values] = rows.map(Tensor::into_dispatch);
    let [keys, values] = kept.map(Tensor::into_dispatch);
    let (keys, values) = Dispatch::write_paged(new_keys, new_values, places.clone().into_dispatch(), keys, values);
    [keys, values].map(Tensor::from_dispatch)
}

/// Attention of one query a text, `[texts, heads · dim]`, over keys and values in blocks.
pub(crate) fn paged_attention(
    q: Tensor<2>,
    kept: [&Tensor<2>; 2],
    texts: &PagedTexts,
    block_tokens: usize,
    sizes: AttentionSizes,
) -> Tensor<2> {
    let [keys, values] = kept.map(|kept| kept.clone().into_dispatch());
    let [tables, seen] = [&texts.tables, &texts.seen].map(|words| words.clone().into_dispatch());
    let AttentionSizes { kv_heads, dim, scale } = sizes;
    let q = q.into_dispatch();
    Tensor::from_dispatch(Dispatch::paged_attention(
        q,
        keys,
        values,
        tables,
        seen,
        kv_heads,
        dim,
        block_tokens,
        texts.longest,
        scale,
    ))
}
