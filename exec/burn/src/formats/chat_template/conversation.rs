//! What a template is given: messages, tools and names of its own.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::{TemplateError, plain_kind};

/// The names under which data has a message's reasoning. Templates read the first, some the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation as templates see it: a list of `{role, content, …}` objects, and the tools on offer.
///
/// Keys keep the order in which they were written, because templates print tool definitions as JSON and the model
/// sees the order. That is why this is read from JSON text and not from a sorted map.
#[derive(Debug, Clone)]
pub struct Conversation {
    pub(super) messages: Vec<Value>,
    pub(super) tools: Option<Value>,
    /// Names of the template's own, such as `enable_thinking`.
    pub(super) variables: Vec<(String, Value)>,
}

impl Conversation {
    /// A conversation of plain text turns, `(role, content)`.
    pub fn from_turns<'a>(turns: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let messages = turns
            .into_iter()
            .map(|(role, content)| Value::from_pairs([("role", role), ("content", content)]))
            .collect();
        Self { messages, tools: None, variables: Vec::new() }
    }

    /// Reads a JSON list of messages. Each must be an object with a string `role`.
    ///
    /// # Errors
    /// [`TemplateError::Messages`] says which message is wrong and how.
    pub fn from_json(json: &str) -> Result<Self, TemplateError> {
        let value: Value = serde_json::from_str(json).map_err(|e| TemplateError::Messages(e.to_string()))?;
        Self::from_value(&value)
    }

    /// The same from a value that was already read; see [`Conversation::from_json`].
    ///
    /// # Errors
    /// [`TemplateError::Messages`] says which message is wrong and how.
    pub fn from_value(value: &Value) -> Result<Self, TemplateError> {
        let wrong = |text: String| Err(TemplateError::Messages(text));
        if value.kind() != ValueKind::Seq {
            return wrong(format!("expected a list of messages, found {}", plain_kind(value)));
        }
        let listed: Vec<Value> = value.try_iter().map_err(|e| TemplateError::Messages(e.to_string()))?.collect();
        if listed.is_empty() {
            return wrong("the list is empty".into());
        }
        let mut messages = Vec::with_capacity(listed.len());
        for (index, message) in listed.iter().enumerate() {
            if message.kind() != ValueKind::Map {
                return wrong(format!("message {index} is {}, expected an object", plain_kind(message)));
            }
            let message = normalised(message);
            let role = message.get_attr("role").unwrap_or_default();
            if role.as_str().is_none() {
                return wrong(format!("message {index} has no `role` that is a string"));
            }
            let content = message.get_attr("content").unwrap_or_default();
            // Content may be absent (a message that only calls tools) or a list of parts; a number is a mistake.
            if matches!(content.kind(), ValueKind::Number | ValueKind::Bool | ValueKind::Map) {
                return wrong(format!("message {index}: `content` is {}, expected a string", plain_kind(&content)));
            }
            let says = |name: &str| !message.get_attr(name).unwrap_or_default().is_undefined();
            if !["content", "tool_calls"].iter().chain(&REASONING).any(|name| says(name)) {
                return wrong(format!("message {index} has no `content`"));
            }
            messages.push(message);
        }
        Ok(Self { messages, tools: None, variables: Vec::new() })
    }

    /// Adds the tools a template may describe to the model: a JSON list of function definitions.
    ///
    /// # Errors
    /// [`TemplateError::Messages`] when it is not JSON.
    pub fn with_tools_json(mut self, json: &str) -> Result<Self, TemplateError> {
        let tools = serde_json::from_str(json).map_err(|e| TemplateError::Messages(format!("tools: {e}")))?;
        self.tools = Some(tools);
        Ok(self)
    }

    /// The same from a value that was already read.
    #[must_use]
    pub fn with_tools(mut self, tools: Value) -> Self {
        self.tools = Some(tools);
        self
    }

    /// Adds names that the template may read, such as `enable_thinking`; they win over those that are always there.
    #[must_use]
    pub fn with_variables(mut self, variables: Vec<(String, Value)>) -> Self {
        self.variables = variables;
        self
    }

    /// Whether tools are on offer, be it an empty list of them.
    pub fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// This conversation with `more` after it; the tools stay.
    #[must_use]
    pub fn followed_by(&self, more: &Conversation) -> Self {
        let messages = self.messages.iter().chain(&more.messages).cloned().collect();
        self.saying(messages)
    }

    fn saying(&self, messages: Vec<Value>) -> Self {
        Self { messages, tools: self.tools.clone(), variables: self.variables.clone() }
    }

    /// Takes the last message off: (all before it, it). None when nothing would be left before it.
    pub fn split_last(&self) -> Option<(Self, Self)> {
        let (last, before) = self.messages.split_last()?;
        if before.is_empty() {
            return None;
        }
        let last = Self { messages: vec![last.clone()], tools: None, variables: Vec::new() };
        Some((self.saying(before.to_vec()), last))
    }

    /// How many messages two conversations begin with alike.
    pub fn common_start(&self, other: &Self) -> usize {
        self.messages.iter().zip(&other.messages).take_while(|(mine, its)| mine == its).count()
    }

    /// The first `count` messages with the tools, and the others.
    pub fn split_at(&self, count: usize) -> (Self, Self) {
        let (first, rest) = self.messages.split_at(count.min(self.messages.len()));
        (self.saying(first.to_vec()), Self { messages: rest.to_vec(), tools: None, variables: Vec::new() })
    }

    /// The role of the last message, empty when there is none.
    pub fn last_role(&self) -> String {
        self.messages.last().map(role_of).unwrap_or_default()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// `(role, content)` of each message, content empty where it is not a plain string.
    pub fn turns(&self) -> Vec<(String, String)> {
        let text = |m: &Value| m.get_attr("content").ok().and_then(|c| c.as_str().map(str::to_owned));
        self.messages.iter().map(|m| (role_of(m), text(m).unwrap_or_default())).collect()
    }
}

/// A message as the reference library hands it to a template.
fn normalised(message: &Value) -> Value {
    let keys = message.try_iter().into_iter().flatten();
    let named = |key: Value| (key.to_string(), message.get_item(&key).unwrap_or_default());
    let mut kept: Vec<(String, Value)> = keys.map(named).filter(|(_, value)| !value.is_none()).collect();
    let find = |kept: &[(String, Value)], name: &str| kept.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone());
    let [first, second, _] = REASONING;
    if let Some(reasoning) = REASONING.iter().find_map(|name| find(&kept, name)) {
        for name in [second, first] {
            if find(&kept, name).is_none() {
                kept.push((name.to_owned(), reasoning.clone()));
            }
        }
    }
    Value::from_pairs(kept)
}

fn role_of(message: &Value) -> String {
    message.get_attr("role").ok().and_then(|r| r.as_str().map(str::to_owned)).unwrap_or_default()
}
