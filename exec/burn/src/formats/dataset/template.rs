//! `prompt_template`: a text of any columns.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::DatasetError;
use super::example::{kind_of, missing};

/// A text with `{column}` placeholders. `{{` and `}}` stand for plain braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Plain(String),
    Column(String),
}

impl PromptTemplate {
    /// Reads a template. `...` and an empty text mean the data's own format: None.
    ///
    /// # Errors
    /// [`DatasetError::Template`]: no placeholder, or a brace without its partner.
    pub fn parse(source: &str) -> Result<Option<Self>, DatasetError> {
        if matches!(source.trim(), "" | "..." | "…") {
            return Ok(None);
        }
        let wrong = |text: String| Err(DatasetError::Template(text));
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let tail = &rest[at..];
            if tail.starts_with("{{") || tail.starts_with("}}") {
                plain.push_str(&tail[..1]);
                rest = &tail[2..];
            } else if tail.starts_with('}') {
                return wrong(format!(
                    "a `}}` without `{{` at character {} (hint: write `}}}}` for a plain brace)",
                    source.len() - tail.len()
                ));
            } else {
                let Some(end) = tail.find('}') else {
                    return wrong(format!("`{tail}` is never closed (hint: write `{{{{` for a plain brace)"));
                };
                let column = tail[1..end].trim();
                if column.is_empty() || column.contains('{') {
                    return wrong(format!("`{}` names no column", &tail[..=end]));
                }
                pieces.extend([Piece::Plain(std::mem::take(&mut plain)), Piece::Column(column.to_owned())]);
                rest = &tail[end + 1..];
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Plain(plain));
        if !pieces.iter().any(|p| matches!(p, Piece::Column(_))) {
            return wrong("it has no `{column}` placeholder, so every row would give the same text".into());
        }
        Ok(Some(Self { pieces }))
    }

    /// The text for a row: a column that is null gives nothing, numbers and truth values their usual text.
    pub(super) fn fill(&self, row: &Value) -> Result<String, String> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(text) => out.push_str(text),
                Piece::Column(name) => {
                    let value = row.get_attr(name).unwrap_or_default();
                    match value.kind() {
                        ValueKind::Undefined => return Err(missing(name, row)),
                        ValueKind::None => {}
                        ValueKind::String | ValueKind::Number | ValueKind::Bool => out.push_str(&value.to_string()),
                        _ => {
                            return Err(format!("column `{name}` is {}, expected a text or a number", kind_of(&value)));
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}
