//! `POST /v1/rerank`, in the shape that Jina, Cohere and vLLM share.

use serde_json::{Value, json};

use super::{Chosen, Context, chat::refused};
use crate::{
    fields::{Field, Reader},
    generation::model_field,
    limits::Limits,
    logprobs::shortest,
    model::Card,
    refusal::Refusal,
};

/// The fields.
pub fn fields() -> Vec<Field> {
    let object = json!({ "type": "object", "properties": { "text": { "type": "string" } }, "required": ["text"] });
    let document =
        json!({ "anyOf": [{ "type": "string" }, object], "description": "a string or an object with a `text`" });
    let rows = vec![
        Field::used("query", json!({ "type": "string", "minLength": 1 })).required(),
        Field::used("documents", json!({ "type": "array", "items": document, "minItems": 1 })).required(),
        Field::used("top_n", json!({ "type": "integer", "minimum": 0 })),
        Field::used("return_documents", json!({ "type": "boolean" })),
        Field::refused("max_chunks_per_doc", json!([1]), "documents are not cut into chunks: send the chunks"),
        Field::refused("max_tokens_per_doc", json!([]), "documents are not cut: send what fits"),
        Field::refused("rank_fields", json!([["text"]]), "a document is ranked by its `text`"),
        Field::refused("truncate_prompt_tokens", json!([]), "documents are not cut: send what fits"),
        Field::refused("priority", json!([0]), "requests are taken in the order they came"),
        Field::no_effect("user", json!({ "type": "string" }), "requests are accounted for by the caller's token"),
    ];
    [model_field()].into_iter().chain(rows.into_iter().map(Field::of_rerank)).collect()
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// As the client named it.
    pub model: Option<String>,
    /// What is asked.
    pub query: String,
    /// What may answer it.
    pub documents: Vec<String>,
    /// How many are wanted; 0 = all, as vLLM has it.
    pub top: usize,
    /// Whether they are told.
    pub tell: bool,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    if !card.reranks {
        return Err(Refusal::unsupported(
            "model",
            format!("{} ranks no documents: name a model that does", card.served_name),
        ));
    }
    let given = reader.get("documents").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if given.len() > limits.batch {
        let message = format!("found {} documents, and this server takes {} at once", given.len(), limits.batch);
        reader.refuse(Refusal::over_limit("documents", message));
    }
    let text = |document: &Value| document.as_str().or(document["text"].as_str()).map(str::to_owned);
    let asked = Asked {
        model: reader.text("model").map(str::to_owned),
        query: reader.text("query").unwrap_or_default().to_owned(),
        documents: given.iter().filter_map(text).collect(),
        top: reader.count("top_n").unwrap_or(0),
        tell: reader.flag("return_documents", true),
    };
    reader.done(|| asked)
}

/// The answer, best first. It computes, on the thread it is called on.
///
/// # Errors
/// When a document is too long, or the model failed.
pub fn answer(asked: &Asked, chosen: &Chosen, context: &Context) -> Result<Value, Refusal> {
    if chosen.adapter.is_some() {
        return Err(Refusal::unsupported("model", "documents are ranked without adapters"));
    }
    let scored = context.model.rerank(&asked.query, &asked.documents);
    let (scores, tokens) = scored.map_err(|error| refused(error, "documents"))?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let top = if asked.top == 0 { order.len() } else { asked.top };
    let results = order.into_iter().take(top).map(|index| {
        let mut result = json!({ "index": index, "relevance_score": shortest(scores[index]) });
        if asked.tell {
            result["document"] = json!({ "text": asked.documents[index] });
        }
        result
    });
    let results: Vec<Value> = results.collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(json!({ "id": context.ids.with("rerank-"), "model": chosen.name, "usage": usage, "results": results }))
}
