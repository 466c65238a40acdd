//! Scaled dot products as a kernel does them: causal, of texts with no past, without a soft cap.

use burn::tensor::Tensor;

use super::{DotProduct, DotProductTape, Slopes};
use crate::kernels::{self, AttentionSizes, SightTensors};
use crate::model::packed::Packed;
use crate::model::weight::Compute;

/// What the kernel's backward pass needs of its forward.
#[derive(Debug)]
pub(super) struct KernelTape {
    /// As they were given: not scaled.
    qkv: [Tensor<2>; 3],
    sight: SightTensors,
    /// `[tokens, heads]`.
    log_sums: Tensor<2>,
}

impl DotProduct {
    /// As [`Self::forward`] without caches, with what layers of this `window` see; `None` where the kernel can't, or
    /// would be slower.
    pub fn forward_by_kernel(
        &self,
        [q, k, v]: [&Tensor<2>; 3],
        packed: &Packed,
        window: Option<usize>,
        compute: Compute,
    ) -> Option<(Tensor<2>, DotProductTape)> {
        let able = self.softcap.is_none() && self.dim <= mloc_kernels::attention::MOST_DIM && kernels::take([q, k, v]);
        let sight = packed.sight(window).filter(|_| able && worth_it(packed, compute))?.clone();
        let (mixed, log_sums) = kernels::attention([q, k, v], &sight, self.sizes());
        let kernel = Some(KernelTape { qkv: [q, k, v].map(Tensor::clone), sight, log_sums });
        Some((mixed.clone(), DotProductTape { groups: Vec::new(), kernel, mixed }))
    }

    /// The gradients at what [`Self::forward_by_kernel`] was given, given what it gave and the gradient at it.
    pub(super) fn backward_by_kernel(&self, tape: &KernelTape, mixed: &Tensor<2>, d_mixed: &Tensor<2>) -> Slopes {
        let KernelTape { qkv, sight, log_sums } = tape;
        let [q, k, v] = kernels::attention_backward(qkv.each_ref(), sight, [mixed, log_sums, d_mixed], self.sizes());
        Slopes { q, k, v }
    }

    fn sizes(&self) -> AttentionSizes {
        AttentionSizes { kv_heads: self.kv, dim: self.dim, scale: self.scale as f32 }
    }
}

/// The kernel keeps no probabilities, but has no tensor cores: products in 16 bits are left to the plain way while its
/// probabilities, one for each pair of a text's tokens, are few.
fn worth_it(packed: &Packed, compute: Compute) -> bool {
    /// Tokens of a text; a guess until it is measured.
    const LONG: usize = 4096;
    compute == Compute::F32 || packed.groups.iter().any(|group| group.length >= LONG)
}
