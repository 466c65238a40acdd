//! Any node takes any request. A request that the leader must answer goes there as HTTP/1 over a mesh stream, one
//! hop; logs and other streams flow back the same way. One mechanism for small and large: a request keeps its method,
//! its status and its errors, so the answer is the same at every node.
//!
//! While the mesh has no leader, or changes it, the request is kept and tried again until [`PATIENCE`] is over: with
//! its Idempotency-Key (minted here when the client sent none) a second try makes no second task.
//!
//! A leader that was killed does not say so: its connection stands until a ping fails, long after the mesh has chosen
//! another. So each try, up to the answer's head, is given up as soon as somebody else leads. Once the head is here the
//! body takes as long as it takes: it may be a log that is followed.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use mloc_core::id::NodeId;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::{
    Caller, Control, ControlError, body,
    error::ProblemBody,
    routes::{CALLER_HEADER, link_router},
};

/// How long a request waits for a leader: longer than an election on a WAN (4–8 s), shorter than clients' timeouts.
const PATIENCE: Duration = Duration::from_secs(25);
/// Bytes of an answer that this node reads itself: a list of what a thousand tasks brought along is far below.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Between two tries: a LAN election is over in one or two of these.
const PAUSE: Duration = Duration::from_millis(100);

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Here,
    /// That one.
    There(NodeId),
    /// Nobody.
    Unknown,
}

/// A byte stream to a member.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// How to reach the leader.
#[async_trait]
pub trait Forward: Send + Sync + 'static {
    /// Who leads now.
    fn leader(&self) -> Leader;
    /// Returns when somebody else than `seen` leads, or nobody does.
    async fn leader_other_than(&self, seen: &Leader);
    /// A stream to a member's [`crate::link_router`].
    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>>;
    /// A fresh Idempotency-Key.
    fn mint_key(&self) -> String;
}

/// How a route's requests get to whom they are for.
#[derive(Clone)]
pub(crate) struct Way {
    /// To the leader.
    pub forward: Arc<dyn Forward>,
    /// Whether the route takes `?stale=true`, which this node answers from what it knows.
    pub stale_here: bool,
}

/// Middleware: answers here when this node leads, there otherwise.
pub(crate) async fn to_leader(State(way): State<Way>, request: Request, next: Next) -> Response {
    let stale = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "stale=true"));
    if stale && way.stale_here {
        return next.run(request).await;
    }
    let forward = way.forward;
    let kept = match Kept::read(request, forward.as_ref()).await {
        Ok(kept) => kept,
        Err(refused) => return refused.into_response(),
    };
    at_leader(forward.as_ref(), &kept, |request| next.clone().run(request)).await
}

/// A way to ask the leader something that this node needs to know for an answer of its own.
#[derive(Clone)]
pub struct Asking {
    forward: Arc<dyn Forward>,
    /// Answers here, while this node leads: what members speak to.
    here: Router,
}

impl Asking {
    /// Asks by `forward`, or `control` while this node leads.
    pub fn new(control: Arc<dyn Control>, forward: Arc<dyn Forward>) -> Self {
        Self { forward, here: link_router(control) }
    }

    /// The leader's answer to a GET of this API, read.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn read<T: DeserializeOwned>(&self, caller: &Caller, path: &str) -> Result<T, ControlError> {
        let answer = self.get(caller, path).await;
        let status = answer.status();
        let odd = |why: String| ControlError::Unavailable(format!("the leader's answer can't be read: {why}"));
        let bytes = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.map_err(|e| odd(e.to_string()))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| odd(e.to_string()));
        }
        let problem = serde_json::from_slice::<ProblemBody>(&bytes).map_or_else(|_| status.to_string(), |p| p.detail);
        Err(ControlError::Unavailable(problem))
    }

    /// The leader's answer to a GET.
    pub(crate) async fn get(&self, caller: &Caller, path: &str) -> Response {
        self.ask(Method::GET, caller, path).await
    }

    /// The leader's answer to a POST without a body, which may be done more than once.
    pub(crate) async fn post(&self, caller: &Caller, path: &str) -> Response {
        self.ask(Method::POST, caller, path).await
    }

    async fn ask(&self, method: Method, caller: &Caller, path: &str) -> Response {
        let mut request = match Request::builder().method(method).uri(path).body(Body::empty()) {
            Ok(request) => request,
            Err(error) => return ControlError::Internal(format!("{path}: {error}")).into_response(),
        };
        request.extensions_mut().insert(caller.clone());
        let (parts, _) = request.into_parts();
        let kept = Kept { parts, body: Bytes::new() };
        let here = |mut request: Request| {
            let router = self.here.clone();
            async move {
                if let Err(refused) = name_caller(&mut request) {
                    return refused.into_response();
                }
                router.oneshot(request).await.into_response()
            }
        };
        at_leader(self.forward.as_ref(), &kept, here).await
    }
}

