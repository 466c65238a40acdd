//! A request's body: JSON, not too large, not too slow, and not too many of them at once.

use axum::{
    body::Bytes,
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use crate::refusal::Refusal;

/// Bodies that may be here at once, together: with a thousand clients and 16 MiB each a server would have no memory left.
pub(super) const BODIES_KIB: usize = 256 << 10;

/// A body that has come.
pub(super) struct Came {
    bytes: Vec<u8>,
    /// Its part of [`BODIES_KIB`].
    _room: Option<OwnedSemaphorePermit>,
}

impl Came {
    /// As JSON.
    ///
    /// # Errors
    /// Where it isn't: line and column.
    pub(super) fn value(&self) -> Result<Value, Refusal> {
        let wrong = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message).with_code("invalid_json");
        if self.bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(wrong("the body is empty, expected a JSON object".into()));
        }
        serde_json::from_slice(&self.bytes).map_err(|error| wrong(format!("the body is no JSON: {error}")))
    }
}

/// Reads it.
///
/// # Errors
/// When it is of another type, too large, too slow, cut off, or there is no room.
pub(super) async fn read(server: &Server, request: Request) -> Result<Came, Refusal> {
    let limits = &server.limits;
    let too_large = || {
        let message =
            format!("the body is larger than the {} bytes this server takes: send less at once", limits.body_bytes);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
    };
    let (head, mut body) = request.into_parts();
    let said = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    // A web page may send other types to this machine without asking; this one it may not.
    let json = said(header::CONTENT_TYPE).is_none_or(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    });
    if !json {
        let found = said(header::CONTENT_TYPE).unwrap_or_default();
        let message = format!("the content type is {found:?}, expected application/json");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).with_code("unsupported_media_type"));
    }
    if said(header::CONTENT_LENGTH).and_then(|text| text.parse().ok()).is_some_and(|n: usize| n > limits.body_bytes) {
        return Err(too_large());
    }
    let mut came = Came { bytes: Vec::new(), _room: None };
    let whole = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Refusal::new(StatusCode::BAD_REQUEST, format!("the body did not come whole: {error}"))
                    .with_code("body_cut_off")
            })?;
            let bytes: Bytes = frame.into_data().unwrap_or_default();
            if came.bytes.len() + bytes.len() > limits.body_bytes {
                return Err(too_large());
            }
            make_room(server, &mut came, bytes.len())?;
            came.bytes.extend_from_slice(&bytes);
        }
        Ok(())
    };
    match tokio::time::timeout(limits.body_within, whole).await {
        Ok(read) => read.map(|()| came),
        Err(_) => {
            let message =
                format!("the body did not come within {:?}: send it faster, or less of it", limits.body_within);
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, message).with_code("body_too_slow"))
        }
    }
}

fn make_room(server: &Server, came: &mut Came, more: usize) -> Result<(), Refusal> {
    let kib = |bytes: usize| bytes.div_ceil(1024);
    let add = kib(came.bytes.len() + more) - kib(came.bytes.len());
    let Ok(add) = u32::try_from(add) else {
        return Ok(());
    };
    let Ok(room) = server.bodies.clone().try_acquire_many_owned(add) else {
        return Err(Refusal::busy("other clients' requests fill the memory there is for them: try again"));
    };
    match &mut came._room {
        Some(own) => own.merge(room),
        none => *none = Some(room),
    }
    Ok(())
}
