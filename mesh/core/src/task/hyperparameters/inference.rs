//! `inference`, and the engine inside `rag_inference` and `agent`: names of vLLM's engine arguments, and their typed
//! settings. Defaults are this engine's own. What else vLLM has is in [`super::engine_args`].

use serde::Serialize;

use super::{
    Read,
    rows::{COUNT, Default, Row, SOME, Translate, Type, Words, old, or_null, works},
    settings::Values,
};
use crate::task::{
    kind::TaskType,
    problem::{Note, Problems},
    spec::TaskSpec,
};

const F16: &str = "16-bit IEEE floats are not in this build: write bfloat16, which has as many bits, or float32";
const CACHE_BF16: &str = "keys and values are held in 32 bits, or in 16 as IEEE floats, which have more digits than \
                          bfloat16: write float16";
const CACHE_F8: &str = "8-bit floats are not in this build: write float16, or float32";
const MADE_HERE: &str =
    "weights are quantised while they are loaded, from a model in 16 or 32 bits: write int8 or int4";

const DTYPES: Words = Words {
    choices: &["auto", "float32", "bfloat16"],
    same: &[("float", "float32")],
    refused: &[("half", F16), ("float16", F16)],
};
const CACHE_DTYPES: Words = Words {
    choices: &["auto", "float32", "float16"],
    same: &[("float", "float32"), ("half", "float16")],
    refused: &[("bfloat16", CACHE_BF16), ("fp8", CACHE_F8), ("fp8_e4m3", CACHE_F8), ("fp8_e5m2", CACHE_F8)],
};
const QUANTIZATIONS: Words = Words {
    choices: &["int8", "int4"],
    same: &[],
    refused: &[
        ("awq", MADE_HERE),
        ("awq_marlin", MADE_HERE),
        ("gptq", MADE_HERE),
        ("gptq_marlin", MADE_HERE),
        ("bitsandbytes", MADE_HERE),
        ("compressed-tensors", MADE_HERE),
        ("fp8", "8-bit floats are not in this build: write int8, which has as many bits"),
        ("gguf", "the file says it itself: leave the key out"),
    ],
};
/// Both of vLLM's are what `<think>` and `</think>` enclose.
const THOUGHTS: Words =
    Words { choices: &["auto", "none", "think"], same: &[("deepseek_r1", "think"), ("qwen3", "think")], refused: &[] };
const LOOKUP: Type = Type::Int { min: 1, max: 64 };
const GUESSED: Type = Type::Int { min: 0, max: 32 };

pub(super) const NAMES: &[Row] = &[
    or_null("max_model_len", SOME, Default::Null),
    works("max_num_seqs", Type::Int { min: 1, max: 1 << 16 }, Default::Int(64)),
    works("max_num_batched_tokens", Type::Int { min: 1, max: 1 << 20 }, Default::Int(512)),
    works("enable_prefix_caching", Type::Bool, Default::Bool(true)),
    works("block_size", Type::OneOf(&[32, 64, 128]), Default::Int(32)),
    // A cache of less holds no conversation; who writes 4 means GiB.
    or_null("kv_cache_memory_bytes", Type::Int { min: 1 << 20, max: i64::MAX }, Default::Null),
    works("kv_cache_dtype", Type::Word(&CACHE_DTYPES), Default::Text("auto")),
    works("dtype", Type::Word(&DTYPES), Default::Text("auto")),
    or_null("quantization", Type::Word(&QUANTIZATIONS), Default::Null),
    works("num_speculative_tokens", GUESSED, Default::Int(0)),
    works("prompt_lookup_max", LOOKUP, Default::Int(4)),
    works("prompt_lookup_min", LOOKUP, Default::Int(2)),
    old("spec_tokens", GUESSED, "num_speculative_tokens", Translate::Same),
    old("ngram_prompt_lookup_max", LOOKUP, "prompt_lookup_max", Translate::Same),
    old("ngram_prompt_lookup_min", LOOKUP, "prompt_lookup_min", Translate::Same),
    works("seed", COUNT, Default::Int(0)),
    works(
        "tool_call_parser",
        Type::Choice(&["auto", "none", "hermes", "llama3_json", "mistral"]),
        Default::Text("auto"),
    ),
    works("reasoning_parser", Type::Word(&THOUGHTS), Default::Text("auto")),
    or_null("chat_template", Type::Text, Default::Null),
    works("generation_config", Type::Choice(&["auto", "vllm"]), Default::Text("auto")),
    // What follows is ours.
    works("max_num_waiting", Type::Int { min: 1, max: 1 << 20 }, Default::Int(1024)),
    works("kv_cache_layout", Type::Choice(&["paged", "static"]), Default::Text("paged")),
];

