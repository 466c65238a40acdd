//! What all requests for text have in common: which model, how tokens are chosen, what ends an answer, how it is told.

use mloc_engine::{
    forward::AdapterId,
    request::{Constraint, Request, Sampling, Stop},
};
use serde_json::{Value, json};

use crate::{
    fields::{Field, Reader, count},
    limits::Limits,
    model::Card,
    refusal::Refusal,
    schema::found,
};

/// Alternatives a token can have its log-probability told with.
pub const LOGPROBS_MAX: usize = 20;

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streamed {
    /// The last chunk says what it took.
    pub usage: bool,
    /// Every chunk does.
    pub usage_always: bool,
}

/// How tokens are named and told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// `token_id:7` in place of a token's text.
    pub names_are_ids: bool,
    /// The ids of prompt and answer, beside the text.
    pub ids: bool,
}

/// A request for text but its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// As the client named it.
    pub model: Option<String>,
    /// Answers wanted.
    pub choices: usize,
    /// Answers computed.
    pub best_of: usize,
    /// Tokens an answer may have.
    pub max_tokens: Option<usize>,
    /// Tokens an answer has before it may end.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends an answer.
    pub stop: Stop,
    /// Of answers, with so many alternatives.
    pub logprobs: Option<usize>,
    /// Of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Only so many of the prompt's last tokens.
    pub truncate: Option<usize>,
    /// Streamed, or told whole.
    pub stream: Option<Streamed>,
    /// How tokens are told.
    pub told: Told,
    /// The client's name for the request.
    pub request_id: Option<String>,
}

/// Row of every request's model.
pub fn model_field() -> Field {
    Field::used("model", json!({ "type": "string" }))
}

