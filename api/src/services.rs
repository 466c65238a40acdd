//! Requests to services, through whichever node took them. No leader is needed for a name whose replicas are ready: every
//! node knows those. The leader is asked for what gossip does not tell: which names there are, and to wake one that sleeps.
//!
//! ```text
//! POST /v1/…                  the body names the service as `model`, or NAME:ADAPTER, in OpenAI's shape; errors too
//! GET  /v1/models             every served name of the mesh
//! ANY  /v1/rag/NAME/…         documents of a service, and what is found in them
//! ANY  /v1/agents/NAME/…      runs of an agent
//! ANY  /services/NAME/…       any path of a service, as it stands behind the name
//! GET  /api/v1/services       names, owners, how many replicas are wanted and ready, and where
//! ```
//!
//! A request whose body is held (up to [`HELD_BYTES_MAX`]) is sent to another replica when the one it was sent to turns it
//! away or is lost before the first byte of its answer. After that byte the answer ends where it broke: an event stream
//! with an error event, anything else with a broken connection. A client that goes away takes its request with it, down to
//! the program.

mod answer;
mod held;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Extension, Path, Request},
    http::{HeaderValue, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use mloc_core::{
    id::{AttemptId, NodeId},
    service::route::{Candidate, choose, hash, prefix_key},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::{
    answer::{Under, watched},
    held::Held,
};
use crate::{
    Caller, ControlError,
    forward::{Asking, Duplex},
    view::ServiceView,
};

/// A body is held up to so many bytes, to be sent again; a longer one streams, and is sent once.
pub const HELD_BYTES_MAX: usize = 16 << 20;
/// [`Services::patience`]: longer than a lease and a start of a small program, shorter than clients' timeouts.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one waits for a service that slept: weights are read meanwhile. Clients' own times are mostly shorter.
const WAKE_PATIENCE: Duration = Duration::from_secs(600);
/// Requests of one node that wait for replicas: more are told to come again.
const WAITING_MAX: usize = 4_096;
/// Between two questions to the leader while a request waits.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a list of names waits for a leader, before what gossip tells must do.
const LIST_PATIENCE: Duration = Duration::from_secs(3);
/// For how long names that were asked of the leader count, where only adapters are told from services by them.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// A request with which so many replicas were lost is given up: it may be what ended them.
const LOST_MAX: usize = 3;
/// A stream that its node dropped before anything was sent is opened anew so often.
const DROPPED_MAX: u32 = 6;
/// Before that, as many times as it was dropped.
const DROPPED_PAUSE: Duration = Duration::from_millis(20);
/// Of an answer with [`LOST`]: nothing of the request has reached the program.
const UNASKED: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// Header of a request that is to go where others with the same value went.
const AFFINITY: &str = "mloc-affinity";
/// In an answer: not the program's, but its node's, which did not reach it.
const LOST: &str = "mloc-lost";
const REPLICA: &str = "mloc-replica";
const USER: &str = "mloc-user";
/// Whoever sends it is believed to be a replica; nodes say it of theirs.
const SIBLING: &str = "mloc-sibling";

/// A replica that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ready {
    /// Its attempt.
    pub attempt: AttemptId,
    /// Its node.
    pub node: NodeId,
}

/// What requests to services need of the node that took them.
#[async_trait]
pub trait Services: Send + Sync + 'static {
    /// The replicas of this name that can be asked, as this node knows.
    fn ready(&self, name: &str) -> Vec<Ready>;
    /// Every name that has some.
    fn names(&self) -> BTreeSet<String>;
    /// Returns when that may have changed, or after `most` at the latest.
    async fn changed(&self, most: Duration);
    /// A stream to a node's replicas.
    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>>;
    /// Returns when a node is not heard of any more, or was started anew.
    async fn unheard(&self, node: &NodeId);
    /// How long a request waits for a replica of a service that is to have some: an exchange, a restart, a lost node.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// Routes requests of one node.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    services: Arc<dyn Services>,
    asking: Asking,
    /// Requests of this node under way, by replica.
    under_way: Mutex<BTreeMap<AttemptId, u32>>,
    turn: AtomicU64,
    waiting: AtomicUsize,
    /// Every name, asleep or not, as it was a moment ago.
    known: Mutex<Option<(Instant, BTreeSet<String>)>>,
}

