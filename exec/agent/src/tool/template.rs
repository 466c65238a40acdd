//! An address with names of arguments in braces. What fills them is encoded, and cannot lead out of its place.

use std::collections::BTreeSet;

use reqwest::Url;
use serde_json::{Map, Value};

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Up to the path.
    host: Url,
    segments: Vec<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Argument(String),
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let after = text.find("://").map(|i| i + 3).ok_or("it has no ://")?;
        let (address, query) = text.split_once('?').map_or((text, None), |(address, query)| (address, Some(query)));
        let path_at = address[after.min(address.len())..].find('/').map_or(address.len(), |i| after + i);
        let (host, path) = address.split_at(path_at);
        if host.contains(['{', '}']) || query.is_some_and(|query| query.contains(['{', '}'])) {
            return Err("an argument may stand in its path alone; others go to `places`".to_owned());
        }
        let mut host = Url::parse(host).map_err(|e| e.to_string())?;
        host.set_query(query);
        let segments = path.split('/').skip(1).map(pieces).collect::<Result<_, _>>()?;
        Ok(Self { host, segments })
    }

    /// The arguments in it.
    pub fn names(&self) -> BTreeSet<String> {
        let pieces = self.segments.iter().flatten();
        let argument = |piece: &Piece| match piece {
            Piece::Argument(name) => Some(name.clone()),
            Piece::Text(_) => None,
        };
        pieces.filter_map(argument).collect()
    }

    /// The address with its arguments.
    ///
    /// # Errors
    /// Which of them cannot stand there.
    pub fn fill(&self, arguments: &Map<String, Value>) -> Result<Url, String> {
        let mut url = self.host.clone();
        let mut filled = Vec::new();
        for segment in &self.segments {
            let mut text = String::new();
            for piece in segment {
                match piece {
                    Piece::Text(fixed) => text.push_str(fixed),
                    Piece::Argument(name) => text.push_str(&scalar(name, arguments.get(name))?),
                }
            }
            // URLs take these for the way up and for nothing, however they are encoded.
            let has_argument = segment.iter().any(|piece| matches!(piece, Piece::Argument(_)));
            if has_argument && matches!(text.as_str(), "" | "." | "..") {
                return Err(format!("`{text}` cannot stand in an address"));
            }
            filled.push(text);
        }
        let mut segments = url.path_segments_mut().map_err(|()| "it has no path".to_owned())?;
        segments.clear().extend(&filled);
        drop(segments);
        Ok(url)
    }
}

fn pieces(mut rest: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    while let Some(open) = rest.find('{') {
        let (text, after) = (&rest[..open], &rest[open + 1..]);
        let close = after.find('}').ok_or("a { without its }")?;
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        pieces.push(Piece::Argument(after[..close].to_owned()));
        rest = &after[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

fn scalar(name: &str, value: Option<&Value>) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(Value::Null) | None => Err(format!("`{name}` is missing: it stands in the address")),
        Some(Value::Array(_) | Value::Object(_)) => Err(format!("`{name}` stands in the address: give one value")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str, id: Value) -> Result<String, String> {
        let template = Template::parse(template).unwrap();
        let Value::Object(arguments) = json!({ "id": id }) else { unreachable!() };
        template.fill(&arguments).map(|url| url.to_string())
    }

    #[test]
    fn arguments_stay_in_their_place() {
        let template = "https://h.example:8080/a/{id}/b?key=1";
        let cases = [
            (json!("x y"), "https://h.example:8080/a/x%20y/b?key=1"),
            (json!("../../etc"), "https://h.example:8080/a/..%2F..%2Fetc/b?key=1"),
            (json!("a?b#c"), "https://h.example:8080/a/a%3Fb%23c/b?key=1"),
            (json!(7), "https://h.example:8080/a/7/b?key=1"),
            (json!("@other.example"), "https://h.example:8080/a/@other.example/b?key=1"),
        ];
        for (id, wanted) in cases {
            assert_eq!(filled(template, id).unwrap(), wanted);
        }
        for bad in [json!(".."), json!("."), json!(""), json!(null), json!([1]), json!("%2e%2e")] {
            let found = filled(template, bad.clone());
            let escaped = found.as_ref().is_ok_and(|url| url.contains("%252e%252e"));
            assert!(found.is_err() || escaped, "{bad}: {found:?}");
        }
    }

    #[test]
    fn a_host_is_not_for_the_model_to_choose() {
        assert!(Template::parse("https://{host}/x").is_err());
        assert!(Template::parse("https://h/x?q={q}").is_err());
        assert!(Template::parse("https://h/{x").is_err());
        assert_eq!(Template::parse("https://h").unwrap().names().len(), 0);
        assert_eq!(filled("https://h.example", json!(1)).unwrap(), "https://h.example/");
    }
}
