//! Which chunks a question is about, by their metadata; asked before anything is ranked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::parse::Metadata;

/// Holds where each of its conditions does; without any, everywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filter(pub Vec<Condition>);

/// One field, and what is asked of it: all that is said must hold. A field with a list holds where one of it does.
///
/// Besides a document's own metadata and a record's there are `document_id` and `document_name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The field's name.
    pub field: String,
    /// It is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// It is one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub any_of: Option<Vec<Value>>,
    /// It is a number, at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gte: Option<f64>,
    /// It is a number above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    /// It is a number, at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lte: Option<f64>,
    /// It is a number below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
    /// It is there, or it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
}

impl Condition {
    /// About a field, asking nothing of it yet.
    pub fn on(field: &str) -> Self {
        Self { field: field.to_owned(), ..Self::default() }
    }

    /// It is a value.
    #[must_use]
    pub fn equals(self, value: impl Into<Value>) -> Self {
        Self { equals: Some(value.into()), ..self }
    }

    fn asks_a_value(&self) -> bool {
        let bounds = [self.gte, self.gt, self.lte, self.lt];
        self.equals.is_some() || self.any_of.is_some() || bounds.iter().any(Option::is_some)
    }

    fn value_holds(&self, value: &Value) -> bool {
        let number = value.as_f64();
        let bound = |bound: Option<f64>, holds: fn(f64, f64) -> bool| {
            bound.is_none_or(|bound| number.is_some_and(|number| holds(number, bound)))
        };
        self.equals.as_ref().is_none_or(|wanted| same(wanted, value))
            && self.any_of.as_ref().is_none_or(|wanted| wanted.iter().any(|wanted| same(wanted, value)))
            && bound(self.gte, |number, bound| number >= bound)
            && bound(self.gt, |number, bound| number > bound)
            && bound(self.lte, |number, bound| number <= bound)
            && bound(self.lt, |number, bound| number < bound)
    }

    fn holds(&self, value: Option<&Value>) -> bool {
        let there = value.filter(|value| !value.is_null());
        if self.exists.is_some_and(|wanted| wanted != there.is_some()) {
            return false;
        }
        !self.asks_a_value()
            || match there {
                Some(Value::Array(values)) => values.iter().any(|value| self.value_holds(value)),
                Some(value) => self.value_holds(value),
                None => false,
            }
    }
}

/// 1 is 1.0.
fn same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|one| other.as_f64() == Some(one))
}

impl Filter {
    /// What is wrong with it, as field and words.
    ///
    /// # Errors
    /// The first condition that asks nothing.
    pub fn check(&self) -> Result<(), (String, String)> {
        for (at, condition) in self.0.iter().enumerate() {
            if !condition.asks_a_value() && condition.exists.is_none() {
                let message = format!(
                    "nothing is asked of {:?}\nhint: equals, any_of, gte, gt, lte, lt or exists",
                    condition.field
                );
                return Err((format!("filter[{at}]"), message));
            }
        }
        Ok(())
    }

    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds for a record in a document; what the record says is nearer.
    pub fn holds(&self, document: &Metadata, record: Option<&Metadata>) -> bool {
        self.0.iter().all(|condition| {
            let near = record.and_then(|record| record.get(&condition.field));
            condition.holds(near.or_else(|| document.get(&condition.field)))
        })
    }
}
