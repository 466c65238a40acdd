//! A call over HTTP, by its schema: where it goes is settled, what it says is the model's.

use async_trait::async_trait;
use reqwest::{Client, RequestBuilder, header::HeaderMap};
use serde_json::{Map, Value};

use super::{Tool, template::Template};
use crate::{
    client::{self, root_cause},
    event::{Outcome, ToolSpec},
    settings::tools::{HttpCall, Method, Place},
};

/// A tool behind an address.
pub struct HttpTool {
    spec: ToolSpec,
    settings: HttpCall,
    template: Template,
    headers: HeaderMap,
    client: Client,
}

impl HttpTool {
    /// As it is written.
    ///
    /// # Errors
    /// What it lacks.
    pub fn new(settings: HttpCall, client: Client) -> Result<Self, String> {
        let spec = ToolSpec {
            name: settings.name.clone(),
            description: settings.description.clone(),
            schema: settings.parameters.clone(),
            idempotent: settings.idempotent,
        };
        let template = Template::parse(&settings.url)?;
        let headers = client::headers(&settings.headers, &settings.headers_from_env)?;
        Ok(Self { spec, settings, template, headers, client })
    }

    fn request(&self, arguments: &Map<String, Value>) -> Result<RequestBuilder, String> {
        let mut url = self.template.fill(arguments)?;
        let in_url = self.template.names();
        let mut body = Map::new();
        for (name, value) in arguments.iter().filter(|(name, _)| !in_url.contains(*name)) {
            match self.place(name) {
                Place::Body => drop(body.insert(name.clone(), value.clone())),
                Place::Query | Place::Path => in_query(&mut url, name, value),
            }
        }
        let method = match self.settings.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Delete => reqwest::Method::DELETE,
        };
        let request = self.client.request(method, url).headers(self.headers.clone());
        let has_body = !body.is_empty() || self.has_body();
        Ok(if has_body { request.json(&body) } else { request })
    }

    fn place(&self, name: &str) -> Place {
        let usual = if self.has_body() { Place::Body } else { Place::Query };
        self.settings.places.get(name).copied().unwrap_or(usual)
    }

    fn has_body(&self) -> bool {
        matches!(self.settings.method, Method::Post | Method::Put | Method::Patch)
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Outcome, reqwest::Error> {
        let answer = request.send().await?;
        let status = answer.status();
        let (body, more) = client::body(answer, self.settings.response_bytes).await?;
        let mut text = String::from_utf8_lossy(&body).into_owned();
        if more {
            text.push_str("\n[… the answer goes on; it was not read further …]");
        }
        Ok(match status {
            _ if status.is_success() => Outcome::done(text),
            _ if status.is_redirection() => Outcome::failed(format!(
                "error: HTTP {status}: it leads elsewhere, and is not followed to another host"
            )),
            _ => Outcome::failed(format!("error: HTTP {status}\n{text}")),
        })
    }
}

#[async_trait]
impl Tool for HttpTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        let nothing = Map::new();
        match self.request(arguments.as_object().unwrap_or(&nothing)) {
            Err(found) => Outcome::failed(format!("error: {found}")),
            Ok(request) => {
                let answered = self.answer(request).await;
                // Without the address: a key may be in it.
                answered
                    .unwrap_or_else(|e| Outcome::failed(format!("error: no answer: {}", root_cause(&e.without_url()))))
            }
        }
    }
}

fn in_query(url: &mut reqwest::Url, name: &str, value: &Value) {
    let mut query = url.query_pairs_mut();
    let mut pair = |value: &Value| {
        match value {
            Value::String(text) => query.append_pair(name, text),
            Value::Null => &mut query,
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                query.append_pair(name, &value.to_string())
            }
        };
    };
    match value {
        Value::Array(items) => items.iter().for_each(pair),
        one => pair(one),
    }
}
