//! The part of JSON Schema in which request fields are described, and what is wrong with a value by it. One description
//! serves as check, as error text and as openapi.json.
//!
//! Known: `type`, `enum`, `anyOf`, `minimum`, `maximum`, `minLength`, `maxLength`, `minItems`, `maxItems`, `items`,
//! `properties`, `required`, `additionalProperties` as a boolean. A `description` replaces the words made of all that.

use serde_json::Value;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path: `messages[2].role`.
    pub at: String,
    /// What was found and what would work.
    pub message: String,
}

impl Problem {
    /// A problem at a path.
    pub fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into() }
    }
}

/// Problems a value has, at most this many of one list.
const PROBLEMS_MAX: usize = 5;

/// Everything that is wrong with `value` at `at`.
pub fn check(schema: &Value, value: &Value, at: &str, problems: &mut Vec<Problem>) {
    if let Some(ways) = schema["anyOf"].as_array() {
        return any_of(schema, ways, value, at, problems);
    }
    if !is_of(schema, value) {
        problems.push(Problem::new(at, format!("found {}, expected {}", found(value), expected(schema))));
        return;
    }
    match value {
        Value::Array(items) => {
            let before = problems.len();
            for (index, item) in items.iter().enumerate() {
                if schema["items"].is_object() && problems.len() - before < PROBLEMS_MAX {
                    check(&schema["items"], item, &format!("{at}[{index}]"), problems);
                }
            }
        }
        Value::Object(map) => {
            let inner = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    let expected = expected(&schema["properties"][name]);
                    problems.push(Problem::new(inner(name), format!("missing, expected {expected}")));
                }
            }
            for (name, value) in map {
                let known = &schema["properties"][name.as_str()];
                if known.is_object() {
                    check(known, value, &inner(name), problems);
                } else if schema["additionalProperties"] == Value::Bool(false) {
                    let names = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
                    problems.push(Problem::new(inner(name), format!("there is no such field{}", nearest(name, names))));
                }
            }
        }
        _ => {}
    }
}

/// The problems of the way that comes closest, where one is clearly meant.
fn any_of(schema: &Value, ways: &[Value], value: &Value, at: &str, problems: &mut Vec<Problem>) {
    let mut closest: Option<Vec<Problem>> = None;
    for way in ways {
        let mut own = Vec::new();
        check(way, value, at, &mut own);
        if own.is_empty() {
            return;
        }
        if own.iter().all(|problem| problem.at != at) {
            closest = closest.filter(|other| other.len() <= own.len()).or(Some(own));
        }
    }
    match closest {
        Some(own) => problems.extend(own),
        None => problems.push(Problem::new(at, format!("found {}, expected {}", found(value), expected(schema)))),
    }
}

