//! Why a request is not answered, in OpenAI's body: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::ChatError;
use crate::{index::IndexError, parse::ParseError, service::ServiceError};

/// A refusal, or a failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    status: StatusCode,
    body: Value,
    retry_after: Option<u32>,
}

impl Refusal {
    /// With a status and a message alone.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let message: String = message.into();
        let body = json!({ "error": { "message": message, "type": kind, "param": null, "code": null } });
        Self { status, body, retry_after: None }
    }

    /// A field's value won't do.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut refusal = Self::new(StatusCode::BAD_REQUEST, message);
        refusal.body["error"]["param"] = Value::String(param.into());
        refusal
    }

    /// A defect, or a device that failed.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code("internal_error")
    }

    /// More bytes than are taken.
    pub fn too_large(max: usize) -> Self {
        let message = format!("the body is larger than the {max} bytes this server takes: send less at once");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
    }

    /// There is no such document.
    pub fn no_document(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no document {id:?}")).with_code("document_not_found")
    }

    /// As another server said it.
    pub fn passed_on(status: u16, body: Value) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        Self { status, body, retry_after: None }
    }

    /// With a code.
    #[must_use]
    pub fn with_code(mut self, code: &str) -> Self {
        self.body["error"]["code"] = code.into();
        self
    }

    /// With seconds after which it might be otherwise.
    #[must_use]
    pub fn again_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The body.
    pub fn body(&self) -> &Value {
        &self.body
    }
}

impl std::fmt::Display for Refusal {
    /// For logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.body["error"]["message"].as_str().unwrap_or_default())
    }
}

impl From<ServiceError> for Refusal {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::Field { field, message } => Self::field(field, message),
            ServiceError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
            }
            ServiceError::Format(ParseError::Unknown { .. }) => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).with_code("unsupported_media_type")
            }
            ServiceError::Format(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            ServiceError::Full(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded").again_after(5)
            }
            ServiceError::OtherShard { .. } => {
                Self::new(StatusCode::MISDIRECTED_REQUEST, message).with_code("other_shard")
            }
            ServiceError::Embedder(_) => {
                tracing::warn!(message, "a question was not embedded");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("embedder_failed")
            }
            ServiceError::Index(error) => error.into(),
        }
    }
}

impl From<IndexError> for Refusal {
    fn from(error: IndexError) -> Self {
        tracing::error!(%error, "the index failed");
        Self::failure(error.to_string())
    }
}

impl From<ChatError> for Refusal {
    fn from(ChatError { status, body }: ChatError) -> Self {
        Self::passed_on(status, body)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
