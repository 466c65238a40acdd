//! Refusals: which status, and a body a user can act on (RFC 9457, `application/problem+json`).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// Why a request was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// The body is wrong in these ways.
    #[error("{detail}")]
    Invalid {
        /// For people: every problem.
        detail: String,
        /// For programs: every problem with path, line, column.
        problems: Vec<serde_json::Value>,
    },
    /// There is no such thing.
    #[error("no {0}")]
    NotFound(String),
    /// Nobody is named by the token, or there is none.
    #[error("{0}")]
    Unauthorized(String),
    /// The caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// It does not fit the present state.
    #[error("{0}")]
    Conflict(String),
    /// The same key with another body.
    #[error("{0}")]
    KeyReused(String),
    /// The body is too large.
    #[error("{0}")]
    TooLarge(String),
    /// This node's disk, or its bound, does not hold it.
    #[error("{0}")]
    NoRoom(String),
    /// Bytes that the file does not have.
    #[error("the file has {total} bytes, and the Range header asks for others")]
    Beyond {
        /// Bytes of the file.
        total: u64,
    },
    /// The body did not come whole.
    #[error("{0}")]
    CutOff(String),
    /// The path is right and the method is not.
    #[error("{0}")]
    WrongMethod(String),
    /// This node does not lead, or nobody does: try again.
    #[error("{0}")]
    Unavailable(String),
    /// A defect of ours.
    #[error("{0}")]
    Internal(String),
}

/// The body of a refusal.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProblemBody {
    /// A name for the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// In a few words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what would work.
    pub detail: String,
    /// Every problem of an invalid body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<serde_json::Value>,
}

impl ControlError {
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "the body is not valid"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "not found"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized", "who are you"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "not allowed"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "it does not fit the present state"),
            Self::KeyReused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "Idempotency-Key used before"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large"),
            Self::NoRoom(_) => (StatusCode::INSUFFICIENT_STORAGE, "no-room", "no room for it on this node"),
            Self::Beyond { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "beyond", "beyond the end of the file"),
            Self::CutOff(_) => (StatusCode::BAD_REQUEST, "cut-off", "the body broke off"),
            Self::WrongMethod(_) => (StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "not by this method"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "a defect of mloc"),
        }
    }
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let (status, kind, title) = self.parts();
        let total = if let Self::Beyond { total } = &self { Some(*total) } else { None };
        let detail = self.to_string();
        let problems = if let Self::Invalid { problems, .. } = self { problems } else { Vec::new() };
        let body = ProblemBody {
            kind: format!("urn:mloc:{kind}"),
            title: title.into(),
            status: status.as_u16(),
            detail,
            problems,
        };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(range) = total.and_then(|total| HeaderValue::try_from(format!("bytes */{total}")).ok()) {
            headers.insert(header::CONTENT_RANGE, range);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
