//! What config.json says of a decoder, as the processor's decoder is told it.

use mloc_burn::model::{Activation, DecoderConfig, rope::frequencies};
use mloc_cpu::architecture::{self, Architecture, Experts, Layer, Rope};

/// Whether a model writes text, and has weights that can be read.
///
/// # Errors
/// Why not, by the name of its key.
pub fn writes_text(config: &DecoderConfig) -> Result<(), String> {
    if let Some(labels) = config.num_labels {
        return Err(format!(
            "architectures: {} gives {labels} scores and no text: name a …ForCausalLM",
            config.architecture
        ));
    }
    if let Some(packed) = config.raw.get("quantization_config").filter(|value| value.is_object()) {
        let method = packed.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or("an unnamed method");
        return Err(format!(
            "quantization_config: the weights are packed by {method}: name the model they were made of, and `quantization: \
             int8` or `int4` packs it while it is loaded"
        ));
    }
    Ok(())
}

/// The processor's architecture.
///
/// # Errors
/// What of the model can't be served there, by the name of its key.
pub fn architecture(config: &DecoderConfig) -> Result<Architecture, String> {
    writes_text(config)?;
    let activation = match config.activation {
        Activation::Silu => architecture::Activation::Silu,
        Activation::GeluTanh => architecture::Activation::GeluTanh,
        Activation::Gelu => return Err("hidden_act: \"gelu\" is not served; silu and gelu_pytorch_tanh are".to_owned()),
    };
    let ropes: Vec<Rope> = frequencies(config)
        .into_iter()
        .map(|found| Rope {
            inverse_frequencies: found.radians.iter().map(|radians| *radians as f32).collect(),
            scale: found.scale as f32,
        })
        .collect();
    // The second is of layers with a window, where those have their own.
    let windowed = ropes.len() - 1;
    let layers = config.windows.iter().map(|window| Layer { window: *window, rope: window.map_or(0, |_| windowed) });
    Ok(Architecture {
        vocabulary: config.vocab_size,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        heads: config.num_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        layers: layers.collect(),
        ropes,
        norm_epsilon: config.rms_norm_eps as f32,
        attention_scale: config.attention_scale as f32,
        activation,
        qk_norm: config.qk_norm,
        post_norms: config.output_norms,
        embedding_scale: config.embedding_scale as f32,
        attention_soft_cap: config.attention_softcap.map(|cap| cap as f32),
        logit_soft_cap: config.logit_softcap.map(|cap| cap as f32),
        tied: config.tie_word_embeddings,
        experts: config.experts.as_ref().map(|experts| Experts {
            count: experts.count,
            per_token: experts.per_token,
            intermediate: experts.intermediate_size,
            normalised: experts.normalised,
            sparse: experts.sparse.clone(),
        }),
    })
}
