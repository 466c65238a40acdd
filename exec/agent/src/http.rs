//! Runs over HTTP.
//!
//! ```text
//! POST /v1/agents/{service}/runs                    start; its events follow, or its name alone
//! GET  /v1/agents/{service}/runs                    names, the youngest first
//! GET  /v1/agents/{service}/runs/{id}               where it stands
//! GET  /v1/agents/{service}/runs/{id}/events?from=N what happened and what happens, from a record on
//! POST /v1/agents/{service}/runs/{id}/approve       a call may be made, or may not
//! POST /v1/agents/{service}/runs/{id}/cancel        end it
//! ```
//!
//! Events are server-sent: an id (the record's place), a name, and the record as JSON. Between records come `delta`s, without an
//! id: pieces of the answer that is coming. A client that goes away does not end its run.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event as Sent, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures::stream;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    event::CallId,
    feed::{Follower, Told},
    message::Message,
    model::Delta,
    refusal::Refusal,
    runs::{Runs, RunsError, Start},
    settings::Budgets,
};

/// Bytes of a request: a conversation that is carried on.
const BODY_BYTES: usize = 8 << 20;
/// Names that are listed.
const LISTED: usize = 100;
/// Silence after which a proxy on the way may hang up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The routes of an agent.
pub fn router(runs: Arc<Runs>) -> Router {
    let missing = || async { Refusal::not_found("not_found", "there is nothing here: see /v1/agents/{service}/runs") };
    Router::new()
        .route("/v1/agents/{service}/runs", post(start).get(list))
        .route("/v1/agents/{service}/runs/{id}", get(view))
        .route("/v1/agents/{service}/runs/{id}/events", get(events))
        .route("/v1/agents/{service}/runs/{id}/approve", post(approve))
        .route("/v1/agents/{service}/runs/{id}/cancel", post(cancel))
        .fallback(missing)
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method: see /v1/agents/{service}/runs")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(runs)
}

/// A body of a request to start a run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartBody {
    input: Value,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    budgets: AskedBudgets,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AskedBudgets {
    steps: Option<u32>,
    wall_time_s: Option<u64>,
    tokens: Option<u64>,
    answer_tokens: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApproveBody {
    call_id: String,
    approve: bool,
    note: Option<String>,
}

#[derive(Deserialize)]
struct From {
    from: Option<u64>,
}

async fn start(
    State(runs): State<Arc<Runs>>,
    Path(service): Path<String>,
    body: Body<StartBody>,
) -> Result<Response, Refusal> {
    let (runs, body) = (of(&runs, &service)?, body.0);
    let messages = conversation(&body.input)?;
    let (asked, had) = (body.budgets, &runs.agent().settings.budgets);
    let budgets = Budgets {
        steps: asked.steps.unwrap_or(had.steps),
        wall_time_s: asked.wall_time_s.unwrap_or(had.wall_time_s),
        tokens: asked.tokens.unwrap_or(had.tokens),
        answer_tokens: asked.answer_tokens,
    };
    let id = runs.start(Start { messages, budgets: Some(budgets), metadata: body.metadata }).await?;
    if body.stream {
        return Ok(sent(runs.follow(&id, 0).await?));
    }
    let place = format!("/v1/agents/{service}/runs/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(runs.view(&id).await?)).into_response())
}

async fn list(State(runs): State<Arc<Runs>>, Path(service): Path<String>) -> Result<Response, Refusal> {
    let mut names = of(&runs, &service)?.list()?;
    let has_more = names.len() > LISTED;
    names.truncate(LISTED);
    Ok(Json(json!({ "object": "list", "data": names, "has_more": has_more })).into_response())
}

async fn view(State(runs): State<Arc<Runs>>, Path((service, id)): Path<(String, String)>) -> Result<Response, Refusal> {
    Ok(Json(of(&runs, &service)?.view(&id).await?).into_response())
}

async fn events(
    State(runs): State<Arc<Runs>>,
    Path((service, id)): Path<(String, String)>,
    query: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|found| Refusal::field("from", found.body_text()))?;
    // What a browser says when it comes back.
    let last = headers.get("last-event-id").and_then(|last| last.to_str().ok()?.parse::<u64>().ok());
    let from = query.from.or(last.map(|last| last.saturating_add(1))).unwrap_or(0);
    Ok(sent(of(&runs, &service)?.follow(&id, from).await?))
}

async fn approve(
    State(runs): State<Arc<Runs>>,
    Path((service, id)): Path<(String, String)>,
    body: Body<ApproveBody>,
) -> Result<Response, Refusal> {
    let ApproveBody { call_id, approve, note } = body.0;
    let call: CallId = call_id.parse().map_err(|found: String| Refusal::field("call_id", found))?;
    of(&runs, &service)?.approve(&id, call, approve, note).await?;
    Ok(Json(json!({ "id": id, "call_id": call, "approve": approve })).into_response())
}

async fn cancel(
    State(runs): State<Arc<Runs>>,
    Path((service, id)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let runs = of(&runs, &service)?;
    runs.cancel(&id).await?;
    Ok(Json(runs.view(&id).await?).into_response())
}

fn of<'a>(runs: &'a Arc<Runs>, service: &str) -> Result<&'a Arc<Runs>, Refusal> {
    let name = &runs.agent().name;
    if name == service {
        return Ok(runs);
    }
    Err(Refusal::not_found("service_not_found", format!("there is no agent `{service}` here: this one is `{name}`")))
}

