//! Typed reads of config.json; `null` counts as absent.

use serde_json::Value;

use super::ConfigError;

/// The keys of one JSON object.
#[derive(Clone, Copy)]
pub struct Keys<'a>(pub &'a Value);

impl<'a> Keys<'a> {
    /// A key's value, where it has one.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there at all, even as `null`.
    pub fn has(self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    /// A number.
    pub fn number(self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        let wrong = |value: &Value| ConfigError::Key { key, problem: format!("expected a number, found {value}") };
        self.get(key).map(|value| value.as_f64().ok_or_else(|| wrong(value))).transpose()
    }

    /// A word of these, by its meaning.
    ///
    /// # Errors
    /// Another word, with those that would work.
    pub fn one_of<T: Copy>(self, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let Some(found) = self.text(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == found) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
                Err(ConfigError::Key { key, problem: format!("{found:?}; known are {known}") })
            }
        }
    }

    /// A number above 0, or `default` where the key is not there; `null` says that there is none.
    pub fn positive_or(self, key: &'static str, default: Option<f64>) -> Result<Option<f64>, ConfigError> {
        match self.number(key)? {
            Some(number) if number > 0.0 => Ok(Some(number)),
            Some(number) => Err(ConfigError::Key { key, problem: format!("{number}; expected more than 0") }),
            None if self.has(key) => Ok(None),
            None => Ok(default),
        }
    }

    /// A positive whole number.
    pub fn optional_size(self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        let size = |value: &Value| match value.as_u64() {
            // A bound, so that products of two sizes cannot overflow.
            Some(n) if (1..=1 << 31).contains(&n) => Ok(n as usize),
            _ => Err(ConfigError::Key { key, problem: format!("expected a positive whole number, found {value}") }),
        };
        self.get(key).map(size).transpose()
    }

    /// A whole number, 0 included.
    pub fn count(self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        let wrong =
            |value: &Value| ConfigError::Key { key, problem: format!("expected a whole number, found {value}") };
        self.get(key).map(|value| value.as_u64().map(|n| n as usize).ok_or_else(|| wrong(value))).transpose()
    }

    /// A positive whole number that must be there.
    pub fn size(self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Key { key, problem: "is missing".into() })
    }

    /// Whether it is true; anything else counts as false.
    pub fn flag(self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// As [`Self::flag`], where the key is not there `default`.
    pub fn flag_or(self, key: &str, default: bool) -> bool {
        self.get(key).map_or(default, |value| value.as_bool().unwrap_or(false))
    }

    /// The class in `architectures`, where there is one.
    pub fn class(self) -> Option<&'a str> {
        self.0.pointer("/architectures/0").and_then(Value::as_str)
    }

    /// A text.
    pub fn text(self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// What a flag that changes the computation must not say here.
    ///
    /// # Errors
    /// Where it is true.
    pub fn must_not_be_set(self, key: &'static str, why: &str) -> Result<(), ConfigError> {
        match self.flag(key) {
            true => Err(ConfigError::Key { key, problem: format!("true; {why}") }),
            false => Ok(()),
        }
    }
}