/// Why a request was not answered by a replica.
#[derive(Debug)]
enum NoAnswer {
    /// No service has this name; these are there.
    Unknown(BTreeSet<String>),
    /// None of its replicas is ready, or none of those that are answered.
    Unavailable(String),
    /// The body was sent already and cannot be sent again.
    Lost(String),
}

/// A replica gave no answer.
#[derive(Debug)]
struct Lost {
    /// Whether it may have seen the request.
    asked: bool,
    why: String,
}

impl Router {
    /// Routes to what these know; the leader is asked by `asking`.
    pub fn new(services: Arc<dyn Services>, asking: Asking) -> Self {
        let (under_way, turn, waiting, known) = Default::default();
        Self { inner: Arc::new(Inner { services, asking, under_way, turn, waiting, known }) }
    }

    /// Sends a request to a replica of this name and returns its answer, whose body is still to come.
    async fn route(&self, name: &str, key: Option<u64>, request: &Parts, mut body: Held) -> Result<Response, NoAnswer> {
        let begun = Instant::now();
        // Those that turned this request away or were lost with it.
        let (mut tried, mut lost) = (BTreeSet::new(), 0);
        let mut last = None;
        loop {
            let Some(ready) = self.pick(name, key, &tried) else {
                // Whoever was lost with the request may be back as another attempt: that one was not tried.
                self.wait(name, request, begun, last.as_deref()).await?;
                continue;
            };
            let under = self.begin(&ready.attempt);
            let Some(sent) = body.take() else {
                return Err(NoAnswer::Lost(last.unwrap_or_else(|| "the request's body was cut off".to_owned())));
            };
            match self.ask(&ready, request, sent, under).await {
                Ok(answer) => return Ok(answer),
                Err(Lost { asked, why }) => {
                    tracing::debug!(name, attempt = %ready.attempt, node = %ready.node, why, "a replica did not answer");
                    lost += usize::from(asked);
                    if lost >= LOST_MAX {
                        return Err(NoAnswer::Lost(format!("{lost} replicas were lost with this request: {why}")));
                    }
                    tried.insert(ready.attempt);
                    last = Some(why);
                }
            }
        }
    }

