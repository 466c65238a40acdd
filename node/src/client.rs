//! The CLI's side of REST: one request, its answer or a refusal with an exit code that means something.

use std::{
    io::Write,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::{client::legacy::Client as HttpClient, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use mloc_api::error::ProblemBody;
use serde::de::DeserializeOwned;

use crate::{cli::Remote, node::BadConfig, tail::Place};

/// How long a verb that watches goes on asking a node that does not answer: longer than the mesh needs to choose a new
/// leader on a WAN, and than a node needs to start again.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two such questions.
const PAUSE: Duration = Duration::from_millis(500);

/// What a request sends.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a verb did not do: what to print, and the exit code.
#[derive(Debug)]
pub struct Refusal {
    /// For people.
    pub text: String,
    /// See [`crate::cli::Cli`].
    pub code: u8,
    /// The HTTP status, where a node said no.
    pub status: Option<u16>,
}

impl Refusal {
    /// Prints it and gives the code.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.text);
        ExitCode::from(self.code)
    }

    /// Whether the mesh may answer when it is asked again.
    pub fn is_passing(&self) -> bool {
        self.code == 4
    }

    /// A refusal with its code.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), code, status: None }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        let code = if error.is::<BadConfig>() { 2 } else { 1 };
        Self { text: format!("{error:#}"), code, status: None }
    }
}

/// A node's REST API.
pub struct Client {
    base: String,
    token: Option<String>,
    http: HttpClient<HttpConnector, Body>,
}

impl Client {
    /// Speaks to the node the flags name.
    ///
    /// # Errors
    /// When the token file can't be read or the address is no http address.
    pub fn new(remote: &Remote) -> Result<Self, Refusal> {
        let token = match &remote.api_token_file {
            Some(path) => Some(read_secret(path)?),
            None => std::env::var("MLOC_API_TOKEN").ok().filter(|t| !t.is_empty()),
        };
        Self::at(&remote.node, token)
    }

    /// Speaks to the node at an address.
    ///
    /// # Errors
    /// When it is no http address.
    pub fn at(node: &str, token: Option<String>) -> Result<Self, Refusal> {
        let base = match node.split_once("://") {
            None => format!("http://{node}"),
            Some(("http", _)) => node.trim_end_matches('/').to_owned(),
            Some((scheme, _)) => {
                return Err(Refusal::new(
                    2,
                    format!(
                        "--node {node}: {scheme} is not spoken; write HOST:PORT or http://HOST:PORT (put TLS in a proxy)"
                    ),
                ));
            }
        };
        Ok(Self { base, token, http: HttpClient::builder(TokioExecutor::new()).build_http() })
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// A refusal of the node, or that it can't be reached.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Refusal> {
        self.json(Method::GET, path, query, &[], Bytes::new()).await
    }