/// Asks whoever leads, here or there, until somebody answers or [`PATIENCE`] is over.
async fn at_leader<F>(forward: &dyn Forward, kept: &Kept, here: impl Fn(Request) -> F + Send + Sync) -> Response
where
    F: Future<Output = Response> + Send,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = match forward.leader() {
            Leader::Here => {
                let response = here(kept.request()).await;
                if response.status() != StatusCode::SERVICE_UNAVAILABLE {
                    return response;
                }
                Err(response)
            }
            Leader::There(node) => {
                let seen = Leader::There(node.clone());
                tokio::select! {
                    answer = ask(forward, &node, kept) => answer,
                    () = forward.leader_other_than(&seen) => {
                        let why = format!("{node} stopped leading before it answered");
                        Err(ControlError::Unavailable(why).into_response())
                    }
                }
            }
            Leader::Unknown => Err(ControlError::Unavailable("the mesh has no leader just now".into()).into_response()),
        };
        match last {
            Ok(response) => return response,
            Err(response) if Instant::now() + PAUSE >= deadline => return response,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A request that can be sent more than once.
struct Kept {
    parts: axum::http::request::Parts,
    body: Bytes,
}

impl Kept {
    async fn read(request: Request, forward: &dyn Forward) -> Result<Self, ControlError> {
        let (mut parts, body) = request.into_parts();
        let body = body::read(&parts.headers, body).await?;
        if parts.method == Method::POST
            && !parts.headers.contains_key("idempotency-key")
            && let Ok(key) = HeaderValue::from_str(&forward.mint_key())
        {
            parts.headers.insert("idempotency-key", key);
        }
        Ok(Self { parts, body })
    }

    fn request(&self) -> Request {
        Request::from_parts(self.parts.clone(), Body::from(self.body.clone()))
    }
}

/// One try at the leader. `Err` is an answer that another try may better.
async fn ask(forward: &dyn Forward, node: &NodeId, kept: &Kept) -> Result<Response, Response> {
    let unavailable = |why: String| ControlError::Unavailable(why).into_response();
    let stream =
        forward.open(node).await.map_err(|e| unavailable(format!("the leader {node} can't be reached: {e}")))?;
    let broken = |e: hyper::Error| unavailable(format!("the connection to the leader {node} broke: {e}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Ends with this try, should that be given up.
    let pump = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "stream to the leader ended");
        }
    }));
    let mut request = kept.request();
    if let Err(refused) = name_caller(&mut request) {
        return Ok(refused.into_response());
    }
    let response = sender.send_request(request).await.map_err(broken)?;
    // From here on it ends by itself: when the answer's body is read, or dropped by a client that went away.
    drop(pump.detach());
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        return Err(response.map(Body::new));
    }
    Ok(response.map(Body::new))
}

/// As members are told who calls.
fn name_caller(request: &mut Request) -> Result<(), ControlError> {
    let user = request.extensions().get::<Caller>().map(|c| c.user.clone()).unwrap_or_default();
    let headers = request.headers_mut();
    // The caller's token stays here; the leader trusts the member that checked it.
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, HeaderValue::from_static("mloc"));
    headers.remove(CALLER_HEADER);
    let user = HeaderValue::from_bytes(user.as_bytes()).map_err(|_| {
        let why = "the token's user has characters that no header can carry: use another name";
        ControlError::Unauthorized(why.to_owned())
    })?;
    headers.insert(CALLER_HEADER, user);
    Ok(())
}