    /// The service that a model's name is of: of that name, or with an adapter of that name behind the last colon. One of
    /// that name may sleep: what there is is asked of the leader, and kept for some seconds.
    async fn service_of<'a>(&self, model: &'a str, caller: &Caller) -> &'a str {
        let Some((base, _)) = model.rsplit_once(':') else { return model };
        let ready = |name: &str| !self.inner.services.ready(name).is_empty();
        if ready(model) || !ready(base) {
            return model;
        }
        let known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let names = match known.filter(|(asked, _)| asked.elapsed() < KNOWN_FOR) {
            Some((_, names)) => names,
            None => {
                let names: BTreeSet<String> = self.listed(caller).await.into_iter().map(|(name, ..)| name).collect();
                let fresh = Some((Instant::now(), names.clone()));
                *self.inner.known.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                names
            }
        };
        if names.contains(model) { model } else { base }
    }

    fn pick(&self, name: &str, key: Option<u64>, tried: &BTreeSet<AttemptId>) -> Option<Ready> {
        let mut ready = self.inner.services.ready(name);
        ready.retain(|one| !tried.contains(&one.attempt));
        let under_way = self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |one: &Ready| under_way.get(&one.attempt).copied().unwrap_or(0);
        let candidates: Vec<Candidate<'_>> =
            ready.iter().map(|one| Candidate { attempt: &one.attempt, under_way: load(one) }).collect();
        let chosen = choose(key, &candidates, self.inner.turn.fetch_add(1, Ordering::Relaxed))?;
        Some(ready.swap_remove(chosen))
    }

    fn begin(&self, attempt: &AttemptId) -> Under {
        *self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner).entry(attempt.clone()).or_default() += 1;
        let (inner, attempt) = (self.inner.clone(), attempt.clone());
        Under::new(move || {
            let mut all = inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = all.get_mut(&attempt) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&attempt);
                }
            }
        })
    }

    /// Waits for a replica to come; wakes a service that sleeps.
    async fn wait(&self, name: &str, request: &Parts, begun: Instant, last: Option<&str>) -> Result<(), NoAnswer> {
        let inner = &self.inner;
        let _waits = Waits::begin(&inner.waiting)
            .ok_or_else(|| NoAnswer::Unavailable(format!("{WAITING_MAX} requests wait for replicas already")))?;
        let caller = request.extensions.get::<Caller>().cloned().unwrap_or(Caller { user: String::new() });
        let services = inner.asking.read::<Vec<ServiceView>>(&caller, "/api/v1/services");
        let why = |what: &str| {
            let last = last.map(|last| format!(" (the last one asked: {last})")).unwrap_or_default();
            NoAnswer::Unavailable(format!("`{name}`: {what}{last}"))
        };
        let patience = match services.await {
            Ok(services) => match services.iter().find(|service| service.name == name) {
                None => return Err(NoAnswer::Unknown(services.into_iter().map(|service| service.name).collect())),
                Some(service) if service.sleeps => {
                    let woken = inner.asking.post(&caller, &format!("/api/v1/services/wake?name={name}")).await;
                    tracing::info!(name, status = woken.status().as_u16(), "a request wakes a service");
                    WAKE_PATIENCE
                }
                // One that was woken and is on its way.
                Some(service) if service.wakes => WAKE_PATIENCE,
                Some(_) => inner.services.patience(),
            },
            // Gossip may still bring one.
            Err(error) if begun.elapsed() >= inner.services.patience() => {
                return Err(why(&format!("it has no ready replica, and {error}")));
            }
            Err(_) => inner.services.patience(),
        };
        if begun.elapsed() >= patience {
            return Err(why("none of its replicas is ready"));
        }
        inner.services.changed(ASK_AGAIN).await;
        Ok(())
    }

    /// One try at one replica. `Err`: it was turned away, or lost before the answer began.
    async fn ask(&self, ready: &Ready, request: &Parts, body: Body, under: Under) -> Result<Response, Lost> {
        let node = ready.node.clone();
        let services = self.inner.services.clone();
        let asked = async {
            let unasked = |why: String| Lost { asked: false, why };
            let mut asked = Request::new(body);
            *asked.method_mut() = request.method.clone();
            *asked.uri_mut() = request.uri.clone();
            *asked.headers_mut() = request.headers.clone();
            let named = HeaderValue::from_str(&ready.attempt.to_string());
            asked.headers_mut().insert(REPLICA, named.map_err(|e| unasked(e.to_string()))?);
            let mut dropped = 0;
            let (response, pump) = loop {
                let stream =
                    services.open(&node).await.map_err(|e| unasked(format!("{node} can't be reached: {e}")))?;
                let broken = |e: hyper::Error| format!("the connection to {node} broke: {e}");
                let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
                let (mut sender, connection) = handshake.await.map_err(|e| unasked(broken(e)))?;
                // Ends with this try, or with the answer's body.
                let pump = AbortOnDropHandle::new(tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a stream to a replica ended");
                    }
                }));
                match sender.try_send_request(asked).await {
                    Ok(response) => break (response, pump),
                    Err(mut error) => match error.take_message() {
                        // Nothing of it was sent: a node drops streams of which too many come at once.
                        Some(back) if dropped < DROPPED_MAX => {
                            dropped += 1;
                            asked = back;
                            sleep(DROPPED_PAUSE * dropped).await;
                        }
                        back => return Err(Lost { asked: back.is_none(), why: broken(error.into_error()) }),
                    },
                }
            };
            if let Some(why) = response.headers().get(LOST) {
                let why = format!("{node}: {}", why.to_str().unwrap_or("it did not reach its replica"));
                return Err(Lost { asked: response.status() != UNASKED, why });
            }
            Ok((response, pump))
        };
        tokio::select! {
            answered = asked => {
                let (response, pump) = answered?;
                Ok(watched(response, pump, under, services, node))
            }
            () = services.unheard(&ready.node) => {
                Err(Lost { asked: true, why: format!("{} is not heard of any more", ready.node) })
            }
        }
    }

    /// Every served name, with its owner and since when.
    async fn listed(&self, caller: &Caller) -> Vec<(String, String, u64)> {
        let asked = self.inner.asking.read::<Vec<ServiceView>>(caller, "/api/v1/services");
        match timeout(LIST_PATIENCE, asked).await {
            Ok(Ok(all)) => all.into_iter().map(|service| (service.name, service.owner, service.created_unix)).collect(),
            // What gossip tells: those that can be asked.
            Ok(Err(_)) | Err(_) => {
                self.inner.services.names().into_iter().map(|name| (name, String::new(), 0)).collect()
            }
        }
    }
}