/// How a model is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inference {
    /// Tokens of prompt and answer together; what the model has positions for when not given.
    pub max_model_len: Option<usize>,
    /// Sequences that are computed at once.
    pub max_num_seqs: usize,
    /// Tokens of one step, of prompts and answers together; no fewer than sequences.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait.
    pub max_num_waiting: usize,
    /// Whether prompts that begin alike share what is computed of them.
    pub enable_prefix_caching: bool,
    /// Tokens of one block of the cache.
    pub block_size: usize,
    /// How blocks are given out.
    pub kv_cache_layout: CacheLayout,
    /// Bytes of the cache; chosen from what the task was granted when not given.
    pub kv_cache_memory_bytes: Option<u64>,
    /// What keys and values are held in.
    pub kv_cache_dtype: CacheDtype,
    /// What weights are held in where they are not quantised.
    pub dtype: Dtype,
    /// What the layers' matrices are held in.
    pub quantization: Quantization,
    /// Tokens that are guessed ahead at once; 0 for none.
    pub num_speculative_tokens: usize,
    /// Newest tokens that are looked for in the sequence for a guess, at most.
    pub prompt_lookup_max: usize,
    /// And at least.
    pub prompt_lookup_min: usize,
    /// What seeds are made from where requests have none.
    pub seed: u64,
    /// How tool calls are read in answers.
    pub tool_call_parser: ToolCalls,
    /// How thoughts are told from answers.
    pub reasoning_parser: Reasoning,
    /// The chat template in place of the tokenizer's own.
    pub chat_template: Option<String>,
    /// Whether what a request leaves open is as the model's generation_config.json has it, and not neutral.
    pub generation_config_of_model: bool,
}

/// What weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Dtype {
    /// What suits the model and the device.
    Auto,
    /// 32 bits.
    Float32,
    /// 16 bits, bfloat.
    Bfloat16,
}

/// What keys and values are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CacheDtype {
    /// 32 bits, where a task does not say it.
    Auto,
    /// 32 bits.
    Float32,
    /// 16 bits, IEEE: twice as many tokens in as many bytes.
    Float16,
}

/// What the layers' matrices are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Quantization {
    /// `dtype`.
    None,
    /// Whole numbers of 8 bits with scales.
    Int8,
    /// Whole numbers of 4 bits with scales.
    Int4,
}

/// How tool calls are read in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ToolCalls {
    /// As the model's chat template writes them.
    Auto,
    /// Not at all: tools are refused.
    None,
    /// `<tool_call>` with JSON, as Hermes and Qwen write.
    Hermes,
    /// JSON with `name` and `parameters`, as Llama 3 writes.
    Llama3Json,
    /// `[TOOL_CALLS]` with JSON.
    Mistral,
}

/// How thoughts are told from answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reasoning {
    /// As the model's chat template shows.
    Auto,
    /// Not at all: all of it is the answer.
    None,
    /// `<think>…</think>` is a thought.
    Think,
}

/// How blocks of the cache are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CacheLayout {
    /// As a sequence grows.
    Paged,
    /// All that a sequence may come to need, at once.
    Static,
}

