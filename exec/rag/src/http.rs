//! The HTTP side of a service: documents in and out, questions, and OpenAI-shaped chat with citations.
//!
//! ```text
//! POST   /v1/rag/{service}/documents              a file: multipart, or the body itself with ?name=
//! GET    /v1/rag/{service}/documents              all, a page at a time: ?after=ID&limit=N
//! GET    /v1/rag/{service}/documents/{id}         where it is on its way
//! GET    /v1/rag/{service}/documents/{id}/text    what spans are places of: ?start=&end= in chars
//! DELETE /v1/rag/{service}/documents/{id}
//! POST   /v1/rag/{service}/retrieve               hits with the scores of each arm
//! POST   /v1/rag/{service}/chat/completions       also at /v1/chat/completions
//! ```
//!
//! Where documents are in several shards, whichever is asked asks all. `missing_shards` names those that did not answer, or
//! have not all of their documents yet: of a list, of `/retrieve`, and of chat in `rag`, which a stream has in its last chunk.
//! An upload's `copies` says how many shards have its file; what belongs to a shard that is away is refused with 503.
//!
//! Deliberately absent: TLS, authentication and accounts, which the node in front of it has; the chat model, which is
//! reached through [`Chat`]; other shards, which are reached through [`Peers`], and ask by [`shard_router`].

mod chat;
mod copies;
mod documents;
mod keep;
mod peers;
mod refusal;
mod retrieve;
mod shard;
mod stream;
mod work;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::StatusCode,
    routing::{get, post},
};
use futures::{future::BoxFuture, stream::BoxStream};
use serde_json::Value;
use tokio::sync::{Mutex, Notify, Semaphore};

pub use keep::keep;
pub use peers::{Call, NoReply, Peers, Reply, To};
pub use refusal::Refusal;
pub use work::work;

use crate::service::Service;

/// What a chat model answers.
pub enum Told {
    /// All at once: `chat.completion`.
    Whole(Value),
    /// As it comes: `chat.completion.chunk` each, without `[DONE]`.
    Stream(BoxStream<'static, Result<Value, ChatError>>),
}

/// Why a chat model answers nothing, as it said it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatError {
    /// HTTP's status.
    pub status: u16,
    /// OpenAI's error body.
    pub body: Value,
}

/// The chat model: takes the body of `/v1/chat/completions` and answers as OpenAI does.
pub trait Chat: Send + Sync {
    /// A stream where the body asks for one.
    fn complete(&self, body: Value) -> BoxFuture<'static, Result<Told, ChatError>>;
}

/// How much a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a question's body.
    pub body_bytes: usize,
    /// Hits that may be asked for.
    pub top_k: usize,
    /// Files that may be on their way in at once: each is held in memory until it is on disk.
    pub uploads: usize,
    /// A question's body comes within this.
    pub body_within: Duration,
    /// A file comes within this.
    pub upload_within: Duration,
}

impl Default for Limits {
    /// 4 MiB, 100 hits, four files, half a minute, ten minutes.
    fn default() -> Self {
        let (body_within, upload_within) = (Duration::from_secs(30), Duration::from_secs(600));
        Self { body_bytes: 4 << 20, top_k: 100, uploads: 4, body_within, upload_within }
    }
}

/// What is common to all requests.
pub struct App {
    service: Arc<Service>,
    chat: Arc<dyn Chat>,
    peers: Option<Arc<dyn Peers>>,
    limits: Limits,
    /// The chat model's special tokens.
    marks: Vec<String>,
    nonce: Box<dyn Fn() -> String + Send + Sync>,
    now: fn() -> u64,
    /// A document was accepted.
    came: Notify,
    /// Places for files that come.
    uploads: Semaphore,
    /// Whether this shard has all documents that belong to it, as far as is known.
    whole: AtomicBool,
    /// Whether the shard that keeps copies was asked for them in vain.
    tried: AtomicBool,
    /// A document's comes before it is changed, and is left when its copy was: copies are told in the order of changes.
    turns: [Mutex<()>; TURNS],
}

/// More than one document that changes seldom waits for another.
const TURNS: usize = 16;

