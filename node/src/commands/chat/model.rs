//! Who answers.

use std::{path::Path, thread, time::Duration};

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Bytes, body::Incoming, header};
use hyper_util::rt::TokioIo;
use mloc_modules::serve::{
    self, Served, Settings,
    listen::{Listening, NamedAdapter, load_adapters, routes},
    openai::Limits,
};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cli::{ChatArgs, Format, Remote},
    client::{Body, Client, Refusal, refusal},
};

/// What a model in this process is called; an adapter of it is `model:adapter`.
const OWN: &str = "model";
const ADAPTER: &str = "adapter";

/// A model.
pub enum Model {
    /// A mesh serves it.
    Served {
        /// A node of it.
        client: Client,
        /// The model's name there.
        name: String,
    },
    /// This process does.
    Here {
        /// The server; ends with this value.
        listening: Listening,
        /// Its name, or its adapter's.
        name: String,
        /// Holds the socket.
        _folder: tempfile::TempDir,
    },
}

impl Model {
    /// One whose files the flags name, else one of the mesh.
    ///
    /// # Errors
    /// Files that are no model, an adapter of another model, a bad address of a node.
    pub fn open(args: &ChatArgs) -> Result<Self, Refusal> {
        let path = Path::new(&args.model);
        // A name is no path, whatever folder happens to be called so.
        let names_a_path = args.model.contains('/') || args.model.ends_with(".gguf");
        if names_a_path && path.exists() {
            return Self::here(path, args.adapter.as_deref());
        }
        if let Some(adapter) = &args.adapter {
            let (model, adapter) = (&args.model, adapter.display());
            let text = format!(
                "--adapter {adapter}: only of a model whose files are here, and {model} is no path; one that is served is \
                 named {model}:NAME"
            );
            return Err(Refusal::new(2, text));
        }
        let remote =
            Remote { node: args.node.clone(), api_token_file: args.api_token_file.clone(), output: Format::Table };
        Ok(Self::Served { client: Client::new(&remote)?, name: args.model.clone() })
    }

    fn here(path: &Path, adapter: Option<&Path>) -> Result<Self, Refusal> {
        let bad = |why: String| Refusal::new(2, why);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let served = serve::open(path, &Settings::new(OWN, threads), &|| false).map_err(|e| bad(e.to_string()))?;
        let Served::Decoder(decoder) = served else {
            return Err(bad(format!("{}: this model makes no text", path.display())));
        };
        let named = adapter.map(|path| NamedAdapter { name: ADAPTER.to_owned(), path: path.to_owned() });
        let named: Vec<NamedAdapter> = named.into_iter().collect();
        let adapters = load_adapters(&*decoder.generator, &named).map_err(bad)?;
        let name = if adapters.is_empty() { OWN.to_owned() } else { format!("{OWN}:{ADAPTER}") };
        let folder = tempfile::tempdir().context("make a folder for the model's socket")?;
        let threads = Listening::threads().context("start threads")?;
        let routes = routes(decoder.generator.clone(), adapters, Limits::default(), rand::random());
        let listening = Listening::start(threads, routes, folder.path());
        Ok(Self::Here { listening: listening.context("start the model's server")?, name, _folder: folder })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Served { name, .. } | Self::Here { name, .. } => name,
        }
    }

    /// Asks for a chat completion.
    ///
    /// # Errors
    /// It can't be reached, or refuses.
    pub async fn chat(&self, body: String) -> Result<Response<Answer>, Refusal> {
        let body = Full::new(Bytes::from(body));
        match self {
            Self::Served { client, .. } => {
                let body: Body = body.map_err(|never| match never {}).boxed_unsync();
                let headers = [("content-type", "application/json")];
                let response = client.exchange(Method::POST, "/v1/chat/completions", &[], &headers, body).await?;
                Ok(response.map(|body| Answer { body, _connection: None }))
            }
            Self::Here { listening, .. } => {
                let stream = UnixStream::connect(listening.socket()).await.context("connect to the model's server")?;
                let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
                let (mut sender, connection) = shaken.context("speak to the model's server")?;
                let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                    // An answer that is not read to its end breaks it off.
                    let _ = connection.await;
                }));
                let request = Request::post("/v1/chat/completions")
                    .header(header::HOST, "localhost")
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(body)
                    .context("make a request")?;
                let response = sender.send_request(request).await.context("ask the model's server")?;
                let status = response.status();
                if !status.is_success() {
                    let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                    return Err(refusal(status, &body));
                }
                Ok(response.map(|body| Answer { body, _connection: Some(connection) }))
            }
        }
    }

    /// Ends what runs in this process.
    pub fn close(self) {
        if let Self::Here { listening, .. } = self {
            listening.stop(Duration::from_secs(1));
        }
    }
}

/// An answer's body, and what keeps it coming.
pub struct Answer {
    body: Incoming,
    _connection: Option<AbortOnDropHandle<()>>,
}

impl Answer {
    /// The next bytes; `None` = it is over.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
