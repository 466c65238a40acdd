//! A language model on the processor.

use std::sync::Arc;

use mloc_burn::{model::DecoderConfig, weights::TensorSource};
use mloc_cpu::{CacheFormat, Format, Keep, LoadError, Model, block_bytes, held};

use crate::{
    decoder::{Computing, weights_error},
    open::ServeError,
    room,
    settings::{Number, Settings},
    shape,
    weights::Tensors,
};

/// Loads a model into memory.
///
/// # Errors
/// It can't be served here, doesn't fit, its files can't be read, or it was to stop.
pub fn load(
    config: &DecoderConfig,
    source: &(dyn TensorSource + Sync),
    settings: &Settings,
    stopping: &(dyn Fn() -> bool + Sync),
) -> Result<Computing, ServeError> {
    let architecture =
        shape::architecture(config).map_err(|found| ServeError::Model(format!("config.json: {found}")))?;
    let keep = keep(settings.number);
    let source = Tensors::new(source, config, settings.number == Number::AsStored, stopping);
    let cache = settings.cache.unwrap_or(CacheFormat::F32);
    let a = &architecture;
    let block = block_bytes(cache, a.layers.len(), a.kv_heads, a.head_dim, settings.block_tokens) as u64;
    let weights = held(a, &source, keep);
    let wide = weights.formats.contains_key(&Format::F32);
    let advice = if wide { ", or quantization: int8" } else { "" };
    let room = room::of(config, weights.bytes as u64, block, advice, settings)?;
    let loaded = Model::load(
        architecture,
        &source,
        &mloc_cpu::Settings {
            threads: settings.threads,
            isa: settings.isa,
            keep,
            cache,
            block_tokens: settings.block_tokens,
            blocks: room.blocks,
            max_length: room.max_length,
        },
    );
    let format = source.described(&weights);
    let model = match (loaded, source.trouble()) {
        (_, Some(trouble)) => return Err(weights_error(trouble)),
        (Err(LoadError::Memory(error)), None) => return Err(ServeError::Memory(error.to_string())),
        (Err(error), None) => return Err(ServeError::Model(error.to_string())),
        (Ok(model), None) => model,
    };
    Ok(Computing {
        adapters: Arc::new(model.adapters()),
        format,
        weight_bytes: model.held().bytes as u64,
        model: Box::new(model),
        room,
    })
}

/// What matrices are held in.
fn keep(number: Number) -> Keep {
    match number {
        Number::AsStored => Keep { layers: None, head: None },
        Number::F32 => Keep::all(Format::F32),
        Number::Bf16 => Keep::all(Format::Bf16),
        Number::Int8 => Keep::all(Format::Int8),
        // A fifth of a small model's bytes, and what its answers feel most.
        Number::Int4 => Keep { layers: Some(Format::Int4), head: Some(Format::Int8) },
    }
}