/// One request waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let waits = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a program sees of who asks.
fn prepare(parts: &mut Parts, caller: &Caller) {
    parts.headers.remove(header::AUTHORIZATION);
    parts.headers.remove(header::EXPECT);
    parts.headers.remove(header::CONNECTION);
    parts.headers.remove(SIBLING);
    parts.headers.insert(header::HOST, HeaderValue::from_static("service.mloc"));
    // Whoever is no text for a header is nobody.
    let user = HeaderValue::from_bytes(caller.user.as_bytes()).unwrap_or(HeaderValue::from_static(""));
    parts.headers.insert(USER, user);
    parts.extensions.insert(caller.clone());
    // The handler's client may speak another version.
    parts.version = axum::http::Version::HTTP_11;
}

/// POST /v1/…
pub(crate) async fn openai(
    Extension(router): Extension<Router>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let bytes = match to_bytes(body, HELD_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = format!("the body can't be read, or has more than {} MiB: {error}", HELD_BYTES_MAX >> 20);
            return openai_error(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", None, None, &text);
        }
    };
    let bad = |param: Option<&str>, text: &str| {
        openai_error(StatusCode::BAD_REQUEST, "invalid_request_error", param, None, text)
    };
    let read: Value = match serde_json::from_slice(&bytes) {
        Ok(read) => read,
        Err(error) => return bad(None, &format!("the body is no JSON: {error}")),
    };
    let Some(name) = read["model"].as_str().map(str::to_owned) else {
        return bad(Some("model"), "the body has no `model`: GET /v1/models lists what is served");
    };
    prepare(&mut parts, &caller);
    let key = prefix_key(&read);
    drop(read);
    let service = router.service_of(&name, &caller).await;
    let mut answered = router.route(service, key, &parts, Held::whole(bytes.clone())).await;
    // An adapter of a service that has no ready replica just now.
    if let Err(NoAnswer::Unknown(names)) = &answered
        && let Some((base, _)) = name.rsplit_once(':').filter(|(base, _)| names.contains(*base))
    {
        answered = router.route(base, key, &parts, Held::whole(bytes)).await;
    }
    answered.unwrap_or_else(|none| unanswered(&name, none))
}

