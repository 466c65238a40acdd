//! Paths to [`Control`] calls: one table, from which two routers are made. [`rest_router`] is for clients: it
//! authenticates and forwards to the leader. [`link_router`] is for members and does neither: a request hops once.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Extension, FromRequestParts, Path, Query, Request, State},
    http::{HeaderMap, Method, StatusCode, header, request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any, get, head, post, put},
};
use mloc_core::{
    files::Brought,
    id::{AttemptId, NodeId, RequestId, TaskId},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Access, Caller, Control, ControlError,
    access::authenticate,
    body,
    control::{Freshness, LogsFrom, Submission},
    dashboard,
    door::not_ready,
    files::{self, Files, Here},
    forward::{self, Asking, Forward, Way},
    services::{self, Services},
    view::{StatsQuery, TASK_STATES, TaskFilter},
};

type App = Arc<dyn Control>;

/// The header in which the node that took a request tells the leader who called.
pub const CALLER_HEADER: &str = "mloc-caller";

/// The header in which the node that took a request tells the leader which node that is: the one that has what came
/// along with a task.
pub const TAKEN_BY_HEADER: &str = "mloc-taken-by";

/// Who answers a route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// The node that took the request, to anybody.
    Here,
    /// The node that took the request, to callers it knows.
    HereToCallers,
    /// The leader.
    Leader,
    /// The leader, or with `?stale=true` the node that took the request.
    LeaderUnlessStale,
    /// A replica of a service, wherever it is, to callers it knows.
    Replica,
}

/// What [`Control::metrics`] is written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Route {
    method: Method,
    path: &'static str,
    answers: Answers,
    handler: MethodRouter<App>,
}

const TASKS: &str = "/api/v1/tasks";

/// Every route. A test holds openapi.json to it.
fn table() -> Vec<Route> {
    use Answers::{Here, HereToCallers, Leader, LeaderUnlessStale, Replica};
    const GET: Method = Method::GET;
    const HEAD: Method = Method::HEAD;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    let row = |method, path, answers, handler| Route { method, path, answers, handler };
    vec![
        row(POST, TASKS, Leader, post(submit)),
        row(GET, TASKS, LeaderUnlessStale, get(tasks)),
        row(GET, "/api/v1/tasks/{id}", LeaderUnlessStale, get(task)),
        row(POST, "/api/v1/tasks/{id}/cancel", Leader, post(cancel)),
        row(GET, "/api/v1/tasks/{id}/explain", LeaderUnlessStale, get(explain)),
        row(GET, "/api/v1/tasks/{id}/logs", Leader, get(logs)),
        row(GET, "/api/v1/tasks/{id}/events", LeaderUnlessStale, get(events)),
        row(GET, "/api/v1/tasks/{id}/metrics", LeaderUnlessStale, get(task_metrics)),
        row(GET, "/api/v1/tasks/{id}/artifacts", LeaderUnlessStale, get(artifacts)),
        row(GET, "/api/v1/tasks/{id}/artifacts/{*path}", HereToCallers, get(files::artifact)),
        row(GET, "/api/v1/files", Leader, get(brought)),
        row(HEAD, "/api/v1/files/{sha256}", HereToCallers, head(files::uploaded)),
        row(PUT, "/api/v1/files/{sha256}", HereToCallers, put(files::upload)),
        row(GET, "/api/v1/files/{sha256}/missing", HereToCallers, get(files::missing)),
        row(GET, "/api/v1/nodes", LeaderUnlessStale, get(nodes)),
        row(POST, "/api/v1/nodes/{id}/drain", Leader, post(drain)),
        row(POST, "/api/v1/nodes/{id}/revoke", Leader, post(revoke)),
        row(GET, "/api/v1/stats", LeaderUnlessStale, get(stats)),
        row(GET, "/api/v1/mesh", LeaderUnlessStale, get(mesh)),
        row(GET, "/api/v1/backup", Leader, get(backup)),
        row(GET, "/api/v1/services", LeaderUnlessStale, get(services_list)),
        row(POST, "/api/v1/services/wake", Leader, post(wake)),
        row(GET, "/v1/models", Replica, get(services::models)),
        row(GET, "/v1/models/{*model}", Replica, get(services::model)),
        row(POST, "/v1/{*path}", Replica, post(services::openai)),
        row(GET, "/v1/rag/{name}/{*path}", Replica, any(services::named)),
        row(GET, "/v1/agents/{name}/{*path}", Replica, any(services::named)),
        row(GET, "/services/{name}/{*path}", Replica, any(services::plain)),
        row(GET, "/services/{name}/", Replica, any(services::plain_top)),
        row(GET, "/", Here, get(dashboard::page)),
        row(GET, "/openapi.json", Here, get(dashboard::openapi)),
        row(GET, "/healthz", Here, get(|| async { "ok\n" })),
        row(GET, "/readyz", Here, get(readyz)),
        row(GET, "/metrics", Here, get(metrics)),
    ]
}

