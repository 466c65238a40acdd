//! REST from a process's first moment to its last: before there is a mesh to ask, and while the node leaves it.
//!
//! Whoever probes a node must tell "it waits for its seeds" from "it is dead", and whoever asks it meanwhile gets the
//! reason and may try again. `/healthz` says that the process lives, from the first moment on; `/readyz` that it has
//! joined and serves, and no longer once it is stopping.

use std::sync::{Arc, PoisonError, RwLock};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::ControlError;

/// What stands between a listener and the node behind it.
#[derive(Clone)]
pub struct Door {
    stands: Arc<RwLock<Stands>>,
    waiting: watch::Receiver<String>,
}

#[derive(Clone)]
enum Stands {
    Closed,
    Open(Router),
    /// Requests are still answered; nobody should send more.
    Leaving(Router),
}

impl Door {
    /// Closed; `waiting` says what the node waits for.
    pub fn closed(waiting: watch::Receiver<String>) -> Self {
        Self { stands: Arc::new(RwLock::new(Stands::Closed)), waiting }
    }

    /// Requests go to the node from now on.
    pub fn open(&self, app: Router) {
        *self.stands.write().unwrap_or_else(PoisonError::into_inner) = Stands::Open(app);
    }

    /// The node is stopping: it is not ready any more, and answers what it is still asked.
    pub fn leave(&self) {
        let mut stands = self.stands.write().unwrap_or_else(PoisonError::into_inner);
        if let Stands::Open(app) = &*stands {
            *stands = Stands::Leaving(app.clone());
        }
    }

    /// What listens.
    pub fn router(&self) -> Router {
        Router::new().fallback(pass).with_state(self.clone())
    }
}

async fn pass(State(door): State<Door>, request: Request) -> Response {
    let stands = door.stands.read().unwrap_or_else(PoisonError::into_inner).clone();
    let probes = matches!(*request.method(), Method::GET | Method::HEAD);
    match (stands, request.uri().path()) {
        (Stands::Closed, "/healthz") if probes => "ok\n".into_response(),
        (Stands::Closed, "/readyz") if probes => not_ready(&door.waiting.borrow()),
        (Stands::Closed, _) => {
            let waiting = door.waiting.borrow().clone();
            ControlError::Unavailable(format!("this node does not serve yet: {waiting}")).into_response()
        }
        (Stands::Leaving(_), "/readyz") if probes => not_ready("stopping"),
        (Stands::Open(app) | Stands::Leaving(app), _) => match app.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    }
}

/// The answer of `/readyz` that is no yes.
pub(crate) fn not_ready(why: &str) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
