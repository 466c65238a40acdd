//! Paths to [`Control`] calls. Two routers over the same handlers: [`rest_router`] for clients, which authenticates
//! and forwards to the leader, and [`link_router`] for members, which does neither: a request hops once.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Extension, FromRequestParts, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use mloc_core::id::{RequestId, TaskId};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Caller, Control, ControlError, MAX_TASK_BYTES, UserTokens,
    control::{Freshness, Submission},
    dashboard,
    forward::{self, Forward},
    view::{StatsQuery, TaskFilter},
};

type App = Arc<dyn Control>;

/// The header in which the node that took a request tells the leader who called.
pub const CALLER_HEADER: &str = "mloc-caller";

/// Who may call a listener without a token.
#[derive(Clone, Debug)]
pub enum Access {
    /// Loopback: the machine's own users are the admin unless they present a token.
    Trusted(UserTokens),
    /// Anything else: a token or 401.
    TokenOnly(UserTokens),
}

/// What clients speak to.
pub fn rest_router(control: App, forward: Arc<dyn Forward>, access: Access) -> Router {
    let api = api_routes()
        .layer(middleware::from_fn_with_state(forward, forward::to_leader))
        .layer(middleware::from_fn_with_state(access, authenticate));
    api.merge(open_routes()).fallback(unknown_path).layer(DefaultBodyLimit::max(MAX_TASK_BYTES)).with_state(control)
}

/// What members speak to, over a mesh stream: the sender has authenticated the caller and names it in a header.
pub fn link_router(control: App) -> Router {
    api_routes()
        .layer(middleware::from_fn(believe_member))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_TASK_BYTES))
        .with_state(control)
}

fn api_routes() -> Router<App> {
    Router::new()
        .route("/api/v1/tasks", post(submit).get(tasks))
        .route("/api/v1/tasks/{id}", get(task))
        .route("/api/v1/tasks/{id}/cancel", post(cancel))
        .route("/api/v1/tasks/{id}/explain", get(explain))
        .route("/api/v1/tasks/{id}/logs", get(logs))
        .route("/api/v1/tasks/{id}/events", get(events))
        .route("/api/v1/tasks/{id}/metrics", get(task_metrics))
        .route("/api/v1/tasks/{id}/artifacts", get(artifacts))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{id}/drain", post(drain))
        .route("/api/v1/nodes/{id}/revoke", post(revoke))
        .route("/api/v1/stats", get(stats))
        .route("/api/v1/mesh", get(mesh))
}

