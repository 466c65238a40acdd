//! The fields of a request: one row each, and a reader that holds a body to them. What has no row is refused by name,
//! and so is what has one and no meaning here: nothing is silently ignored.

use serde_json::{Map, Value, json};

use crate::{
    refusal::Refusal,
    schema::{self, Problem},
};

/// Whose field it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// OpenAI's API.
    OpenAi,
    /// vLLM's additions to it.
    Vllm,
    /// Jina's and Cohere's rerank.
    Rerank,
}

/// What becomes of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Support {
    /// It does what its API says.
    Used,
    /// It is accepted and changes nothing: why that does no harm.
    NoEffect(&'static str),
    /// It is refused, but for values that ask for nothing.
    Refused {
        /// What would work instead, or why it can't.
        hint: &'static str,
        /// Values that ask for what happens anyway; null is always one.
        harmless: Vec<Value>,
    },
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Whose.
    pub origin: Origin,
    /// What becomes of it.
    pub support: Support,
    /// What it may hold, besides null; as [`schema`] reads it.
    pub schema: Value,
    /// Whether a request must have it.
    pub required: bool,
}

impl Field {
    /// A field that is used.
    pub fn used(name: &'static str, schema: Value) -> Self {
        Self { name, origin: Origin::OpenAi, support: Support::Used, schema, required: false }
    }

    /// A field that changes nothing.
    pub fn no_effect(name: &'static str, schema: Value, why: &'static str) -> Self {
        Self { support: Support::NoEffect(why), ..Self::used(name, schema) }
    }

    /// A field that is refused, but for the `harmless` values (a list).
    pub fn refused(name: &'static str, harmless: Value, hint: &'static str) -> Self {
        let harmless = harmless.as_array().cloned().unwrap_or_default();
        Self { support: Support::Refused { hint, harmless }, ..Self::used(name, json!({})) }
    }

    /// One of vLLM's.
    #[must_use]
    pub fn of_vllm(self) -> Self {
        Self { origin: Origin::Vllm, ..self }
    }

    /// One of Jina's and Cohere's.
    #[must_use]
    pub fn of_rerank(self) -> Self {
        Self { origin: Origin::Rerank, ..self }
    }

    /// One that a request must have.
    #[must_use]
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// The schema of what is accepted, for openapi.json.
    pub fn accepted(&self) -> Value {
        match &self.support {
            Support::Refused { harmless, .. } => {
                let mut values = harmless.clone();
                values.push(Value::Null);
                json!({ "enum": values })
            }
            _ if self.required => self.schema.clone(),
            _ => json!({ "anyOf": [self.schema, { "type": "null" }] }),
        }
    }
}

/// A body whose fields are known and of their kind. What is still wrong is collected until [`Reader::done`].
#[derive(Debug)]
pub struct Reader<'b> {
    map: &'b Map<String, Value>,
    problems: Vec<Problem>,
    /// What the first problem is refused as, but for its words.
    first: Refusal,
}

impl<'b> Reader<'b> {
    /// Holds a body to its fields.
    ///
    /// # Errors
    /// When the body is no object.
    pub fn new(body: &'b Value, fields: &[Field]) -> Result<Self, Refusal> {
        let Value::Object(map) = body else {
            let message = format!("the body is {}, expected a JSON object", schema::found(body));
            return Err(Refusal::new(axum::http::StatusCode::BAD_REQUEST, message));
        };
        let mut reader = Self { map, problems: Vec::new(), first: Refusal::field("", "") };
        for (name, value) in map {
            match fields.iter().find(|field| field.name == name) {
                Some(field) => reader.hold(field, value),
                None => {
                    let near = schema::nearest(name, fields.iter().map(|field| field.name));
                    reader.coded(name, format!("there is no such field{near}"), "unknown_parameter");
                }
            }
        }
        for field in fields.iter().filter(|field| field.required) {
            if map.get(field.name).is_none_or(Value::is_null) {
                let expected = schema::expected(&field.schema);
                reader.coded(field.name, format!("missing, expected {expected}"), "missing_required_parameter");
            }
        }
        Ok(reader)
    }

    fn hold(&mut self, field: &Field, value: &Value) {
        if value.is_null() {
            return;
        }
        match &field.support {
            Support::Refused { hint, harmless } if !harmless.contains(value) => {
                self.coded(field.name, format!("not supported: {hint}"), "unsupported_parameter");
            }
            Support::Refused { .. } => {}
            Support::Used | Support::NoEffect(_) => schema::check(&field.schema, value, field.name, &mut self.problems),
        }
    }

    fn coded(&mut self, at: &str, message: String, code: &'static str) {
        self.refuse(Refusal::field(at, message).with_code(code));
    }

    /// Notes that something is wrong.
    pub fn problem(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(at, message));
    }

    /// Notes a whole refusal as a problem of its field.
    pub fn refuse(&mut self, refusal: Refusal) {
        if self.problems.is_empty() {
            self.first = refusal.clone();
        }
        self.problem(refusal.param.unwrap_or_default(), refusal.message);
    }

    /// Where problems made by others go.
    pub fn problems(&mut self) -> &mut Vec<Problem> {
        &mut self.problems
    }

    /// A field's value, unless it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'b Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A boolean; absent, or of another kind (which is a problem already), is `otherwise`.
    pub fn flag(&self, name: &str, otherwise: bool) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Value::as_f64)
    }

    /// A whole number from 0.
    pub fn count(&self, name: &str) -> Option<usize> {
        self.get(name).and_then(count)
    }

    /// A string.
    pub fn text(&self, name: &str) -> Option<&'b str> {
        self.get(name).and_then(Value::as_str)
    }

    /// What was read, unless something was wrong: then every problem at once, the first one's field as `param`.
    ///
    /// # Errors
    /// The problems.
    pub fn done<T>(self, read: impl FnOnce() -> T) -> Result<T, Refusal> {
        let Some(first) = self.problems.first() else {
            return Ok(read());
        };
        let say = |problem: &Problem| {
            if problem.at.is_empty() { problem.message.clone() } else { format!("{}: {}", problem.at, problem.message) }
        };
        let message = self.problems.iter().map(say).collect::<Vec<_>>().join("; ");
        Err(Refusal { param: Some(first.at.clone()), message, ..self.first })
    }
}

/// A whole number from 0, be it written as a float.
pub fn count(value: &Value) -> Option<usize> {
    let wide = value.as_u64().or_else(|| value.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64))?;
    usize::try_from(wide).ok()
}
