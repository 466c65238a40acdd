//! What is trained: files, or random weights of a known shape.

use burn::tensor::Device;
use mloc_burn::{
    formats::{gguf::GgufModel, tokenizer::TextTokenizer},
    model::{Decoder, DecoderConfig, Held},
    weights::SafetensorsSource,
};
use serde_json::{Value, json};

use super::{ARCHITECTURES, Model, SEED};
use crate::base_model;

/// A model that is there.
pub struct Loaded {
    pub model: Decoder,
    /// Of made-up weights there is none.
    pub tokenizer: Option<TextTokenizer>,
    /// For people.
    pub name: String,
}

/// Loads it, or makes it up.
pub fn load(model: &Model, held: Held, device: &Device) -> Result<Loaded, String> {
    let path = match model {
        Model::Files(path) => path,
        Model::Architecture(name) => {
            let config = DecoderConfig::from_json(shape(name)?).map_err(|e| e.to_string())?;
            let model = Decoder::random_held(config, SEED, held, device);
            return Ok(Loaded { model, tokenizer: None, name: format!("{name}, random weights") });
        }
    };
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let said = |e: &dyn std::fmt::Display| e.to_string();
    let (model, tokenizer) = match base_model::gguf_of(path).map_err(|e| said(&e))? {
        Some(file) => {
            let source = GgufModel::open(&file).map_err(|e| said(&e))?;
            let config = DecoderConfig::from_json(source.config().to_hf_config()).map_err(|e| said(&e))?;
            let model = Decoder::load_held(config, &source, held, device).map_err(|e| said(&e))?;
            (model, source.tokenizer().map_err(|e| said(&e))?)
        }
        None => {
            let config = DecoderConfig::from_folder(path).map_err(|e| said(&e))?;
            let source = SafetensorsSource::open_folder(path).map_err(|e| said(&e))?;
            let model = Decoder::load_held(config, &source, held, device).map_err(|e| said(&e))?;
            (model, TextTokenizer::from_folder(path).map_err(|e| said(&e))?)
        }
    };
    Ok(Loaded { model, tokenizer: Some(tokenizer), name })
}

/// config.json of one of [`ARCHITECTURES`].
fn shape(name: &str) -> Result<Value, String> {
    match name {
        // HuggingFaceTB/SmolLM2-135M.
        "smollm2-135m" => Ok(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576,
            "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true, "initializer_range": 0.041_666_666_666_666_664,
        })),
        // A second's work, to see that all is well.
        "tiny" => Ok(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
            "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "tie_word_embeddings": true,
        })),
        _ => Err(format!("`{name}` is no architecture of this build; known are {}", ARCHITECTURES.join(", "))),
    }
}
