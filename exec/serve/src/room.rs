//! How many cache blocks there are beside a model's weights, and how long a request may be.

use mloc_burn::model::DecoderConfig;

use crate::{open::ServeError, settings::Settings};

/// Bytes of a cache where nobody knows how much memory there is: a thousand requests of moderate length for a small model.
const CACHE_UNSAID: u64 = 4 << 30;

/// What there is for keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Cache blocks.
    pub blocks: usize,
    /// Tokens of prompt and answer together.
    pub max_length: usize,
    /// Bytes of all blocks.
    pub cache_bytes: u64,
}

/// As much as memory leaves beside `weight_bytes`, and no more than all requests together can need; a block has
/// `block_bytes`. `advice` is what else would need less.
///
/// # Errors
/// There is no room for one request.
pub fn of(
    config: &DecoderConfig,
    weight_bytes: u64,
    block_bytes: u64,
    advice: &str,
    settings: &Settings,
) -> Result<Room, ServeError> {
    let longest = settings.max_length.unwrap_or(config.max_position_embeddings);
    let blocks_of = |tokens: usize| tokens.div_ceil(settings.block_tokens) as u64;
    let wanted = blocks_of(longest) * settings.engine.sequences as u64;
    let bytes = match (settings.cache_bytes, settings.memory) {
        (Some(said), _) => said,
        // A tenth for activations and what the process has besides.
        (None, Some(memory)) => (memory / 10 * 9).saturating_sub(weight_bytes),
        (None, None) => CACHE_UNSAID,
    };
    let blocks = (bytes / block_bytes).min(wanted);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let too_small = |needs: usize| {
        let needs_bytes = blocks_of(needs) * block_bytes;
        ServeError::Memory(format!(
            "a request of {needs} tokens needs {} of keys and values, and beside {} of weights there are {}: ask for more \
             memory (resources.hardware), or set max_model_len to at most {}{advice}",
            mib(needs_bytes),
            mib(weight_bytes),
            mib(bytes),
            blocks as usize * settings.block_tokens,
        ))
    };
    let max_length = match settings.max_length {
        Some(said) if blocks_of(said) > blocks => return Err(too_small(said)),
        Some(said) => said,
        None => longest.min(blocks as usize * settings.block_tokens),
    };
    if blocks == 0 {
        return Err(too_small(settings.block_tokens));
    }
    Ok(Room { blocks: blocks as usize, max_length, cache_bytes: blocks * block_bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Of a block of 4,096 bytes beside weights of a megabyte.
    fn room_for(settings: &Settings) -> Result<Room, ServeError> {
        let config = DecoderConfig::from_json(json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
        }));
        of(&config.expect("a config"), 1 << 20, 4096, "", settings)
    }

    #[test]
    fn the_cache_is_as_large_as_memory_leaves_and_never_larger_than_needed() {
        let block = 4096;
        let ample = room_for(&Settings::new("m", 1)).expect("room");
        assert_eq!((ample.blocks, ample.max_length), (64 * 8, 256));
        let tight = Settings { cache_bytes: Some(block * 5), ..Settings::new("m", 1) };
        let found = room_for(&tight).expect("room");
        assert_eq!((found.blocks, found.max_length, found.cache_bytes), (5, 160, block * 5));
        let refused = room_for(&Settings { max_length: Some(200), ..tight.clone() }).expect_err("too small");
        let text = refused.to_string();
        assert!(text.starts_with("a request of 200 tokens needs 0 MiB") && text.contains("at most 160"), "{text}");
        let none = Settings { memory: Some(1000), ..Settings::new("m", 1) };
        assert!(matches!(room_for(&none), Err(ServeError::Memory(_))));
        // Nine tenths of two megabytes, less one of weights.
        let some = Settings { memory: Some(2 << 20), ..Settings::new("m", 1) };
        assert_eq!(room_for(&some).expect("room").blocks, (((2 << 20) / 10 * 9) - (1 << 20)) / 4096);
    }
}
