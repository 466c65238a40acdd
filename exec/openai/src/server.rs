//! The thin shell: routes, bodies in, answers out, and a place for each who is served.

mod body;
mod stream;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{MatchedPath, Path, Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
    serve::{Listener, ListenerExt},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::{
    endpoint::{
        Chosen, Context, adapters, chat, completions, embeddings, models::Adapters, rerank, responses, tokenize,
    },
    hear::Line,
    ids::Ids,
    limits::Limits,
    metrics::{Metrics, OPEN_METRICS},
    model::{Adapter, Card, Model, TokenizerInfo},
    openapi,
    refusal::Refusal,
    tell::Job,
};

/// What is common to all requests.
pub struct Server {
    model: Arc<dyn Model>,
    limits: Limits,
    adapters: Mutex<Adapters>,
    metrics: Arc<Metrics>,
    ids: Arc<Ids>,
    /// Clients that may be served at once.
    places: Arc<Semaphore>,
    /// Bytes of bodies that may be here at once.
    bodies: Arc<Semaphore>,
    now: fn() -> u64,
}

/// Seconds since 1970 by this machine's clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Server {
    /// Over a model with adapters. `random`: from which names of answers are made; `now`: see [`unix_now`].
    pub fn new(model: Arc<dyn Model>, adapters: Vec<Adapter>, limits: Limits, random: u64, now: fn() -> u64) -> Self {
        let metrics = Arc::new(Metrics::new(&model.card().served_name));
        Self {
            adapters: Mutex::new(Adapters::new(adapters)),
            metrics,
            ids: Arc::new(Ids::new(random)),
            places: Arc::new(Semaphore::new(limits.requests.min(Semaphore::MAX_PERMITS))),
            bodies: Arc::new(Semaphore::new(body::BODIES_KIB)),
            limits,
            model,
            now,
        }
    }

    fn card(&self) -> &Card {
        self.model.card()
    }

    fn context(&self) -> Context {
        let (model, ids) = (self.model.clone(), self.ids.clone());
        Context { model, limits: self.limits.clone(), ids, now: (self.now)() }
    }

    fn choose(&self, name: Option<&str>) -> Result<Chosen, Refusal> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner).choose(self.card(), name)
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            Refusal::busy(format!("{} requests are on their way, as many as may: try again", self.limits.requests))
        })
    }
}

type App = Arc<Server>;

/// Paths, and who answers. A test holds openapi.json to it.
fn table() -> Vec<(Method, &'static str, MethodRouter<App>)> {
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    vec![
        (POST, "/v1/chat/completions", post(chat_completions)),
        (POST, "/v1/completions", post(text_completions)),
        (POST, "/v1/responses", post(model_responses)),
        (POST, "/v1/embeddings", post(make_embeddings)),
        (POST, "/v1/rerank", post(rank)),
        (POST, "/rerank", post(rank)),
        (POST, "/v2/rerank", post(rank)),
        (GET, "/v1/models", get(list_models)),
        (GET, "/v1/models/{*model}", get(one_model)),
        (POST, "/tokenize", post(to_tokens)),
        (POST, "/detokenize", post(from_tokens)),
        (GET, "/tokenizer_info", get(tokenizer_info)),
        (POST, "/v1/load_lora_adapter", post(load_adapter)),
        (POST, "/v1/unload_lora_adapter", post(unload_adapter)),
        (GET, "/health", get(health)),
        (GET, "/ping", get(health)),
        (GET, "/version", get(version)),
        (GET, "/metrics", get(metrics)),
        (GET, "/openapi.json", get(document)),
    ]
}

/// Methods and paths, as openapi.json writes them.
pub fn paths() -> Vec<(Method, &'static str)> {
    table().into_iter().map(|(method, path, _)| (method, path)).collect()
}

/// All routes over a server.
pub fn router(server: Arc<Server>) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler));
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(server.clone(), counted))
        .with_state(server)
}

/// Serves until it is told to stop; then takes no more, and returns when those that are served have their answers. Who
/// can't wait drops the future: that cancels them.
///
/// # Errors
/// When the listener fails.
pub async fn serve<L>(listener: L, server: Arc<Server>, stop: CancellationToken) -> std::io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    axum::serve(listener, router(server)).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// As [`serve`], on a TCP port: each event leaves at once, and does not wait for the one before it to be acknowledged.
///
/// # Errors
/// When the listener fails.
pub async fn serve_tcp(listener: TcpListener, server: Arc<Server>, stop: CancellationToken) -> std::io::Result<()> {
    let eager = listener.tap_io(|socket| {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection stays lazy");
        }
    });
    serve(eager, server, stop).await
}

async fn counted(State(server): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = if paths().iter().any(|(method, _)| method == request.method()) {
        request.method().to_string()
    } else {
        "other".into()
    };
    let response = next.run(request).await;
    server.metrics.answered(&path, &method, response.status().as_u16());
    response
}

async fn no_such_path(request: Request) -> Refusal {
    let known = paths().into_iter().map(|(_, path)| path);
    let near = crate::schema::nearest(request.uri().path(), known);
    let message = format!("there is no {}{near}; GET /openapi.json lists what there is", request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

async fn no_such_method(request: Request) -> Response {
    let path = request.uri().path();
    let right = paths().into_iter().find(|(_, known)| *known == path).map_or(Method::GET, |(method, _)| method);
    let message = format!("{} {path} is not allowed, expected {right}", request.method());
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed");
    ([(header::ALLOW, right.to_string())], refusal).into_response()
}

/// Work that computes or reads, off the threads that serve.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request ended in a panic");
            Err(Refusal::failure("the server failed at this request; its log says more"))
        }
    }
}