impl App {
    /// Over a service. `nonce`: random, new each time it is asked; `now`: seconds since 1970.
    pub fn new(
        service: Arc<Service>,
        chat: Arc<dyn Chat>,
        limits: Limits,
        nonce: impl Fn() -> String + Send + Sync + 'static,
        now: fn() -> u64,
    ) -> Self {
        let (nonce, came) = (Box::new(nonce), Notify::new());
        let uploads = Semaphore::new(limits.uploads.min(Semaphore::MAX_PERMITS));
        // The only shard is, where nobody says otherwise.
        let whole = service.is_whole().map(|whole| whole.unwrap_or(service.settings().sharding.count == 1));
        let whole = whole.unwrap_or(false).into();
        let (peers, marks, tried, turns) = Default::default();
        Self { service, chat, peers, limits, marks, nonce, now, came, uploads, whole, tried, turns }
    }

    /// With other shards.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn Peers>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// With special tokens of the chat model, which no document may speak to it.
    #[must_use]
    pub fn with_marks(self, marks: Vec<String>) -> Self {
        Self { marks, ..self }
    }

    /// Says that something waits to be indexed: for who accepts documents past this router, as from a folder.
    pub fn wake(&self) {
        self.came.notify_one();
    }

    /// Whether this shard has all documents that belong to it, as far as is known. Until then its answers name it among the
    /// missing shards.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// Whether it is not whole and may soon be: the shard that keeps copies has not been asked in vain.
    pub fn takes_copies(&self) -> bool {
        !self.is_whole() && !self.tried.load(Ordering::Relaxed)
    }

    fn becomes_whole(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    fn has_tried(&self) {
        self.tried.store(true, Ordering::Relaxed);
    }

    fn turn(&self, id: &str) -> &Mutex<()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
        &self.turns[usize::try_from(hash % TURNS as u64).unwrap_or_default()]
    }

    fn is_here(&self, service: &str) -> Result<(), Refusal> {
        if service == self.service.name() {
            return Ok(());
        }
        let message = format!("there is no service {service:?} here, but {:?}", self.service.name());
        Err(Refusal::new(StatusCode::NOT_FOUND, message).with_code("service_not_found"))
    }
}

type Shared = Arc<App>;

/// All routes. [`work`] indexes what comes in by them.
pub fn router(app: Arc<App>) -> Router {
    let document = get(documents::one).delete(documents::delete);
    Router::new()
        .route("/v1/rag/{service}/documents", post(documents::upload).get(documents::list))
        .route("/v1/rag/{service}/documents/{id}", document)
        .route("/v1/rag/{service}/documents/{id}/text", get(documents::text))
        .route("/v1/rag/{service}/retrieve", post(retrieve::retrieve))
        .route("/v1/rag/{service}/chat/completions", post(chat::of_service))
        .route("/v1/chat/completions", post(chat::plain))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        // Each handler reads its own body, within its own bounds.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(app)
}

/// What other shards ask. Who mounts it lets nobody else in: it gives and takes documents without further questions.
pub fn shard_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/rag/{service}/shard/statistics", post(shard::statistics))
        .route("/v1/rag/{service}/shard/retrieve", post(shard::retrieve))
        .route("/v1/rag/{service}/shard/found", post(shard::found))
        .route("/v1/rag/{service}/shard/documents", post(documents::handed))
        .route("/v1/rag/{service}/shard/handover", get(copies::handover))
        .route("/v1/rag/{service}/shard/copies", get(copies::list))
        .route("/v1/rag/{service}/shard/copies/{id}", get(copies::one).put(copies::take))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(app)
}

async fn no_such_path(request: Request) -> Refusal {
    let message = format!("there is no {}", request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

async fn no_such_method(request: Request) -> Refusal {
    let message = format!("{} {} is not allowed", request.method(), request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}

/// Work that blocks, off the threads that serve.
async fn apart<T: Send + 'static>(
    app: &Shared,
    work: impl FnOnce(&App) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let app = app.clone();
    match tokio::task::spawn_blocking(move || work(&app)).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request ended in a panic");
            Err(Refusal::failure("the server failed at this request; its log says more"))
        }
    }
}

/// A body, whole.
async fn read(body: Body, max: usize, within: Duration) -> Result<Vec<u8>, Refusal> {
    let read = tokio::time::timeout(within, to_bytes(body, max)).await;
    let refused = |status, code, message| Refusal::new(status, message).with_code(code);
    match read {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            Err(if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
                Refusal::too_large(max)
            } else {
                let message = format!("the body did not come whole: {error}");
                refused(StatusCode::BAD_REQUEST, "body_cut_off", message)
            })
        }
        Err(_) => {
            let message = format!("the body did not come within {within:?}: send it faster, or less of it");
            Err(refused(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}

fn json(bytes: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}")).with_code("invalid_json")
    })
}
