//! The functions a model may call, and whether it must.

use serde_json::{Map, Value, json};

use crate::{
    fields::{Field, Reader},
    refusal::Refusal,
    schema::nearest,
};

/// A function on offer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Map<String, Value>,
    /// Whether a call's arguments match it to the letter, whether or not a call must come.
    pub strict: bool,
    /// As the model is shown it: `{"type": "function", "function": {…}}`.
    pub shown: Value,
}

/// Whether functions are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// They are not, nor is the model shown them.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// At least one must be.
    Required,
    /// This one must be.
    Named(String),
}

/// Functions, meant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// On offer.
    pub offered: Vec<Tool>,
    /// Whether they are called.
    pub choice: Choice,
    /// Whether one answer may have several calls.
    pub parallel: bool,
}

impl Tools {
    /// Whether the answer's text is read for calls.
    pub fn read_for_calls(&self) -> bool {
        !self.offered.is_empty() && self.choice != Choice::None
    }

    /// What the chat template is given.
    pub fn shown(&self) -> Option<Vec<Value>> {
        self.read_for_calls().then(|| self.offered.iter().map(|tool| tool.shown.clone()).collect())
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.offered.iter().map(|tool| tool.name.clone()).collect()
    }
}

/// How a request writes functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{"type": "function", "function": {"name": …}}`, in chats.
    Nested,
    /// `{"type": "function", "name": …}`, in responses.
    Flat,
}

fn function() -> Value {
    json!({
        "name": { "type": "string", "minLength": 1, "maxLength": 64 },
        "description": { "type": ["string", "null"] },
        "parameters": { "type": ["object", "null"], "description": "a JSON schema" },
        "strict": { "type": ["boolean", "null"] },
    })
}

/// The rows.
pub fn fields(shape: Shape) -> Vec<Field> {
    let kind = json!({ "type": "string" });
    let (tool, named) = match shape {
        Shape::Nested => {
            let function = json!({
                "type": "object", "properties": function(), "required": ["name"], "additionalProperties": false,
            });
            let named = json!({
                "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"],
                "additionalProperties": false,
            });
            (
                json!({ "type": kind, "function": function }),
                json!({ "type": { "enum": ["function"] }, "function": named }),
            )
        }
        Shape::Flat => {
            let mut flat = function();
            flat["type"] = kind;
            (flat, json!({ "type": { "enum": ["function"] }, "name": { "type": "string" } }))
        }
    };
    let needs = if shape == Shape::Nested { json!(["type", "function"]) } else { json!(["type", "name"]) };
    let tool = json!({ "type": "object", "properties": tool, "required": ["type"] });
    let named = json!({ "type": "object", "properties": named, "required": needs, "additionalProperties": false });
    let choice = json!({ "anyOf": [{ "enum": ["none", "auto", "required"] }, named],
        "description": "\"none\", \"auto\", \"required\" or an object that names a function" });
    vec![
        Field::used("tools", json!({ "type": "array", "items": tool })),
        Field::used("tool_choice", choice),
        Field::used("parallel_tool_calls", json!({ "type": "boolean" })),
    ]
}

/// What the request's fields mean. `able`: whether the model's template takes tools.
pub fn read(reader: &mut Reader<'_>, shape: Shape, able: bool, most: usize) -> Tools {
    let given = reader.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let choice = choice(reader, shape);
    if given.len() > most {
        let message = format!("found {} tools, and this server takes {most}", given.len());
        reader.refuse(Refusal::over_limit("tools", message));
        return Tools::default();
    }
    if !given.is_empty() && !able && choice != Choice::None {
        let hint = "not supported by this model: its chat template takes no tools; leave them out, or serve a model that calls tools";
        reader.refuse(Refusal::unsupported("tools", hint));
    }
    let mut offered: Vec<Tool> = Vec::new();
    for (index, tool) in given.iter().enumerate() {
        if let Some(tool) = one(tool, index, shape, reader) {
            if offered.iter().any(|other| other.name == tool.name) {
                reader.problem(format!("tools[{index}]"), format!("there is a function {:?} already", tool.name));
            }
            offered.push(tool);
        }
    }
    match &choice {
        Choice::Required if offered.is_empty() => {
            reader.problem("tool_choice", "\"required\" needs `tools` to choose from");
        }
        Choice::Named(name) if !offered.iter().any(|tool| tool.name == *name) => {
            let near = nearest(name, offered.iter().map(|tool| tool.name.as_str()));
            reader.problem("tool_choice", format!("no function {name:?} is among `tools`{near}"));
        }
        _ => {}
    }
    Tools { offered, choice, parallel: reader.flag("parallel_tool_calls", true) }
}

fn choice(reader: &Reader<'_>, shape: Shape) -> Choice {
    match reader.get("tool_choice") {
        Some(Value::String(word)) => match word.as_str() {
            "none" => Choice::None,
            "required" => Choice::Required,
            _ => Choice::Auto,
        },
        Some(named) => {
            let name = if shape == Shape::Nested { &named["function"]["name"] } else { &named["name"] };
            name.as_str().map_or(Choice::Auto, |name| Choice::Named(name.into()))
        }
        None => Choice::Auto,
    }
}

fn one(tool: &Value, index: usize, shape: Shape, reader: &mut Reader<'_>) -> Option<Tool> {
    let kind = tool["type"].as_str()?;
    if kind != "function" {
        let message = format!("{kind:?} is not supported: only \"function\" is, which the client runs itself");
        reader.refuse(Refusal::unsupported(format!("tools[{index}].type"), message));
        return None;
    }
    let (at, function) = match shape {
        Shape::Nested => (format!("tools[{index}].function"), &tool["function"]),
        Shape::Flat => (format!("tools[{index}]"), tool),
    };
    let Some(name) = function["name"].as_str() else {
        reader.problem(format!("{at}.name"), "missing, expected the function's name");
        return None;
    };
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')) {
        reader.problem(format!("{at}.name"), format!("found {name:?}, expected letters, digits, `_`, `-` and `.`"));
    }
    let parameters = function["parameters"].as_object().cloned().unwrap_or_else(|| {
        let none = json!({ "type": "object", "properties": {} });
        none.as_object().cloned().unwrap_or_default()
    });
    let strict = function["strict"] == true;
    let mut shown = function.as_object().cloned().unwrap_or_default();
    // The server's business, not the model's.
    shown.shift_remove("strict");
    if shape == Shape::Flat {
        shown.shift_remove("type");
    }
    let shown = json!({ "type": "function", "function": shown });
    Some(Tool { name: name.to_owned(), parameters, strict, shown })
}
