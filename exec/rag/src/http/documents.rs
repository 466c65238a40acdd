//! Documents in, out, and where they are.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::Body,
    extract::{FromRequest, Multipart, Path, Query, Request, State},
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use super::{
    App, Call, Refusal, Reply, Shared, To, apart, copies,
    peers::{LOCAL, asked, elsewhere, missing},
    read,
};
use crate::{
    parse::{Metadata, Source},
    service::{Came, Kept, Upload, View},
    shard::shard_of,
    span::Span,
};

/// What a multipart body has besides its file.
const FORM_BYTES: usize = 1 << 20;
/// Documents of a page of a list.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

type Pairs = Query<BTreeMap<String, String>>;

fn shown(view: &View) -> Value {
    let mut shown = serde_json::to_value(view).unwrap_or_default();
    shown["object"] = "rag.document".into();
    shown
}

fn call(method: Method, path: String, pairs: &BTreeMap<String, String>) -> Call {
    let query = pairs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Call { query, ..Call::new(method, path) }
}

/// There is none; or nobody knows yet.
fn not_found(app: &App, id: &str) -> Refusal {
    if app.is_whole() {
        return Refusal::no_document(id);
    }
    let here = app.service.settings().sharding.index;
    missing(format!("shard {here} began anew and has not heard of all of its documents yet: {id:?} may be one of them"))
}

/// How many shards have a document's file, now that it was changed here. A copy that could not be given now is given later.
async fn copied(app: &Shared, id: &str) -> u32 {
    let Some(keeper) = app.service.settings().sharding.keeper() else { return 1 };
    match copies::tell(app, keeper, id).await {
        Ok(()) => 2,
        Err(why) => {
            tracing::warn!(keeper, document = id, why, "its copy comes later");
            1
        }
    }
}

/// A file comes: 202 when it waits to be indexed, 200 when it was there already.
pub(super) async fn upload(
    State(app): State<Shared>,
    Path(service): Path<String>,
    Query(pairs): Pairs,
    request: Request,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    let _place = place(&app)?;
    let (parts, body) = request.into_parts();
    let media = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let max = app.service.settings().document_bytes;
    let upload = if media.as_deref().is_some_and(|media| media.starts_with("multipart/form-data")) {
        let bytes = read(body, max + FORM_BYTES, app.limits.upload_within).await?;
        form(parts, bytes).await?
    } else {
        let bytes = read(body, max, app.limits.upload_within).await?;
        raw(&pairs, media, bytes)?
    };
    take_or_hand_on(&app, upload).await
}

/// To the shard that it belongs to.
async fn take_or_hand_on(app: &Shared, upload: Upload) -> Result<Response, Refusal> {
    let id = upload.id();
    let sharding = app.service.settings().sharding;
    if sharding.holds(&id) {
        return take(app, upload).await;
    }
    app.service.fits(&upload)?;
    let shard = shard_of(&id, sharding.count);
    let Upload { source, metadata, bytes, .. } = upload;
    let call = handed_on(&Handed { id: id.clone(), source, metadata }, &bytes)?;
    Ok(asked(app, shard, &id, call).await?.into_response())
}

/// What goes before a file to the shard that it belongs to.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Handed {
    id: String,
    source: Source,
    metadata: Metadata,
}

fn handed_on(handed: &Handed, file: &[u8]) -> Result<Call, Refusal> {
    let body = copies::framed(handed, file).map_err(Refusal::failure)?;
    Ok(Call { body, ..Call::new(Method::POST, "shard/documents") })
}

/// A file comes that another shard was given, of this version or of an older one.
pub(super) async fn handed(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    let _place = place(&app)?;
    let max = app.service.settings().document_bytes + copies::LINE_BYTES;
    let bytes = read(request.into_body(), max, app.limits.upload_within).await?;
    let framed = copies::unframed::<Handed>(bytes);
    let (Handed { id, source, metadata }, bytes) = framed.map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, why))?;
    take_or_hand_on(&app, Upload { id: Some(id), source, metadata, bytes }).await
}

