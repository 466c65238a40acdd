//! `POST /v1/completions`

use mloc_engine::request::{Constraint, Event, FinishReason, Logprobs, Usage};
use serde_json::{Value, json};

use super::{Chosen, Context};
use crate::{
    answer, constraint,
    fields::{Field, Reader, count},
    generation::{self, Generation, LOGPROBS_MAX},
    limits::Limits,
    logprobs::{self, Columns},
    model::{Card, Model},
    refusal::Refusal,
    tell::{Chunk, Job, Tell},
    tools::Choice,
};

/// Tokens of an answer where a request doesn't say: OpenAI's default.
const MAX_TOKENS: usize = 16;

/// The fields.
pub fn fields() -> Vec<Field> {
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
    let texts = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    let lists = json!({ "type": "array", "items": ids, "minItems": 1 });
    let prompt = json!({ "anyOf": [{ "type": "string" }, texts, ids, lists],
        "description": "a string, a list of strings, a list of token ids or a list of such lists" });
    let mut rows = vec![
        Field::used("prompt", prompt).required(),
        Field::used("best_of", json!({ "type": "integer", "minimum": 1, "maximum": 128 })),
        Field::used("echo", json!({ "type": "boolean" })),
        Field::used("logprobs", json!({ "type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX })),
        Field::used("max_tokens", json!({ "type": "integer", "minimum": 0 })),
        Field::refused(
            "suffix",
            json!([""]),
            "this model continues prompts and fills no gaps: put what comes after into the prompt",
        ),
    ];
    rows.extend(generation::fields());
    rows.extend(generation::vllm_fields());
    rows.extend(constraint::vllm_fields());
    rows.extend([
        Field { origin: crate::fields::Origin::Vllm, ..constraint::response_format_field() },
        Field::used("add_special_tokens", json!({ "type": "boolean" })).of_vllm(),
        Field::refused("prompt_embeds", json!([]), "give the prompt as text or token ids").of_vllm(),
    ]);
    rows
}

/// A prompt as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl Given {
    /// Its ids.
    ///
    /// # Errors
    /// When an id is none.
    pub fn ids(&self, model: &dyn Model, special: bool, at: &str) -> Result<Vec<u32>, Refusal> {
        match self {
            Self::Text(text) => Ok(model.tokenize(text, special)),
            Self::Ids(ids) => match ids.iter().find(|id| model.token(**id).is_none()) {
                Some(id) => Err(Refusal::field(at, format!("{at}: the model has no token {id}; /tokenize gives ids"))),
                None => Ok(ids.clone()),
            },
        }
    }
}

/// Strings or lists of ids, one or many, as `prompt` and `input` have them.
pub fn given(value: &Value) -> Vec<Given> {
    let id = |value: &Value| u32::try_from(count(value)?).ok();
    // An id beyond 32 bits is no model's; it is refused when it is looked up.
    let ids = |values: &[Value]| Given::Ids(values.iter().map(|value| id(value).unwrap_or(u32::MAX)).collect());
    match value {
        Value::String(text) => vec![Given::Text(text.clone())],
        Value::Array(items) if items.iter().all(Value::is_number) => vec![ids(items)],
        Value::Array(items) => items
            .iter()
            .filter_map(|item| match item {
                Value::String(text) => Some(Given::Text(text.clone())),
                Value::Array(items) => Some(ids(items)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// All but the prompts.
    pub generation: Generation,
    /// At least one.
    pub prompts: Vec<Given>,
    /// Whether the prompt is part of the answer.
    pub echo: bool,
    /// Whether what the tokenizer puts around a text is put around these.
    pub special: bool,
    /// What the answer must look like.
    pub form: Option<Constraint>,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let mut generation = generation::read(&mut reader, card, limits);
    generation.max_tokens = Some(reader.count("max_tokens").unwrap_or(MAX_TOKENS));
    generation.best_of = reader.count("best_of").unwrap_or(generation.choices);
    if generation.best_of < generation.choices {
        let message = format!("found {}, expected at least n, which is {}", generation.best_of, generation.choices);
        reader.problem("best_of", message);
    }
    generation.logprobs = reader.count("logprobs");
    generation.check(&mut reader);
    let echo = reader.flag("echo", false);
    if echo && generation.logprobs.is_some() && generation.prompt_logprobs.is_none() && generation.truncate.is_none() {
        generation.prompt_logprobs = generation.logprobs;
    } else if echo && generation.truncate.is_some() {
        reader.problem("truncate_prompt_tokens", "not with `echo`: the prompt is told as it was given");
    }
    let prompts = reader.get("prompt").map(given).unwrap_or_default();
    if prompts.len() > limits.batch {
        let message = format!("found {} prompts, and this server takes {} at once", prompts.len(), limits.batch);
        reader.refuse(Refusal::over_limit("prompt", message));
    }
    let form = constraint::read(&mut reader);
    let special = reader.flag("add_special_tokens", true);
    reader.done(|| Asked { generation, prompts, echo, special, form })
}

/// What is to be done: prompts as ids, requests checked against their length.
///
/// # Errors
/// When a prompt has no tokens, or does not fit.
pub fn job(asked: Asked, chosen: Chosen, context: &Context) -> Result<Job, Refusal> {
    let Asked { generation, prompts, echo, special, form } = asked;
    let (model, many) = (&*context.model, prompts.len() > 1);
    let (mut requests, mut told, mut events_max) = (Vec::new(), Vec::new(), 0);
    for (index, given) in prompts.iter().enumerate() {
        let at = if many { format!("prompt[{index}]") } else { "prompt".to_owned() };
        if let Given::Text(text) = given {
            generation.may_fit(text.len(), model.card(), &at)?;
        }
        let ids = given.ids(model, special, &at)?;
        let text = match given {
            Given::Text(text) if echo => text.clone(),
            Given::Ids(ids) if echo => model.detokenize(ids),
            _ => String::new(),
        };
        let request = generation.request(ids, chosen.adapter, form.clone(), model.card(), &at)?;
        events_max += generation.events_max(request.prompt.len(), model.card());
        told.push(Prompt { ids: request.prompt.clone(), text, logprobs: None });
        requests.push(request);
    }
    let streamed = generation.stream.is_some();
    let teller = Box::new(Teller::new(generation, told, echo, chosen.name, context.clone()));
    Ok(Job { requests, events_max, streamed, teller })
}

struct Prompt {
    ids: Vec<u32>,
    /// For the echo.
    text: String,
    logprobs: Option<Vec<Logprobs>>,
}

#[derive(Default)]
struct One {
    text: String,
    columns: Columns,
    /// Characters of the tokens so far.
    offset: usize,
    tokens: usize,
    ids: Vec<u32>,
    finish: (Option<&'static str>, Value),
}

struct Teller {
    generation: Generation,
    prompts: Vec<Prompt>,
    echo: bool,
    model: String,
    context: Context,
    id: String,
    choices: Vec<One>,
    usages: Vec<Usage>,
}

impl Teller {
    fn new(generation: Generation, prompts: Vec<Prompt>, echo: bool, model: String, context: Context) -> Self {
        let id = generation.request_id.as_ref().map(|id| format!("cmpl-{id}"));
        let id = id.unwrap_or_else(|| context.ids.with("cmpl-"));
        let choices = (0..generation.choices * prompts.len()).map(|_| One::default()).collect();
        Self { generation, prompts, echo, model, context, id, choices, usages: Vec::new() }
    }

    /// Whether a prompt was to be scored, and nothing to be answered.
    fn silent(&self) -> bool {
        self.generation.max_tokens == Some(0)
    }

    /// The prompt, as the beginning of its answers.
    fn echoed(&mut self, prompt: usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for choice in prompt * self.generation.choices..(prompt + 1) * self.generation.choices {
            let Prompt { ids, text, logprobs } = &self.prompts[prompt];
            let (text, ids, positions) = (text.clone(), ids.clone(), logprobs.clone().unwrap_or_default());
            if self.generation.logprobs.is_some() {
                for (at, id) in ids.iter().enumerate() {
                    self.column(choice, *id, at.checked_sub(1).and_then(|at| positions.get(at)));
                }
            }
            chunks.extend(self.say(choice, &text));
        }
        chunks
    }

    fn column(&mut self, choice: usize, id: u32, position: Option<&Logprobs>) {
        let (model, told) = (&*self.context.model, self.generation.told);
        let one = &mut self.choices[choice];
        one.columns.push(model, id, position, one.offset, told);
        let bytes = model.token(id).map(|token| token.bytes).unwrap_or_default();
        one.offset += String::from_utf8_lossy(&bytes).chars().count();
    }

    fn say(&mut self, choice: usize, text: &str) -> Vec<Chunk> {
        self.choices[choice].text.push_str(text);
        if self.generation.stream.is_some() && !text.is_empty() { vec![self.chunk(choice, text)] } else { Vec::new() }
    }

    fn chunk(&mut self, choice: usize, text: &str) -> Chunk {
        let one = &mut self.choices[choice];
        let columns = std::mem::take(&mut one.columns);
        let logprobs = if columns.is_empty() { Value::Null } else { columns.told() };
        let mut told = json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": one.finish.0 });
        if one.finish.0.is_some() {
            told["stop_reason"] = one.finish.1.clone();
        }
        if self.generation.told.ids {
            told["token_ids"] = std::mem::take(&mut one.ids).into();
        }
        self.envelope(vec![told])
    }

    fn envelope(&self, choices: Vec<Value>) -> Chunk {
        let stream = self.generation.stream.unwrap_or_default();
        let last = choices.is_empty();
        let mut chunk = json!({
            "id": self.id, "object": "text_completion", "created": self.context.now, "model": self.model,
            "choices": choices,
        });
        if stream.usage_always || (stream.usage && last) {
            chunk["usage"] = self.usage();
        } else if stream.usage {
            chunk["usage"] = Value::Null;
        }
        Chunk::unnamed(&chunk)
    }

    fn usage(&self) -> Value {
        let sum = answer::sum(self.usages.iter().copied());
        let told: usize = self.choices.iter().map(|one| one.tokens).sum();
        let completion_tokens = if self.silent() { 0 } else { sum.completion_tokens.max(told) };
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        answer::usage(Usage { prompt_tokens, completion_tokens, cached_tokens: sum.cached_tokens }, 0)
    }
}

impl Tell for Teller {
    fn hear(&mut self, prompt: usize, event: Event) -> Vec<Chunk> {
        let first = prompt * self.generation.choices;
        match event {
            Event::Prompt { logprobs } => {
                self.prompts[prompt].logprobs = Some(logprobs);
                if self.echo { self.echoed(prompt) } else { Vec::new() }
            }
            Event::Token { .. } if self.silent() => Vec::new(),
            Event::Token { choice, id, text, logprobs } => {
                let choice = first + choice;
                self.choices[choice].tokens += 1;
                if self.generation.told.ids {
                    self.choices[choice].ids.push(id);
                }
                if self.generation.logprobs.is_some() {
                    self.column(choice, id, logprobs.as_ref());
                }
                self.say(choice, &text)
            }
            Event::Finished { choice, text, reason } => {
                let choice = first + choice;
                let (text, reason) = if self.silent() { (String::new(), FinishReason::Length) } else { (text, reason) };
                let mut chunks = self.say(choice, &text);
                let (reason, stop) = answer::finish_reason(&reason, false, &Choice::None);
                self.choices[choice].finish = (Some(reason), stop);
                if self.generation.stream.is_some() {
                    chunks.push(self.chunk(choice, ""));
                }
                chunks
            }
            Event::Done { usage } => {
                self.usages.push(usage);
                Vec::new()
            }
            Event::Failed(_) => Vec::new(),
        }
    }

    fn close(&mut self) -> Vec<Chunk> {
        let usage = self.generation.stream.is_some_and(|stream| stream.usage);
        let mut chunks = if usage { vec![self.envelope(Vec::new())] } else { Vec::new() };
        chunks.push(Chunk::done());
        chunks
    }

    fn whole(&mut self) -> Value {
        let usage = self.usage();
        let (wanted, ids) = (self.generation.logprobs.is_some(), self.generation.told.ids);
        // An echo's are among `logprobs` already.
        let prompt_logprobs = self.generation.prompt_logprobs.is_some() && !(self.echo && wanted);
        let mut choices = Vec::new();
        for (index, one) in std::mem::take(&mut self.choices).into_iter().enumerate() {
            let prompt = &self.prompts[index / self.generation.choices];
            let logprobs = if wanted { one.columns.told() } else { Value::Null };
            let mut told = json!({
                "index": index, "text": one.text, "logprobs": logprobs,
                "finish_reason": one.finish.0, "stop_reason": one.finish.1,
            });
            if prompt_logprobs {
                let positions = prompt.logprobs.as_deref().unwrap_or_default();
                told["prompt_logprobs"] = logprobs::prompt(&*self.context.model, positions);
            }
            if ids {
                told["token_ids"] = one.ids.into();
                told["prompt_token_ids"] = prompt.ids.clone().into();
            }
            choices.push(told);
        }
        json!({
            "id": self.id, "object": "text_completion", "created": self.context.now, "model": self.model,
            "choices": choices, "usage": usage,
        })
    }
}