impl Inference {
    /// The settings of a checked spec with an engine in it.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        Self {
            max_model_len: values.optional_size("max_model_len"),
            max_num_seqs: values.size("max_num_seqs"),
            max_num_batched_tokens: values.size("max_num_batched_tokens"),
            max_num_waiting: values.size("max_num_waiting"),
            enable_prefix_caching: values.truth("enable_prefix_caching"),
            block_size: values.size("block_size"),
            kv_cache_layout: match values.text("kv_cache_layout").as_str() {
                "static" => CacheLayout::Static,
                _ => CacheLayout::Paged,
            },
            kv_cache_memory_bytes: values.of("kv_cache_memory_bytes").as_u64(),
            kv_cache_dtype: match values.text("kv_cache_dtype").as_str() {
                "float32" => CacheDtype::Float32,
                "float16" => CacheDtype::Float16,
                _ => CacheDtype::Auto,
            },
            dtype: match values.text("dtype").as_str() {
                "float32" => Dtype::Float32,
                "bfloat16" => Dtype::Bfloat16,
                _ => Dtype::Auto,
            },
            quantization: match values.text("quantization").as_str() {
                "int8" => Quantization::Int8,
                "int4" => Quantization::Int4,
                _ => Quantization::None,
            },
            num_speculative_tokens: values.size("num_speculative_tokens"),
            prompt_lookup_max: values.size("prompt_lookup_max"),
            prompt_lookup_min: values.size("prompt_lookup_min"),
            seed: values.count("seed"),
            tool_call_parser: match values.text("tool_call_parser").as_str() {
                "none" => ToolCalls::None,
                "hermes" => ToolCalls::Hermes,
                "llama3_json" => ToolCalls::Llama3Json,
                "mistral" => ToolCalls::Mistral,
                _ => ToolCalls::Auto,
            },
            reasoning_parser: match values.text("reasoning_parser").as_str() {
                "none" => Reasoning::None,
                "think" => Reasoning::Think,
                _ => Reasoning::Auto,
            },
            chat_template: values.of("chat_template").as_str().map(str::to_owned),
            generation_config_of_model: values.text("generation_config") == "auto",
        }
    }
}

/// What settings must hold together.
pub(super) fn together(task_type: TaskType, read: &Read, problems: &mut Problems) {
    let int = |name: &str| read.value(task_type, name).as_i64();
    // The one that was typed is told, and the first where both were.
    let mut less = |name: &str, than: &str, expected: String| {
        if let (Some(less), Some(more)) = (int(name), int(than))
            && less < more
        {
            let (typed, value, with) = match read.typed.contains_key(name) {
                true => (name, less, format!("{than} {more}")),
                false => (than, more, format!("{name} {less}")),
            };
            read.problem(typed, &format!("`{value}` with {with}"), &expected, problems);
        }
    };
    let expected =
        "a max_num_batched_tokens no less than max_num_seqs: each sequence that answers has a token in each step";
    less("max_num_batched_tokens", "max_num_seqs", expected.to_owned());
    less("prompt_lookup_max", "prompt_lookup_min", "a prompt_lookup_max no less than prompt_lookup_min".to_owned());
    // A template that puts nothing in is most likely the path of one.
    if let Some(template) = read.values.get("chat_template").and_then(|value| value.as_str())
        && !template.contains("{{")
    {
        let found = if template.trim().is_empty() { "an empty text" } else { "a text without `{{`" };
        let expected = "the text of a Jinja template, not the path of one";
        read.problem("chat_template", found, expected, problems);
    }
}

/// Tells which settings that were typed have no part in what the others choose.
pub(super) fn tell_unused(task_type: TaskType, read: &Read, notes: &mut Vec<Note>) {
    if read.value(task_type, "num_speculative_tokens") != 0 {
        return;
    }
    for name in ["prompt_lookup_max", "prompt_lookup_min"] {
        if read.typed.contains_key(name) {
            notes.push(read.note(name, "has no effect without `num_speculative_tokens`"));
        }
    }
}
