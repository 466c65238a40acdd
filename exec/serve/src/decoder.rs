//! A language model: its files, room for weights and cache, the engine's thread.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mloc_burn::{
    formats::{gguf::GgufModel, layout::Layout, tokenizer::TextTokenizer},
    model::{self, DecoderConfig},
    weights::{SafetensorsSource, TensorSource, WeightsError},
};
use mloc_cpu::{Format, LoadError, Model as CpuModel, architecture::Architecture, block_bytes};
use mloc_engine::{
    engine::Engine,
    forward::ForwardError,
    request::{Event, Request, RequestError, Sampling, Stop},
    run::{self, Ended},
};
use mloc_openai::{Model as _, model::Card};

use crate::{
    defaults::Defaults,
    generator::Generator,
    open::ServeError,
    settings::{Calls, Number, Settings, Thoughts},
    shape, talk,
    vocabulary::TokenizerVocabulary,
    weights::Tensors,
};

/// Bytes of a cache where nobody knows how much memory there is: a thousand requests of moderate length for a small model.
const CACHE_UNSAID: u64 = 4 << 30;

/// A language model that serves.
pub struct Decoder {
    /// The seam to it.
    pub generator: Arc<Generator>,
    /// The engine's thread, until its end was seen.
    engine: Mutex<Option<JoinHandle<Ended>>>,
    /// What became of its settings.
    pub facts: Facts,
}

/// What became of settings that were left open, for a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The class in config.json.
    pub architecture: String,
    /// Its parameters.
    pub parameters: u64,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// What matrices are held in.
    pub format: Format,
    /// Bytes of them as they are held.
    pub weight_bytes: u64,
    /// Tokens of prompt and answer together, and how many the model was made for.
    pub max_length: [usize; 2],
    /// Bytes of the cache, once all of it is used.
    pub cache_bytes: u64,
    /// Tokens it holds.
    pub cache_tokens: usize,
}

/// The files of a language model.
struct Files {
    config: DecoderConfig,
    architecture: Architecture,
    tokenizer: TextTokenizer,
    tensors: Box<dyn TensorSource + Sync>,
    defaults: Defaults,
}

impl Files {
    fn open(layout: &Layout) -> Result<Self, ServeError> {
        match layout {
            Layout::Gguf(file) => {
                let source = GgufModel::open(file).map_err(model_error)?;
                let config = DecoderConfig::from_json(source.config().to_hf_config()).map_err(model_error)?;
                let architecture = architecture(&config)?;
                let tokenizer = source.tokenizer().map_err(model_error)?;
                Ok(Self { config, architecture, tokenizer, tensors: Box::new(source), defaults: Defaults::default() })
            }
            Layout::Folder(folder) => Self::of_folder(folder),
        }
    }

    fn of_folder(folder: &Path) -> Result<Self, ServeError> {
        let config = DecoderConfig::from_folder(folder).map_err(model_error)?;
        // Before all that a model which can't be served may lack besides.
        let architecture = architecture(&config)?;
        let source = SafetensorsSource::open_folder(folder).map_err(weights_error)?;
        let tokenizer = TextTokenizer::from_folder(folder).map_err(model_error)?;
        let defaults = Defaults::from_folder(folder).map_err(ServeError::Model)?;
        Ok(Self { config, architecture, tokenizer, tensors: Box::new(source), defaults })
    }