    /// POST without a body, as JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Refusal> {
        self.json(Method::POST, path, query, &[], Bytes::new()).await
    }

    /// POST of a task file.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn submit<T: DeserializeOwned>(
        &self,
        query: &[(&str, String)],
        key: &str,
        body: Bytes,
    ) -> Result<T, Refusal> {
        let headers = [("idempotency-key", key), ("content-type", "application/yaml")];
        self.json(Method::POST, "/api/v1/tasks", query, &headers, body).await
    }

    /// GET of bytes, whole.
    ///
    /// # Errors
    /// As [`Self::get`]; an answer that breaks off is said.
    pub async fn bytes(&self, path: &str) -> Result<Bytes, Refusal> {
        let response = self.send(Method::GET, path, &[], &[], Bytes::new()).await?;
        let broke = |e| Refusal::new(4, format!("{}: the answer broke off: {e}", self.base));
        Ok(response.into_body().collect().await.map_err(broke)?.to_bytes())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<T, Refusal> {
        let response = self.send(method, path, query, headers, body).await?;
        // As passing as a connection that is refused: the node may be on its way down, and come back.
        let broke = |e| Refusal::new(4, format!("{}: the answer broke off: {e}", self.base));
        let bytes = response.into_body().collect().await.map_err(broke)?.to_bytes();
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{path}: the answer is not what this version of mloc expects"))
            .map_err(Refusal::from)
    }

    /// GET, as text.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn text(&self, path: &str) -> Result<String, Refusal> {
        let response = self.send(Method::GET, path, &[], &[], Bytes::new()).await?;
        let broke = |e| Refusal::new(4, format!("{}: the answer broke off: {e}", self.base));
        let bytes = response.into_body().collect().await.map_err(broke)?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// GET of a stream of text, to standard output as it comes.
    ///
    /// # Errors
    /// As [`Self::get`]; a stream that breaks is said.
    pub async fn print_stream(&self, path: &str, query: &[(&str, String)]) -> Result<(), Refusal> {
        let mut body = self.send(Method::GET, path, query, &[], Bytes::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the log's stream broke")?;
            if let Some(data) = frame.data_ref()
                && !print(data)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Follows a task's log on standard output until the task has ended. When a connection breaks it goes on where it
    /// was, for as long as somebody answers within [`PATIENCE`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn follow_log(&self, task: &str, attempt: Option<String>) -> Result<(), Refusal> {
        let path = format!("/api/v1/tasks/{task}/logs");
        let mut place = Place::new(task);
        let mut query: Vec<_> = attempt.into_iter().map(|attempt| ("attempt", attempt)).collect();
        let mut answered = Instant::now();
        let mut said = false;
        let mut first = true;
        loop {
            query.push(("follow", "true".to_owned()));
            let broke = match self.send(Method::GET, &path, &query, &[], Bytes::new()).await {
                Ok(response) => {
                    let mut body = response.into_body();
                    first = false;
                    loop {
                        match body.frame().await {
                            Some(Ok(frame)) => {
                                (answered, said) = (Instant::now(), false);
                                if let Some(data) = frame.data_ref()
                                    && !print(&place.take(data))
                                {
                                    return Ok(());
                                }
                            }
                            Some(Err(error)) => break format!("the connection to {} broke: {error}", self.base),
                            None => {
                                print(&place.rest());
                                return Ok(());
                            }
                        }
                    }
                }
                // Nothing was there from the beginning: the user wants to know now.
                Err(refusal) if first || !refusal.is_passing() || answered.elapsed() > PATIENCE => return Err(refusal),
                Err(refusal) => refusal.text,
            };
            if !std::mem::replace(&mut said, true) {
                eprintln!("--- {broke}; asking again");
            }
            tokio::time::sleep(PAUSE).await;
            let from = place.go_on();
            if !from.is_empty() {
                query = from;
            }
            query.retain(|(name, _)| *name != "follow");
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, Refusal> {
        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
        self.exchange(method, path, query, headers, body).await
    }

    /// One request with whatever body; a path's own characters have been encoded ([`path_encode`]).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn exchange(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>, Refusal> {
        let mut uri = format!("{}{path}", self.base);
        for (i, (name, value)) in query.iter().enumerate() {
            uri.push(if i == 0 { '?' } else { '&' });
            uri.push_str(&format!("{name}={}", percent_encode(value)));
        }
        let mut request = Request::builder().method(method).uri(&uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request =
            request.body(body).map_err(|e| Refusal::new(2, format!("--node {}: {e}; write HOST:PORT", self.base)))?;
        let response = self.http.request(request).await.map_err(|e| {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            Refusal::new(
                4,
                format!(
                    "{} does not answer ({e}{cause}): is a node running there? --node or MLOC_NODE names another",
                    self.base
                ),
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Err(refusal(status, &body))
    }
}

/// Whether standard output takes more: a closed pipe (`| head`) is the reader's way to say enough.
fn print(data: &[u8]) -> bool {
    let mut out = std::io::stdout();
    out.write_all(data).and_then(|()| out.flush()).is_ok()
}

/// What an answer that is none says, in either shape of errors.
pub fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let code = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 5,
        StatusCode::NOT_FOUND => 3,
        StatusCode::SERVICE_UNAVAILABLE => 4,
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => 2,
        _ => 1,
    };
    let text = match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => problem.detail,
        Err(_) => openai_message(body).unwrap_or_else(|| format!("{status}: {}", String::from_utf8_lossy(body).trim())),
    };
    Refusal { text, code, status: Some(status.as_u16()) }
}

/// What an error in OpenAI's shape says.
fn openai_message(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    json["error"]["message"].as_str().map(str::to_owned)
}

/// As [`percent_encode`], but for the slashes between the parts of a path.
pub fn path_encode(path: &str) -> String {
    path.split('/').map(percent_encode).collect::<Vec<_>>().join("/")
}

/// RFC 3986: everything but unreserved characters.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The first line of a file that holds a secret.
///
/// # Errors
/// When it can't be read or is empty.
pub fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the token file {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "the token file {} is empty", path.display());
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_exit_codes_and_problems_their_text() {
        let body = br#"{"type":"t","title":"x","status":404,"detail":"no task-1"}"#;
        let refusal = refusal(StatusCode::NOT_FOUND, body);
        assert_eq!((refusal.code, refusal.text.as_str()), (3, "no task-1"));
        assert_eq!(super::refusal(StatusCode::FORBIDDEN, b"").code, 5);
        assert_eq!(percent_encode("a b/ü"), "a%20b%2F%C3%BC");
    }
}