/// A request for text: its body to a job, the job to an answer.
async fn generate(
    server: App,
    request: Request,
    job: fn(&Server, &Value) -> Result<Job, Refusal>,
) -> Result<Response, Refusal> {
    let place = server.place()?;
    let body = body::read(&server, request).await?;
    let worker = server.clone();
    let Job { requests, events_max, streamed, mut teller } = apart(move || {
        if !worker.card().generates {
            let message =
                format!("{} makes embeddings and writes no text: name a model that does", worker.card().served_name);
            return Err(Refusal::unsupported("model", message));
        }
        job(&worker, &body.value()?)
    })
    .await?;
    // A whole answer is gathered as it comes, and has as many events as it can have.
    let unread = if streamed { events_max.min(server.limits.unread_events) } else { events_max };
    let unread = unread.min(Semaphore::MAX_PERMITS);
    let mut line = Line::open(requests, unread, server.model.clone(), &server.metrics, place)?;
    if streamed {
        return Ok(stream::response(line, teller, server.limits.heartbeat));
    }
    while let Some(heard) = line.next().await {
        let (prompt, event) = heard?;
        teller.hear(prompt, event);
    }
    Ok(Json(teller.whole()).into_response())
}

async fn chat_completions(State(server): State<App>, request: Request) -> Result<Response, Refusal> {
    let job = |server: &Server, body: &Value| {
        let asked = chat::read(body, server.card(), &server.limits)?;
        let chosen = server.choose(asked.generation.model.as_deref())?;
        chat::job(asked, chosen, &server.context())
    };
    generate(server, request, job).await
}

async fn text_completions(State(server): State<App>, request: Request) -> Result<Response, Refusal> {
    let job = |server: &Server, body: &Value| {
        let asked = completions::read(body, server.card(), &server.limits)?;
        let chosen = server.choose(asked.generation.model.as_deref())?;
        completions::job(asked, chosen, &server.context())
    };
    generate(server, request, job).await
}

async fn model_responses(State(server): State<App>, request: Request) -> Result<Response, Refusal> {
    let job = |server: &Server, body: &Value| {
        let asked = responses::read(body, server.card(), &server.limits)?;
        let chosen = server.choose(asked.generation.model.as_deref())?;
        responses::job(asked, chosen, &server.context())
    };
    generate(server, request, job).await
}

/// A request that is answered at once, by work apart.
async fn compute<T: IntoResponse + Send + 'static>(
    server: App,
    request: Request,
    answer: fn(&Server, &Value) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let _place = server.place()?;
    let body = body::read(&server, request).await?;
    apart(move || answer(&server, &body.value()?)).await
}

async fn make_embeddings(State(server): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let answer = |server: &Server, body: &Value| {
        let asked = embeddings::read(body, server.card(), &server.limits)?;
        let chosen = server.choose(asked.model.as_deref())?;
        embeddings::answer(&asked, &chosen, &server.context()).map(Json)
    };
    compute(server, request, answer).await
}

async fn rank(State(server): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let answer = |server: &Server, body: &Value| {
        let asked = rerank::read(body, server.card(), &server.limits)?;
        let chosen = server.choose(asked.model.as_deref())?;
        rerank::answer(&asked, &chosen, &server.context()).map(Json)
    };
    compute(server, request, answer).await
}

async fn to_tokens(State(server): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let answer = |server: &Server, body: &Value| {
        let asked = tokenize::read(body, server.card(), &server.limits)?;
        server.choose(asked.model.as_deref())?;
        tokenize::answer(&asked, &server.context()).map(Json)
    };
    compute(server, request, answer).await
}

async fn from_tokens(State(server): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let answer = |server: &Server, body: &Value| {
        let (model, given) = tokenize::read_back(body)?;
        server.choose(model.as_deref())?;
        tokenize::answer_back(&given, &server.context()).map(Json)
    };
    compute(server, request, answer).await
}

async fn tokenizer_info(State(server): State<App>) -> Json<TokenizerInfo> {
    Json(server.card().tokenizer.clone())
}

async fn load_adapter(State(server): State<App>, request: Request) -> Result<String, Refusal> {
    let answer = |server: &Server, body: &Value| adapters::load(body, &server.adapters, &server.context());
    compute(server, request, answer).await
}

async fn unload_adapter(State(server): State<App>, request: Request) -> Result<String, Refusal> {
    let answer = |server: &Server, body: &Value| adapters::unload(body, &server.adapters, &server.context());
    compute(server, request, answer).await
}

async fn list_models(State(server): State<App>) -> Json<Value> {
    Json(server.adapters.lock().unwrap_or_else(PoisonError::into_inner).told(server.card()))
}

async fn one_model(State(server): State<App>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let adapters = server.adapters.lock().unwrap_or_else(PoisonError::into_inner);
    adapters.told_one(server.card(), &name).map(Json)
}

async fn health(State(server): State<App>) -> Result<StatusCode, Refusal> {
    let unwell = |error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("not healthy: {error}"));
    server.model.health().map(|()| StatusCode::OK).map_err(unwell)
}

async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn metrics(State(server): State<App>) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], Body::from(server.metrics.written(server.model.load()))).into_response()
}

async fn document() -> Json<Value> {
    Json(openapi::document())
}