    /// Whatever ends an answer: by each of the three files that may say so.
    fn ends(&self) -> Vec<u32> {
        let of_config = self.config.eos_token_ids.iter().filter_map(|id| u32::try_from(*id).ok());
        let mut ends: Vec<u32> = of_config.chain(self.defaults.ends.iter().copied()).collect();
        ends.extend(self.tokenizer.eos_id());
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// How much of what.
struct Room {
    format: Format,
    head: Format,
    blocks: usize,
    max_length: usize,
    cache_bytes: u64,
}

impl Decoder {
    /// Loads a model and starts its engine.
    ///
    /// # Errors
    /// [`ServeError`]
    pub fn open(
        layout: &Layout,
        settings: &Settings,
        stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, ServeError> {
        let mut files = Files::open(layout)?;
        if let Some(template) = &settings.chat_template {
            files.tokenizer = files.tokenizer.with_chat_template(template).map_err(model_error)?;
        }
        let ends = files.ends();
        let Files { config, architecture, tokenizer, tensors, defaults } = files;
        model::Decoder::check_fit(&config, &*tensors).map_err(weights_error)?;
        let parameters: u64 = model::Decoder::outline(config.clone())
            .parameters()
            .map(|p| p.shape.iter().product::<usize>() as u64)
            .sum();
        let room = room(&config, &architecture, parameters, settings)?;
        let tokenizer = Arc::new(tokenizer);
        let vocabulary = TokenizerVocabulary::new(tokenizer.clone(), config.vocab_size, ends);
        let vocabulary = Arc::new(vocabulary.map_err(ServeError::Model)?);
        let source = Tensors::new(&*tensors, &config, stopping);
        let loaded = CpuModel::load(
            architecture,
            &source,
            &mloc_cpu::Settings {
                threads: settings.threads,
                isa: settings.isa,
                weights: room.format,
                head: room.head,
                cache: settings.cache,
                block_tokens: settings.block_tokens,
                blocks: room.blocks,
                max_length: room.max_length,
            },
        );
        let cpu = match (loaded, source.trouble()) {
            (_, Some(trouble)) => return Err(weights_error(trouble)),
            (Err(LoadError::Memory(error)), None) => return Err(ServeError::Memory(error.to_string())),
            (Err(error), None) => return Err(ServeError::Model(error.to_string())),
            (Ok(model), None) => model,
        };
        let facts = Facts {
            architecture: config.architecture.clone(),
            parameters,
            vocabulary: config.vocab_size as u32,
            format: room.format,
            weight_bytes: cpu.weight_bytes() as u64,
            max_length: [room.max_length, config.max_position_embeddings],
            cache_bytes: room.cache_bytes,
            cache_tokens: room.blocks * settings.block_tokens,
        };
        let card = card(settings, &tokenizer, &vocabulary, defaults, room.max_length);
        let adapters = cpu.adapters();
        let engine = Engine::new(Box::new(cpu), vocabulary.clone(), settings.engine.clone());
        let engine = engine.map_err(|error| ServeError::Model(error.to_string()))?;
        let since = Instant::now();
        let (handle, thread) = run::spawn(engine, Box::new(move || since.elapsed()))
            .map_err(|error| ServeError::Disk(error.to_string()))?;
        let generator = Arc::new(Generator { card, config, tokenizer, vocabulary, handle, adapters });
        Ok(Self { generator, engine: Mutex::new(Some(thread)), facts })
    }

    /// Generates some tokens: before a model is said to be ready, it has shown that it is.
    ///
    /// # Errors
    /// Why it could not.
    pub fn try_out(&self, within: Duration) -> Result<Duration, ServeError> {
        let since = Instant::now();
        let (tell, heard) = std::sync::mpsc::channel();
        let prompt = Some(self.generator.tokenize("Hello", true)).filter(|ids| !ids.is_empty()).unwrap_or(vec![0]);
        let request = Request {
            prompt,
            adapter: None,
            choices: 1,
            best_of: 1,
            max_tokens: Some(2),
            min_tokens: 2,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stop: Stop::default(),
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        };
        let sink = Box::new(move |event| tell.send(event).is_ok());
        let failed = |error: RequestError| ServeError::Model(format!("the first generation failed: {error}"));
        self.generator.submit(request, sink).map_err(failed)?;
        loop {
            let left = within.saturating_sub(since.elapsed());
            match heard.recv_timeout(left) {
                Ok(Event::Done { .. }) => return Ok(since.elapsed()),
                Ok(Event::Failed(error)) => return Err(failed(error)),
                Ok(_) => {}
                Err(_) => {
                    let seconds = within.as_secs();
                    return Err(ServeError::Model(format!("two tokens were not generated within {seconds} s")));
                }
            }
        }
    }

    /// Why the engine has ended, once it has.
    pub fn ended(&self) -> Option<String> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = engine.take_if(|thread| thread.is_finished())?;
        Some(match thread.join() {
            Ok(Ended::Stopped { .. }) => "it was stopped".to_owned(),
            Ok(Ended::Failed(ForwardError::Device(words) | ForwardError::OutOfMemory { detail: words, .. })) => words,
            Err(_) => "its thread panicked; the log says why".to_owned(),
        })
    }
}

fn architecture(config: &DecoderConfig) -> Result<Architecture, ServeError> {
    shape::architecture(config).map_err(|found| ServeError::Model(format!("config.json: {found}")))
}

fn model_error(error: impl std::fmt::Display) -> ServeError {
    ServeError::Model(error.to_string())
}

fn weights_error(error: WeightsError) -> ServeError {
    match error {
        WeightsError::Interrupted => ServeError::Stopped,
        WeightsError::Io { .. } => ServeError::Disk(error.to_string()),
        other => ServeError::Model(other.to_string()),
    }
}

fn card(
    settings: &Settings,
    tokenizer: &TextTokenizer,
    vocabulary: &TokenizerVocabulary,
    defaults: Defaults,
    max_length: usize,
) -> Card {
    use mloc_engine::vocabulary::Vocabulary as _;
    let template = tokenizer.chat_template().map(|template| template.source().to_owned()).unwrap_or_default();
    Card {
        served_name: settings.served_name.clone(),
        root: settings.root.clone(),
        created: settings.created,
        max_length,
        defaults: if settings.model_defaults { defaults.sampling } else { Sampling::default() },
        generates: true,
        calls: match settings.calls {
            Calls::OfTemplate => talk::calls_of(&template),
            Calls::None => None,
            Calls::As(format) => Some(format),
        },
        thinks: match settings.thoughts {
            Thoughts::OfTemplate => talk::thinks(&template),
            Thoughts::Left => false,
            Thoughts::Taken => true,
        },
        markers: talk::markers(tokenizer, |id| vocabulary.bytes(id).is_none()),
        embedding: None,
        embedding_shortens: false,
        reranks: false,
    }
}

/// What weights are held in, and how many cache blocks there are.
fn room(config: &DecoderConfig, a: &Architecture, parameters: u64, settings: &Settings) -> Result<Room, ServeError> {
    let stored = ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str());
    let (format, head) = match settings.number {
        // fp16 has digits that bf16 has not.
        Number::AsStored if stored == Some("bfloat16") => (Format::Bf16, Format::Bf16),
        Number::AsStored | Number::F32 => (Format::F32, Format::F32),
        Number::Bf16 => (Format::Bf16, Format::Bf16),
        Number::Int8 => (Format::Int8, Format::Int8),
        // A fifth of a small model's bytes, and what its answers feel most.
        Number::Int4 => (Format::Int4, Format::Int8),
    };
    let bits = |format| match format {
        Format::F32 => 32.0,
        Format::Bf16 => 16.0,
        Format::Int8 => 8.5,
        Format::Int4 => 4.5,
    };
    let embedding = (a.vocabulary * a.hidden) as f64;
    let heads = if a.tied { embedding } else { 2.0 * embedding };
    // The rows of tokens stay in f32 beside a head in another format.
    let rows = if a.tied && head == Format::F32 { 0.0 } else { embedding * 4.0 };
    let matrices = (parameters as f64 - heads).max(0.0);
    let weight_bytes = (matrices * bits(format) / 8.0 + embedding * bits(head) / 8.0 + rows) as u64;
    let block = block_bytes(settings.cache, a.layers.len(), a.kv_heads, a.head_dim, settings.block_tokens) as u64;
    let longest = settings.max_length.unwrap_or(config.max_position_embeddings);
    let blocks_of = |tokens: usize| tokens.div_ceil(settings.block_tokens) as u64;
    let wanted = blocks_of(longest) * settings.engine.sequences as u64;
    let bytes = match (settings.cache_bytes, settings.memory) {
        (Some(said), _) => said,
        // A tenth for activations and what the process has besides.
        (None, Some(memory)) => (memory / 10 * 9).saturating_sub(weight_bytes),
        (None, None) => CACHE_UNSAID,
    };
    let blocks = (bytes / block).min(wanted);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let too_small = |needs: usize| {
        let needs_bytes = blocks_of(needs) * block;
        ServeError::Memory(format!(
            "a request of {needs} tokens needs {} of keys and values, and beside {} of weights there are {}: ask for more \
             resources.hardware.memory, or set max_model_len to at most {}{}",
            mib(needs_bytes),
            mib(weight_bytes),
            mib(bytes),
            blocks as usize * settings.block_tokens,
            if format == Format::F32 { ", or quantization: int8" } else { "" },
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
    Ok(Room { format, head, blocks: blocks as usize, max_length, cache_bytes: blocks * block })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(dtype: &str) -> DecoderConfig {
        DecoderConfig::from_json(json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "torch_dtype": dtype, "tie_word_embeddings": true,
        }))
        .expect("a config")
    }

    fn room_for(settings: &Settings, dtype: &str) -> Result<Room, ServeError> {
        let config = config(dtype);
        let architecture = shape::architecture(&config).expect("served");
        room(&config, &architecture, 200_000, settings)
    }

    #[test]
    fn weights_are_held_as_they_are_stored() {
        let settings = Settings::new("m", 1);
        let format = |dtype: &str, number| {
            let room = room_for(&Settings { number, ..settings.clone() }, dtype).expect("room");
            (room.format, room.head)
        };
        assert_eq!(format("bfloat16", Number::AsStored), (Format::Bf16, Format::Bf16));
        assert_eq!(format("float16", Number::AsStored), (Format::F32, Format::F32));
        assert_eq!(format("float32", Number::Int4), (Format::Int4, Format::Int8));
    }

    #[test]
    fn the_cache_is_as_large_as_memory_leaves_and_never_larger_than_needed() {
        // 2 layers, 2 heads of 16, padded to 32 for values, 32 tokens of 4 bytes.
        let block = 2 * 2 * (16 + 32) * 32 * 4;
        let ample = room_for(&Settings::new("m", 1), "float32").expect("room");
        assert_eq!((ample.blocks, ample.max_length), (64 * 8, 256));
        let tight = Settings { cache_bytes: Some(block * 5), ..Settings::new("m", 1) };
        let found = room_for(&tight, "float32").expect("room");
        assert_eq!((found.blocks, found.max_length, found.cache_bytes), (5, 160, block * 5));
        let refused =
            room_for(&Settings { max_length: Some(200), ..tight.clone() }, "float32").err().expect("too small");
        let text = refused.to_string();
        assert!(text.starts_with("a request of 200 tokens needs 0 MiB") && text.contains("at most 160"), "{text}");
        let none = Settings { memory: Some(1000), ..Settings::new("m", 1) };
        assert!(matches!(room_for(&none, "float32"), Err(ServeError::Memory(_))));
    }
}
