//! Requests to a server of OpenAI's API, and when their answers came.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, body::Incoming, header};
use hyper_util::rt::TokioIo;
use mloc_modules::sse::Events;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

/// A server.
pub struct Server {
    place: Place,
    path: String,
    model: String,
    token: Option<String>,
    vocabulary: u32,
}

enum Place {
    Socket(PathBuf),
    Host(String),
}

/// Ids that every tokenizer of a language model has as plain text.
const PLAIN: u32 = 3000;

/// Bytes of one event at most.
const EVENT_MAX: usize = 4 << 20;

/// When an answer came.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// Until its first token.
    pub first: Duration,
    /// Until its last.
    pub whole: Duration,
    /// Tokens of it.
    pub tokens: usize,
}

/// Requests that have no beginning in common.
pub struct Ask {
    random: StdRng,
    vocabulary: u32,
}

impl Ask {
    /// The same in every run.
    pub fn fresh(vocabulary: u32) -> Self {
        Self { random: StdRng::seed_from_u64(7), vocabulary }
    }

    /// A body but for the model's name.
    pub fn next(&mut self, prompt: usize, answer: usize) -> Value {
        let ids: Vec<u32> =
            (0..prompt).map(|_| self.random.random_range(self.vocabulary / 3..self.vocabulary)).collect();
        json!({"prompt": ids, "max_tokens": answer, "temperature": 0, "ignore_eos": true, "stream": true,
            "stream_options": {"include_usage": true}})
    }
}

impl Server {
    /// On a Unix socket.
    pub fn socket(path: &Path, model: &str, vocabulary: u32) -> Self {
        Self {
            place: Place::Socket(path.to_owned()),
            path: "/v1/completions".to_owned(),
            model: model.to_owned(),
            token: None,
            vocabulary: vocabulary.min(PLAIN),
        }
    }

    /// By its address.
    ///
    /// # Errors
    /// One that is no http address.
    pub fn url(url: &str, model: &str, token: Option<String>) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("--url {url}: write http://HOST:PORT"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/').trim_end_matches("v1").trim_end_matches('/');
        let path = if path.is_empty() { "/v1/completions".to_owned() } else { format!("/{path}/v1/completions") };
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { place: Place::Host(host), path, model: model.to_owned(), token, vocabulary: PLAIN })
    }

    /// Ids that prompts are made of are below this.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Several at once.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn ask_all(&self, bodies: &[Value]) -> Result<Vec<Timed>, String> {
        futures::future::try_join_all(bodies.iter().map(|body| self.ask(body))).await
    }

    /// One request, to the end of its answer.
    ///
    /// # Errors
    /// Whatever went wrong, in words.
    pub async fn ask(&self, body: &Value) -> Result<Timed, String> {
        let mut body = body.clone();
        body["model"] = self.model.clone().into();
        let since = Instant::now();
        match &self.place {
            Place::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| format!("{}: {e}", path.display()))?;
                self.over(stream, body, since).await
            }
            Place::Host(host) => {
                let stream = TcpStream::connect(host).await.map_err(|e| format!("{host}: {e}"))?;
                stream.set_nodelay(true).map_err(|e| e.to_string())?;
                self.over(stream, body, since).await
            }
        }
    }

    async fn over<S>(&self, stream: S, body: Value, since: Instant) -> Result<Timed, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |e: hyper::Error| format!("the server broke off: {e}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let host = match &self.place {
            Place::Socket(_) => "localhost",
            Place::Host(host) => host,
        };
        let mut request = Request::post(&self.path).header(header::HOST, host);
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|e| e.to_string())?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            if !status.is_success() {
                let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
                return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            timed(response.into_body(), since).await
        };
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // An answer that is not read to its end breaks it off, and says so itself.
            let _ = connection.await;
        }));
        asked.await
    }
}

async fn timed(mut body: Incoming, since: Instant) -> Result<Timed, String> {
    let (mut events, mut first, mut last, mut tokens) = (Events::new(EVENT_MAX), None, since, None);
    let mut pieces = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("the answer broke off: {e}"))?;
        let now = Instant::now();
        let mut told = Vec::new();
        let read = events.take(frame.data_ref().map_or(&[][..], |data| data), |data| told.push(data));
        for data in told.iter().filter(|data| *data != "[DONE]") {
            let json: Value =
                serde_json::from_str(data).map_err(|e| format!("an event that is no JSON ({e}): {data}"))?;
            if let Some(error) = json.get("error") {
                return Err(error.to_string());
            }
            tokens = json["usage"]["completion_tokens"].as_u64().or(tokens);
            if json["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
                first.get_or_insert(now);
                last = now;
                pieces += 1;
            }
        }
        read.map_err(|e| format!("{e}: this is no answer"))?;
    }
    let first = first.ok_or("the answer has no token")?;
    // A server that says no usage has told a token an event, but for the last one.
    let tokens = tokens.map_or(pieces, |tokens| tokens as usize);
    Ok(Timed { first: first - since, whole: last - since, tokens })
}
