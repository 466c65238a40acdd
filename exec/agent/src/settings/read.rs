//! Fields of a section, taken one by one: each that is missing, wrong or unknown is a problem, and reading goes on.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Problem, names};

/// A section that is being read.
pub(super) struct Fields<'a> {
    path: String,
    found: Option<&'a Map<String, Value>>,
    known: Vec<String>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Fields<'a> {
    pub fn of(path: &str, value: &'a Value, problems: &'a mut Vec<Problem>) -> Self {
        let mut fields = Self { path: path.to_owned(), found: value.as_object(), known: Vec::new(), problems };
        if fields.found.is_none() {
            fields.problem("", format!("{} is no section", shown(value)), "write its fields below it");
        }
        fields
    }

    /// A section below this one.
    pub fn below<'b>(&'b mut self, name: &str, value: &'b Value) -> Fields<'b> {
        let path = self.at(name);
        Fields::of(&path, value, self.problems)
    }

    /// A field that may be left out.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, wanted: &str) -> Option<T> {
        self.known.push(name.to_owned());
        let value = self.found?.get(name).filter(|value| !value.is_null())?;
        match serde_json::from_value(value.clone()) {
            Ok(read) => Some(read),
            Err(e) => {
                self.problem(name, format!("{}: {e}", shown(value)), &format!("write {wanted}"));
                None
            }
        }
    }

    /// With what holds when it is left out.
    pub fn or<T: DeserializeOwned>(&mut self, name: &str, wanted: &str, default: T) -> T {
        self.take(name, wanted).unwrap_or(default)
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str, wanted: &str) -> Option<T> {
        let is_there = self.found.is_some_and(|found| found.get(name).is_some_and(|value| !value.is_null()));
        if self.found.is_some() && !is_there {
            self.problem(name, "it is missing".into(), &format!("write {wanted}"));
        }
        self.take(name, wanted)
    }

    /// A number with a least value.
    pub fn at_least(&mut self, name: &str, least: u64, default: u64) -> u64 {
        let wanted = format!("a whole number, {least} or more");
        let found = self.or(name, &wanted, default);
        if found < least {
            self.problem(name, found.to_string(), &format!("write {wanted}"));
        }
        found
    }

    /// An address that must be there.
    pub fn url(&mut self, name: &str) -> Option<String> {
        let found: String = self.need(name, "an address with http:// or https://")?;
        match reqwest::Url::parse(&found) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(found),
            Ok(_) | Err(_) => {
                self.problem(name, format!("`{found}` is no address"), "write one with http:// or https://");
                None
            }
        }
    }

    /// A tool's name.
    pub fn name(&mut self) -> Option<String> {
        let found: String = self.need("name", "a name")?;
        if names::is_allowed(&found) {
            return Some(found);
        }
        self.problem("name", format!("`{found}`"), "write up to 64 letters, digits, - and _");
        None
    }

    pub fn problem(&mut self, name: &str, found: String, hint: &str) {
        let path = self.at(name);
        self.problems.push(Problem { path, found, hint: hint.to_owned() });
    }

    /// All is read: what is left is unknown.
    pub fn end(mut self) {
        let Some(found) = self.found else { return };
        for name in found.keys().filter(|name| !self.known.contains(name)).cloned().collect::<Vec<_>>() {
            let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
            let hint = match names::nearest(&name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are: {}", known.join(", ")),
            };
            self.problem(&name, "there is no such field".into(), &hint);
        }
    }

    fn at(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, true) => "settings".to_owned(),
            (true, false) => name.to_owned(),
            (false, true) => self.path.clone(),
            (false, false) => format!("{}.{name}", self.path),
        }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.len() <= 80 {
        true => text,
        false => format!("{}…", &text[..text.floor_char_boundary(80)]),
    }
}