/// What a node's routes are made of.
pub struct Parts {
    /// Answers while this node leads.
    pub control: Arc<dyn Control>,
    /// Bytes of this node.
    pub files: Arc<dyn Files>,
    /// The way to replicas of services.
    pub services: Arc<dyn Services>,
    /// The way to the leader.
    pub forward: Arc<dyn Forward>,
}

/// What clients speak to.
pub fn rest_router(parts: Parts, access: Access) -> Router {
    let Parts { control, files, services, forward } = parts;
    let (mut api, mut open) = (Router::new(), Router::new());
    let asking = Asking::new(control.clone(), forward.clone());
    let replicas = services::Router::new(services, asking.clone());
    for Route { method, path, answers, handler } in table() {
        let stale_here = match answers {
            Answers::Here => {
                open = open.route(path, handler);
                continue;
            }
            Answers::HereToCallers => {
                let here = Here { files: files.clone(), asking: asking.clone() };
                api = api.route(path, handler.layer(Extension(here)));
                continue;
            }
            Answers::Replica => {
                api = api.route(path, handler.layer(Extension(replicas.clone())));
                continue;
            }
            Answers::Leader => false,
            Answers::LeaderUnlessStale => true,
        };
        let way = Way { forward: forward.clone(), stale_here };
        let handler = handler.layer(middleware::from_fn_with_state(way, forward::to_leader));
        let submits = (method, path) == (Method::POST, TASKS);
        api = api.route(
            path,
            if submits { handler.layer(middleware::from_fn_with_state(files.clone(), files::bring)) } else { handler },
        );
    }
    api.layer(middleware::from_fn_with_state(access, authenticate))
        .merge(open)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(control)
}

/// What members speak to, over a mesh stream: the sender has authenticated the caller and names it in a header.
pub fn link_router(control: App) -> Router {
    let forwarded =
        table().into_iter().filter(|route| matches!(route.answers, Answers::Leader | Answers::LeaderUnlessStale));
    forwarded
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .layer(middleware::from_fn(believe_member))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(control)
}

async fn believe_member(mut request: Request, next: Next) -> Response {
    let named = request.headers().get(CALLER_HEADER);
    match named.and_then(|name| std::str::from_utf8(name.as_bytes()).ok()).map(str::to_owned) {
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
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ControlError;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Query(params) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|e| ControlError::Invalid { detail: format!("query: {}", e.body_text()), problems: Vec::new() })?;
        Ok(Self(params))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubmitParams {
    dry_run: Option<String>,
    file: Option<String>,
    pub files: Option<String>,
}

impl SubmitParams {
    /// `?dry_run` alone means yes.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.as_ref().is_some_and(|v| v != "false" && v != "0")
    }
}

async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<SubmitParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ControlError> {
    let body = body::read(&headers, body).await?;
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
    let dry_run = params.is_dry_run();
    let node = headers.get(TAKEN_BY_HEADER).and_then(|v| v.to_str().ok()).map(NodeId::new);
    let brought = Brought { node, trees: files::brought(params.files.as_deref())? };
    let file = params.file.unwrap_or_else(|| "task.yaml".into());
    let request = RequestId::new(key);
    let accepted = app.submit(&caller, Submission { body, file, brought, request, dry_run }).await?;
    if dry_run {
        // Nothing was made that could be looked at.
        return Ok((StatusCode::OK, Json(accepted)).into_response());
    }
    let location = format!("/api/v1/tasks/{}", accepted.task.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(accepted)).into_response())
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
    if let Some(state) = &filter.state
        && !TASK_STATES.iter().any(|known| known.eq_ignore_ascii_case(state))
    {
        return Err(ControlError::Invalid {
            detail: format!("query: state: `{state}` is none: expected one of {}", TASK_STATES.join(", ")),
            problems: Vec::new(),
        });
    }
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

