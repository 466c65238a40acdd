//! Arguments against a tool's schema. Nothing outside the schema is fetched for it.

use std::fmt;

use jsonschema::Validator;
use serde_json::Value;

use crate::event::ToolSpec;

/// Mistakes that are told at once: the first few are enough to see what was meant.
const TOLD_MAX: usize = 5;
/// Bytes of a schema that is shown with a mistake.
const SHOWN_BYTES: usize = 2000;
/// Bytes of one mistake: a value that is wrong is in it.
const MISTAKE_BYTES: usize = 300;

/// What a tool's arguments must be.
pub struct Arguments {
    /// The tool is idempotent.
    pub idempotent: bool,
    schema: Value,
    validator: Result<Validator, String>,
}

impl Arguments {
    /// Of a tool.
    pub fn of(tool: &ToolSpec) -> Self {
        Self { idempotent: tool.idempotent, schema: tool.schema.clone(), validator: compile(&tool.schema) }
    }

    /// Whether they fit.
    ///
    /// # Errors
    /// What does not, a line each.
    pub fn check(&self, arguments: &Value) -> Result<(), String> {
        let validator = self.validator.as_ref().map_err(|e| format!("the tool's own schema is broken: {e}"))?;
        let mut mistakes = validator.iter_errors(arguments).map(|mistake| {
            let path = mistake.instance_path().to_string();
            let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
            format!("- {place}{}", cut(&mistake.to_string(), MISTAKE_BYTES))
        });
        let told: Vec<String> = mistakes.by_ref().take(TOLD_MAX).collect();
        match (told.is_empty(), mistakes.count()) {
            (true, _) => Ok(()),
            (false, 0) => Err(told.join("\n")),
            (false, more) => Err(format!("{}\n- and {more} more", told.join("\n"))),
        }
    }

    /// What would fit, for a model.
    pub fn wanted(&self) -> String {
        format!("its schema: {}", cut(&self.schema.to_string(), SHOWN_BYTES))
    }
}

/// A schema, made ready.
///
/// # Errors
/// What is wrong with it.
pub fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::options().offline().build(schema).map_err(|e| cut(&e.to_string(), MISTAKE_BYTES))
}

fn cut(text: &str, bytes: usize) -> String {
    match text.len() <= bytes {
        true => text.to_owned(),
        false => format!("{}…", &text[..text.floor_char_boundary(bytes)]),
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arguments").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(schema: Value) -> Arguments {
        Arguments::of(&ToolSpec { name: "t".into(), description: String::new(), schema, idempotent: false })
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let schema = json!({
            "type": "object",
            "properties": { "query": { "type": "string" }, "top": { "type": "integer", "maximum": 10 } },
            "required": ["query"],
            "additionalProperties": false,
        });
        let tool = arguments(schema);
        assert_eq!(tool.check(&json!({ "query": "x", "top": 3 })), Ok(()));
        let told = [
            "- /top: 99 is greater than the maximum of 10",
            "- Additional properties are not allowed ('limit' was unexpected)",
            "- \"query\" is a required property",
        ];
        assert_eq!(tool.check(&json!({ "top": 99, "limit": 1 })).unwrap_err(), told.join("\n"));
        assert_eq!(tool.check(&json!({ "query": 1 })).unwrap_err(), "- /query: 1 is not of type \"string\"");
    }

    #[test]
    fn what_is_outside_a_schema_is_not_fetched() {
        let found = compile(&json!({ "$ref": "http://127.0.0.1:1/schema.json" }));
        assert!(found.is_err());
        assert!(arguments(json!({ "type": 3 })).check(&json!({})).unwrap_err().contains("the tool's own schema"));
    }
}
