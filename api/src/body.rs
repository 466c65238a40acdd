//! Bodies of requests: whole, or refused before they take memory.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::{ControlError, MAX_TASK_BYTES};

/// Reads a body of at most [`MAX_TASK_BYTES`]. One that announces more is refused before a byte of it is read.
pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, ControlError> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > MAX_TASK_BYTES as u64) {
        return Err(too_large());
    }
    match Limited::new(body, MAX_TASK_BYTES).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ControlError::CutOff(format!("the body broke off before its end ({error}): send it again"))),
    }
}

fn too_large() -> ControlError {
    ControlError::TooLarge(format!(
        "a body is at most {} KiB: refer to data by its source instead of writing it into the file",
        MAX_TASK_BYTES / 1024
    ))
}
