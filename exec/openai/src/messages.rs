//! A chat's messages: from what clients write to what chat templates take.
//!
//! Text parts become one text, a line each. `developer` is `system`, which templates know. Arguments of earlier calls
//! are objects to a template, where clients write them as text.

use serde_json::{Map, Value, json};

use crate::{
    fields::{Field, Reader},
    refusal::Refusal,
    schema::{Problem, found, nearest},
};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The row.
pub fn field() -> Field {
    let part = json!({ "type": "object", "properties": { "type": { "type": "string" } }, "required": ["type"] });
    let content = json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": part }, { "type": "null" }],
        "description": "a string or a list of parts" });
    let function = json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "arguments": { "type": "string" } },
        "required": ["name", "arguments"],
    });
    let call = json!({
        "type": "object",
        "properties": { "id": { "type": "string" }, "type": { "enum": ["function"] }, "function": function },
        "required": ["function"],
    });
    let message = json!({
        "type": "object",
        "properties": {
            "role": { "type": "string" },
            "content": content,
            "name": { "type": ["string", "null"] },
            "refusal": { "type": ["string", "null"] },
            "tool_calls": { "type": ["array", "null"], "items": call },
            "tool_call_id": { "type": ["string", "null"] },
            "reasoning_content": { "type": ["string", "null"] },
            "reasoning": { "type": ["string", "null"] },
        },
        "required": ["role"],
    });
    Field::used("messages", json!({ "type": "array", "items": message, "minItems": 1 })).required()
}

/// What the template gets.
pub fn read(reader: &mut Reader<'_>, most: usize) -> Vec<Value> {
    let given = reader.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if given.len() > most {
        let message = format!("found {} messages, and this server takes {most}", given.len());
        reader.refuse(Refusal::over_limit("messages", message));
        return Vec::new();
    }
    let mut problems = Vec::new();
    let messages = given.iter().enumerate();
    let messages =
        messages.filter_map(|(index, message)| one(message.as_object()?, &format!("messages[{index}]"), &mut problems));
    let messages = messages.collect();
    reader.problems().append(&mut problems);
    messages
}

fn one(message: &Map<String, Value>, at: &str, problems: &mut Vec<Problem>) -> Option<Value> {
    let mut wrong = |field: &str, text: String| problems.push(Problem::new(format!("{at}.{field}"), text));
    let role = message.get("role")?.as_str()?;
    if !ROLES.contains(&role) {
        let hint = match role {
            "function" => "found \"function\", which is deprecated: use \"tool\" with a `tool_call_id`".to_owned(),
            _ => format!("found {role:?}, expected one of {}{}", ROLES.join(", "), nearest(role, ROLES.into_iter())),
        };
        wrong("role", hint);
        return None;
    }
    let given = |name: &str| message.get(name).filter(|value| !value.is_null());
    for name in message.keys() {
        let known =
            ["role", "content", "name", "refusal", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"];
        let idle = ["annotations", "audio", "function_call"];
        if idle.contains(&name.as_str()) && given(name).is_some_and(|v| v.as_array().is_none_or(|v| !v.is_empty())) {
            wrong(name, "not supported: leave it out; calls belong into `tool_calls`".into());
        } else if !known.contains(&name.as_str()) && !idle.contains(&name.as_str()) && given(name).is_some() {
            wrong(name, format!("there is no such field of a message{}", nearest(name, known.into_iter())));
        }
    }
    let calls = given("tool_calls").and_then(Value::as_array).filter(|calls| !calls.is_empty());
    if calls.is_some() && role != "assistant" {
        wrong("tool_calls", format!("found in a message of {role:?}: only an assistant calls tools"));
    }
    if role == "tool" && given("tool_call_id").is_none() {
        wrong("tool_call_id", "missing, expected the id of the call that this answers".into());
    }
    let mut rendered = Map::new();
    rendered.insert("role".into(), if role == "developer" { "system" } else { role }.into());
    let content = given("content").or(given("refusal"));
    match content {
        Some(content) => {
            let text = text(content, &format!("{at}.content"), problems);
            rendered.insert("content".into(), text.into());
        }
        None if role == "assistant"
            && (calls.is_some() || given("reasoning_content").or(given("reasoning")).is_some()) =>
        {
            rendered.insert("content".into(), "".into());
        }
        None => wrong("content", "missing, expected a string or a list of text parts".into()),
    }
    if let Some(calls) = calls {
        let calls = calls.iter().enumerate();
        let calls = calls.map(|(index, call)| called(call, &format!("{at}.tool_calls[{index}]"), problems));
        rendered.insert("tool_calls".into(), calls.collect());
    }
    for name in ["name", "tool_call_id"] {
        if let Some(value) = given(name) {
            rendered.insert(name.into(), value.clone());
        }
    }
    if let Some(reasoning) = given("reasoning_content").or(given("reasoning")) {
        rendered.insert("reasoning_content".into(), reasoning.clone());
    }
    Some(Value::Object(rendered))
}

/// A content's text: a string, or text parts, a line each.
pub fn text(content: &Value, at: &str, problems: &mut Vec<Problem>) -> String {
    let Value::Array(parts) = content else {
        return content.as_str().unwrap_or_default().to_owned();
    };
    let mut texts = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part["type"].as_str().unwrap_or_default();
        let said = match kind {
            "text" | "input_text" | "output_text" => &part["text"],
            "refusal" => &part["refusal"],
            other => {
                let message =
                    format!("{other:?} is not supported: this model reads text, so expected a part of type \"text\"");
                problems.push(Problem::new(format!("{at}[{index}].type"), message));
                continue;
            }
        };
        match said.as_str() {
            Some(said) => texts.push(said),
            None => problems
                .push(Problem::new(format!("{at}[{index}].text"), format!("found {}, expected a string", found(said)))),
        }
    }
    texts.join("\n")
}

fn called(call: &Value, at: &str, problems: &mut Vec<Problem>) -> Value {
    let function = &call["function"];
    let written = function["arguments"].as_str().unwrap_or_default();
    let arguments = if written.trim().is_empty() { Ok(json!({})) } else { serde_json::from_str::<Value>(written) };
    let arguments = match arguments {
        Ok(arguments) if arguments.is_object() => arguments,
        // The model wrote it so, and may be shown it so.
        _ => Value::from(written),
    };
    if function["name"].as_str().is_none_or(str::is_empty) {
        problems.push(Problem::new(format!("{at}.function.name"), "found an empty name, expected the function's"));
    }
    json!({ "id": call["id"], "type": "function", "function": { "name": function["name"], "arguments": arguments } })
}