fn open_routes() -> Router<App> {
    Router::new()
        .route("/", get(dashboard::page))
        .route("/openapi.json", get(dashboard::openapi))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

async fn authenticate(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(str::to_owned);
    let caller = match (&access, bearer) {
        (Access::Trusted(tokens) | Access::TokenOnly(tokens), Some(token)) => tokens.check(&token),
        (Access::Trusted(_), None) => Ok(Caller::admin()),
        (Access::TokenOnly(_), None) => Err(ControlError::Unauthorized(
            "this address needs `Authorization: Bearer TOKEN`; `mloc token USER` on a member prints one".into(),
        )),
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => refused.into_response(),
    }
}

async fn believe_member(mut request: Request, next: Next) -> Response {
    let caller = request.headers().get(CALLER_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
    match caller {
        Some(user) => {
            request.extensions_mut().insert(Caller { user });
            next.run(request).await
        }
        None => {
            ControlError::Unauthorized(format!("a member must name the caller in `{CALLER_HEADER}`")).into_response()
        }
    }
}

/// Query parameters, with a problem body instead of a bare 400.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ControlError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Query(params) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|e| ControlError::Invalid { detail: format!("query: {}", e.body_text()), problems: Vec::new() })?;
        Ok(Self(params))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubmitParams {
    dry_run: Option<String>,
    file: Option<String>,
}

async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<SubmitParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ControlError> {
    let body = axum::body::to_bytes(body, MAX_TASK_BYTES).await.map_err(|_| {
        ControlError::TooLarge(format!(
            "a task is at most {} KiB: refer to data by its source instead of writing it into the file",
            MAX_TASK_BYTES / 1024
        ))
    })?;
    let body = String::from_utf8(body.into()).map_err(|e| ControlError::Invalid {
        detail: format!("the body is not UTF-8: byte {} is the first that is wrong", e.utf8_error().valid_up_to()),
        problems: Vec::new(),
    })?;
    let key = headers.get("idempotency-key").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > 200 {
        return Err(ControlError::Invalid {
            detail: "Idempotency-Key must have 1 to 200 visible characters".into(),
            problems: Vec::new(),
        });
    }
    // `?dry_run` alone means yes.
    let dry_run = params.dry_run.is_some_and(|v| v != "false" && v != "0");
    let file = params.file.unwrap_or_else(|| "task.yaml".into());
    let accepted = app.submit(&caller, Submission { body, file, request: RequestId::new(key), dry_run }).await?;
    let status = if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = format!("/api/v1/tasks/{}", accepted.task.id);
    Ok((status, [(header::LOCATION, location)], Json(accepted)).into_response())
}

fn freshness(stale: Option<bool>) -> Freshness {
    if stale == Some(true) { Freshness::Stale } else { Freshness::Linearizable }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadParams {
    stale: Option<bool>,
}

async fn tasks(State(app): State<App>, Params(filter): Params<TaskFilter>) -> Result<Response, ControlError> {
    Ok(Json(app.tasks(freshness(filter.stale), filter).await?).into_response())
}

async fn task(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(read): Params<ReadParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.task(freshness(read.stale), &TaskId::new(id)).await?).into_response())
}

async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ControlError> {
    Ok(Json(app.cancel(&caller, &TaskId::new(id)).await?).into_response())
}

async fn explain(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ControlError> {
    Ok(Json(app.explain(&TaskId::new(id)).await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogParams {
    follow: Option<bool>,
}

async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, ControlError> {
    let stream = app.logs(&TaskId::new(id), params.follow == Some(true)).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response())
}

async fn events(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ControlError> {
    Ok(Json(app.events(&TaskId::new(id)).await?).into_response())
}

async fn task_metrics(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ControlError> {
    let task = app.task(Freshness::Linearizable, &TaskId::new(id)).await?;
    let summary = task.result.map(|r| r.summary).unwrap_or_default();
    Ok(Json(serde_json::json!({ "progress": task.progress, "summary": summary })).into_response())
}

async fn artifacts(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ControlError> {
    let task = app.task(Freshness::Linearizable, &TaskId::new(id)).await?;
    match task.result {
        Some(result) => Ok(Json(result).into_response()),
        None => Err(ControlError::NotFound(format!("artifacts of {} yet: it is {}", task.id, task.state))),
    }
}

async fn nodes(State(app): State<App>, Params(read): Params<ReadParams>) -> Result<Response, ControlError> {
    Ok(Json(app.nodes(freshness(read.stale)).await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainParams {
    off: Option<bool>,
}

async fn drain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Params(params): Params<DrainParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.drain(&caller, &id, params.off != Some(true)).await?).into_response())
}

async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ControlError> {
    Ok(Json(app.revoke(&caller, &id).await?).into_response())
}

async fn stats(State(app): State<App>, Params(query): Params<StatsQuery>) -> Result<Response, ControlError> {
    Ok(Json(app.stats(query).await?).into_response())
}

async fn mesh(State(app): State<App>, Params(read): Params<ReadParams>) -> Result<Response, ControlError> {
    Ok(Json(app.mesh(freshness(read.stale)).await?).into_response())
}

async fn readyz(State(app): State<App>) -> Response {
    match app.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics().await).into_response()
}

async fn unknown_path(request: Request) -> ControlError {
    ControlError::NotFound(format!("path {}: /openapi.json lists what there is", request.uri().path()))
}
