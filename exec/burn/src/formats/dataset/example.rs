//! A row becomes an example.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::{Example, LoadOptions};
use crate::formats::chat_template::{self, Conversation};

/// What ShareGPT calls the speakers, and what templates do. The reference keeps its names, which no template knows.
const SPEAKERS: [(&str, &str); 4] =
    [("human", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"), ("bot", "assistant")];

/// What a row says: by the template, else by the columns it has.
pub(super) fn of(row: &Value, options: &LoadOptions) -> Result<Example, String> {
    if row.kind() != ValueKind::Map {
        return Err(format!("expected a JSON object, found {}", kind_of(row)));
    }
    if let Some(template) = &options.prompt_template {
        return template.fill(row).map(Example::Text);
    }
    let renamed = renamed(row, options)?;
    let row = renamed.as_ref().unwrap_or(row);
    let has = |name: &str| !column(row, name).is_undefined();
    if let Some(name) = ["messages", "conversations"].into_iter().find(|name| has(name)) {
        return Ok(Example::Messages(surrounded(conversation(name, &column(row, name))?, row)?));
    }
    if has("prompt") {
        return prompt_and_completion(row);
    }
    if has("instruction") && has("output") {
        return instruction(row);
    }
    let name = options.text_column.as_deref().unwrap_or("text");
    let text = column(row, name);
    match text.as_str() {
        Some(text) => Ok(Example::Text(text.to_owned())),
        None if text.is_undefined() && options.text_column.is_some() => Err(missing(name, row)),
        None if text.is_undefined() => Err(format!(
            "{}; a row has `messages` (or `conversations`), or `prompt` and `completion`, or `instruction` and `output`, \
             or `text` (hint: say which columns those are with preprocessing.columns, or set prompt_template to build a \
             text from other columns)",
            missing("messages", row)
        )),
        None => Err(format!("column `{name}` is {}, expected a string", kind_of(&text))),
    }
}

fn column(row: &Value, name: &str) -> Value {
    row.get_attr(name).unwrap_or_default()
}

/// The row with its columns under the names that count here; `None` where none has another name.
pub(super) fn renamed(row: &Value, options: &LoadOptions) -> Result<Option<Value>, String> {
    if options.columns.is_empty() {
        return Ok(None);
    }
    let mut kept: Vec<(String, Value)> = Vec::with_capacity(row.len().unwrap_or_default());
    for (ours, theirs) in &options.columns {
        let value = column(row, theirs);
        if value.is_undefined() {
            return Err(format!("preprocessing.columns.{ours}: {}", missing(theirs, row)));
        }
        kept.push((ours.clone(), value));
    }
    // What stands under a name that was given to another column, or was renamed, is out of the way.
    let taken = |name: &str| options.columns.iter().any(|(ours, theirs)| ours == name || theirs == name);
    for key in row.try_iter().into_iter().flatten() {
        let name = key.to_string();
        if !taken(&name) {
            kept.push((name, row.get_item(&key).unwrap_or_default()));
        }
    }
    Ok(Some(Value::from_pairs(kept)))
}

fn prompt_and_completion(row: &Value) -> Result<Example, String> {
    let (prompt, completion) = (column(row, "prompt"), column(row, "completion"));
    if completion.is_undefined() {
        return Err(missing("completion", row));
    }
    match (prompt.as_str(), completion.as_str()) {
        (Some(prompt), Some(completion)) => {
            Ok(Example::Continuation { prompt: prompt.to_owned(), completion: completion.to_owned() })
        }
        (None, None) => Ok(Example::Answer {
            prompt: surrounded(conversation("prompt", &prompt)?, row)?,
            completion: conversation("completion", &completion)?,
        }),
        _ => Err(format!(
            "column `prompt` is {} but `completion` is {}: both must be strings or both lists of messages",
            kind_of(&prompt),
            kind_of(&completion)
        )),
    }
}

/// Alpaca's columns; `input` and `system` may be empty or not there.
fn instruction(row: &Value) -> Result<Example, String> {
    let text = |name: &str| {
        let value = column(row, name);
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None if value.is_undefined() || value.is_none() => Ok(String::new()),
            None => Err(format!("column `{name}` is {}, expected a string", kind_of(&value))),
        }
    };
    let (system, input) = (text("system")?, text("input")?);
    Ok(Example::Instruction { system, instruction: text("instruction")?, input, output: text("output")? })
}

/// A list of messages: `role` and `content`, or ShareGPT's `from` and `value`.
pub(super) fn conversation(column: &str, value: &Value) -> Result<Conversation, String> {
    let spoken = match value.kind() {
        ValueKind::Seq => value.try_iter().map(|list| list.map(|message| spoken(&message)).collect::<Value>()).ok(),
        _ => None,
    };
    Conversation::from_value(spoken.as_ref().unwrap_or(value)).map_err(|e| {
        let text = e.to_string();
        format!("column `{column}`: {}", text.strip_prefix("messages: ").unwrap_or(&text))
    })
}

fn spoken(message: &Value) -> Value {
    if message.kind() != ValueKind::Map || message.get_attr("from").unwrap_or_default().is_undefined() {
        return message.clone();
    }
    let keys = message.try_iter().into_iter().flatten();
    Value::from_pairs(keys.map(|key| {
        let (name, value) = (key.to_string(), message.get_item(&key).unwrap_or_default());
        match (name.as_str(), value.as_str()) {
            ("from", Some(who)) => {
                let role = SPEAKERS.iter().find(|(theirs, _)| *theirs == who).map_or(who, |(_, role)| role);
                ("role".to_owned(), Value::from(role))
            }
            ("from", None) => ("role".to_owned(), value),
            ("value", _) => ("content".to_owned(), value),
            _ => (name, value),
        }
    }))
}

/// A conversation with what other columns of its row say to the template: `tools`, a list or JSON text of one, and
/// `chat_template_kwargs`, names of the template's own.
pub(super) fn surrounded(mut talk: Conversation, row: &Value) -> Result<Conversation, String> {
    let tools = column(row, "tools");
    talk = match (tools.kind(), tools.as_str()) {
        (ValueKind::Seq, _) => talk.with_tools(tools),
        (_, Some(json)) => talk.with_tools_json(json).map_err(|e| format!("column `tools`: {e}"))?,
        (ValueKind::Undefined | ValueKind::None, _) => talk,
        _ => return Err(format!("column `tools` is {}, expected a list or JSON text of one", kind_of(&tools))),
    };
    let variables = column(row, "chat_template_kwargs");
    Ok(match variables.kind() {
        ValueKind::Map => {
            let names = variables.try_iter().into_iter().flatten();
            let pairs = names.map(|name| (name.to_string(), variables.get_item(&name).unwrap_or_default()));
            talk.with_variables(pairs.collect())
        }
        _ => talk,
    })
}

/// That a column is not there, and which are; the nearest name where one is near.
pub(super) fn missing(column: &str, row: &Value) -> String {
    let there: Vec<String> = row.try_iter().map(|keys| keys.map(|k| k.to_string()).collect()).unwrap_or_default();
    let near = there.iter().map(|name| (changes(column, name), name)).min();
    let near = near.filter(|(changes, _)| *changes <= 1 + column.chars().count() / 4);
    let hint = near.map(|(_, name)| format!(" (hint: did you mean `{name}`?)")).unwrap_or_default();
    format!("no column `{column}`, found {}{hint}", if there.is_empty() { "none".to_owned() } else { there.join(", ") })
}

/// Characters to add, drop or change to make one name of the other (Levenshtein's distance).
fn changes(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().flat_map(char::to_lowercase).enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What a value is, for people.
pub(super) fn kind_of(value: &Value) -> &'static str {
    chat_template::plain_kind(value)
}
