//! Bytes through the node that took the request: what comes along with a task, and artifacts. They never pass the
//! leader: of it only what is known of a result is asked.
//!
//! ```text
//! PUT  /api/v1/files/SHA256?offset=N     the file's bytes from N on; checked against the digest when all are there
//! HEAD /api/v1/files/SHA256              how many are there: Upload-Offset, Upload-Complete
//! GET  /api/v1/files/SHA256/missing      of the files that this list (a tree) names, those that are not there
//! POST /api/v1/tasks?files={…}           the task: path → {tree, bytes}, by path as the task has it
//! GET  /api/v1/tasks/ID/artifacts/PATH   a file of its result, with Range and ETag
//! ```

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use async_trait::async_trait;
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Extension, Path, Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use mloc_core::{
    files::{BroughtTree, is_below, is_beside, is_digest},
    id::NodeId,
};
use serde::Deserialize;

use crate::{
    Caller, ControlError,
    forward::Asking,
    range::{Wanted, wanted},
    routes::{Params, SubmitParams, TAKEN_BY_HEADER},
    view::{Missing, ResultView},
};

/// What is known of a result fits into this: the ledger bounds it far below.
const RESULT_BYTES_MAX: usize = 4 << 20;
/// Paths that may come along with one task: it has a handful of sources.
const BROUGHT_MAX: usize = 32;
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");

/// How much of an uploaded file a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// Bytes that are there.
    pub bytes: u64,
    /// Whether it is whole, and its digest right.
    pub whole: bool,
}

/// Bytes on their way.
pub type FileBytes = BoxStream<'static, io::Result<Bytes>>;

/// What REST needs of the node that took the request.
#[async_trait]
pub trait Files: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> NodeId;
    /// How much of a file is here.
    async fn uploaded(&self, sha256: &str) -> Result<Uploaded, ControlError>;
    /// Takes `length` bytes of a file from `offset` on, to its end.
    async fn upload(&self, sha256: &str, offset: u64, length: u64, bytes: FileBytes) -> Result<Uploaded, ControlError>;
    /// Of the files a tree names, those that are not here.
    async fn missing(&self, tree: &str) -> Result<Vec<Missing>, ControlError>;
    /// Makes sure that all of it is here, and stays until the task that brings it is in the ledger.
    async fn keep(&self, brought: &BTreeMap<String, BroughtTree>) -> Result<(), ControlError>;
    /// Bytes of one file of a result, from wherever it lies.
    async fn artifact(&self, result: &ResultView, path: &str, range: Range<u64>) -> Result<FileBytes, ControlError>;
}

/// What handlers of this file have beside [`crate::Control`].
#[derive(Clone)]
pub(crate) struct Here {
    pub files: Arc<dyn Files>,
    pub asking: Asking,
}

fn invalid(detail: String) -> ControlError {
    ControlError::Invalid { detail, problems: Vec::new() }
}

fn digest(text: String) -> Result<String, ControlError> {
    if is_digest(&text) {
        return Ok(text);
    }
    Err(invalid(format!("path: `{text}` is no SHA-256: expected 64 lower-case hex digits")))
}

fn state_of(uploaded: Uploaded) -> [(HeaderName, HeaderValue); 2] {
    let complete = HeaderValue::from_static(if uploaded.whole { "?1" } else { "?0" });
    [(UPLOAD_OFFSET, HeaderValue::from(uploaded.bytes)), (UPLOAD_COMPLETE, complete)]
}

