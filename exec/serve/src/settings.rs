//! How a model is served.

use mloc_burn::device::DeviceChoice;
use mloc_cpu::{CacheFormat, isa::Isa};
use mloc_openai::calls::Format;

/// Numbers that matrices are held in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Number {
    /// What is in the files, tensor by tensor: f32, bf16 and f16, and of GGUF files on the processor also Q8_0, Q4_0, Q4_1
    /// and Q5_0 to the bit, its other types rounded to the nearest of these. On a GPU floats, 16 bits wide where the files
    /// have them so.
    #[default]
    AsStored,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8.5 bits, blocks of 32.
    Int8,
    /// 4.5 bits, blocks of 32; the head in 8.5. On a GPU NF4, the head in 16.
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

/// Where a language model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum On {
    /// The processor, by kernels of its own.
    #[default]
    Processor,
    /// A device of tensors: a GPU. Of the processor it is the slow twin of the former, for comparison.
    Device(DeviceChoice),
}

impl On {
    /// The GPU with this index among the visible ones.
    pub fn gpu(index: usize) -> Self {
        Self::Device(DeviceChoice::Cuda(index))
    }
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
    /// Where it computes.
    pub on: On,
    /// Threads that compute, on the processor.
    pub threads: usize,
    /// Instructions they use.
    pub isa: Isa,
    /// What matrices are held in.
    pub number: Number,
    /// What keys and values are held in; `None` = f32 on the processor, and on a GPU what products are computed in.
    pub cache: Option<CacheFormat>,
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
            on: On::default(),
            threads,
            isa: Isa::best(),
            number: Number::default(),
            cache: None,
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