async fn explain(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(read): Params<ReadParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.explain(freshness(read.stale), &TaskId::new(id)).await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogParams {
    follow: Option<bool>,
    attempt: Option<String>,
    offset: Option<u64>,
}

async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, ControlError> {
    let task = TaskId::new(id);
    let attempt = params.attempt.map(|text| attempt_of(&task, &text)).transpose()?;
    let from = LogsFrom { attempt, offset: params.offset.unwrap_or(0), follow: params.follow == Some(true) };
    let stream = app.logs(&task, from).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response())
}

/// TASK.REPLICA.ATTEMPT of this task, or the number of an attempt of its first replica.
fn attempt_of(task: &TaskId, text: &str) -> Result<AttemptId, ControlError> {
    let given = match text.parse() {
        Ok(number) => Some(AttemptId { task: task.clone(), replica: 0, attempt: number }),
        Err(_) => text.parse().ok(),
    };
    given.filter(|attempt: &AttemptId| attempt.task == *task).ok_or_else(|| ControlError::Invalid {
        detail: format!("query: attempt: `{text}` is none of {task}: expected its number, or {task}.REPLICA.ATTEMPT"),
        problems: Vec::new(),
    })
}

async fn events(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(read): Params<ReadParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.events(freshness(read.stale), &TaskId::new(id)).await?).into_response())
}

async fn task_metrics(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(read): Params<ReadParams>,
) -> Result<Response, ControlError> {
    let task = app.task(freshness(read.stale), &TaskId::new(id)).await?;
    let summary = task.result.map(|r| r.summary).unwrap_or_default();
    Ok(Json(serde_json::json!({ "progress": task.progress, "summary": summary })).into_response())
}

async fn artifacts(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(read): Params<ReadParams>,
) -> Result<Response, ControlError> {
    let task = app.task(freshness(read.stale), &TaskId::new(id)).await?;
    match task.result {
        Some(result) => Ok(Json(result).into_response()),
        None => Err(ControlError::NotFound(format!("artifacts of {} yet: it is {}", task.id, task.state))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BroughtParams {
    node: Option<String>,
}

async fn brought(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<BroughtParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.brought(&caller, params.node.as_deref()).await?).into_response())
}

async fn services_list(State(app): State<App>, Params(read): Params<ReadParams>) -> Result<Response, ControlError> {
    Ok(Json(app.services(freshness(read.stale)).await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WakeParams {
    name: String,
}

async fn wake(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<WakeParams>,
) -> Result<Response, ControlError> {
    Ok(Json(app.wake(&caller, &params.name).await?).into_response())
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
    Ok(Json(app.stats(freshness(query.stale), query).await?).into_response())
}

async fn mesh(State(app): State<App>, Params(read): Params<ReadParams>) -> Result<Response, ControlError> {
    Ok(Json(app.mesh(freshness(read.stale)).await?).into_response())
}

async fn backup(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Response, ControlError> {
    let bytes = app.backup(&caller).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn readyz(State(app): State<App>) -> Response {
    match app.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => not_ready(&why),
    }
}

async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], app.metrics().await).into_response()
}

async fn unknown_path(request: Request) -> ControlError {
    ControlError::NotFound(format!("path {}: /openapi.json lists what there is", request.uri().path()))
}

async fn wrong_method(request: Request) -> ControlError {
    let (method, path) = (request.method(), request.uri().path());
    ControlError::WrongMethod(format!("{path} is not for {method}: the Allow header says what it takes"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn openapi_lists_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        let written: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        // A path's rest is a parameter like any other there.
        let written_path = |route: &Route| route.path.replace("{*", "{");
        let routed: BTreeSet<String> = table().iter().map(|r| format!("{} {}", r.method, written_path(r))).collect();
        assert_eq!(written, routed);
        for route in table() {
            let method = route.method.as_str().to_lowercase();
            let parameters = document["paths"][written_path(&route)][&method]["parameters"].as_array().unwrap();
            let stale = parameters.iter().any(|p| p["name"] == "stale");
            assert_eq!(stale, route.answers == Answers::LeaderUnlessStale, "{method} {}", route.path);
        }
    }

    #[test]
    fn an_attempt_is_named_by_its_number_or_in_full() {
        let task = TaskId::new("task-1");
        assert_eq!(attempt_of(&task, "2").unwrap().to_string(), "task-1.0.2");
        assert_eq!(attempt_of(&task, "task-1.0.2").unwrap().to_string(), "task-1.0.2");
        for bad in ["task-2.0.2", "newest", ""] {
            assert!(attempt_of(&task, bad).is_err(), "{bad}");
        }
    }
}
