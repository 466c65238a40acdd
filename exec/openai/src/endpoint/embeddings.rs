//! `POST /v1/embeddings`

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    Chosen, Context,
    chat::refused,
    completions::{Given, given},
};
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
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
    let texts = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    let lists = json!({ "type": "array", "items": ids, "minItems": 1 });
    let input = json!({ "anyOf": [{ "type": "string" }, texts, ids, lists],
        "description": "a string, a list of strings, a list of token ids or a list of such lists" });
    vec![
        model_field(),
        Field::used("input", input).required(),
        Field::used("dimensions", json!({ "type": "integer", "minimum": 1 })),
        Field::used("encoding_format", json!({ "enum": ["float", "base64"] })),
        Field::no_effect("user", json!({ "type": "string" }), "requests are accounted for by the caller's token"),
        Field::used("add_special_tokens", json!({ "type": "boolean" })).of_vllm(),
        Field::used("truncate_prompt_tokens", json!({ "type": "integer", "minimum": -1 })).of_vllm(),
        Field::refused("messages", json!([]), "give the text as `input`").of_vllm(),
        Field::refused("priority", json!([0]), "requests are taken in the order they came").of_vllm(),
    ]
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// As the client named it.
    pub model: Option<String>,
    /// At least one.
    pub inputs: Vec<Given>,
    /// Numbers wanted of each embedding.
    pub dimensions: usize,
    /// Little-endian floats in base64, or a list of numbers.
    pub base64: bool,
    /// Whether what the tokenizer puts around a text is put around these.
    pub special: bool,
    /// Only so many of an input's first tokens.
    pub truncate: Option<usize>,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let Some(width) = card.embedding else {
        return Err(Refusal::unsupported(
            "model",
            format!("{} makes no embeddings: name a model that does", card.served_name),
        ));
    };
    let inputs = reader.get("input").map(given).unwrap_or_default();
    if inputs.len() > limits.batch {
        let message = format!("found {} inputs, and this server takes {} at once", inputs.len(), limits.batch);
        reader.refuse(Refusal::over_limit("input", message));
    }
    let dimensions = reader.count("dimensions").unwrap_or(width);
    if dimensions > width {
        reader.problem("dimensions", format!("found {dimensions}, and this model's embeddings have {width}"));
    } else if dimensions < width && !card.embedding_shortens {
        let message =
            format!("found {dimensions}, but this model's embeddings mean something only whole: expected {width}");
        reader.problem("dimensions", message);
    }
    let truncate = reader.number("truncate_prompt_tokens");
    let asked = Asked {
        model: reader.text("model").map(str::to_owned),
        inputs,
        dimensions,
        base64: reader.text("encoding_format") == Some("base64"),
        special: reader.flag("add_special_tokens", true),
        truncate: truncate.map(|n| if n < 0.0 { card.max_length } else { n as usize }),
    };
    reader.done(|| asked)
}

/// The answer. It computes, on the thread it is called on.
///
/// # Errors
/// When an input has no tokens or too many, or the model failed.
pub fn answer(asked: &Asked, chosen: &Chosen, context: &Context) -> Result<Value, Refusal> {
    let (model, card) = (&*context.model, context.model.card());
    if chosen.adapter.is_some() {
        return Err(Refusal::unsupported(
            "model",
            format!("embeddings are made by {} without adapters", card.served_name),
        ));
    }
    let (mut prompts, many) = (Vec::new(), asked.inputs.len() > 1);
    for (index, input) in asked.inputs.iter().enumerate() {
        let at = if many { format!("input[{index}]") } else { "input".to_owned() };
        let mut ids = input.ids(model, asked.special, &at)?;
        ids.truncate(asked.truncate.unwrap_or(usize::MAX));
        match ids.len() {
            0 => return Err(Refusal::field(&at, format!("{at}: found no tokens, expected at least one"))),
            n if n > card.max_length => {
                let message = format!(
                    "{at}: found {n} tokens, and {} fit: cut it, or set truncate_prompt_tokens to -1",
                    card.max_length
                );
                return Err(Refusal::field(at, message).with_code("context_length_exceeded"));
            }
            _ => prompts.push(ids),
        }
    }
    let embeddings = model.embed(&prompts).map_err(|error| refused(error, "input"))?;
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let data = embeddings.into_iter().enumerate().map(|(index, embedding)| {
        let embedding = shortened(embedding, asked.dimensions);
        let told: Value =
            if asked.base64 { base64(&embedding).into() } else { embedding.into_iter().map(shortest).collect() };
        json!({ "object": "embedding", "index": index, "embedding": told })
    });
    let data: Vec<Value> = data.collect();
    Ok(json!({
        "id": context.ids.with("embd-"), "object": "list", "created": context.now, "model": chosen.name, "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    }))
}

/// The beginning, of unit length again.
fn shortened(mut embedding: Vec<f32>, dimensions: usize) -> Vec<f32> {
    if dimensions < embedding.len() {
        embedding.truncate(dimensions);
        let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            embedding.iter_mut().for_each(|x| *x /= length);
        }
    }
    embedding
}

fn base64(embedding: &[f32]) -> String {
    let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_embedding_has_unit_length() {
        assert_eq!(shortened(vec![3.0, 4.0, 12.0], 2), [0.6, 0.8]);
        assert_eq!(shortened(vec![0.0, 0.0, 1.0], 2), [0.0, 0.0]);
        assert_eq!(shortened(vec![0.6, 0.8], 2), [0.6, 0.8]);
    }

    #[test]
    fn base64_is_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
