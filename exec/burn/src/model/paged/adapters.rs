//! Which tokens of a step have which LoRA factors beside the weights (as in Chen et al., Punica, arXiv 2310.18547): each
//! text of a step with its own adapter, or none.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::PagedChunk;
use crate::lora::is_adapter;
use crate::model::parameter::{Parameter, on_device};
use crate::model::{Compute, Decoder};

/// The factors of one adapter, by the name of the layer that they are beside.
#[derive(Debug, Clone, Default)]
pub struct AdapterSet {
    by_module: BTreeMap<String, Low>,
}

/// `y += x·Aᵀ·Bᵀ`.
#[derive(Debug, Clone)]
struct Low {
    /// `[rank, in]`.
    a: Tensor<2>,
    /// `[out, rank]`, with the scale in it.
    b: Tensor<2>,
}

/// Neighbouring tokens with an adapter.
#[derive(Debug, Clone)]
pub(in crate::model) struct Beside {
    start: usize,
    tokens: usize,
    adapter: Arc<AdapterSet>,
}

impl AdapterSet {
    /// The factors that were loaded into a model, or into its outline, on a device.
    ///
    /// # Errors
    /// What of the adapter is more than factors beside a layer's weight, by its name.
    pub fn of(model: &Decoder, device: &Device) -> Result<Self, String> {
        if let Some(whole) = model.parameters().find(|p| p.trainable && !is_adapter(&p.name)) {
            return Err(whole.name.clone());
        }
        let mut by_module = BTreeMap::new();
        for linear in model.linears() {
            let Some(pair) = &linear.lora else { continue };
            if let Some(dora) = &pair.dora {
                return Err(dora.magnitude.name.clone());
            }
            let moved = |parameter: &Parameter| on_device(&parameter.value, device);
            let low = Low { a: moved(&pair.a), b: moved(&pair.b).mul_scalar(pair.scale) };
            by_module.insert(linear.module().to_owned(), low);
        }
        Ok(Self { by_module })
    }
}

impl Beside {
    /// Of chunks in the order of their tokens.
    pub fn of(chunks: &[&PagedChunk<'_>]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut start = 0;
        for chunk in chunks {
            let tokens = chunk.tokens.len();
            if let Some(adapter) = &chunk.adapter {
                match all.last_mut() {
                    Some(last) if last.start + last.tokens == start && Arc::ptr_eq(&last.adapter, adapter) => {
                        last.tokens += tokens;
                    }
                    _ => all.push(Self { start, tokens, adapter: adapter.clone() }),
                }
            }
            start += tokens;
        }
        all
    }

    /// Adds to `y`, `[tokens, out]`, what the layer `module` gives of `x`, `[tokens, in]`, by its adapter.
    pub fn add(&self, module: &str, x: &Tensor<2>, y: Tensor<2>, compute: Compute) -> Tensor<2> {
        let Some(low) = self.adapter.by_module.get(module) else { return y };
        let of = |x: &Tensor<2>| x.clone().narrow(0, self.start, self.tokens);
        let product = |a, b: &Tensor<2>| compute.product(a, b.clone().transpose());
        let sum = of(&y) + product(product(of(x), &low.a), &low.b);
        let [_, width] = sum.dims();
        y.slice_assign([self.start..self.start + self.tokens, 0..width], sum)
    }
}
