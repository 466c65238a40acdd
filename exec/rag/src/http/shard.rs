//! What shards ask each other for an answer, in two steps: what BM25 is to count, and then their candidates by the count of
//! all. So the merged list is the one that an index of all documents would give.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Request, State},
};
use serde_json::{Value, json};

use super::{Call, Refusal, Shared, To, apart, json, read};
use crate::{
    index::{Hit, Statistics},
    service::{Ask, Found},
    shard::merge,
};

async fn asked(app: &Shared, service: &str, request: Request) -> Result<Ask, Refusal> {
    app.is_here(service)?;
    let body = json(&read(request.into_body(), app.limits.body_bytes, app.limits.body_within).await?)?;
    serde_json::from_value(body).map_err(|error| Refusal::field("body", error.to_string()))
}

/// What BM25 counts here for a question.
pub(super) async fn statistics(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Json<Statistics>, Refusal> {
    let ask = asked(&app, &service, request).await?;
    Ok(Json(apart(&app, move |app| Ok(app.service.index().statistics(&ask.query)?)).await?))
}

/// Candidates, unranked by models and above no floor.
pub(super) async fn retrieve(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let ask = asked(&app, &service, request).await?;
    let hits = apart(&app, move |app| Ok(app.service.candidates(&ask)?)).await?;
    Ok(Json(json!({ "data": hits, "whole": app.is_whole() })))
}

/// What all shards found, for a shard of another version.
pub(super) async fn found(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let ask = asked(&app, &service, request).await?;
    let (Found { hits, below, notes }, missing) = together(&app, ask).await?;
    Ok(Json(json!({ "found": [hits, below, notes], "missing_shards": missing })))
}

/// Hits of all shards, and shards that said nothing or have not all of their documents. While versions are exchanged one of
/// them may be whole where the other is not: then it is that one's answer.
pub(super) async fn gathered(app: &Shared, ask: Ask) -> Result<(Found, Vec<u32>), Refusal> {
    let (found, missing) = together(app, ask.clone()).await?;
    if missing.is_empty() {
        return Ok((found, missing));
    }
    let call = Call::json("shard/found", &shown(&ask)?);
    for to in [To::Older(0), To::Newer] {
        let answer = app.ask(to, call.clone()).await.ok().and_then(|reply| reply.json().ok());
        let whole = answer.filter(|answer| answer["missing_shards"] == json!([]));
        let read = |mut answer: Value| serde_json::from_value::<(Vec<Hit>, usize, Vec<String>)>(answer["found"].take());
        if let Some(Ok((hits, below, notes))) = whole.map(read) {
            return Ok((Found { hits, below, notes }, Vec::new()));
        }
    }
    Ok((found, missing))
}

/// Of this version.
async fn together(app: &Shared, ask: Ask) -> Result<(Found, Vec<u32>), Refusal> {
    let sharding = app.service.settings().sharding;
    if sharding.count == 1 {
        let mut found = apart(app, move |app| Ok(app.service.retrieve(&ask)?)).await?;
        let missing: Vec<u32> = (!app.is_whole()).then_some(sharding.index).into_iter().collect();
        found.notes.extend(missing.iter().map(|shard| not_whole(*shard)));
        return Ok((found, missing));
    }
    let (mut there, own) = (sharding.others().collect::<Vec<_>>(), ask.clone());
    let counts = Call::json("shard/statistics", &shown(&ask)?);
    let counted = async {
        // A question that is not about words has nothing to count.
        let asked = if app.service.counts(&ask) { there.clone() } else { Vec::new() };
        app.ask_shards(asked, &counts).await
    };
    let (own, counted) = futures::join!(apart(app, move |app| Ok(app.service.counted(own)?)), counted);
    let mut ask = own?;
    let mut missing = Vec::new();
    if let Some(statistics) = &mut ask.statistics {
        for (shard, counted) in counted {
            match counted.and_then(|counted| serde_json::from_value::<Statistics>(counted).ok()) {
                Some(counted) => statistics.add(counted),
                None => missing.push(shard),
            }
        }
    }
    // One that did not answer just now holds up nothing for a second time.
    there.retain(|shard| !missing.contains(shard));
    let (call, asks) = (Call::json("shard/retrieve", &shown(&ask)?), ask.clone());
    let own = apart(app, move |app| Ok(app.service.candidates(&asks)?));
    let (own, found) = futures::join!(own, app.ask_shards(there, &call));
    let (own, whole) = (own?, app.is_whole());
    let answers = [(sharding.index, Some((own, whole)))].into_iter().chain(answers(found));
    let mut notes = Vec::new();
    let mut all = Vec::new();
    for (shard, answer) in answers {
        if matches!(answer, Some((_, false))) {
            notes.push(not_whole(shard));
            missing.push(shard);
        }
        all.push((shard, answer.map(|(hits, _)| hits)));
    }
    let merged = merge(all, app.service.depth(&ask));
    missing.extend(merged.missing);
    missing.sort_unstable();
    let mut found = apart(app, move |app| Ok(app.service.finish(&ask, merged.hits))).await?;
    found.notes.extend(notes);
    Ok((found, missing))
}

fn not_whole(shard: u32) -> String {
    format!("shard {shard} began anew, and has not all of its documents yet")
}

fn shown(ask: &Ask) -> Result<Value, Refusal> {
    serde_json::to_value(ask).map_err(|error| Refusal::failure(error.to_string()))
}

/// Hits of a shard, and whether it is whole.
type Answer = (u32, Option<(Vec<Hit>, bool)>);

fn answers(found: BTreeMap<u32, Option<Value>>) -> impl Iterator<Item = Answer> {
    found.into_iter().map(|(shard, answer)| {
        let answer = answer.and_then(|mut answer| {
            let hits = serde_json::from_value(answer["data"].take()).ok()?;
            Some((hits, answer["whole"] == true))
        });
        (shard, answer)
    })
}
