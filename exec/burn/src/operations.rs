//! Floating-point operations that a step of supervised fine-tuning needs, a multiplication and its addition counted as
//! two.
//!
//! With N real tokens, T targets, n the tokens of a row, L layers, V the vocabulary, H the width, a head size d, h query
//! heads, a linear layer of in × out, and an adapter of rank r on it:
//!
//! ```text
//! linear      2·N·in·out forward; as much for the gradient at its input, where something below it learns; as much again
//!             for its own gradient, where it is trained itself
//! adapter     2·N·r·(in + out) forward; backward 2·N·r·(2·in + 2·out), x·Aᵀ computed again among them, and 2·N·r·in
//!             where something below it learns
//! attention   2 products forward and 4 backward, 2·n²·h·d each in every layer: whole squares, also above the diagonal
//! head        2·T·V·H forward and backward, as much again where it is trained: logits at targets only
//! experts     as linear layers that k of E tokens go through, on average over the E experts
//! ```
//!
//! What is computed a second time by choice is not counted: layers with gradient checkpointing, weights that are unpacked.
//! Nor are norms, activations and the optimizer, which are bound by memory.

use crate::model::linear::Linear;
use crate::model::{Decoder, Parameter};

/// Those of one step, given the lengths of its rows and how many targets there are.
pub fn of_step(model: &Decoder, lengths: &[usize], targets: usize) -> f64 {
    let of = |count: usize| count as f64;
    let tokens = of(lengths.iter().sum());
    let learns = |layer: usize| model.layers[layer].parameters().any(|p| p.trainable);
    let lowest = match model.embedding.trainable {
        true => None,
        false => Some((0..model.layers.len()).find(|layer| learns(*layer)).unwrap_or(model.layers.len())),
    };
    let mut operations = 0.0;
    for (index, layer) in model.layers.iter().enumerate() {
        let below = lowest.is_none_or(|lowest| index > lowest);
        let reached = lowest.is_none_or(|lowest| index >= lowest);
        for linear in layer.linears() {
            // Of the lowest layer that learns, only what feeds its own residual needs a gradient at its input.
            let first = ["q_proj", "k_proj", "v_proj"].iter().any(|name| linear.module().ends_with(name));
            let passing = match model.config.experts.as_ref() {
                Some(experts) if linear.module().contains(".experts.") => of(experts.per_token) / of(experts.count),
                _ => 1.0,
            };
            operations += passing * tokens * of_linear(linear, reached, reached && (below || !first));
        }
        let heads = of(model.config.num_heads * model.config.head_dim);
        let products = if reached { 6.0 } else { 2.0 };
        operations += lengths.iter().map(|n| products * 2.0 * of(n * n) * heads).sum::<f64>();
    }
    let head = of(targets) * of(model.head().weight.count());
    operations + 2.0 * head * if model.head().weight.trainable { 3.0 } else { 2.0 }
}

/// Of one token.
fn of_linear(linear: &Linear, reached: bool, through: bool) -> f64 {
    let [out, input] = linear.weight.dims();
    let elements = (out * input) as f64;
    let passes = 1.0 + f64::from(u8::from(through)) + f64::from(u8::from(linear.weight.trainable()));
    let adapter = linear.lora.as_ref().map_or(0.0, |lora| {
        let r = rank(&lora.a);
        let forward = r * (input + out) as f64;
        let backward = r * (2 * input + 2 * out) as f64 + if through { r * input as f64 } else { 0.0 };
        forward + if reached { backward } else { 0.0 }
    });
    2.0 * (passes * elements + adapter)
}

fn rank(a: &Parameter) -> f64 {
    a.shape[0] as f64
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::lora::{self, LoraConfig};
    use crate::model::DecoderConfig;

    fn model() -> Decoder {
        let raw = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "tie_word_embeddings": true,
        });
        Decoder::random(DecoderConfig::from_json(raw).expect("config"), 1, &Device::flex())
    }

    /// Elements of a layer: q and o, k and v, and the three of the feed-forward.
    const LAYER: f64 = (2 * 64 + 2 * 32 + 3 * 8 * 24) as f64;
    const LENGTHS: [usize; 2] = [5, 3];
    const SQUARES: f64 = 34.0;

    #[test]
    fn a_model_that_is_trained_whole_needs_three_times_its_forward() {
        let mut model = model();
        model.train_all();
        let forward = 2.0 * (8.0 * 3.0 * LAYER + 6.0 * 800.0) + 2.0 * 2.0 * 3.0 * SQUARES * 8.0;
        assert_eq!(of_step(&model, &LENGTHS, 6), 3.0 * forward);
    }

    #[test]
    fn under_an_adapter_weights_pass_gradients_on_and_have_none() {
        let mut model = model();
        let adapter = LoraConfig { r: 2, target_modules: ["q_proj", "v_proj"].into(), ..LoraConfig::default() };
        lora::attach(&mut model, &adapter, 1).expect("adapter");
        // Below the first layer's q, k and v nothing learns.
        let matrices = 2.0 * 8.0 * (2.0 * 3.0 * LAYER - (64.0 + 2.0 * 32.0));
        let pair = |out: f64| 2.0 * 8.0 * 2.0 * (3.0 * (8.0 + out + 2.0 * 8.0 + 2.0 * out) + 2.0 * 8.0);
        let attention = 6.0 * 2.0 * 3.0 * SQUARES * 8.0;
        let head = 2.0 * 2.0 * 6.0 * 800.0;
        assert_eq!(of_step(&model, &LENGTHS, 6), matrices + pair(8.0) + pair(4.0) + attention + head);
    }

    #[test]
    fn nothing_is_passed_on_below_the_lowest_layer_that_learns() {
        let mut model = model();
        let adapter = LoraConfig {
            r: 2,
            target_modules: ["down_proj"].into(),
            layers_to_transform: Some(vec![2]),
            ..LoraConfig::default()
        };
        lora::attach(&mut model, &adapter, 1).expect("adapter");
        let matrices = 2.0 * 8.0 * (3.0 * LAYER + LAYER - (64.0 + 2.0 * 32.0));
        let pair = 2.0 * 8.0 * 2.0 * (24.0 + 8.0 + 2.0 * 24.0 + 2.0 * 8.0 + 24.0);
        let attention = 2.0 * (2.0 * 2.0 + 6.0) * SQUARES * 8.0;
        assert_eq!(of_step(&model, &LENGTHS, 6), matrices + pair + attention + 2.0 * 2.0 * 6.0 * 800.0);
    }
}
