//! Files on their way between a shard and the one that keeps copies of them: a line of JSON that says what is known of a
//! document, then its file.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    http::{Method, StatusCode},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Call, Refusal, Shared, To, apart, read};
use crate::service::{Kept, digest};

/// Bytes of the line: a document's metadata has at most half of that.
pub(super) const LINE_BYTES: usize = 128 << 10;

/// A line and a file.
pub(super) fn framed(line: &impl Serialize, file: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = serde_json::to_vec(line).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    bytes.extend_from_slice(file);
    Ok(bytes)
}

/// The line, read, and the file.
pub(super) fn unframed<T: DeserializeOwned>(mut bytes: Vec<u8>) -> Result<(T, Vec<u8>), String> {
    let end =
        bytes.iter().take(LINE_BYTES).position(|byte| *byte == b'\n').ok_or("there is no line before the file")?;
    let line = serde_json::from_slice(&bytes[..end]).map_err(|error| format!("the line before the file: {error}"))?;
    bytes.drain(..=end);
    Ok((line, bytes))
}

#[derive(Deserialize)]
pub(super) struct Compared {
    of: u32,
    /// Of what the asker has.
    digest: String,
}

/// Stamps of the asker's documents, where they are not the asker's own.
pub(super) async fn list(
    State(app): State<Shared>,
    Path(service): Path<String>,
    Query(Compared { of, digest: theirs }): Query<Compared>,
) -> Result<Json<Value>, Refusal> {
    app.is_here(&service)?;
    let stamps = app.service.stamps_of(of, app.service.settings().sharding.count);
    let stamps = (digest(&stamps) != theirs).then_some(stamps);
    Ok(Json(json!({ "stamps": stamps, "whole": app.is_whole() })))
}

#[derive(Deserialize)]
pub(super) struct Taking {
    index: u32,
    count: u32,
}

/// Stamps of the asker's documents, which is a shard of a newer version.
pub(super) async fn handover(
    State(app): State<Shared>,
    Path(service): Path<String>,
    Query(Taking { index, count }): Query<Taking>,
) -> Result<Json<Value>, Refusal> {
    app.is_here(&service)?;
    Ok(Json(json!({ "stamps": app.service.stamps_of(index, count) })))
}

/// What is known of one.
pub(super) async fn one(
    State(app): State<Shared>,
    Path((service, id)): Path<(String, String)>,
) -> Result<Vec<u8>, Refusal> {
    app.is_here(&service)?;
    let known = id.clone();
    let (kept, file) =
        apart(&app, move |app| app.service.kept(&known)?.ok_or_else(|| Refusal::no_document(&known))).await?;
    framed(&kept, &file).map_err(Refusal::failure)
}

/// What the asker knows of one.
pub(super) async fn take(
    State(app): State<Shared>,
    Path((service, id)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    app.is_here(&service)?;
    let max = app.service.settings().document_bytes + LINE_BYTES;
    let bytes = read(request.into_body(), max, app.limits.upload_within).await?;
    let (kept, file) = unframed::<Kept>(bytes).map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, why))?;
    let taken = apart(&app, move |app| Ok(app.service.hear(&id, kept, file, (app.now)())?)).await?;
    Ok(Json(json!({ "taken": taken })))
}

/// Tells the shard that keeps copies what is known of a document here. `Err`: why it is not told.
pub(super) async fn tell(app: &Shared, keeper: u32, id: &str) -> Result<(), String> {
    let known = id.to_owned();
    let kept = apart(app, move |app| Ok(app.service.kept(&known)?)).await.map_err(|refusal| refusal.to_string())?;
    let Some((kept, file)) = kept else { return Ok(()) };
    let body = framed(&kept, &file)?;
    let call = Call { body, ..Call::new(Method::PUT, format!("shard/copies/{id}")) };
    app.ask(To::Shard(keeper), call).await.map_err(|error| error.to_string())?.json().map(drop)
}

/// Takes from a shard what is known of a document there.
pub(super) async fn fetch(app: &Shared, from: To, id: &str) -> Result<(), String> {
    let reply = app.ask(from, Call::new(Method::GET, format!("shard/copies/{id}"))).await;
    let reply = reply.map_err(|error| error.to_string())?;
    if reply.status == 404 {
        // It was forgotten meanwhile.
        return Ok(());
    }
    if reply.status != 200 {
        return reply.json().map(drop);
    }
    let (kept, file) = unframed::<Kept>(reply.body)?;
    let id = id.to_owned();
    let heard = apart(app, move |app| Ok(app.service.hear(&id, kept, file, (app.now)())?)).await;
    app.wake();
    heard.map(drop).map_err(|refusal| refusal.to_string())
}

/// Stamps out of an answer of [`list`]; `None` = they are alike.
pub(super) fn stamps(mut answer: Value) -> Result<Option<BTreeMap<String, crate::service::Stamp>>, String> {
    serde_json::from_value(answer["stamps"].take()).map_err(|error| format!("its stamps: {error}"))
}
