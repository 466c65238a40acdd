//! A question, and the hits it has in all shards.

use axum::{
    Json,
    extract::{Path, Request, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Limits, Refusal, Shared, json, read, shard::gathered};
use crate::{
    index::{Arms, Filter},
    service::{Ask, Floor, Found},
};

/// Chars of a question.
const QUERY_CHARS: usize = 8192;

/// What a client may say of how it wants to be answered.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// In words; chat takes its last user's message.
    pub(super) query: Option<String>,
    top_k: Option<usize>,
    filter: Filter,
    floor: Option<Floor>,
    /// `dense`, `words`, or both.
    arms: Option<Vec<ArmName>>,
    rerank: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ArmName {
    Dense,
    Words,
}

impl Wanted {
    /// Out of JSON.
    pub(super) fn read(body: Value, at: &str) -> Result<Self, Refusal> {
        serde_json::from_value(body).map_err(|error| Refusal::field(at, error.to_string()))
    }

    pub(super) fn ask(self, query: String, limits: &Limits) -> Result<Ask, Refusal> {
        let Self { top_k, filter, floor, arms, rerank, .. } = self;
        let chars = query.chars().count();
        if query.trim().is_empty() || chars > QUERY_CHARS {
            return Err(Refusal::field(
                "query",
                format!("{chars} chars, expected 1 to {QUERY_CHARS} that say something"),
            ));
        }
        if top_k.is_some_and(|top_k| !(1..=limits.top_k).contains(&top_k)) {
            return Err(Refusal::field("top_k", format!("expected 1 to {}", limits.top_k)));
        }
        filter.check().map_err(|(field, message)| Refusal::field(field, message))?;
        let arms = arms
            .filter(|arms| !arms.is_empty())
            .map(|arms| Arms { dense: arms.contains(&ArmName::Dense), words: arms.contains(&ArmName::Words) });
        let rerank = rerank.unwrap_or(true);
        Ok(Ask { filter, top_k, floor, arms, rerank, ..Ask::new(&query) })
    }
}

/// The route.
pub(super) async fn retrieve(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    app.is_here(&service)?;
    let body = json(&read(request.into_body(), app.limits.body_bytes, app.limits.body_within).await?)?;
    let mut wanted = Wanted::read(body, "body")?;
    let query = wanted.query.take().ok_or_else(|| Refusal::field("query", "there is no query"))?;
    let ask = wanted.ask(query, &app.limits)?;
    let (found, missing) = gathered(&app, ask).await?;
    let not_in_documents = found.not_in_documents();
    let Found { hits, below, notes } = found;
    Ok(Json(json!({
        "object": "list",
        "data": hits,
        "not_in_documents": not_in_documents,
        "below_floor": below,
        "missing_shards": missing,
        "notes": notes,
    })))
}