/// A text, or messages in OpenAI's form.
fn conversation(input: &Value) -> Result<Vec<Message>, Refusal> {
    if let Some(text) = input.as_str() {
        return match text.trim().is_empty() {
            true => Err(Refusal::field("input", "it is empty: write what is to be done")),
            false => Ok(vec![Message::User { content: text.to_owned() }]),
        };
    }
    let Some(list) = input.as_array().filter(|list| !list.is_empty()) else {
        return Err(Refusal::field("input", "write a text, or a list of messages with role and content"));
    };
    let message = |(i, one): (usize, &Value)| {
        let text = |name: &str| one.get(name).and_then(Value::as_str);
        let content = text("content").map(str::to_owned);
        let wrong = |found: &str| Err(Refusal::field(format!("input[{i}]"), found));
        match (text("role"), content) {
            (Some("system" | "developer"), Some(content)) => Ok(Message::System { content }),
            (Some("user"), Some(content)) => Ok(Message::User { content }),
            (Some("assistant"), Some(content)) => {
                Ok(Message::Assistant(crate::Assistant { content, tool_calls: Vec::new() }))
            }
            (Some("tool"), _) => wrong("results of tools are the agent's own: leave them out"),
            (_, None) => wrong("content is no text"),
            (_, Some(_)) => wrong("role is none of system, user and assistant"),
        }
    };
    list.iter().enumerate().map(message).collect()
}

/// Events as they come. What is dropped with it is a listener, not a run.
fn sent(follower: Follower) -> Response {
    let events = stream::unfold(follower, |mut follower| async move {
        let told = follower.next().await?;
        Some((Ok::<_, Infallible>(event(&told)), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn event(told: &Told) -> Sent {
    let made = match told {
        Told::Record(record) => Sent::default().id(record.n.to_string()).event(record.event.name()).json_data(record),
        Told::Saying { step, delta } => {
            let (kind, text) = match delta {
                Delta::Text(text) => ("content", text),
                Delta::Thought(text) => ("reasoning_content", text),
            };
            Sent::default().event("delta").json_data(json!({ "step": step, kind: text }))
        }
    };
    // JSON of these is always made.
    made.unwrap_or_default()
}

/// A JSON body, with refusals in OpenAI's form.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(found) => {
                let status = match found.status() {
                    StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                    other => other,
                };
                Err(Refusal::new(status, found.body_text()))
            }
        }
    }
}

impl std::convert::From<RunsError> for Refusal {
    fn from(error: RunsError) -> Self {
        let message = error.to_string();
        match error {
            RunsError::Full(_) => Self::busy(format!("{message}: try again when one has ended")),
            RunsError::ShuttingDown => Self::shutting_down(),
            RunsError::Unknown(_) => Self::not_found("run_not_found", message),
            RunsError::NotLive(_) => Self::conflict("run_not_live", message),
            RunsError::NotAsked(_) => Self::conflict("call_not_asked", format!("{message}: see its approvals")),
            RunsError::InUse(_) | RunsError::Log(_) | RunsError::Damaged { .. } | RunsError::Io { .. } => {
                tracing::error!(%message, "a request failed");
                Self::failure("the log of the run cannot be used: see the log of the service")
            }
        }
    }
}
