//! The operations as Burn's backends have them, and what is known of their outputs before they run.

#![expect(clippy::too_many_arguments, reason = "the macro takes tensors one by one")]

use burn_paths as burn;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use mloc_kernels::cross_entropy::FIGURES;

/// Where the code that `#[backend_extension]` writes looks things up. Burn has `backend::fusion` only with its feature
/// `fusion`, which would drag burn-remote into the lock file.
mod burn_paths {
    pub mod backend {
        pub use ::burn::backend::*;
        pub use ::burn_fusion as fusion;
    }
}

/// Operations that run as kernels; see the functions of the same names around.
#[backend_extension(Cube, Fusion)]
pub trait Kernels: Backend {
    #[fusion(meta = |x, _weight, _eps| (x.clone(), of(x, [x.shape[0], 1])))]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |x, _weight, _reciprocal, _dy| x.clone())]
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        reciprocal: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _reciprocal, _dy| of(x, [1, x.shape[1]]))]
    fn rms_norm_backward_weight(
        x: FloatTensor<Self>,
        reciprocal: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _cos, _sin, _back| x.clone())]
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self>;

    #[fusion(meta = |gate, _up| gate.clone())]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |gate, up, _dy| (gate.clone(), up.clone()))]
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |_packed, levels, _scales, outputs, inputs, _block| of(levels, [*outputs, *inputs]))]
    fn unpack_four_bit(
        packed: IntTensor<Self>,
        levels: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        outputs: usize,
        inputs: usize,
        block: usize,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _packed, _levels, _codes, _map, _scales, _offset, outputs, _block, _double| of(x, [x.shape[0], *outputs]))]
    fn product_four_bit(
        x: FloatTensor<Self>,
        packed: IntTensor<Self>,
        levels: FloatTensor<Self>,
        codes: IntTensor<Self>,
        map: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        offset: f32,
        outputs: usize,
        block: usize,
        double: bool,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |logits, _targets| of(logits, [logits.shape[0], FIGURES]))]
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |logits, _targets, _figures, _weights, _smoothing| logits.clone())]
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        figures: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        smoothing: f32,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |q, _k, _v, _sight, _seen_by, _kv_heads, dim, _scale| (q.clone(), of(q, [q.shape[0], q.shape[1] / *dim])))]
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sight: IntTensor<Self>,
        seen_by: IntTensor<Self>,
        kv_heads: usize,
        dim: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |q, k, v, _sight, _seen_by, _out, _log_sums, _d_out, _kv_heads, _dim, _scale| (q.clone(), k.clone(), v.clone()))]
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sight: IntTensor<Self>,
        seen_by: IntTensor<Self>,
        out: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        d_out: FloatTensor<Self>,
        kv_heads: usize,
        dim: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |_new_keys, _new_values, _places, keys, values| (keys.clone(), values.clone()))]
    fn write_paged(
        new_keys: FloatTensor<Self>,
        new_values: FloatTensor<Self>,
        places: IntTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |q, _keys, _values, _tables, _seen, _kv_heads, _dim, _block_tokens, _longest, _scale| q.clone())]
    fn paged_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        tables: IntTensor<Self>,
        seen: IntTensor<Self>,
        kv_heads: usize,
        dim: usize,
        block_tokens: usize,
        longest: usize,
        scale: f32,
    ) -> FloatTensor<Self>;
}

/// As a tensor like `like` of another shape.
fn of(like: &TensorSpec, shape: [usize; 2]) -> TensorSpec {
    TensorSpec::new(shape.into(), like.dtype)
}
