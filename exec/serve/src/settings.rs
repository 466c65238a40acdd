//! How a model is served.

use mloc_cpu::{CacheFormat, isa::Isa};
use mloc_openai::calls::Format;

/// Numbers that matrices are held in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Number {
    /// bf16 where the files have it, else f32: what is in the files, to the bit.
    #[default]
    AsStored,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8.5 bits, blocks of 32.
    Int8,
    /// 4.5 bits, blocks of 32; the head in 8.5.
    Int4,
}

/// Which tool calls are looked for in answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Calls {
    /// Those that the chat template is made for.
    #[default]
    OfTemplate,
    /// None.
    None,
    /// These.
    As(Format),
}

/// Whether `<think>…</think>` is taken out of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// Where the chat template speaks of it.
    #[default]
    OfTemplate,
    /// No.
    Left,
    /// Yes.
    Taken,
}

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Its name at the API.
    pub served_name: String,
    /// Where it is from, as clients are told.
    pub root: String,
    /// Since when it is served, in seconds since 1970.
    pub created: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Instructions they use.
    pub isa: Isa,
    /// What matrices are held in.
    pub number: Number,
    /// What keys and values are held in.
    pub cache: CacheFormat,
    /// Tokens a cache block: 32, 64 or 128.
    pub block_tokens: usize,
    /// Bytes of keys and values at most; `None` = as many as `memory` leaves.
    pub cache_bytes: Option<u64>,
    /// Bytes that there are for weights and cache together; `None` = nobody knows.
    pub memory: Option<u64>,
    /// Tokens of prompt and answer together; `None` = as many as the model was made for and memory has room for.
    pub max_length: Option<usize>,
    /// The engine's.
    pub engine: mloc_engine::admission::Settings,
    /// Tool calls.
    pub calls: Calls,
    /// Thoughts.
    pub thoughts: Thoughts,
    /// In place of the model's own.
    pub chat_template: Option<String>,
    /// Whether sampling is as the model's generation_config.json says where a request says nothing.
    pub model_defaults: bool,
}

impl Settings {
    /// Of a name and threads; all else as it is when nobody says.
    pub fn new(served_name: impl Into<String>, threads: usize) -> Self {
        let served_name = served_name.into();
        Self {
            root: served_name.clone(),
            served_name,
            created: 0,
            threads,
            isa: Isa::best(),
            number: Number::default(),
            cache: CacheFormat::F32,
            block_tokens: 32,
            cache_bytes: None,
            memory: None,
            max_length: None,
            engine: mloc_engine::admission::Settings::default(),
            calls: Calls::default(),
            thoughts: Thoughts::default(),
            chat_template: None,
            model_defaults: true,
        }
    }
}
