//! A task's settings, as what serves has them.

use mloc_core::task::settings::{CacheDtype, CacheLayout, Dtype, Inference, Quantization, Reasoning, ToolCalls};
use mloc_cpu::CacheFormat;
use mloc_engine::{admission::Settings as EngineSettings, guess::Guessing, schedule::Cache};
use mloc_exec::{DeviceChoice, Run};
use mloc_openai::{calls::Format, server::unix_now};
use mloc_serve::{Calls, Number, On, Settings, Thoughts, listen::NamedAdapter};

use crate::model_card;

/// Of a run.
pub fn of(run: &Run) -> Settings {
    let asked = Inference::of(&run.spec);
    let served_name = run.spec.service.as_ref().map(|service| service.served_name.clone()).unwrap_or_default();
    let source = run.spec.model.as_ref().map(|model| model_card::show(&model.source));
    let on = match run.device() {
        DeviceChoice::Cuda { .. } => On::gpu(0),
        DeviceChoice::Cpu { .. } | DeviceChoice::Simulated { .. } => On::Processor,
    };
    let said = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    let memory = match on {
        On::Device(_) => said(run.memory.gpu_free_bytes),
        // Half of what is free: others come and go on this machine.
        On::Processor => said(run.spec.request.memory_bytes).or(said(run.memory.host_free_bytes / 2)),
    };
    let guessing = (asked.num_speculative_tokens > 0).then_some(Guessing {
        tokens: asked.num_speculative_tokens,
        longest: asked.prompt_lookup_max,
        shortest: asked.prompt_lookup_min,
    });
    Settings {
        on,
        root: source.unwrap_or_else(|| served_name.clone()),
        created: unix_now(),
        number: match (asked.quantization, asked.dtype) {
            (Quantization::Int8, _) => Number::Int8,
            (Quantization::Int4, _) => Number::Int4,
            (Quantization::None, Dtype::Auto) => Number::AsStored,
            (Quantization::None, Dtype::Float32) => Number::F32,
            (Quantization::None, Dtype::Bfloat16) => Number::Bf16,
        },
        cache: match asked.kv_cache_dtype {
            CacheDtype::Auto => None,
            CacheDtype::Float32 => Some(CacheFormat::F32),
            CacheDtype::Float16 => Some(CacheFormat::F16),
        },
        block_tokens: asked.block_size,
        cache_bytes: asked.kv_cache_memory_bytes,
        memory,
        max_length: asked.max_model_len,
        engine: EngineSettings {
            step_tokens: asked.max_num_batched_tokens,
            sequences: asked.max_num_seqs,
            waiting: asked.max_num_waiting,
            cache: match asked.kv_cache_layout {
                CacheLayout::Paged => Cache::Paged,
                CacheLayout::Static => Cache::Static,
            },
            prefix_cache: asked.enable_prefix_caching,
            guessing,
            seed: asked.seed,
        },
        calls: match asked.tool_call_parser {
            ToolCalls::Auto => Calls::OfTemplate,
            ToolCalls::None => Calls::None,
            ToolCalls::Hermes => Calls::As(Format::Hermes),
            ToolCalls::Llama3Json => Calls::As(Format::Llama3),
            ToolCalls::Mistral => Calls::As(Format::Mistral),
        },
        thoughts: match asked.reasoning_parser {
            Reasoning::Auto => Thoughts::OfTemplate,
            Reasoning::None => Thoughts::Left,
            Reasoning::Think => Thoughts::Taken,
        },
        chat_template: asked.chat_template,
        model_defaults: asked.generation_config_of_model,
        ..Settings::new(served_name, run.threads)
    }
}

/// The adapter that the task names.
pub fn adapters(run: &Run) -> Vec<NamedAdapter> {
    let adapter = run.spec.model.as_ref().and_then(|model| model.adapter.as_ref());
    let name = adapter.and_then(|adapter| adapter.name.clone()).unwrap_or_else(|| "adapter".to_owned());
    run.inputs.adapter.clone().map(|path| NamedAdapter { name, path }).into_iter().collect()
}
