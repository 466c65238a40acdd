//! OpenAI-shaped chat over documents: retrieve, quote, ask the model, cite.

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Refusal, Shared, Told, json, read, retrieve::Wanted, shard::gathered, stream};
use crate::{
    answer::{NOT_IN_DOCUMENTS, Quoting, about_missing, cited, messages, quote::question},
    index::Hit,
    service::Found,
};

pub(super) async fn of_service(
    State(app): State<Shared>,
    Path(service): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    app.is_here(&service)?;
    complete(app, request).await
}

pub(super) async fn plain(State(app): State<Shared>, request: Request) -> Result<Response, Refusal> {
    complete(app, request).await
}

/// What an answer rests on, and what is said about it.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) hits: Vec<Hit>,
    /// A sentence about shards that said nothing; empty where all did.
    pub(super) sentence: String,
    missing: Vec<u32>,
    notes: Vec<String>,
    not_in_documents: bool,
}

impl Ground {
    /// Where the sentence is in the answer's words already.
    pub(super) fn silent(&self) -> Self {
        Self { sentence: String::new(), ..self.clone() }
    }

    /// The `rag` field of an answer.
    pub(super) fn said(&self, unknown: &[u32]) -> Value {
        json!({
            "not_in_documents": self.not_in_documents,
            "retrieved": self.hits.len(),
            "missing_shards": self.missing,
            "unknown_citations": unknown,
            "notes": self.notes,
        })
    }
}

async fn complete(app: Shared, request: Request) -> Result<Response, Refusal> {
    let mut body = json(&read(request.into_body(), app.limits.body_bytes, app.limits.body_within).await?)?;
    let Some(fields) = body.as_object_mut() else {
        return Err(Refusal::field("body", "expected an object"));
    };
    let rag = fields.shift_remove("rag").filter(|rag| !rag.is_null()).unwrap_or_else(|| json!({}));
    let mut wanted = Wanted::read(rag, "rag")?;
    let Some(conversation) = fields.get("messages").and_then(Value::as_array).cloned() else {
        return Err(Refusal::field("messages", "there are no messages"));
    };
    let query = wanted.query.take().or_else(|| question(&conversation));
    let query = query.ok_or_else(|| Refusal::field("messages", "no message of the user asks anything"))?;
    // Who pastes a book asks at its end.
    let query: String = {
        let chars = query.chars().count();
        query.chars().skip(chars.saturating_sub(4096)).collect()
    };
    let ask = wanted.ask(query, &app.limits)?;
    let (found, missing) = gathered(&app, ask).await?;
    let not_in_documents = found.not_in_documents();
    let Found { hits, notes, .. } = found;
    let sentence = about_missing(&missing, app.service.settings().sharding.count);
    let ground = Ground { hits, sentence, missing, notes, not_in_documents };
    let streamed = body["stream"] == true;
    if not_in_documents {
        return Ok(if streamed { stream::honest(&app, &body, &ground) } else { honest(&app, &body, &ground) });
    }
    let quoting = Quoting { nonce: (app.nonce)(), marks: app.marks.clone() };
    body["messages"] = messages(&conversation, &ground.hits, &quoting).into();
    match app.chat.complete(body).await? {
        Told::Whole(answer) => Ok(Json(whole(answer, &ground)).into_response()),
        Told::Stream(chunks) => Ok(stream::response(chunks, ground)),
    }
}

/// The fixed sentence, and that part of the documents was away.
pub(super) fn honest_words(ground: &Ground) -> String {
    if ground.sentence.is_empty() {
        NOT_IN_DOCUMENTS.to_owned()
    } else {
        format!("{NOT_IN_DOCUMENTS} {}", ground.sentence)
    }
}

/// What an answer that no model wrote begins with.
pub(super) fn head(app: &Shared, body: &Value, object: &str) -> Value {
    let model = body["model"].as_str().unwrap_or(app.service.name());
    json!({ "id": format!("chatcmpl-{}", (app.nonce)()), "object": object, "created": (app.now)(), "model": model })
}

fn honest(app: &Shared, body: &Value, ground: &Ground) -> Response {
    let mut answer = head(app, body, "chat.completion");
    let message = json!({ "role": "assistant", "content": honest_words(ground), "refusal": null });
    answer["choices"] = json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" }]);
    answer["usage"] = json!({ "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 });
    Json(whole(answer, &ground.silent())).into_response()
}

/// Citations into an answer that is whole: each message its own, the answer all of them.
fn whole(mut answer: Value, ground: &Ground) -> Value {
    let mut all = Vec::new();
    let mut unknown = Vec::new();
    for choice in answer["choices"].as_array_mut().into_iter().flatten() {
        let index = choice["index"].clone();
        let message = &mut choice["message"];
        let Some(content) = message["content"].as_str() else {
            continue;
        };
        let (citations, strange) = cited(content, &ground.hits);
        unknown.extend(strange);
        if !ground.sentence.is_empty() {
            message["content"] = format!("{content}\n\n{}", ground.sentence).into();
        }
        let citations = shown(&citations, &index);
        all.extend(citations.iter().cloned());
        message["citations"] = citations.into();
    }
    answer["citations"] = all.into();
    answer["rag"] = ground.said(&unknown);
    answer
}

/// Citations as JSON, with the choice they are in.
pub(super) fn shown(citations: &[crate::answer::Citation], choice: &Value) -> Vec<Value> {
    let shown = citations.iter().map(|citation| {
        let mut shown = serde_json::to_value(citation).unwrap_or_default();
        shown["choice"] = choice.clone();
        shown
    });
    shown.collect()
}
