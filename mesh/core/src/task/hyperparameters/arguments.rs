//! Arguments below a hyperparameter: `lr_scheduler_kwargs` as a map, `optim_args` as a text.

use serde_json::{Map, Value};

use crate::task::problem::{nearest, show};

/// The greatest number below 1, for bounds that leave 1 out.
pub(super) const BELOW_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

/// What is wrong with one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    /// Its name; empty for all of them.
    pub name: String,
    /// What stands there.
    pub found: String,
    /// What could.
    pub expected: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// Reads arguments by name; what nobody asked for is wrong.
pub(super) struct Arguments<'a> {
    given: &'a Map<String, Value>,
    asked: Vec<&'static str>,
    wrong: Vec<Wrong>,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(given: &'a Map<String, Value>) -> Self {
        Self { given, asked: Vec::new(), wrong: Vec::new() }
    }

    fn of(&mut self, name: &'static str) -> Option<&'a Value> {
        self.asked.push(name);
        self.given.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|value| !value.is_null())
    }

    /// A number in these bounds, both included.
    pub(super) fn number(&mut self, name: &'static str, least: f64, most: f64) -> Option<f64> {
        let value = self.of(name)?;
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let expected = match (least, most) {
                (least, f64::MAX) if least == f64::MIN_POSITIVE => "a number above 0".to_owned(),
                (least, f64::MAX) => format!("a number, at least {least}"),
                (least, most) if most == BELOW_ONE => format!("a number from {least} to below 1"),
                (least, most) => format!("a number from {least} to {most}"),
            };
            self.refuse(name, &show(&value.to_string()), &expected);
        }
        number
    }

    /// A whole number of at least `least`.
    pub(super) fn count(&mut self, name: &'static str, least: u64) -> Option<u64> {
        let value = self.of(name)?;
        let whole = |v: f64| (v.fract() == 0.0 && (0.0..=9e15).contains(&v)).then_some(v as u64);
        let count = value.as_u64().or_else(|| whole(value.as_f64()?)).filter(|count| *count >= least);
        if count.is_none() {
            self.refuse(name, &show(&value.to_string()), &format!("a whole number, at least {least}"));
        }
        count
    }

    pub(super) fn truth(&mut self, name: &'static str) -> Option<bool> {
        let value = self.of(name)?;
        if !value.is_boolean() {
            self.refuse(name, &show(&value.to_string()), "true or false");
        }
        value.as_bool()
    }

    /// One of some words; its place among them.
    pub(super) fn choice(&mut self, name: &'static str, words: &[&str]) -> Option<usize> {
        let value = self.of(name)?;
        let place = words.iter().position(|word| value == word);
        if place.is_none() {
            self.refuse(name, &show(&value.to_string()), &format!("one of {}", words.join(", ")));
        }
        place
    }

    /// Something else that is wrong.
    pub(super) fn refuse(&mut self, name: &str, found: &str, expected: &str) {
        let (name, found, expected) = (name.to_owned(), found.to_owned(), expected.to_owned());
        self.wrong.push(Wrong { name, found, expected, hint: None });
    }

    /// `value`, if nothing is wrong and nothing is unknown. `of` is what the arguments belong to.
    pub(super) fn finish<T>(mut self, of: &str, value: T) -> Result<T, Vec<Wrong>> {
        for name in self.given.keys().filter(|name| !self.asked.contains(&name.as_str())) {
            let expected = match self.asked.as_slice() {
                [] => format!("no arguments: {of} takes none"),
                names => format!("an argument of {of}: {}", names.join(", ")),
            };
            let hint = nearest(name, self.asked.iter().copied()).map(|near| format!("did you mean `{near}`?"));
            self.wrong.push(Wrong {
                name: name.clone(),
                found: format!("the unknown name {}", show(name)),
                expected,
                hint,
            });
        }
        if self.wrong.is_empty() { Ok(value) } else { Err(self.wrong) }
    }
}
