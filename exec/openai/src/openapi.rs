//! openapi.json, made of the same rows that requests are held to.

use serde_json::{Map, Value, json};

use crate::{
    endpoint::{adapters, chat, completions, embeddings, rerank, responses, tokenize},
    fields::{Field, Origin, Support},
    server,
};

/// What is at a path.
struct Operation {
    summary: &'static str,
    fields: Option<Vec<Field>>,
    /// Type and schema of the answer.
    answer: (&'static str, Value),
    /// Whether `stream: true` makes it server-sent events.
    streams: bool,
}

fn operation(path: &str) -> Operation {
    const JSON: &str = "application/json";
    let object = |fields: &[(&str, &str)]| {
        let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        let properties: Map<String, Value> =
            fields.iter().map(|(name, kind)| ((*name).to_owned(), json!({ "type": kind }))).collect();
        json!({ "type": "object", "properties": properties, "required": required })
    };
    let created = [
        ("id", "string"),
        ("object", "string"),
        ("created", "integer"),
        ("model", "string"),
        ("choices", "array"),
        ("usage", "object"),
    ];
    let text = ("text/plain", json!({ "type": "string" }));
    let post = |summary, fields, answer, streams| Operation { summary, fields: Some(fields), answer, streams };
    let get = |summary, answer| Operation { summary, fields: None, answer, streams: false };
    match path {
        "/v1/chat/completions" => post("Continues a conversation", chat::fields(), (JSON, object(&created)), true),
        "/v1/completions" => post("Continues prompts", completions::fields(), (JSON, object(&created)), true),
        "/v1/responses" => {
            let answer = object(&[("id", "string"), ("object", "string"), ("status", "string"), ("output", "array")]);
            post("Answers, in items", responses::fields(), (JSON, answer), true)
        }
        "/v1/embeddings" => {
            let answer = object(&[("object", "string"), ("data", "array"), ("model", "string"), ("usage", "object")]);
            post("Makes embeddings", embeddings::fields(), (JSON, answer), false)
        }
        "/v1/rerank" | "/rerank" | "/v2/rerank" => {
            let answer = object(&[("id", "string"), ("model", "string"), ("results", "array")]);
            post("Ranks documents by how well they answer a query", rerank::fields(), (JSON, answer), false)
        }
        "/tokenize" => {
            let answer = object(&[("count", "integer"), ("max_model_len", "integer"), ("tokens", "array")]);
            post("Gives a text's token ids", tokenize::fields(), (JSON, answer), false)
        }
        "/detokenize" => {
            post("Gives the text of token ids", tokenize::back_fields(), (JSON, object(&[("prompt", "string")])), false)
        }
        "/tokenizer_info" => {
            let text = json!({ "type": ["string", "null"] });
            let names = ["bos_token", "eos_token", "pad_token", "chat_template"];
            let properties: Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
            get(
                "Tells of the tokenizer",
                (JSON, json!({ "type": "object", "properties": properties, "required": names })),
            )
        }
        "/v1/load_lora_adapter" => post("Loads an adapter", adapters::fields(), text, false),
        "/v1/unload_lora_adapter" => post("Lets an adapter go", adapters::out_fields(), text, false),
        "/v1/models" => {
            get("Lists the model and its adapters", (JSON, object(&[("object", "string"), ("data", "array")])))
        }
        "/v1/models/{*model}" => get(
            "Tells of a model or adapter",
            (JSON, object(&[("id", "string"), ("object", "string"), ("created", "integer")])),
        ),
        "/metrics" => {
            get("For Prometheus, under vLLM's names", ("application/openmetrics-text", json!({ "type": "string" })))
        }
        "/version" => get("This server's version", (JSON, object(&[("version", "string")]))),
        "/openapi.json" => get("This document", (JSON, json!({ "type": "object" }))),
        _ => get("Whether it can answer", ("", Value::Null)),
    }
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for (method, path) in server::paths() {
        let told = described(path, operation(path));
        paths.insert(path.replace("{*model}", "{model}"), json!({ method.as_str().to_lowercase(): told }));
    }
    let error = json!({
        "type": "object",
        "properties": { "error": {
            "type": "object",
            "properties": {
                "message": { "type": "string" }, "type": { "type": "string" },
                "param": { "type": ["string", "null"] }, "code": { "type": ["string", "null"] },
            },
            "required": ["message", "type", "param", "code"],
        } },
        "required": ["error"],
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "MLOC serving", "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API with vLLM's additions. Every field of a request is listed: used, without effect, or refused.",
        },
        "paths": paths,
        "components": { "schemas": { "Error": error } },
    })
}

fn described(path: &str, operation: Operation) -> Value {
    let Operation { summary, fields, answer: (kind, schema), streams } = operation;
    let mut content = Map::new();
    if !kind.is_empty() {
        content.insert(kind.to_owned(), json!({ "schema": schema }));
    }
    if streams {
        content.insert("text/event-stream".into(), json!({ "schema": { "type": "string" } }));
    }
    let mut right = json!({ "description": "Done" });
    if !content.is_empty() {
        right["content"] = Value::Object(content);
    }
    let wrong = json!({ "$ref": "#/components/schemas/Error" });
    let wrong = json!({ "description": "Not done: why, and what would work", "content": { "application/json": { "schema": wrong } } });
    let mut told =
        json!({ "summary": summary, "operationId": name(path), "responses": { "200": right, "default": wrong } });
    if let Some(fields) = fields {
        told["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": body(&fields) } } });
    }
    if path.contains('{') {
        told["parameters"] =
            json!([{ "name": "model", "in": "path", "required": true, "schema": { "type": "string" } }]);
    }
    told
}

fn name(path: &str) -> String {
    let letters = path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>();
    letters.trim_matches('_').replace("__", "_")
}

fn body(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|field| (field.name.to_owned(), property(field))).collect();
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn property(field: &Field) -> Value {
    let mut schema = field.accepted();
    let said = match &field.support {
        Support::Used => None,
        Support::NoEffect(why) => Some(format!("Accepted without effect: {why}.")),
        Support::Refused { hint, .. } => Some(format!("Not supported: {hint}.")),
    };
    if let Some(said) = said {
        schema["description"] = said.into();
    }
    match field.origin {
        Origin::OpenAi => {}
        Origin::Vllm => schema["x-origin"] = "vLLM".into(),
        Origin::Rerank => schema["x-origin"] = "Jina, Cohere".into(),
    }
    schema
}
