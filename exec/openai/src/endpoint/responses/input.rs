//! A response's `input`: text, or items of a conversation, from which the chat template gets messages.

use serde_json::{Map, Value, json};

use crate::{
    fields::Reader,
    messages::text,
    refusal::Refusal,
    schema::{Problem, found, nearest},
};

pub(super) fn schema() -> Value {
    let item =
        json!({ "type": "object", "properties": { "type": { "type": "string" }, "role": { "type": "string" } } });
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": item, "minItems": 1 }],
        "description": "a string or a list of items" })
}

/// Messages. Calls in a row are one message of the assistant, with what it said and thought before them.
pub(super) fn read(reader: &mut Reader<'_>, most: usize) -> Vec<Value> {
    let items = match reader.get("input") {
        Some(Value::String(text)) => return vec![json!({ "role": "user", "content": text })],
        Some(Value::Array(items)) if items.len() > most => {
            let message = format!("found {} items, and this server takes {most}", items.len());
            reader.refuse(Refusal::over_limit("input", message));
            return Vec::new();
        }
        Some(Value::Array(items)) => items.as_slice(),
        _ => return Vec::new(),
    };
    let mut conversation = Conversation::default();
    let mut problems = Vec::new();
    for (index, item) in items.iter().enumerate() {
        conversation.item(item, &format!("input[{index}]"), &mut problems);
    }
    reader.problems().append(&mut problems);
    conversation.flush();
    conversation.messages
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    /// The assistant's message that may go on.
    open: Option<Map<String, Value>>,
}

impl Conversation {
    fn flush(&mut self) {
        if let Some(open) = self.open.take() {
            self.messages.push(Value::Object(open));
        }
    }

    fn assistant(&mut self) -> &mut Map<String, Value> {
        self.open.get_or_insert_with(|| {
            let mut message = Map::new();
            message.insert("role".into(), "assistant".into());
            message.insert("content".into(), "".into());
            message
        })
    }

    fn item(&mut self, item: &Value, at: &str, problems: &mut Vec<Problem>) {
        let kind = item["type"].as_str().unwrap_or("message");
        match kind {
            "message" => self.message(item, at, problems),
            "function_call" => {
                for name in ["call_id", "name", "arguments"] {
                    needs(item, name, at, problems);
                }
                let written = item["arguments"].as_str().unwrap_or_default();
                let arguments = serde_json::from_str(written).ok().filter(Value::is_object);
                let arguments =
                    arguments.unwrap_or_else(|| if written.trim().is_empty() { json!({}) } else { written.into() });
                let function = json!({ "name": item["name"], "arguments": arguments });
                let call = json!({ "id": item["call_id"], "type": "function", "function": function });
                let calls = self.assistant().entry("tool_calls").or_insert_with(|| json!([]));
                if let Value::Array(calls) = calls {
                    calls.push(call);
                }
            }
            "function_call_output" => {
                needs(item, "call_id", at, problems);
                if !item["output"].is_string() && !item["output"].is_array() {
                    let message =
                        format!("found {}, expected a string or a list of text parts", found(&item["output"]));
                    problems.push(Problem::new(format!("{at}.output"), message));
                }
                let output = text(&item["output"], &format!("{at}.output"), problems);
                self.flush();
                self.messages.push(json!({ "role": "tool", "tool_call_id": item["call_id"], "content": output }));
            }
            "reasoning" => {
                let parts =
                    item["content"].as_array().or(item["summary"].as_array()).map(Vec::as_slice).unwrap_or_default();
                let thought: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
                self.flush();
                let thought = thought.join("\n");
                if !thought.is_empty() {
                    self.assistant().insert("reasoning_content".into(), thought.into());
                }
            }
            other => {
                let known = ["message", "function_call", "function_call_output", "reasoning"];
                let message = format!(
                    "{other:?} is not supported, expected one of {}{}",
                    known.join(", "),
                    nearest(other, known.into_iter())
                );
                problems.push(Problem::new(format!("{at}.type"), message));
            }
        }
    }

    fn message(&mut self, item: &Value, at: &str, problems: &mut Vec<Problem>) {
        let roles = ["system", "developer", "user", "assistant"];
        let role = match item["role"].as_str() {
            Some(role) if roles.contains(&role) => role,
            _ => {
                let message = format!("found {}, expected one of {}", found(&item["role"]), roles.join(", "));
                return problems.push(Problem::new(format!("{at}.role"), message));
            }
        };
        if !item["content"].is_string() && !item["content"].is_array() {
            let message = format!("found {}, expected a string or a list of text parts", found(&item["content"]));
            problems.push(Problem::new(format!("{at}.content"), message));
        }
        let said = text(&item["content"], &format!("{at}.content"), problems);
        if role != "assistant" {
            self.flush();
            let role = if role == "developer" { "system" } else { role };
            return self.messages.push(json!({ "role": role, "content": said }));
        }
        // A thought before it belongs to it; another message or calls before it do not.
        if self.open.as_ref().is_some_and(|open| open["content"] != "" || open.contains_key("tool_calls")) {
            self.flush();
        }
        self.assistant().insert("content".into(), said.into());
    }
}

fn needs(item: &Value, name: &str, at: &str, problems: &mut Vec<Problem>) {
    if !item[name].is_string() {
        problems.push(Problem::new(format!("{at}.{name}"), format!("found {}, expected a string", found(&item[name]))));
    }
}