/// Tells a newer version, where there is one, what was just changed here: it may have compared a moment ago, and this shard
/// may stop before it does so again.
async fn tell_newer(app: &Shared, id: &str) {
    let probe = Call::new(Method::GET, "documents").with("limit", "1").with(LOCAL, "true");
    if app.ask(To::Newer, probe).await.is_err() {
        return;
    }
    let known = id.to_owned();
    let kept = apart(app, move |app| Ok(app.service.kept(&known)?)).await;
    let call = kept.and_then(|kept| match kept {
        Some((Kept { came: Some(Came { source, metadata, .. }), .. }, file)) => {
            handed_on(&Handed { id: id.to_owned(), source, metadata }, &file)
        }
        _ => Ok(Call::new(Method::DELETE, format!("documents/{id}"))),
    });
    let told = match call {
        Ok(call) => app.ask(To::Newer, call).await.map(|reply| reply.status).map_err(|error| error.to_string()),
        Err(refusal) => Err(refusal.to_string()),
    };
    if !matches!(told, Ok(200 | 202 | 404)) {
        tracing::warn!(document = id, ?told, "a newer version was not told of a change");
    }
}

fn place(app: &App) -> Result<SemaphorePermit<'_>, Refusal> {
    app.uploads.try_acquire().map_err(|_| {
        let message = format!("{} documents are on their way in, as many as may: try again", app.limits.uploads);
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded").again_after(5)
    })
}

/// Of a document that belongs here.
async fn take(app: &Shared, upload: Upload) -> Result<Response, Refusal> {
    let id = upload.id();
    let _turn = app.turn(&id).lock().await;
    let (accepted, view) = apart(app, move |app| {
        let accepted = app.service.accept_kept(upload, (app.now)())?;
        app.wake();
        let view = app.service.document(&accepted.id)?;
        Ok((accepted, view))
    })
    .await?;
    let status = if accepted.unchanged { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut body = view.as_ref().map(shown).unwrap_or_default();
    body["unchanged"] = accepted.unchanged.into();
    body["copies"] = copied(app, &id).await.into();
    tell_newer(app, &id).await;
    Ok((status, Json(body)).into_response())
}

fn metadata(text: &str) -> Result<Metadata, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal::field("metadata", format!("no JSON object: {error}")))
}

fn raw(pairs: &BTreeMap<String, String>, media: Option<String>, bytes: Vec<u8>) -> Result<Upload, Refusal> {
    let Some(name) = pairs.get("name") else {
        return Err(Refusal::field("name", "the document has no name\nhint: ?name=file.pdf, or send a multipart form"));
    };
    // What a client says of a body that it knows nothing about.
    let media =
        media.filter(|media| media != "application/octet-stream" && media != "application/x-www-form-urlencoded");
    let source = Source { name: name.clone(), media_type: media, text_field: pairs.get("text_field").cloned() };
    let metadata = pairs.get("metadata").map_or_else(|| Ok(Metadata::new()), |text| metadata(text))?;
    Ok(Upload { id: pairs.get("id").cloned(), source, metadata, bytes })
}

async fn form(parts: Parts, bytes: Vec<u8>) -> Result<Upload, Refusal> {
    let wrong = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message).with_code("invalid_form");
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| wrong(error.to_string()))?;
    let mut upload = Upload::default();
    let mut file = None;
    let mut name = None;
    while let Some(field) = form.next_field().await.map_err(|error| wrong(error.to_string()))? {
        let field_name = field.name().unwrap_or_default().to_owned();
        let whole = |error: axum::extract::multipart::MultipartError| wrong(error.to_string());
        match field_name.as_str() {
            "file" => {
                upload.source.name = field.file_name().unwrap_or_default().to_owned();
                let media = field.content_type().filter(|media| *media != "application/octet-stream");
                upload.source.media_type = media.map(str::to_owned);
                file = Some(field.bytes().await.map_err(whole)?);
            }
            "id" => upload.id = Some(field.text().await.map_err(whole)?),
            "name" => name = Some(field.text().await.map_err(whole)?),
            "media_type" => upload.source.media_type = Some(field.text().await.map_err(whole)?),
            "text_field" => upload.source.text_field = Some(field.text().await.map_err(whole)?),
            "metadata" => upload.metadata = metadata(&field.text().await.map_err(whole)?)?,
            // What OpenAI's clients send along with a file.
            "purpose" => {}
            other => {
                let message =
                    format!("there is no field {other:?}\nhint: file, id, name, media_type, text_field, metadata");
                return Err(Refusal::field(other, message));
            }
        }
    }
    let file = file.ok_or_else(|| Refusal::field("file", "there is no file in the form"))?;
    upload.source.name = name.unwrap_or(upload.source.name);
    Ok(Upload { bytes: file.into(), ..upload })
}

