//! What an answer must match: `response_format`, vLLM's `structured_outputs` and its older `guided_*`.

use mloc_engine::request::Constraint;
use serde_json::{Map, Value, json};

use crate::{
    fields::{Field, Reader},
    schema::found,
};

/// Rows of vLLM's.
pub fn vllm_fields() -> Vec<Field> {
    let schema = json!({ "anyOf": [{ "type": "object" }, { "type": "string" }], "description": "a JSON schema" });
    let text = json!({ "type": "string", "minLength": 1 });
    let texts = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 10_000 });
    let outputs = json!({
        "type": "object",
        "properties": {
            "json": schema, "regex": text, "choice": texts, "grammar": text, "json_object": { "type": "boolean" },
            "disable_fallback": { "type": "boolean" },
        },
        "additionalProperties": false,
    });
    let one_backend = "there is one backend";
    vec![
        Field::used("structured_outputs", outputs).of_vllm(),
        Field::used("guided_json", schema).of_vllm(),
        Field::used("guided_regex", text.clone()).of_vllm(),
        Field::used("guided_choice", texts).of_vllm(),
        Field::used("guided_grammar", text).of_vllm(),
        Field::no_effect("guided_decoding_backend", json!({ "type": "string" }), one_backend).of_vllm(),
        Field::refused(
            "guided_whitespace_pattern",
            json!([]),
            "JSON has a space or the end of a line between its parts",
        )
        .of_vllm(),
        Field::refused("structural_tag", json!([]), "use tools, or structured_outputs.grammar").of_vllm(),
    ]
}

/// The row of OpenAI's for chats.
pub fn response_format_field() -> Field {
    let kinds = json!({
        "type": "object",
        "properties": {
            "type": { "enum": ["text", "json_object", "json_schema"] },
            "json_schema": {
                "type": "object",
                "properties": {
                    "name": { "type": "string", "maxLength": 64 },
                    "description": { "type": ["string", "null"] },
                    "schema": { "type": "object", "description": "a JSON schema" },
                    "strict": { "type": ["boolean", "null"] },
                },
                "required": ["schema"],
                "additionalProperties": false,
            },
        },
        "required": ["type"],
        "additionalProperties": false,
    });
    Field::used("response_format", kinds)
}

/// What the request's fields ask for; two of them that do are a problem.
pub fn read(reader: &mut Reader<'_>) -> Option<Constraint> {
    let mut asked: Vec<(&str, Constraint)> = Vec::new();
    if let Some(format) = reader.get("response_format").and_then(Value::as_object) {
        asked.extend(response_format(format, "response_format", reader).map(|found| ("response_format", found)));
    }
    if let Some(outputs) = reader.get("structured_outputs").and_then(Value::as_object) {
        for (name, value) in outputs {
            let at = format!("structured_outputs.{name}");
            asked.extend(one(name, value, &at, reader).map(|found| ("structured_outputs", found)));
        }
    }
    for (field, name) in
        [("guided_json", "json"), ("guided_regex", "regex"), ("guided_choice", "choice"), ("guided_grammar", "grammar")]
    {
        if let Some(value) = reader.get(field) {
            asked.extend(one(name, value, field, reader).map(|found| (field, found)));
        }
    }
    if let [(first, _), (second, _), ..] = asked[..] {
        reader.problem(second, format!("{first} asks for something already: an answer can match one thing"));
    }
    asked.into_iter().next().map(|(_, found)| found)
}

/// OpenAI's format object, be it in a chat or (flat) in a response.
pub fn response_format(format: &Map<String, Value>, at: &str, reader: &mut Reader<'_>) -> Option<Constraint> {
    match format.get("type").and_then(Value::as_str)? {
        "json_object" => Some(Constraint::JsonObject),
        "json_schema" => {
            let schema = format.get("schema").or_else(|| format.get("json_schema")?.get("schema"));
            // An object without one is a problem of its schema already.
            if schema.is_none() && !format.contains_key("json_schema") {
                let inner = if at == "response_format" { "json_schema" } else { "schema" };
                reader.problem(format!("{at}.{inner}"), "missing, expected the JSON schema that an answer must match");
            }
            schema.filter(|schema| schema.is_object()).cloned().map(Constraint::JsonSchema)
        }
        _ => None,
    }
}

fn one(name: &str, value: &Value, at: &str, reader: &mut Reader<'_>) -> Option<Constraint> {
    match (name, value) {
        ("json", Value::Object(_)) => Some(Constraint::JsonSchema(value.clone())),
        ("json", Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(schema) if schema.is_object() => Some(Constraint::JsonSchema(schema)),
            Ok(other) => {
                reader.problem(at, format!("the text holds {}, expected a JSON schema", found(&other)));
                None
            }
            Err(error) => {
                reader.problem(at, format!("the text is no JSON: {error}"));
                None
            }
        },
        ("json_object", Value::Bool(true)) => Some(Constraint::JsonObject),
        ("regex", Value::String(text)) => Some(Constraint::Regex(text.clone())),
        ("grammar", Value::String(text)) if text.contains("::=") => {
            reader
                .problem(at, "this looks like GBNF (`root ::= …`), expected a grammar in Lark's notation (`start: …`)");
            None
        }
        ("grammar", Value::String(text)) => Some(Constraint::Lark(text.clone())),
        ("choice", Value::Array(texts)) => {
            Some(Constraint::Choice(texts.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
        }
        _ => None,
    }
}