/// ANY /v1/rag/NAME/… and /v1/agents/NAME/…: the path names the service, and is the replica's own.
pub(crate) async fn named(
    Extension(router): Extension<Router>,
    Extension(caller): Extension<Caller>,
    Path((name, _)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let key = parts.headers.get(AFFINITY).map(|value| hash(value.as_bytes()));
    prepare(&mut parts, &caller);
    let body = match Held::read(body).await {
        Ok(body) => body,
        Err(error) => {
            let text = format!("the body broke off: {error}");
            return openai_error(StatusCode::BAD_REQUEST, "invalid_request_error", None, None, &text);
        }
    };
    if body.is_whole() {
        // It says its length itself.
        parts.headers.remove(header::TRANSFER_ENCODING);
    }
    router.route(&name, key, &parts, body).await.unwrap_or_else(|none| unanswered(&name, none))
}

/// In OpenAI's words.
fn unanswered(name: &str, none: NoAnswer) -> Response {
    match none {
        NoAnswer::Unknown(names) => {
            let text = format!("the model `{name}` does not exist: {}", said(&names));
            let (kind, code) = ("invalid_request_error", Some("model_not_found"));
            openai_error(StatusCode::NOT_FOUND, kind, Some("model"), code, &text)
        }
        NoAnswer::Unavailable(text) | NoAnswer::Lost(text) => {
            let code = Some("model_not_ready");
            let mut answer = openai_error(StatusCode::SERVICE_UNAVAILABLE, "server_error", None, code, &text);
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            answer
        }
    }
}

/// ANY /services/NAME/…
pub(crate) async fn plain(
    Extension(router): Extension<Router>,
    Extension(caller): Extension<Caller>,
    Path((name, _)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ControlError> {
    behind(router, caller, name, request).await
}

/// ANY /services/NAME/
pub(crate) async fn plain_top(
    Extension(router): Extension<Router>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ControlError> {
    behind(router, caller, name, request).await
}

async fn behind(router: Router, caller: Caller, name: String, request: Request) -> Result<Response, ControlError> {
    let (mut parts, body) = request.into_parts();
    parts.uri = uri_behind(&parts.uri)?;
    let key = parts.headers.get(AFFINITY).map(|value| hash(value.as_bytes()));
    prepare(&mut parts, &caller);
    let body = Held::read(body).await.map_err(|e| ControlError::CutOff(format!("the body broke off: {e}")))?;
    if body.is_whole() {
        // It says its length itself.
        parts.headers.remove(header::TRANSFER_ENCODING);
    }
    router.route(&name, key, &parts, body).await.map_err(|none| match none {
        NoAnswer::Unknown(names) => ControlError::NotFound(format!("service {name}: {}", said(&names))),
        NoAnswer::Unavailable(text) | NoAnswer::Lost(text) => ControlError::Unavailable(text),
    })
}

/// The path behind `/services/NAME`, as it was typed, with its query.
fn uri_behind(uri: &Uri) -> Result<Uri, ControlError> {
    let whole = uri.path_and_query().map_or("/", |path| path.as_str());
    let rest = whole.strip_prefix("/services/").unwrap_or(whole);
    let behind = rest.find('/').map_or("/", |at| &rest[at..]);
    behind.parse().map_err(|_| ControlError::NotFound(format!("path {}", uri.path())))
}

/// GET /v1/models
pub(crate) async fn models(Extension(router): Extension<Router>, Extension(caller): Extension<Caller>) -> Response {
    let data: Vec<Value> = router.listed(&caller).await.iter().map(model_card).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

/// GET /v1/models/NAME: one of the list, or an adapter, of which its service tells.
pub(crate) async fn model(
    Extension(router): Extension<Router>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let listed = router.listed(&caller).await;
    if let Some(one) = listed.iter().find(|(id, ..)| *id == name) {
        return Json(model_card(one)).into_response();
    }
    let names: BTreeSet<String> = listed.into_iter().map(|(id, ..)| id).collect();
    let Some((base, _)) = name.rsplit_once(':').filter(|(base, _)| names.contains(*base)) else {
        return unanswered(&name, NoAnswer::Unknown(names));
    };
    let (mut parts, _) = request.into_parts();
    prepare(&mut parts, &caller);
    let told = router.route(base, None, &parts, Held::whole(Default::default())).await;
    told.unwrap_or_else(|none| unanswered(&name, none))
}

fn model_card((id, owner, created): &(String, String, u64)) -> Value {
    json!({"id": id, "object": "model", "created": created, "owned_by": owner})
}

fn said(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "no service runs on this mesh".to_owned();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("served are {}", names.join(", "))
}

/// An error in OpenAI's shape.
fn openai_error(status: StatusCode, kind: &str, param: Option<&str>, code: Option<&str>, message: &str) -> Response {
    (status, Json(json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_a_name_is_passed_on_as_it_was_typed() {
        for (typed, behind) in [
            ("/services/chat/health", "/health"),
            ("/services/chat/", "/"),
            ("/services/chat", "/"),
            ("/services/org%2Fchat/a%20b/c?d=e%2F&f", "/a%20b/c?d=e%2F&f"),
        ] {
            let uri: Uri = typed.parse().unwrap();
            assert_eq!(uri_behind(&uri).unwrap().to_string(), behind);
        }
    }
}
