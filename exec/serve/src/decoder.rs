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
use mloc_engine::{
    engine::Engine,
    forward::{Forward, ForwardError},
    request::{Event, Request, RequestError, Sampling, Stop},
    run::{self, Ended},
};
use mloc_openai::{Model as _, model::Card};

use crate::{
    adapters::AdapterRoom,
    defaults::Defaults,
    device,
    generator::Generator,
    open::ServeError,
    processor,
    room::Room,
    settings::{Calls, On, Settings, Thoughts},
    shape, talk,
    vocabulary::TokenizerVocabulary,
};

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
    pub format: String,
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
    tokenizer: TextTokenizer,
    tensors: Box<dyn TensorSource + Sync>,
    defaults: Defaults,
}

impl Files {
    fn open(layout: &Layout, on: On) -> Result<Self, ServeError> {
        match layout {
            Layout::Gguf(file) => {
                let source = GgufModel::open(file).map_err(model_error)?;
                let config = DecoderConfig::from_json(source.config().to_hf_config()).map_err(model_error)?;
                served(&config, on)?;
                let tokenizer = source.tokenizer().map_err(model_error)?;
                Ok(Self { config, tokenizer, tensors: Box::new(source), defaults: Defaults::default() })
            }
            Layout::Folder(folder) => Self::of_folder(folder, on),
        }
    }

    fn of_folder(folder: &Path, on: On) -> Result<Self, ServeError> {
        let config = DecoderConfig::from_folder(folder).map_err(model_error)?;
        // Before all that a model which can't be served may lack besides.
        served(&config, on)?;
        let source = SafetensorsSource::open_folder(folder).map_err(weights_error)?;
        let tokenizer = TextTokenizer::from_folder(folder).map_err(model_error)?;
        let defaults = Defaults::from_folder(folder).map_err(ServeError::Model)?;
        Ok(Self { config, tokenizer, tensors: Box::new(source), defaults })
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

/// A model that is loaded, wherever that is.
pub struct Computing {
    /// What computes steps.
    pub model: Box<dyn Forward>,
    /// Where its adapters are.
    pub adapters: Arc<dyn AdapterRoom>,
    /// What matrices are held in.
    pub format: String,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// What there is for keys and values.
    pub room: Room,
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
        let mut files = Files::open(layout, settings.on)?;
        if let Some(template) = &settings.chat_template {
            files.tokenizer = files.tokenizer.with_chat_template(template).map_err(model_error)?;
        }
        let ends = files.ends();
        let Files { config, tokenizer, tensors, defaults } = files;
        model::Decoder::check_fit(&config, &*tensors).map_err(weights_error)?;
        let parameters: u64 = model::Decoder::outline(config.clone())
            .parameters()
            .map(|p| p.shape.iter().product::<usize>() as u64)
            .sum();
        let tokenizer = Arc::new(tokenizer);
        let vocabulary = TokenizerVocabulary::new(tokenizer.clone(), config.vocab_size, ends);
        let vocabulary = Arc::new(vocabulary.map_err(ServeError::Model)?);
        let computing = match settings.on {
            On::Processor => processor::load(&config, &*tensors, settings, stopping),
            On::Device(choice) => device::load(&config, &*tensors, parameters, choice, settings, stopping),
        };
        let Computing { model, adapters, format, weight_bytes, room } = computing?;
        let facts = Facts {
            architecture: config.architecture.clone(),
            parameters,
            vocabulary: config.vocab_size as u32,
            format,
            weight_bytes,
            max_length: [room.max_length, config.max_position_embeddings],
            cache_bytes: room.cache_bytes,
            cache_tokens: room.blocks * settings.block_tokens,
        };
        let card = card(settings, &tokenizer, &vocabulary, defaults, room.max_length);
        let engine = Engine::new(model, vocabulary.clone(), settings.engine.clone());
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

/// Whether such a model is served there.
fn served(config: &DecoderConfig, on: On) -> Result<(), ServeError> {
    let found = match on {
        On::Processor => shape::architecture(config).map(drop),
        On::Device(_) => shape::writes_text(config),
    };
    found.map_err(|found| ServeError::Model(format!("config.json: {found}")))
}

fn model_error(error: impl std::fmt::Display) -> ServeError {
    ServeError::Model(error.to_string())
}

/// An error of files, as one of what serves them.
pub fn weights_error(error: WeightsError) -> ServeError {
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
        tokenizer: talk::info(tokenizer),
        token_bytes: (0..vocabulary.size() as u32)
            .filter_map(|id| tokenizer.token_text(id))
            .map(|text| text.len())
            .max(),
    }
}
