//! The Hub's store for large files: signed addresses that end, ranges, uploads whole or in parts. Like the real one it
//! turns away whoever shows it a token, for that was meant for somebody else.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{Method, StatusCode, header},
    response::Response,
};

use crate::{Answered, Seen, State, repos};

/// The address of a file's bytes, good until signatures end.
pub(crate) fn signed(state: &State, epoch: u32, sha256: &str) -> String {
    format!("{}/xet-bridge/{sha256}?signed={epoch}", state.addresses[1])
}

/// The address a file, or a part of one, is put to.
pub(crate) fn upload(state: &State, epoch: u32, sha256: &str, part: u32) -> String {
    format!("{}/upload/{sha256}/{part}?signed={epoch}", state.addresses[1])
}

/// Answers one request.
pub(crate) async fn answer(state: Arc<State>, request: Request) -> Answered {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let token = head.headers.contains_key(header::AUTHORIZATION);
    let method = head.method.to_string();
    state.lock().seen.push(Seen { store: true, method, path: path.clone(), token });
    if token {
        return status(StatusCode::BAD_REQUEST, "only one auth mechanism allowed");
    }
    let epoch = state.lock().epoch;
    if head.uri.query() != Some(format!("signed={epoch}").as_str()) {
        return status(StatusCode::FORBIDDEN, "request has expired");
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (&head.method, &parts[..]) {
        (&Method::GET | &Method::HEAD, ["xet-bridge", sha256]) => {
            let (bytes, flipped) = {
                let inner = state.lock();
                (inner.large.get(*sha256).cloned(), inner.flipped)
            };
            let Some(bytes) = bytes else { return status(StatusCode::NOT_FOUND, "no such key") };
            let bytes: Bytes = if flipped == Some(true) { bytes.iter().map(|b| b ^ 1).collect() } else { bytes };
            ranged(&bytes, head.headers.get(header::RANGE).and_then(|v| v.to_str().ok()), &format!("\"{sha256}\""))
        }
        (&Method::PUT, ["upload", sha256, part]) => {
            let Some(length) = head.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()) else {
                return status(StatusCode::LENGTH_REQUIRED, "no content-length");
            };
            let length: usize = length.parse().unwrap_or_default();
            let Ok(bytes) = axum::body::to_bytes(body, length).await else {
                return status(StatusCode::BAD_REQUEST, "cut short");
            };
            let number: u32 = part.parse().unwrap_or_default();
            let mut inner = state.lock();
            if number == 0 {
                if repos::sha256(&bytes) != *sha256 {
                    return status(StatusCode::BAD_REQUEST, "the digest differs");
                }
                inner.large.insert((*sha256).to_owned(), bytes);
            } else {
                inner.parts.insert(((*sha256).to_owned(), number), bytes);
            }
            drop(inner);
            let mut response = status(StatusCode::OK, "");
            if let Ok(etag) = format!("\"{number}-{length}\"").parse() {
                response.headers_mut().insert(header::ETAG, etag);
            }
            response
        }
        _ => status(StatusCode::NOT_FOUND, "no such place"),
    }
}

/// Bytes, or the range of them that is asked for.
pub(crate) fn ranged(bytes: &Bytes, range: Option<&str>, etag: &str) -> Response {
    let build = Response::builder().header(header::ETAG, etag).header(header::ACCEPT_RANGES, "bytes");
    let asked = range.and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let from: usize = from.parse().ok()?;
        let to: usize = to.parse().map_or(bytes.len(), |to: usize| to.saturating_add(1).min(bytes.len()));
        (from < to).then_some(from..to)
    });
    let built = match (range, asked) {
        (_, Some(range)) => build
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len()))
            .body(Body::from(bytes.slice(range))),
        (Some(_), None) => build.status(StatusCode::RANGE_NOT_SATISFIABLE).body(Body::empty()),
        (None, None) => build.body(Body::from(bytes.clone())),
    };
    built.unwrap_or_default()
}

/// A status with words.
pub(crate) fn status(status: StatusCode, words: &str) -> Response {
    let mut response = Response::new(Body::from(words.to_owned()));
    *response.status_mut() = status;
    response
}
