//! `POST /v1/responses`
//!
//! Nothing is stored: a server may be one of several, and restart. Clients send the whole conversation as `input`, and
//! every response says `"store": false`.

mod input;
mod tell;

use mloc_engine::request::Constraint;
use serde_json::{Map, Value, json};

use super::{Chosen, Context, chat::refused, chat::thinking};
use crate::{
    answer::Reading,
    constraint,
    fields::{Field, Reader},
    generation::{self, Generation, LOGPROBS_MAX},
    grammar::{self, Around},
    limits::Limits,
    logprobs::shortest,
    model::{Card, Chat},
    refusal::Refusal,
    tell::Job,
    tools::{self, Shape, Tools},
};

/// Of vLLM's rows, those whose answers a response has no place for.
const NO_PLACE: [&str; 4] =
    ["prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "truncate_prompt_tokens"];

/// The fields.
pub fn fields() -> Vec<Field> {
    let text = || json!({ "type": "string" });
    let flag = || json!({ "type": "boolean" });
    let object = || json!({ "type": "object" });
    let format = json!({
        "type": "object",
        "properties": {
            "type": { "enum": ["text", "json_object", "json_schema"] },
            "name": { "type": "string", "maxLength": 64 },
            "description": { "type": ["string", "null"] },
            "schema": { "type": "object", "description": "a JSON schema" },
            "strict": { "type": ["boolean", "null"] },
        },
        "required": ["type"], "additionalProperties": false,
    });
    let words = json!({
        "type": "object",
        "properties": { "format": format, "verbosity": { "enum": ["medium", null] } },
        "additionalProperties": false,
    });
    let effort = json!({ "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max", null] });
    let reasoning = json!({
        "type": "object",
        "properties": {
            "effort": effort, "summary": { "enum": ["auto", "concise", "detailed", null] },
            "generate_summary": { "enum": ["auto", "concise", "detailed", null] },
        },
        "additionalProperties": false,
    });
    let include = json!({ "enum": ["message.output_text.logprobs", "reasoning.encrypted_content"] });
    let stream_options = json!({
        "type": "object", "properties": { "include_obfuscation": { "type": ["boolean", "null"] } },
        "additionalProperties": false,
    });
    let caches = "beginnings of prompts are cached while there is room";
    let caller = "requests are accounted for by the caller's token";
    let mut rows = vec![
        generation::model_field(),
        Field::used("input", input::schema()).required(),
        Field::used("instructions", text()),
        Field::used("max_output_tokens", json!({ "type": "integer", "minimum": 1 })),
        Field::used("temperature", json!({ "type": "number", "minimum": 0, "maximum": 100 })),
        Field::used("top_p", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        Field::used("top_logprobs", json!({ "type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX })),
        Field::used("include", json!({ "type": "array", "items": include })),
        Field::used("reasoning", reasoning),
        Field::used("text", words),
        Field::used("stream", flag()),
        Field::used("metadata", object()),
        Field::no_effect("stream_options", stream_options, "events are not padded"),
        Field::no_effect("store", flag(), "nothing is stored, and the response says so"),
        Field::no_effect("service_tier", text(), "there is one tier"),
        Field::no_effect("user", text(), caller),
        Field::no_effect("safety_identifier", text(), caller),
        Field::no_effect("prompt_cache_key", text(), caches),
        Field::no_effect("prompt_cache_retention", text(), caches),
        Field::no_effect("prompt_cache_options", object(), caches),
        Field::refused(
            "previous_response_id",
            json!([]),
            "no responses are stored: send the whole conversation as `input`",
        ),
        Field::refused("conversation", json!([]), "no conversations are stored: send the whole one as `input`"),
        Field::refused("background", json!([false]), "an answer is told while the client listens"),
        Field::refused("background_options", json!([]), "an answer is told while the client listens"),
        Field::refused("truncation", json!(["disabled"]), "a conversation is never cut: send what fits"),
        Field::refused("max_tool_calls", json!([]), "it bounds calls of built-in tools, of which there are none"),
        Field::refused("prompt", json!([]), "no prompts are stored: send it as `instructions` and `input`"),
        Field::refused("context_management", json!([[]]), "a conversation is never cut: send what fits"),
        Field::refused("moderation", json!([]), "this server moderates nothing"),
        Field::refused("image", json!([]), "this model writes text"),
        Field::refused("access_programs", json!([]), "they are OpenAI's own"),
    ];
    rows.extend(tools::fields(Shape::Flat));
    rows.extend(generation::vllm_fields().into_iter().filter(|field| !NO_PLACE.contains(&field.name)));
    rows.extend(constraint::vllm_fields());
    rows.push(Field::used("seed", json!({ "type": "integer" })).of_vllm());
    rows
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// All but the prompt.
    pub generation: Generation,
    /// What the template gets.
    pub chat: Chat,
    /// What may be called.
    pub tools: Tools,
    /// What the answer must look like.
    pub form: Option<Constraint>,
    /// Fields that a response repeats.
    pub repeated: Map<String, Value>,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let mut generation = generation::read(&mut reader, card, limits);
    generation.max_tokens = reader.count("max_output_tokens");
    let included = reader.get("include").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let wanted = included.contains(&json!("message.output_text.logprobs"));
    let top = reader.count("top_logprobs");
    generation.logprobs = (wanted || top.is_some_and(|top| top > 0)).then_some(top.unwrap_or(0));
    generation.check(&mut reader);
    let tools = tools::read(&mut reader, Shape::Flat, card.calls.is_some(), limits.tools);
    let mut form = constraint::read(&mut reader);
    if let Some(format) = reader.get("text").and_then(|text| text["format"].as_object()) {
        let own = constraint::response_format(format, "text.format", &mut reader);
        if own.is_some() && form.is_some() {
            reader.problem("text.format", "another field asks for something already: an answer can match one thing");
        }
        form = own.or(form);
    }
    let mut messages = input::read(&mut reader, limits.messages);
    if let Some(text) = reader.text("instructions") {
        messages.insert(0, json!({ "role": "system", "content": text }));
    }
    let effort = reader.get("reasoning").and_then(|reasoning| reasoning["effort"].as_str());
    let chat = Chat {
        messages,
        tools: tools.shown(),
        add_generation_prompt: true,
        continue_final_message: false,
        variables: effort.map(thinking).unwrap_or_default(),
    };
    let repeated = repeated(&reader, &generation);
    reader.done(|| Asked { generation, chat, tools, form, repeated })
}

/// What a response says of its request.
fn repeated(reader: &Reader<'_>, generation: &Generation) -> Map<String, Value> {
    let given = |name: &str, otherwise: Value| reader.get(name).cloned().unwrap_or(otherwise);
    let reasoning = given("reasoning", json!({}));
    let text = given("text", json!({}));
    let said = json!({
        "instructions": given("instructions", Value::Null),
        "max_output_tokens": given("max_output_tokens", Value::Null),
        "max_tool_calls": null,
        "metadata": given("metadata", json!({})),
        "parallel_tool_calls": given("parallel_tool_calls", true.into()),
        "previous_response_id": null,
        "reasoning": { "effort": reasoning["effort"], "summary": reasoning["summary"] },
        "safety_identifier": given("safety_identifier", Value::Null),
        "prompt_cache_key": given("prompt_cache_key", Value::Null),
        "service_tier": "default",
        "store": false,
        "background": false,
        "temperature": given("temperature", shortest(generation.sampling.temperature).into()),
        "top_p": given("top_p", shortest(generation.sampling.top_p).into()),
        "presence_penalty": shortest(generation.sampling.presence_penalty),
        "frequency_penalty": shortest(generation.sampling.frequency_penalty),
        "text": { "format": format(&text["format"]), "verbosity": "medium" },
        "tool_choice": given("tool_choice", "auto".into()),
        "tools": reader.get("tools").and_then(Value::as_array).map(|tools| tools.iter().map(tool).collect()).unwrap_or_else(|| json!([])),
        "top_logprobs": generation.logprobs.unwrap_or(0),
        "truncation": "disabled",
        "user": given("user", Value::Null),
    });
    match said {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A form with all its fields, as OpenAI repeats it.
fn format(given: &Value) -> Value {
    match given["type"].as_str() {
        None => json!({ "type": "text" }),
        Some("json_schema") => json!({
            "type": "json_schema", "name": given["name"], "description": given["description"],
            "schema": given["schema"], "strict": given["strict"].as_bool().unwrap_or(false),
        }),
        Some(_) => given.clone(),
    }
}

/// A tool with all its fields, as OpenAI repeats it.
fn tool(given: &Value) -> Value {
    json!({
        "type": "function", "name": given["name"], "description": given["description"],
        "parameters": given["parameters"], "strict": given["strict"].as_bool().unwrap_or(false),
    })
}

/// What is to be done: the conversation rendered, the request checked against its length.
///
/// # Errors
/// When the template refuses it, or it does not fit.
pub fn job(asked: Asked, chosen: Chosen, context: &Context) -> Result<Job, Refusal> {
    let Asked { generation, chat, tools, form, repeated } = asked;
    let card = context.model.card();
    generation.may_fit(chat.asked_bytes(), card, "input")?;
    let prompt = context.model.render(&chat).map_err(|error| refused(error, "input"))?;
    let around = Around { format: card.calls, markers: &card.markers, thinking: card.thinks && prompt.thinking };
    let constraint =
        grammar::of(form, &tools, around).map_err(|why| Refusal::field("structured_outputs.grammar", why))?;
    let request = generation.request(prompt.ids, chosen.adapter, constraint, card, "input")?;
    let events_max = generation.events_max(request.prompt.len(), card);
    let reading =
        Reading { thoughts: card.thinks.then_some(prompt.thinking), tell_thoughts: true, calls: card.calls, tools };
    let streamed = generation.stream.is_some();
    let teller = Box::new(tell::Teller::new(generation, &reading, repeated, chosen.name, context.clone()));
    Ok(Job { requests: vec![request], events_max, streamed, teller })
}