/// A page of all documents, of all shards.
pub(super) async fn list(
    State(app): State<Shared>,
    Path(service): Path<String>,
    Query(pairs): Pairs,
) -> Result<Json<Value>, Refusal> {
    app.is_here(&service)?;
    let after = pairs.get("after").cloned().unwrap_or_default();
    let limit = match pairs.get("limit").map(|limit| limit.parse::<usize>()) {
        None => PAGE,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return Err(Refusal::field("limit", format!("expected 1 to {PAGE_MAX}"))),
    };
    let from = after.clone();
    // One more tells whether there is more.
    let mut data = apart(&app, move |app| {
        let views = app.service.documents(&from, limit + 1)?;
        Ok(views.iter().map(shown).collect::<Vec<_>>())
    })
    .await?;
    let mut more = data.len() > limit;
    let sharding = app.service.settings().sharding;
    let mut missing: Vec<u32> = (!app.is_whole()).then_some(sharding.index).into_iter().collect();
    if !pairs.contains_key(LOCAL) {
        let call = Call::new(Method::GET, "documents").with("after", after).with("limit", limit.to_string());
        for (shard, answer) in app.ask_shards(sharding.others(), &call.with(LOCAL, "true")).await {
            match answer {
                Some(mut answer) => {
                    more |= answer["has_more"] == true;
                    // Not all of its documents, yet.
                    missing.extend(
                        answer["missing_shards"].as_array().is_some_and(|all| !all.is_empty()).then_some(shard),
                    );
                    data.extend(answer["data"].as_array_mut().map(std::mem::take).unwrap_or_default());
                }
                None => missing.push(shard),
            }
        }
    }
    missing.sort_unstable();
    data.sort_by(|one, other| one["id"].as_str().cmp(&other["id"].as_str()));
    more |= data.len() > limit;
    data.truncate(limit);
    let last = data.last().map(|view| view["id"].clone());
    Ok(Json(json!({
        "object": "list", "data": data, "has_more": more, "last_id": last, "missing_shards": missing,
    })))
}

/// Where a document is on its way.
pub(super) async fn one(
    State(app): State<Shared>,
    Path((service, id)): Path<(String, String)>,
    Query(pairs): Pairs,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    if let Some(reply) = elsewhere(&app, &id, call(Method::GET, format!("documents/{id}"), &pairs)).await {
        return reply.map(Reply::into_response);
    }
    apart(&app, move |app| {
        let view = app.service.document(&id)?.ok_or_else(|| not_found(app, &id))?;
        Ok(Json(shown(&view)).into_response())
    })
    .await
}

/// A stretch of a document's text.
pub(super) async fn text(
    State(app): State<Shared>,
    Path((service, id)): Path<(String, String)>,
    Query(pairs): Pairs,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    if let Some(reply) = elsewhere(&app, &id, call(Method::GET, format!("documents/{id}/text"), &pairs)).await {
        return reply.map(Reply::into_response);
    }
    let place = |name: &str| match pairs.get(name).map(|value| value.parse::<usize>()) {
        None => Ok(None),
        Some(Ok(place)) => Ok(Some(place)),
        Some(Err(_)) => Err(Refusal::field(name, "expected a place in chars")),
    };
    let (start, end) = (place("start")?.unwrap_or(0), place("end")?.unwrap_or(usize::MAX));
    apart(&app, move |app| {
        let index = app.service.index();
        let (Some(row), Some(text)) = (index.document(&id)?, index.text(&id)?) else {
            return Err(not_found(app, &id));
        };
        let text = Span::new(start, end).of_chars(&text);
        let end = start + text.chars().count();
        let body = json!({ "id": id, "document_hash": row.hash, "start": start, "end": end, "text": text });
        Ok(Json(body).into_response())
    })
    .await
}

/// A document goes.
pub(super) async fn delete(
    State(app): State<Shared>,
    Path((service, id)): Path<(String, String)>,
    Query(pairs): Pairs,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    if let Some(reply) = elsewhere(&app, &id, call(Method::DELETE, format!("documents/{id}"), &pairs)).await {
        return reply.map(Reply::into_response);
    }
    let _turn = app.turn(&id).lock().await;
    let known = id.clone();
    apart(
        &app,
        move |app| {
            if app.service.delete_kept(&known, (app.now)())? { Ok(()) } else { Err(not_found(app, &known)) }
        },
    )
    .await?;
    copied(&app, &id).await;
    tell_newer(&app, &id).await;
    Ok(Json(json!({ "id": id, "object": "rag.document", "deleted": true })).into_response())
}
