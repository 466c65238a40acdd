//! Why a request is not answered, in OpenAI's body: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use mloc_engine::{forward::ForwardError, request::RequestError};
use serde_json::{Value, json};

/// A refusal, or a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// HTTP's status.
    pub status: StatusCode,
    /// For programs: what it is about.
    pub code: Option<&'static str>,
    /// The field, as a path: `messages[2].content`.
    pub param: Option<String>,
    /// For people: what was found, and what would work.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// With a status and a message alone.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, param: None, message: message.into(), retry_after: None }
    }

    /// A field's value won't do.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A field of OpenAI's or vLLM's that has no meaning here.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// Allowed by the API, and more than this server was told to take.
    pub fn over_limit(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, code: Some("over_limit"), ..Self::field(param, message) }
    }

    /// There is no such model or adapter.
    pub fn no_model(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: Some("model_not_found"), ..Self::field("model", message) }
    }

    /// As many requests are on their way as may be.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// A defect, or a device that failed.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { code: Some("internal_error"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    /// With a code.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// OpenAI's `type`.
    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::TooLong { prompt, max, .. } => {
                let hint = if prompt < max {
                    format!("ask for {} tokens at most, or shorten the prompt", max - prompt)
                } else {
                    "shorten the prompt".to_owned()
                };
                Self::new(StatusCode::BAD_REQUEST, format!("{message}: {hint}")).with_code("context_length_exceeded")
            }
            RequestError::Invalid { field, .. } => Self::field(field, message),
            RequestError::Busy { .. } => Self::busy(format!("{message}: try again")),
            RequestError::ShuttingDown => {
                let refusal =
                    Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{message}: another replica may answer"));
                Self { retry_after: Some(1), code: Some("shutting_down"), ..refusal }
            }
            RequestError::Forward(ForwardError::OutOfMemory { .. }) => {
                let refusal =
                    Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{message}: try again, or a shorter prompt"));
                Self { retry_after: Some(1), code: Some("out_of_memory"), ..refusal }
            }
            RequestError::Forward(ForwardError::Device(_)) => Self::failure(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_words_come_with_what_would_work() {
        let said = |error: RequestError| {
            let refusal = Refusal::from(error);
            format!("{} {} {}", refusal.status.as_u16(), refusal.kind(), refusal.message)
        };
        let told = [
            said(RequestError::TooLong { prompt: 100, answer: 60, max: 128 }),
            said(RequestError::TooLong { prompt: 200, answer: 1, max: 128 }),
            said(RequestError::Invalid { field: "structured_outputs", detail: "no such rule".into() }),
            said(RequestError::Busy { waiting: 8 }),
            said(RequestError::ShuttingDown),
            said(ForwardError::OutOfMemory { tokens: 512, detail: "cudaMalloc".into() }.into()),
            said(ForwardError::Device("lost".into()).into()),
        ];
        insta::assert_snapshot!(told.join("\n"));
    }
}
