//! Passages from a retrieval service: `POST {url}/v1/rag/{service}/retrieve`.

use async_trait::async_trait;
use reqwest::{Client, Url, header::HeaderMap};
use serde_json::{Value, json};

use super::Tool;
use crate::{
    client::{self, root_cause},
    event::{Outcome, ToolSpec},
    settings::tools::Retrieve,
};

/// Bytes of an answer: passages and what is said about them.
const RESPONSE_BYTES: usize = 4 << 20;
/// Where services put their passages.
const LISTS: [&str; 4] = ["data", "hits", "results", "chunks"];
/// Where passages say what they are from.
const SOURCES: [&str; 4] = ["document_name", "document", "source", "document_id"];

/// Asks a retrieval service.
pub struct RetrieveTool {
    spec: ToolSpec,
    url: Url,
    top_k: u64,
    headers: HeaderMap,
    client: Client,
}

impl RetrieveTool {
    /// As it is written.
    ///
    /// # Errors
    /// What it lacks.
    pub fn new(settings: Retrieve, client: Client) -> Result<Self, String> {
        let mut url = Url::parse(&settings.url).map_err(|e| e.to_string())?;
        let mut segments = url.path_segments_mut().map_err(|()| "its address has no path".to_owned())?;
        segments.pop_if_empty().extend(["v1", "rag", &settings.service, "retrieve"]);
        drop(segments);
        let schema = json!({
            "type": "object",
            "properties": {
                "query": { "type": "string", "minLength": 1, "description": "what to look for, as a question or in words" },
                "top_k": { "type": "integer", "minimum": 1, "maximum": settings.top_k, "description": "passages to return" },
            },
            "required": ["query"],
            "additionalProperties": false,
        });
        let spec = ToolSpec { name: settings.name, description: settings.description, schema, idempotent: true };
        let headers = client::headers(&Default::default(), &settings.headers_from_env)?;
        Ok(Self { spec, url, top_k: settings.top_k, headers, client })
    }

    async fn ask(&self, arguments: &Value) -> Result<Outcome, reqwest::Error> {
        let top_k = arguments["top_k"].as_u64().unwrap_or(self.top_k);
        let body = json!({ "query": arguments["query"], "top_k": top_k });
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).json(&body);
        let answer = request.send().await?;
        let status = answer.status();
        let (body, more) = client::body(answer, RESPONSE_BYTES).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(match serde_json::from_slice::<Value>(&body) {
            _ if !status.is_success() => Outcome::failed(format!("error: HTTP {status}\n{text}")),
            Ok(found) => Outcome::done(told(&found).unwrap_or(text)),
            Err(_) if more => Outcome::failed("error: the answer was too long: ask for fewer passages"),
            Err(_) => Outcome::done(text),
        })
    }
}

#[async_trait]
impl Tool for RetrieveTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        let asked = self.ask(arguments).await;
        asked.unwrap_or_else(|e| Outcome::failed(format!("error: no answer: {}", root_cause(&e.without_url()))))
    }
}

/// Passages with their sources, if that is what was found: numbers and offsets are not for a model.
fn told(found: &Value) -> Option<String> {
    let list = found.as_array().or_else(|| LISTS.iter().find_map(|name| found.get(name)?.as_array()))?;
    if list.is_empty() {
        return Some("nothing was found: ask in other words".to_owned());
    }
    let passage = |(i, one): (usize, &Value)| {
        let text = one.get("text").or_else(|| one.get("content"))?.as_str()?;
        let source = SOURCES.iter().find_map(|name| one.get(name)?.as_str()).unwrap_or_default();
        let page = one.get("pages").and_then(|pages| pages.get(0)?.as_u64()).map(|page| format!(", page {page}"));
        Some(format!("[{}] {source}{}\n{text}", i + 1, page.unwrap_or_default()))
    };
    let mut passages = list.iter().enumerate().map(passage).collect::<Option<Vec<String>>>()?;
    if found.get("missing_shards").and_then(Value::as_array).is_some_and(|missing| !missing.is_empty()) {
        passages.push("[a part of the documents could not be searched: there may be more]".to_owned());
    }
    Some(passages.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_come_with_their_sources_and_anything_else_as_it_is() {
        let mut hits = json!({ "object": "list", "missing_shards": [], "data": [
            { "text": "Bees dance.", "document_name": "bees.pdf", "pages": [3, 4], "fused": 0.1 },
            { "text": "So do cranes.", "document_name": "cranes.md", "pages": null },
        ] });
        assert_eq!(told(&hits).unwrap(), "[1] bees.pdf, page 3\nBees dance.\n\n[2] cranes.md\nSo do cranes.");
        hits["missing_shards"] = json!([1]);
        assert!(told(&hits).unwrap().ends_with("could not be searched: there may be more]"));
        assert!(told(&json!({ "data": [] })).unwrap().contains("nothing was found"));
        assert_eq!(told(&json!({ "answer": 3 })), None);
        assert_eq!(told(&json!([{ "score": 1 }])), None);
    }
}