fn is_of(schema: &Value, value: &Value) -> bool {
    let kind = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        // As JSON Schema has it: 1.0 is an integer.
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let of_type = match &schema["type"] {
        Value::String(name) => kind(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(kind),
        _ => true,
    };
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let bound = |name: &str| schema[name].as_f64();
    let size = match value {
        Value::Number(n) => (n.as_f64(), "minimum", "maximum"),
        Value::String(text) => (Some(text.chars().count() as f64), "minLength", "maxLength"),
        Value::Array(items) => (Some(items.len() as f64), "minItems", "maxItems"),
        _ => (None, "", ""),
    };
    let (Some(size), least, most) = size else {
        return of_type && listed;
    };
    of_type && listed && bound(least).is_none_or(|least| size >= least) && bound(most).is_none_or(|most| size <= most)
}

/// What was found, in a few words.
pub fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("{text:?}"),
        Value::String(text) => format!("a string of {} characters", text.chars().count()),
        Value::Array(items) => match items.len() {
            0 => "an empty list".into(),
            1 => "a list of 1 item".into(),
            n => format!("a list of {n} items"),
        },
        Value::Object(map) if map.is_empty() => "an empty object".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// What would work, in a few words.
pub fn expected(schema: &Value) -> String {
    if let Some(words) = schema["description"].as_str() {
        return words.to_owned();
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return ways.iter().map(expected).collect::<Vec<_>>().join(" or ");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
    }
    let range = |least: &str, most: &str, unit: &str| match (schema[least].as_f64(), schema[most].as_f64()) {
        (Some(least), Some(most)) if least == most => format!(" of {most}{unit}"),
        (Some(least), Some(most)) => format!(" of {least} to {most}{unit}"),
        (Some(least), None) => format!(" of at least {least}{unit}"),
        (None, Some(most)) => format!(" of at most {most}{unit}"),
        (None, None) => String::new(),
    };
    let name = |name: &str| match name {
        "boolean" => "true or false".to_owned(),
        "number" => format!("a number{}", range("minimum", "maximum", "")),
        "integer" => format!("a whole number{}", range("minimum", "maximum", "")),
        "string" if schema["minLength"] == 1 && schema["maxLength"].is_null() => "a string that isn't empty".to_owned(),
        "string" => format!("a string{}", range("minLength", "maxLength", " characters")),
        "array" if schema["minItems"] == 1 && schema["maxItems"].is_null() => {
            format!("a list that isn't empty{}", plural(&schema["items"]))
        }
        "array" => {
            let items = if schema["items"].is_object() { plural(&schema["items"]) } else { String::new() };
            format!("a list{}{items}", range("minItems", "maxItems", " items"))
        }
        "object" => "an object".to_owned(),
        other => other.to_owned(),
    };
    match &schema["type"] {
        Value::String(one) => name(one),
        Value::Array(several) => several.iter().filter_map(Value::as_str).map(name).collect::<Vec<_>>().join(" or "),
        _ => "a value".into(),
    }
}

fn plural(items: &Value) -> String {
    match items["type"].as_str() {
        Some("string") => ", all strings".into(),
        Some("integer") => ", all whole numbers".into(),
        Some("object") => ", all objects".into(),
        Some("array") => ", all lists".into(),
        _ => String::new(),
    }
}

/// `: did you mean …?`, where a known name is near.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let length = name.chars().count();
    let near = known.map(|other| (strsim::damerau_levenshtein(name, other), other)).min();
    match near {
        Some((distance, other)) if distance <= 1 + length / 4 && distance < length => {
            format!(": did you mean {other:?}?")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Value, value: Value) -> String {
        let mut problems = Vec::new();
        check(&schema, &value, "x", &mut problems);
        problems.iter().map(|p| format!("{}: {}", p.at, p.message)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn says_what_was_found_and_what_would_work() {
        let number = json!({ "type": "number", "minimum": 0, "maximum": 2 });
        assert_eq!(said(number.clone(), json!(1.5)), "");
        assert_eq!(said(number.clone(), json!(3)), "x: found 3, expected a number of 0 to 2");
        assert_eq!(said(number, json!("1")), r#"x: found "1", expected a number of 0 to 2"#);
        let whole = json!({ "type": "integer", "minimum": 1 });
        assert_eq!(said(whole.clone(), json!(2.0)), "");
        assert_eq!(said(whole, json!(2.5)), "x: found 2.5, expected a whole number of at least 1");
        let texts = json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "maxItems": 4 }] });
        assert_eq!(said(texts.clone(), json!(["a", 1])), "x[1]: found 1, expected a string");
        assert_eq!(
            said(texts.clone(), json!({})),
            "x: found an empty object, expected a string or a list of at most 4 items, all strings"
        );
        assert_eq!(said(texts, json!("a")), "");
        let object = json!({ "type": "object", "properties": { "role": { "enum": ["a", "b"] } }, "required": ["role"], "additionalProperties": false });
        assert_eq!(said(object.clone(), json!({})), r#"x.role: missing, expected "a" or "b""#);
        assert_eq!(
            said(object, json!({ "role": "c", "roel": 1 })),
            r#"x.role: found "c", expected "a" or "b"; x.roel: there is no such field: did you mean "role"?"#
        );
    }
}
