//! Every field of every request is used, accepted without effect, or refused by name: a table, and what becomes of each
//! row of it.

mod scripted;

use mloc_openai::{
    Limits,
    endpoint::{chat, completions, embeddings, rerank, responses, tokenize},
    fields::{Field, Origin, Support},
};
use scripted::{Scripted, answer, card, error_of, server};
use serde_json::{Value, json};

/// A request that is right, and the fields it can have.
fn endpoints() -> Vec<(&'static str, Value, Vec<Field>)> {
    let messages = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    vec![
        ("/v1/chat/completions", messages.clone(), chat::fields()),
        ("/v1/completions", json!({ "prompt": "Hi" }), completions::fields()),
        ("/v1/responses", json!({ "input": "Hi" }), responses::fields()),
        ("/v1/embeddings", json!({ "input": "Hi" }), embeddings::fields()),
        ("/v1/rerank", json!({ "query": "a", "documents": ["a", "b"] }), rerank::fields()),
        ("/tokenize", messages, tokenize::fields()),
    ]
}

#[test]
fn the_table() {
    let mut told = String::new();
    for (path, _, fields) in endpoints() {
        told.push_str(&format!("{path}\n"));
        for field in fields {
            let origin = match field.origin {
                Origin::OpenAi => "",
                Origin::Vllm => " (vLLM)",
                Origin::Rerank => " (Jina, Cohere)",
            };
            let becomes = match field.support {
                Support::Used => "used".to_owned(),
                Support::NoEffect(why) => format!("no effect: {why}"),
                Support::Refused { hint, harmless } if harmless.is_empty() => format!("refused: {hint}"),
                Support::Refused { hint, harmless } => format!("refused but for {}: {hint}", Value::from(harmless)),
            };
            told.push_str(&format!("  {}{origin}: {becomes}\n", field.name));
        }
    }
    insta::assert_snapshot!(told);
}

#[test]
fn no_field_has_two_rows() {
    for (path, _, fields) in endpoints() {
        for field in &fields {
            assert_eq!(fields.iter().filter(|other| other.name == field.name).count(), 1, "{path} {}", field.name);
        }
    }
}

/// A value of a schema.
fn example(field: &Field) -> Value {
    match field.name {
        "messages" => json!([{ "role": "user", "content": "Hi" }]),
        "tools" => json!([{ "type": "function", "name": "f", "function": { "name": "f" } }]),
        "tool_choice" => json!("auto"),
        "response_format" => json!({ "type": "json_object" }),
        "structured_outputs" => json!({ "choice": ["a"] }),
        "guided_json" => json!({ "type": "object" }),
        "logit_bias" => json!({ "65": -100 }),
        "include" => json!(["message.output_text.logprobs"]),
        "top_logprobs" => json!(0),
        "dimensions" => json!(2),
        "input" | "prompt" => json!("Hi"),
        "model" => json!("script"),
        "add_generation_prompt" => json!(true),
        "min_tokens" => json!(1),
        "text" => json!({ "format": { "type": "text" } }),
        _ => from_schema(&field.schema),
    }
}

fn from_schema(schema: &Value) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[0].clone();
    }
    let schema = schema["anyOf"].get(0).unwrap_or(schema);
    match schema["type"].as_str().unwrap_or_default() {
        "boolean" => json!(false),
        "number" | "integer" => schema.get("maximum").or(schema.get("minimum")).cloned().unwrap_or(json!(3)),
        "array" => json!([from_schema(&schema["items"])]),
        "object" => json!({}),
        _ => json!("text"),
    }
}

#[tokio::test]
async fn what_becomes_of_each_field() {
    let server = server(&Scripted::new(card(), vec![]), Limits::default());
    for (path, right, fields) in endpoints() {
        let line = format!("POST {path}");
        for field in &fields {
            let with = |value: Value| {
                let mut body = right.clone();
                if field.name == "prompt" && path == "/tokenize" {
                    body = json!({});
                }
                body[field.name] = value;
                match field.name {
                    "stream_options" => body["stream"] = json!(true),
                    "top_logprobs" if path == "/v1/chat/completions" => body["logprobs"] = json!(true),
                    "best_of" => body["n"] = json!(1),
                    "continue_final_message" => body["add_generation_prompt"] = json!(false),
                    _ => {}
                }
                body
            };
            match &field.support {
                Support::Used | Support::NoEffect(_) => {
                    let body = with(example(field));
                    let (status, text) = answer(&server, &line, &body).await;
                    assert_eq!(status, 200, "{path} {}: {text}\n{body}", field.name);
                    let wrong = with(json!([[["?"]]]));
                    if !field.schema.as_object().is_none_or(|schema| schema.is_empty()) {
                        let error = error_of(&server, &line, &wrong).await;
                        assert!(
                            error.starts_with("400 ") && error.contains(&format!("[{}", field.name)),
                            "{path}: {error}"
                        );
                    }
                }
                Support::Refused { hint, harmless } => {
                    let error = error_of(&server, &line, &with(json!({ "never": "harmless" }))).await;
                    let expected = format!(
                        "400 invalid_request_error unsupported_parameter [{0}] {0}: not supported: {hint}",
                        field.name
                    );
                    assert_eq!(error, expected, "{path}");
                    for value in harmless {
                        let (status, text) = answer(&server, &line, &with(value.clone())).await;
                        assert_eq!(status, 200, "{path} {}: {text}", field.name);
                    }
                }
            }
            if !field.required && !["messages", "prompt"].contains(&field.name) {
                let (status, text) = answer(&server, &line, &with(Value::Null)).await;
                assert_eq!(status, 200, "null is as good as absent: {path} {}: {text}", field.name);
            }
        }
        let mut body = right.clone();
        body["temprature"] = json!(1);
        let error = error_of(&server, &line, &body).await;
        assert!(error.starts_with("400 invalid_request_error unknown_parameter [temprature]"), "{error}");
    }
}