/// Rows of OpenAI's that chats and completions share.
pub fn fields() -> Vec<Field> {
    let penalty = json!({ "type": "number", "minimum": -2, "maximum": 2 });
    let stop = json!({ "type": "string", "minLength": 1 });
    let stream_options = json!({
        "type": "object",
        "properties": {
            "include_usage": { "type": ["boolean", "null"] },
            "continuous_usage_stats": { "type": ["boolean", "null"] },
            "include_obfuscation": { "type": ["boolean", "null"] },
        },
        "additionalProperties": false,
    });
    vec![
        model_field(),
        Field::used("frequency_penalty", penalty.clone()),
        Field::used("presence_penalty", penalty),
        Field::used(
            "logit_bias",
            json!({ "type": "object", "description": "an object of token ids and numbers of -100 to 100" }),
        ),
        Field::used("n", json!({ "type": "integer", "minimum": 1, "maximum": 128 })),
        Field::used("seed", json!({ "type": "integer" })),
        Field::used("stop", json!({ "anyOf": [stop, { "type": "array", "items": stop, "maxItems": 64 }] })),
        Field::used("stream", json!({ "type": "boolean" })),
        Field::used("stream_options", stream_options),
        Field::used("temperature", json!({ "type": "number", "minimum": 0, "maximum": 100 })),
        Field::used("top_p", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        Field::no_effect("user", json!({ "type": "string" }), "requests are accounted for by the caller's token"),
    ]
}

/// Rows of vLLM's that chats and completions share.
pub fn vllm_fields() -> Vec<Field> {
    let whole = |least: i64| json!({ "type": "integer", "minimum": least });
    let flag = || json!({ "type": "boolean" });
    let rows = vec![
        Field::used("min_tokens", whole(0)),
        Field::used("min_p", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        Field::used("top_k", whole(-1)),
        Field::used("repetition_penalty", json!({ "type": "number", "minimum": 0.01, "maximum": 100 })),
        Field::used("stop_token_ids", json!({ "type": "array", "items": whole(0), "maxItems": 64 })),
        Field::used("include_stop_str_in_output", flag()),
        Field::used("ignore_eos", flag()),
        Field::used("prompt_logprobs", json!({ "type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX })),
        Field::used("truncate_prompt_tokens", whole(-1)),
        Field::used("return_tokens_as_token_ids", flag()),
        Field::used("return_token_ids", flag()),
        Field::used("request_id", json!({ "type": "string", "minLength": 1, "maxLength": 128 })),
        Field::no_effect("spaces_between_special_tokens", flag(), "special tokens are no part of the text"),
        Field::refused(
            "skip_special_tokens",
            json!([true]),
            "special tokens are no part of the text; return_token_ids has them",
        ),
        Field::refused("use_beam_search", json!([false]), "use best_of in a completion"),
        Field::refused("length_penalty", json!([1, 1.0]), "it belongs to beam search, which there is not"),
        Field::refused("priority", json!([0]), "requests are taken in the order they came"),
        Field::refused("bad_words", json!([[]]), "use logit_bias with -100"),
        Field::refused("allowed_token_ids", json!([[]]), "use structured_outputs"),
        Field::refused("logits_processors", json!([[]]), "use structured_outputs or logit_bias"),
        Field::refused("cache_salt", json!([]), "the prefix cache is shared by all who call this model; leave it out"),
        Field::refused("kv_transfer_params", json!([]), "prompts are computed where answers are"),
        Field::refused("vllm_xargs", json!([{}]), "there are no extensions that would read it"),
        Field::refused("repetition_detection", json!([]), "use repetition_penalty or stop"),
        Field::refused(
            "thinking_token_budget",
            json!([]),
            "use max_tokens, or reasoning_effort where the template knows it",
        ),
        Field::refused("mm_processor_kwargs", json!([{}]), "this model reads text"),
    ];
    rows.into_iter().map(Field::of_vllm).collect()
}

/// What the shared fields mean. `logprobs`, `max_tokens` and `best_of` have other names or meanings in each API: the caller fills them.
pub fn read(reader: &mut Reader<'_>, card: &Card, limits: &Limits) -> Generation {
    let defaults = &card.defaults;
    let float = |reader: &Reader<'_>, name: &str, otherwise: f32| reader.number(name).map_or(otherwise, |n| n as f32);
    let top_p = float(reader, "top_p", defaults.top_p);
    // -1 and 0 are all of them; a top_p of 0 leaves only the likeliest.
    let top_k = reader.number("top_k").map_or(defaults.top_k, |n| if n < 0.0 { 0 } else { n as usize });
    let sampling = Sampling {
        temperature: float(reader, "temperature", defaults.temperature),
        top_p: if top_p == 0.0 { 1.0 } else { top_p },
        top_k: if top_p == 0.0 { 1 } else { top_k },
        min_p: float(reader, "min_p", defaults.min_p),
        repetition_penalty: float(reader, "repetition_penalty", defaults.repetition_penalty),
        presence_penalty: float(reader, "presence_penalty", defaults.presence_penalty),
        frequency_penalty: float(reader, "frequency_penalty", defaults.frequency_penalty),
        seed: reader.get("seed").and_then(seed),
        logit_bias: logit_bias(reader),
    };
    let choices = reader.count("n").unwrap_or(1);
    for (name, value) in [("n", choices), ("best_of", reader.count("best_of").unwrap_or(1))] {
        if value > limits.choices {
            let message = format!("found {value}, and this server takes {} answers a prompt", limits.choices);
            reader.refuse(Refusal::over_limit(name, message));
        }
    }
    let texts = match reader.get("stop") {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let tokens = reader.get("stop_token_ids").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let stream = reader.flag("stream", false);
    let options = reader.get("stream_options");
    if options.is_some() && !stream {
        reader.problem("stream_options", "only allowed when `stream` is true");
    }
    let option = |name: &str| options.is_some_and(|options| options[name] == Value::Bool(true));
    let truncate = reader.number("truncate_prompt_tokens");
    Generation {
        model: reader.text("model").map(str::to_owned),
        choices,
        best_of: choices,
        max_tokens: None,
        min_tokens: reader.count("min_tokens").unwrap_or(0),
        sampling,
        stop: Stop {
            strings: texts,
            tokens: tokens.iter().filter_map(|token| u32::try_from(count(token)?).ok()).collect(),
            ignore_eos: reader.flag("ignore_eos", false),
            include_in_output: reader.flag("include_stop_str_in_output", false),
        },
        logprobs: None,
        prompt_logprobs: reader.count("prompt_logprobs"),
        truncate: truncate.map(|n| if n < 0.0 { card.max_length } else { n as usize }),
        stream: stream
            .then(|| Streamed { usage: option("include_usage"), usage_always: option("continuous_usage_stats") }),
        told: Told {
            names_are_ids: reader.flag("return_tokens_as_token_ids", false),
            ids: reader.flag("return_token_ids", false),
        },
        request_id: reader.text("request_id").map(str::to_owned),
    }
}

/// Any whole number is one: OpenAI's are signed.
fn seed(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)).or_else(|| value.as_f64().map(|n| n as i64 as u64))
}

fn logit_bias(reader: &mut Reader<'_>) -> std::collections::BTreeMap<u32, f32> {
    let given = reader.get("logit_bias").and_then(Value::as_object);
    let mut biases = std::collections::BTreeMap::new();
    for (key, value) in given.into_iter().flatten() {
        match (key.parse(), value.as_f64()) {
            (Ok(id), Some(bias)) if (-100.0..=100.0).contains(&bias) => {
                biases.insert(id, bias as f32);
            }
            (Err(_), _) => {
                reader.problem(
                    "logit_bias",
                    format!("found the key {key:?}, expected a token's id; /tokenize gives ids"),
                );
            }
            _ => reader.problem(
                format!("logit_bias.{key}"),
                format!("found {}, expected a number of -100 to 100", found(value)),
            ),
        }
    }
    biases
}

impl Generation {
    /// What is left to check when all is read.
    pub fn check(&self, reader: &mut Reader<'_>) {
        if let Some(most) = self.max_tokens.filter(|most| *most < self.min_tokens) {
            reader.problem(
                "min_tokens",
                format!("found {}, which is more than the {most} tokens an answer may have", self.min_tokens),
            );
        }
        if self.stream.is_some() && self.prompt_logprobs.is_some() {
            reader.problem("prompt_logprobs", "not with `stream`: ask for the answer whole");
        }
    }

    /// Whether a text of so many bytes may fit: a megabyte takes a second to tokenize, and need not be when it is too long
    /// in any case.
    ///
    /// # Errors
    /// It does not fit even if each of its tokens is the longest there is.
    pub fn may_fit(&self, bytes: usize, card: &Card, at: &str) -> Result<(), Refusal> {
        let least = card.token_bytes.map_or(0, |most| bytes / most.max(1));
        if self.truncate.is_some() || least <= card.max_length {
            return Ok(());
        }
        let max = card.max_length;
        let message = format!("{at}: {bytes} bytes are {least} tokens or more, and {max} fit: shorten the prompt");
        Err(Refusal::field(at, message).with_code("context_length_exceeded"))
    }

    /// The engine's request for one prompt.
    ///
    /// # Errors
    /// When the prompt is empty, or does not fit.
    pub fn request(
        &self,
        mut prompt: Vec<u32>,
        adapter: Option<AdapterId>,
        constraint: Option<Constraint>,
        card: &Card,
        at: &str,
    ) -> Result<Request, Refusal> {
        if let Some(keep) = self.truncate {
            prompt.drain(..prompt.len().saturating_sub(keep));
        }
        if prompt.is_empty() {
            return Err(Refusal::field(at, format!("{at}: found no tokens, expected at least one")));
        }
        let asked = self.max_tokens.unwrap_or(1);
        if prompt.len().saturating_add(asked) > card.max_length {
            let error = mloc_engine::request::RequestError::TooLong {
                prompt: prompt.len(),
                answer: asked,
                max: card.max_length,
            };
            return Err(Refusal { param: Some(at.to_owned()), ..error.into() });
        }
        Ok(Request {
            prompt,
            adapter,
            choices: self.choices,
            best_of: self.best_of,
            // To score a prompt is to ask for no answer: one token is the least an engine computes.
            max_tokens: self.max_tokens.map(|most| most.max(1)),
            min_tokens: self.min_tokens,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            constraint,
        })
    }

    /// Events there can be of a request for a prompt of so many tokens.
    pub fn events_max(&self, prompt: usize, card: &Card) -> usize {
        let room = card.max_length.saturating_sub(prompt).max(1);
        let tokens = self.max_tokens.map_or(room, |most| most.clamp(1, room));
        2 + self.best_of * (tokens + 1)
    }
}
