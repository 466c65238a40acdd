//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use serde_json::{Value, json};

use super::{Context, chat};
use crate::{
    endpoint::completions::Given,
    fields::{Field, Reader, count},
    generation::{Told, model_field},
    limits::Limits,
    logprobs, messages,
    model::{Card, Chat},
    refusal::Refusal,
    tools::{self, Shape},
};

/// The fields of `/tokenize`.
pub fn fields() -> Vec<Field> {
    let messages = Field { required: false, ..messages::field() };
    let mut rows = vec![
        model_field(),
        Field::used("prompt", json!({ "type": "string" })),
        messages,
        Field::used("add_special_tokens", json!({ "type": "boolean" })),
        Field::used("return_token_strs", json!({ "type": "boolean" })),
    ];
    rows.extend(tools::fields(Shape::Nested).into_iter().filter(|field| field.name == "tools"));
    rows.extend(chat::template_fields().into_iter().filter(|field| field.name != "add_special_tokens"));
    rows.push(Field::refused("mm_processor_kwargs", json!([{}]), "this model reads text"));
    rows.into_iter().map(Field::of_vllm).collect()
}

/// The fields of `/detokenize`.
pub fn back_fields() -> Vec<Field> {
    let tokens = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 } });
    [model_field(), Field::used("tokens", tokens).required()].into_iter().map(Field::of_vllm).collect()
}

/// What is to be tokenized.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// This.
    Plain {
        /// The text.
        text: String,
        /// With what the tokenizer puts around it.
        special: bool,
    },
    /// A rendered conversation.
    Chat(Chat),
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// As the client named it.
    pub model: Option<String>,
    /// What is to be tokenized.
    pub text: Text,
    /// Whether each token's text is told.
    pub strings: bool,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let text = match (reader.text("prompt"), reader.get("messages")) {
        (Some(text), None) => Text::Plain { text: text.to_owned(), special: reader.flag("add_special_tokens", true) },
        (None, Some(_)) => {
            if reader.flag("add_special_tokens", false) {
                reader.problem(
                    "add_special_tokens",
                    "not with `messages`: the chat template writes special tokens itself",
                );
            }
            let tools = tools::read(&mut reader, Shape::Nested, card.calls.is_some(), limits.tools);
            Text::Chat(chat::chat(&mut reader, &tools, limits))
        }
        (Some(_), Some(_)) => {
            reader.problem("messages", "not with `prompt`: one of them is tokenized");
            Text::Chat(Chat::default())
        }
        (None, None) => {
            if reader.get("prompt").is_none() {
                reader.problem("prompt", "missing, expected a string; or `messages`");
            }
            Text::Chat(Chat::default())
        }
    };
    let (model, strings) = (reader.text("model").map(str::to_owned), reader.flag("return_token_strs", false));
    reader.done(|| Asked { model, text, strings })
}

/// The answer.
///
/// # Errors
/// When the template refuses the conversation.
pub fn answer(asked: &Asked, context: &Context) -> Result<Value, Refusal> {
    let model = &*context.model;
    let ids = match &asked.text {
        Text::Plain { text, special } => model.tokenize(text, *special),
        Text::Chat(chat) => model.render(chat).map_err(|error| chat::refused(error, "messages"))?.ids,
    };
    let strings =
        asked.strings.then(|| ids.iter().map(|id| logprobs::name(model, *id, Told::default())).collect::<Vec<_>>());
    Ok(json!({
        "count": ids.len(), "max_model_len": model.card().max_length, "tokens": ids, "token_strs": strings,
    }))
}

/// What a body of `/detokenize` means: the model and the ids.
///
/// # Errors
/// Every problem it has.
pub fn read_back(body: &Value) -> Result<(Option<String>, Given), Refusal> {
    let reader = Reader::new(body, &back_fields())?;
    let given = reader.get("tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ids = given.iter().map(|id| count(id).and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX)).collect();
    let model = reader.text("model").map(str::to_owned);
    reader.done(|| (model, Given::Ids(ids)))
}

/// The answer of `/detokenize`.
///
/// # Errors
/// When an id is none.
pub fn answer_back(given: &Given, context: &Context) -> Result<Value, Refusal> {
    let ids = given.ids(&*context.model, false, "tokens")?;
    Ok(json!({ "prompt": context.model.detokenize(&ids) }))
}
