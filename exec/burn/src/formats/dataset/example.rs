//! A row becomes an example.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::{Example, PromptTemplate};
use crate::formats::chat_template::{self, Conversation};

/// What a row says: by the template, else by the columns it has.
pub(super) fn of(row: &Value, template: Option<&PromptTemplate>) -> Result<Example, String> {
    if row.kind() != ValueKind::Map {
        return Err(format!("expected a JSON object, found {}", kind_of(row)));
    }
    if let Some(template) = template {
        return template.fill(row).map(Example::Text);
    }
    let column = |name: &str| row.get_attr(name).unwrap_or_default();
    if !column("messages").is_undefined() {
        let mut talk = conversation("messages", &column("messages"))?;
        let tools = column("tools");
        if tools.kind() == ValueKind::Seq {
            talk = talk.with_tools(tools);
        }
        return Ok(Example::Messages(talk));
    }
    if !column("prompt").is_undefined() {
        return prompt_and_completion(row);
    }
    let text = column("text");
    match text.as_str() {
        Some(text) => Ok(Example::Text(text.to_owned())),
        None if text.is_undefined() => Err(format!(
            "{}; a row has `messages`, or `prompt` and `completion`, or `text` (hint: set prompt_template to build a \
             text from other columns)",
            missing("messages", row)
        )),
        None => Err(format!("column `text` is {}, expected a string", kind_of(&text))),
    }
}

fn prompt_and_completion(row: &Value) -> Result<Example, String> {
    let prompt = row.get_attr("prompt").unwrap_or_default();
    let completion = row.get_attr("completion").unwrap_or_default();
    if completion.is_undefined() {
        return Err(missing("completion", row));
    }
    match (prompt.as_str(), completion.as_str()) {
        (Some(prompt), Some(completion)) => {
            Ok(Example::Continuation { prompt: prompt.to_owned(), completion: completion.to_owned() })
        }
        (None, None) => Ok(Example::Answer {
            prompt: conversation("prompt", &prompt)?,
            completion: conversation("completion", &completion)?,
        }),
        _ => Err(format!(
            "column `prompt` is {} but `completion` is {}: both must be strings or both lists of messages",
            kind_of(&prompt),
            kind_of(&completion)
        )),
    }
}

pub(super) fn conversation(column: &str, value: &Value) -> Result<Conversation, String> {
    Conversation::from_value(value).map_err(|e| {
        let text = e.to_string();
        format!("column `{column}`: {}", text.strip_prefix("messages: ").unwrap_or(&text))
    })
}

/// That a column is not there, and which are.
pub(super) fn missing(column: &str, row: &Value) -> String {
    let there: Vec<String> = row.try_iter().map(|keys| keys.map(|k| k.to_string()).collect()).unwrap_or_default();
    format!("no column `{column}`, found {}", if there.is_empty() { "none".to_owned() } else { there.join(", ") })
}

/// What a value is, for people.
pub(super) fn kind_of(value: &Value) -> &'static str {
    chat_template::plain_kind(value)
}