/// HEAD of an uploaded file.
pub(crate) async fn uploaded(
    Extension(here): Extension<Here>,
    Path(sha256): Path<String>,
) -> Result<Response, ControlError> {
    let uploaded = here.files.uploaded(&digest(sha256)?).await?;
    Ok((StatusCode::NO_CONTENT, state_of(uploaded)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UploadParams {
    offset: Option<u64>,
}

/// PUT of an uploaded file.
pub(crate) async fn upload(
    Extension(here): Extension<Here>,
    Path(sha256): Path<String>,
    Params(params): Params<UploadParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ControlError> {
    let sha256 = digest(sha256)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length: u64 = length.ok_or_else(|| {
        invalid(
            "an upload says in Content-Length how many bytes it has, so that their place is known to suffice".into(),
        )
    })?;
    let bytes = body.into_data_stream().map_err(io::Error::other).boxed();
    let uploaded = here.files.upload(&sha256, params.offset.unwrap_or(0), length, bytes).await?;
    Ok((StatusCode::NO_CONTENT, state_of(uploaded)).into_response())
}

/// GET of what a tree names and the node lacks.
pub(crate) async fn missing(
    Extension(here): Extension<Here>,
    Path(tree): Path<String>,
) -> Result<Response, ControlError> {
    Ok(axum::Json(here.files.missing(&digest(tree)?).await?).into_response())
}

/// What a submission says it brings along.
pub(crate) fn brought(files: Option<&str>) -> Result<BTreeMap<String, BroughtTree>, ControlError> {
    let Some(text) = files else { return Ok(BTreeMap::new()) };
    let brought: BTreeMap<String, BroughtTree> = serde_json::from_str(text).map_err(|e| {
        invalid(format!("query: files: {e}: expected {{\"./path\": {{\"tree\": SHA256, \"bytes\": N}}}}"))
    })?;
    if brought.len() > BROUGHT_MAX {
        return Err(invalid(format!("query: files: {} paths, at most {BROUGHT_MAX} are taken", brought.len())));
    }
    for (path, tree) in &brought {
        if !is_beside(path) {
            return Err(invalid(format!("query: files: `{path}`: expected a path that begins with ./ or ../")));
        }
        if !is_digest(&tree.tree) {
            return Err(invalid(format!(
                "query: files: `{}` is no SHA-256: expected 64 lower-case hex digits",
                tree.tree
            )));
        }
    }
    Ok(brought)
}

/// Middleware of submissions: makes sure that this node has what they bring along, and says that it is this node.
pub(crate) async fn bring(State(files): State<Arc<dyn Files>>, mut request: Request, next: Next) -> Response {
    let kept = match Query::<SubmitParams>::try_from_uri(request.uri()) {
        Ok(Query(params)) => keep(files.as_ref(), &params).await,
        // Said where it is read again.
        Err(_) => Ok(()),
    };
    if let Err(refused) = kept {
        return refused.into_response();
    }
    if let Ok(node) = HeaderValue::from_str(files.node().as_str()) {
        request.headers_mut().insert(TAKEN_BY_HEADER, node);
    }
    next.run(request).await
}

async fn keep(files: &dyn Files, params: &SubmitParams) -> Result<(), ControlError> {
    let brought = brought(params.files.as_deref())?;
    // Checked and explained only: nothing needs to be here yet.
    if brought.is_empty() || params.is_dry_run() {
        return Ok(());
    }
    files.keep(&brought).await
}

/// GET of a file of a result.
pub(crate) async fn artifact(
    Extension(here): Extension<Here>,
    Extension(caller): Extension<Caller>,
    Path((id, path)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let refused = |error: ControlError| error.into_response();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || !id.chars().all(plain) {
        return Err(refused(ControlError::NotFound(format!("task {id}"))));
    }
    let answer = here.asking.get(&caller, &format!("/api/v1/tasks/{id}/artifacts")).await;
    if !answer.status().is_success() {
        return Err(answer);
    }
    let odd = |why: String| refused(ControlError::Unavailable(format!("the leader's answer can't be read: {why}")));
    let bytes = to_bytes(answer.into_body(), RESULT_BYTES_MAX).await.map_err(|e| odd(e.to_string()))?;
    let result: ResultView = serde_json::from_slice(&bytes).map_err(|e| odd(e.to_string()))?;
    let known = result.artifacts.iter().find(|artifact| artifact.path == path).filter(|_| is_below(&path));
    let Some(artifact) = known else {
        let text = format!("artifact `{path}` of {id}: `mloc artifacts ls {id}` lists what there is");
        return Err(refused(ControlError::NotFound(text)));
    };
    let etag = format!("\"{}\"", artifact.sha256);
    let (status, range) = match wanted(&headers, &etag, artifact.bytes) {
        Wanted::Whole => (StatusCode::OK, 0..artifact.bytes),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Beyond => return Err(refused(ControlError::Beyond { total: artifact.bytes })),
    };
    let body = if method == Method::HEAD || range.is_empty() {
        Body::empty()
    } else {
        Body::from_stream(here.files.artifact(&result, &path, range.clone()).await.map_err(refused)?)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let texts = [
        (header::ETAG, etag),
        (header::CONTENT_LENGTH, (range.end - range.start).to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        // What a task made is data here, never a page of this origin.
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    for (name, text) in texts {
        response.headers_mut().extend(HeaderValue::try_from(text).ok().map(|value| (name, value)));
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, artifact.bytes);
        response.headers_mut().extend(HeaderValue::try_from(text).ok().map(|value| (header::CONTENT_RANGE, value)));
    }
    Ok(response)
}
