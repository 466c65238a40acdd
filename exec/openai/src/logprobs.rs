//! Log-probabilities in OpenAI's and vLLM's shapes.

use mloc_engine::request::{Logprobs, TokenLogprob};
use serde_json::{Map, Value, json};

use crate::{generation::Told, model::Model};

/// Stands for minus infinity, which JSON doesn't have.
const LEAST: f32 = -9999.0;

fn value(logprob: f32) -> f64 {
    shortest(if logprob.is_nan() { LEAST } else { logprob.max(LEAST) })
}

/// The number that is written with the fewest digits and reads back as this one: 0.1, where widening gives
/// 0.10000000149011612.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

/// A token's text: as OpenAI's, what is no text by itself is written as bytes.
pub fn name(model: &dyn Model, id: u32, told: Told) -> String {
    if told.names_are_ids {
        return format!("token_id:{id}");
    }
    let bytes = model.token(id).map(|token| token.bytes).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_else(|broken| {
        let hex = broken.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        "bytes:".to_owned() + &hex.collect::<String>()
    })
}

/// A chat's: `{"token", "logprob", "bytes", "top_logprobs": […]}`.
pub fn chat(model: &dyn Model, position: &Logprobs, told: Told) -> Value {
    let one = |token: &TokenLogprob| {
        let bytes = model.token(token.id).map(|token| token.bytes);
        json!({ "token": name(model, token.id, told), "logprob": value(token.logprob), "bytes": bytes })
    };
    let mut said = one(&position.chosen);
    said["top_logprobs"] = position.top.iter().map(one).collect();
    said
}

/// A completion's: lists in parallel, a place in the text for each token.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Columns {
    /// A token; the prompt's first has no log-probability.
    pub fn push(&mut self, model: &dyn Model, id: u32, position: Option<&Logprobs>, offset: usize, told: Told) {
        self.tokens.push(name(model, id, told).into());
        self.token_logprobs.push(position.map_or(Value::Null, |p| value(p.chosen.logprob).into()));
        // The token itself is always among them, as OpenAI's.
        let top = position.map(|p| {
            let tokens = p.top.iter().chain([&p.chosen]);
            let pairs = tokens.map(|t| (name(model, t.id, told), Value::from(value(t.logprob))));
            Value::Object(pairs.collect::<Map<_, _>>())
        });
        self.top_logprobs.push(top.unwrap_or_default());
        self.text_offset.push(offset);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// OpenAI's object.
    pub fn told(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs, "text_offset": self.text_offset,
        })
    }
}

/// vLLM's of a prompt: for each token but the first an object by id.
pub fn prompt(model: &dyn Model, positions: &[Logprobs]) -> Value {
    let one = |token: &TokenLogprob| {
        let text = name(model, token.id, Told::default());
        (token.id.to_string(), json!({ "logprob": value(token.logprob), "rank": token.rank, "decoded_token": text }))
    };
    let object = |p: &Logprobs| Value::Object([&p.chosen].into_iter().chain(&p.top).map(one).collect());
    [Value::Null].into_iter().chain(positions.iter().map(object)).collect()
}
