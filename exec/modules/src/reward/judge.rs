//! Functions that look at a text.

use mloc_core::task::reward::{Judge, LengthUnit};
use mloc_exec::ModuleError;
use regex::Regex;
use serde_json::Value;

use super::Asked;

/// A function that needs nothing but the completion and its row.
pub enum OfText {
    Regex(Regex),
    ExactMatch { column: String },
    Json { keys: Vec<String> },
    Length { min: Option<u32>, max: Option<u32>, unit: LengthUnit },
}

impl OfText {
    /// The function of a task.
    ///
    /// # Errors
    /// What is no function of a text.
    pub fn of(judge: &Judge) -> Result<Self, String> {
        match judge {
            Judge::Regex { pattern } => Regex::new(pattern).map(Self::Regex).map_err(|e| e.to_string()),
            Judge::ExactMatch { column } => Ok(Self::ExactMatch { column: column.clone() }),
            Judge::Json { keys } => Ok(Self::Json { keys: keys.clone() }),
            Judge::Length { min, max, unit } => Ok(Self::Length { min: *min, max: *max, unit: *unit }),
            Judge::Model | Judge::Command { .. } => Err(format!("`{}` is no function of a text", judge.name())),
        }
    }

    /// The reward of a completion.
    ///
    /// # Errors
    /// A column that is not there.
    pub fn judge(&self, asked: &Asked<'_>) -> Result<Option<f64>, ModuleError> {
        let truth = |truth: bool| Ok(Some(f64::from(u8::from(truth))));
        match self {
            Self::Regex(pattern) => truth(pattern.is_match(asked.text)),
            Self::ExactMatch { column } => match asked.row.columns.get(column) {
                Some(Value::Null) => Ok(None),
                Some(value) => truth(text_of(value).is_some_and(|wanted| wanted.trim() == asked.text.trim())),
                None => {
                    let there: Vec<&str> = asked.row.columns.keys().map(String::as_str).collect();
                    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                    Err(ModuleError::Fatal(format!("no column `{column}` in the data, found {there}")))
                }
            },
            Self::Json { keys } => match serde_json::from_str::<Value>(asked.text) {
                Ok(value) => truth(keys.iter().all(|key| value.get(key).is_some())),
                Err(_) => truth(false),
            },
            Self::Length { min, max, unit } => {
                let length = match unit {
                    LengthUnit::Characters => asked.text.chars().count(),
                    LengthUnit::Tokens => asked.completion.len(),
                } as f64;
                let (min, max) = (min.map(f64::from), max.map(f64::from));
                Ok(Some(match (min, max) {
                    (Some(min), _) if length < min => length / min,
                    (_, Some(max)) if length > max => max / length,
                    _ => 1.0,
                }))
            }
        }
    }
}

/// A column's value as the text that a completion would have to be; a conversation's is its last message's.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Array(messages) => Some(messages.last()?.get("content")?.as_str()?.to_owned()),
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use mloc_burn::formats::dataset::{Prompt, PromptRow};
    use serde_json::json;

    use super::*;

    fn judged(judge: &Judge, text: &str, columns: Value) -> Result<Option<f64>, String> {
        let columns = columns.as_object().cloned().unwrap_or_default();
        let row = PromptRow { prompt: Prompt::Text("p".into()), columns };
        let asked = Asked { row: &row, prompt: &[1], completion: &[2, 3, 4], text };
        OfText::of(judge)?.judge(&asked).map_err(|e| e.to_string())
    }

    #[test]
    fn each_function_says_what_it_is_for() {
        let regex = Judge::Regex { pattern: "^mloc [a-z]+$".into() };
        assert_eq!(judged(&regex, "mloc task", json!({})), Ok(Some(1.0)));
        assert_eq!(judged(&regex, "mloc task 7", json!({})), Ok(Some(0.0)));

        let exact = Judge::ExactMatch { column: "answer".into() };
        assert_eq!(judged(&exact, " 42\n", json!({"answer": 42})), Ok(Some(1.0)));
        assert_eq!(judged(&exact, "42", json!({"answer": "43"})), Ok(Some(0.0)));
        assert_eq!(judged(&exact, "yes", json!({"answer": [{"role": "assistant", "content": "yes"}]})), Ok(Some(1.0)));
        assert_eq!(judged(&exact, "42", json!({"answer": null})), Ok(None), "nothing to compare with");
        let missing = judged(&exact, "42", json!({"question": 1}));
        assert_eq!(missing, Err("no column `answer` in the data, found question".into()));

        let object = Judge::Json { keys: vec!["name".into()] };
        assert_eq!(judged(&object, "{\"name\": 1}", json!({})), Ok(Some(1.0)));
        assert_eq!(judged(&object, "[1]", json!({})), Ok(Some(0.0)));
        assert_eq!(judged(&Judge::Json { keys: vec![] }, "[1]", json!({})), Ok(Some(1.0)));
        assert_eq!(judged(&Judge::Json { keys: vec![] }, "[1", json!({})), Ok(Some(0.0)));

        let characters = Judge::Length { min: Some(4), max: Some(8), unit: LengthUnit::Characters };
        for (text, wanted) in [("äö", 0.5), ("12345", 1.0), ("1234567890123456", 0.5)] {
            assert_eq!(judged(&characters, text, json!({})), Ok(Some(wanted)), "{text}");
        }
        let tokens = Judge::Length { min: None, max: Some(2), unit: LengthUnit::Tokens };
        assert_eq!(judged(&tokens, "x", json!({})), Ok(Some(2.0 / 3.0)), "three tokens");
    }
}
