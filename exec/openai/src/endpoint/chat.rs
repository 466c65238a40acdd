//! `POST /v1/chat/completions`

use mloc_engine::request::{Constraint, Event, Logprobs, Usage};
use serde_json::{Map, Value, json};

use super::{Chosen, Context};
use crate::{
    answer::{self, Answer, Reading, Said},
    constraint,
    fields::{Field, Reader},
    generation::{self, Generation, LOGPROBS_MAX},
    grammar::{self, Around},
    limits::Limits,
    logprobs, messages,
    model::{Card, Chat, ModelError},
    refusal::Refusal,
    tell::{Chunk, Job, Tell},
    tools::{self, Shape, Tools},
};

/// The fields.
pub fn fields() -> Vec<Field> {
    let text = || json!({ "type": "string" });
    let tokens = json!({ "type": "integer", "minimum": 1 });
    let flag = || json!({ "type": "boolean" });
    let effort = json!({ "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"] });
    let mut rows = vec![messages::field(), constraint::response_format_field()];
    rows.extend(generation::fields());
    rows.extend(tools::fields(Shape::Nested));
    rows.extend([
        Field::used("max_completion_tokens", tokens.clone()),
        Field::used("max_tokens", tokens),
        Field::used("logprobs", flag()),
        Field::used("top_logprobs", json!({ "type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX })),
        Field::used("reasoning_effort", effort),
        Field::no_effect("metadata", json!({ "type": "object" }), "nothing is stored that it could be found by"),
        Field::no_effect("store", flag(), "nothing is stored"),
        Field::no_effect("service_tier", text(), "there is one tier"),
        Field::no_effect("safety_identifier", text(), "requests are accounted for by the caller's token"),
        Field::no_effect("prediction", json!({ "type": "object" }), "it could only make the same answer faster"),
        Field::no_effect("prompt_cache_key", text(), "beginnings of prompts are cached without"),
        Field::no_effect("prompt_cache_retention", text(), "beginnings of prompts are cached while there is room"),
        Field::no_effect(
            "prompt_cache_options",
            json!({ "type": "object" }),
            "beginnings of prompts are cached without",
        ),
        Field::refused("audio", json!([]), "this model writes text"),
        Field::refused("modalities", json!([["text"]]), "this model writes text: leave it out, or ask for [\"text\"]"),
        Field::refused("functions", json!([[]]), "it is deprecated: use `tools`"),
        Field::refused("function_call", json!(["none"]), "it is deprecated: use `tool_choice`"),
        Field::refused("verbosity", json!(["medium"]), "say in a message how long the answer should be"),
        Field::refused("web_search_options", json!([]), "this server searches nothing: offer a tool that does"),
        Field::refused("moderation", json!([]), "this server moderates nothing"),
    ]);
    rows.extend(generation::vllm_fields());
    rows.extend(constraint::vllm_fields());
    rows.extend(template_fields());
    rows.extend([
        Field::used("include_reasoning", flag()).of_vllm(),
        Field::refused("echo", json!([false]), "use a completion").of_vllm(),
    ]);
    rows
}

/// Rows of what a chat template is told; `/tokenize` has them too.
pub fn template_fields() -> Vec<Field> {
    let rows = vec![
        Field::used("add_generation_prompt", json!({ "type": "boolean" })),
        Field::used("continue_final_message", json!({ "type": "boolean" })),
        Field::used("chat_template_kwargs", json!({ "type": "object" })),
        Field::used("documents", json!({ "type": "array", "items": { "type": "object" } })),
        Field::refused(
            "chat_template",
            json!([]),
            "a template is a program: it comes with the model, not with a request",
        ),
        Field::refused("add_special_tokens", json!([false]), "the chat template writes special tokens itself"),
    ];
    rows.into_iter().map(Field::of_vllm).collect()
}

/// A request, meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// All but the prompt.
    pub generation: Generation,
    /// What the template gets.
    pub chat: Chat,
    /// What may be called.
    pub tools: Tools,
    /// What the answer must look like.
    pub form: Option<Constraint>,
    /// Whether thoughts are told.
    pub tell_thoughts: bool,
}

/// What a body means.
///
/// # Errors
/// Every problem it has.
pub fn read(body: &Value, card: &Card, limits: &Limits) -> Result<Asked, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let mut generation = generation::read(&mut reader, card, limits);
    generation.max_tokens = reader.count("max_completion_tokens").or(reader.count("max_tokens"));
    let both = (reader.count("max_completion_tokens"), reader.count("max_tokens"));
    if let (Some(new), Some(old)) = both
        && new != old
    {
        let message = format!("found {old}, and {new} as max_completion_tokens: give one of them");
        reader.problem("max_tokens", message);
    }
    let wanted = reader.flag("logprobs", false);
    let top = reader.count("top_logprobs");
    if top.is_some_and(|top| top > 0) && !wanted {
        reader.problem("top_logprobs", "only with `logprobs: true`");
    }
    generation.logprobs = wanted.then_some(top.unwrap_or(0));
    generation.check(&mut reader);
    let tools = tools::read(&mut reader, Shape::Nested, card.calls.is_some(), limits.tools);
    let chat = chat(&mut reader, &tools, limits);
    let form = constraint::read(&mut reader);
    let tell_thoughts = reader.flag("include_reasoning", true);
    reader.done(|| Asked { generation, chat, tools, form, tell_thoughts })
}

/// What the template gets.
pub fn chat(reader: &mut Reader<'_>, tools: &Tools, limits: &Limits) -> Chat {
    let messages = messages::read(reader, limits.messages);
    let goes_on = reader.flag("continue_final_message", false);
    if goes_on && reader.flag("add_generation_prompt", false) {
        reader.problem("continue_final_message", "not with `add_generation_prompt`: an answer begins, or goes on");
    }
    let mut variables = Map::new();
    if let Some(effort) = reader.text("reasoning_effort") {
        variables.extend(thinking(effort));
    }
    if let Some(documents) = reader.get("documents") {
        variables.insert("documents".into(), documents.clone());
    }
    variables.extend(reader.get("chat_template_kwargs").and_then(Value::as_object).cloned().unwrap_or_default());
    Chat {
        messages,
        tools: tools.shown(),
        add_generation_prompt: reader.flag("add_generation_prompt", !goes_on),
        continue_final_message: goes_on,
        variables,
    }
}

/// What templates know of effort: some its name, some whether to think at all.
pub fn thinking(effort: &str) -> Map<String, Value> {
    let mut variables = Map::new();
    variables.insert("reasoning_effort".into(), effort.into());
    if effort == "none" {
        variables.insert("enable_thinking".into(), false.into());
    }
    variables
}

/// What is to be done: the conversation rendered, the request checked against its length.
///
/// # Errors
/// When the template refuses it, or it does not fit.
pub fn job(asked: Asked, chosen: Chosen, context: &Context) -> Result<Job, Refusal> {
    let Asked { generation, chat, tools, form, tell_thoughts } = asked;
    let card = context.model.card();
    generation.may_fit(chat.asked_bytes(), card, "messages")?;
    let prompt = context.model.render(&chat).map_err(|error| refused(error, "messages"))?;
    let around = Around { format: card.calls, markers: &card.markers, thinking: card.thinks && prompt.thinking };
    let constraint =
        grammar::of(form, &tools, around).map_err(|why| Refusal::field("structured_outputs.grammar", why))?;
    let request = generation.request(prompt.ids, chosen.adapter, constraint, card, "messages")?;
    let events_max = generation.events_max(request.prompt.len(), card);
    let reading = Reading { thoughts: card.thinks.then_some(prompt.thinking), tell_thoughts, calls: card.calls, tools };
    let streamed = generation.stream.is_some();
    let prompt = request.prompt.clone();
    let teller = Box::new(Teller::new(generation, reading, prompt, chosen.name, context.clone()));
    Ok(Job { requests: vec![request], events_max, streamed, teller })
}

/// What a model says about what a client gave it, about this field.
pub fn refused(error: ModelError, field: &str) -> Refusal {
    match error {
        ModelError::Asked(message) | ModelError::Missing(message) => Refusal::field(field, message),
        ModelError::Failed(message) => Refusal::failure(message),
    }
}

struct One {
    answer: Answer,
    content: String,
    thought: String,
    /// Id, name, arguments.
    calls: Vec<(String, String, String)>,
    logprobs: Vec<Value>,
    /// Of `logprobs`, how many have been sent.
    sent: usize,
    ids: Vec<u32>,
    finish: (Option<&'static str>, Value),
}

struct Teller {
    generation: Generation,
    reading: Reading,
    prompt: Vec<u32>,
    model: String,
    context: Context,
    id: String,
    choices: Vec<One>,
    prompt_logprobs: Value,
    usage: Usage,
}

impl Teller {
    fn new(generation: Generation, reading: Reading, prompt: Vec<u32>, model: String, context: Context) -> Self {
        let one = || One {
            answer: Answer::new(&reading),
            content: String::new(),
            thought: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            sent: 0,
            ids: Vec::new(),
            finish: (None, Value::Null),
        };
        let id = generation.request_id.as_ref().map(|id| format!("chatcmpl-{id}"));
        let id = id.unwrap_or_else(|| context.ids.with("chatcmpl-"));
        let choices = (0..generation.choices).map(|_| one()).collect();
        let usage = Usage { prompt_tokens: prompt.len(), ..Usage::default() };
        Self { generation, reading, prompt, model, context, id, choices, prompt_logprobs: Value::Null, usage }
    }

    fn token(&mut self, choice: usize, id: u32, text: &str, position: Option<&Logprobs>) -> Vec<Chunk> {
        let told = self.generation.told;
        let model = &*self.context.model;
        let one = &mut self.choices[choice];
        one.logprobs.extend(position.map(|position| logprobs::chat(model, position, told)));
        if told.ids {
            one.ids.push(id);
        }
        let said = one.answer.token(text, model.card().markers.get(&id));
        self.say(choice, said)
    }

    fn say(&mut self, choice: usize, said: Vec<Said>) -> Vec<Chunk> {
        let streamed = self.generation.stream.is_some();
        let mut chunks = Vec::new();
        for said in said {
            let one = &mut self.choices[choice];
            let delta = match said {
                Said::Thought(text) => {
                    one.thought.push_str(&text);
                    json!({ "reasoning_content": text })
                }
                Said::Content(text) => {
                    one.content.push_str(&text);
                    json!({ "content": text })
                }
                Said::Call { index, name } => {
                    let id = self.context.ids.call(self.reading.calls);
                    let mut call = answer::call(&id, &name, "");
                    call["index"] = index.into();
                    one.calls.push((id, name, String::new()));
                    json!({ "tool_calls": [call] })
                }
                Said::Arguments { index, text } => {
                    one.calls[index].2.push_str(&text);
                    json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
                }
            };
            if streamed {
                chunks.push(self.chunk(choice, delta));
            }
        }
        chunks
    }

    fn chunk(&mut self, choice: usize, delta: Value) -> Chunk {
        let one = &mut self.choices[choice];
        let unsent = &one.logprobs[one.sent..];
        let logprobs = if unsent.is_empty() { Value::Null } else { json!({ "content": unsent, "refusal": null }) };
        one.sent = one.logprobs.len();
        let mut told = json!({ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": one.finish.0 });
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
            "id": self.id, "object": "chat.completion.chunk", "created": self.context.now, "model": self.model,
            "system_fingerprint": null, "choices": choices,
        });
        if stream.usage_always || (stream.usage && last) {
            chunk["usage"] = self.usage();
        } else if stream.usage {
            chunk["usage"] = Value::Null;
        }
        Chunk::unnamed(&chunk)
    }

    fn usage(&self) -> Value {
        let told: usize = self.choices.iter().map(|one| one.answer.tokens).sum();
        let usage = Usage { completion_tokens: self.usage.completion_tokens.max(told), ..self.usage };
        answer::usage(usage, self.choices.iter().map(|one| one.answer.thought_tokens).sum())
    }
}

impl Tell for Teller {
    fn hear(&mut self, _: usize, event: Event) -> Vec<Chunk> {
        match event {
            Event::Prompt { logprobs } => {
                if self.generation.prompt_logprobs.is_some() {
                    self.prompt_logprobs = logprobs::prompt(&*self.context.model, &logprobs);
                }
                let first = json!({ "role": "assistant", "content": "" });
                let streamed = 0..if self.generation.stream.is_some() { self.choices.len() } else { 0 };
                streamed.map(|choice| self.chunk(choice, first.clone())).collect()
            }
            Event::Token { choice, id, text, logprobs } => self.token(choice, id, &text, logprobs.as_ref()),
            Event::Finished { choice, text, reason } => {
                let one = &mut self.choices[choice];
                let mut said = one.answer.text(&text);
                said.extend(one.answer.finish());
                let mut chunks = self.say(choice, said);
                let one = &mut self.choices[choice];
                let (reason, stop) = answer::finish_reason(&reason, one.answer.called(), &self.reading.tools.choice);
                one.finish = (Some(reason), stop);
                if self.generation.stream.is_some() {
                    chunks.push(self.chunk(choice, json!({})));
                }
                chunks
            }
            Event::Done { usage } => {
                self.usage = usage;
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
        let wanted = self.generation.logprobs.is_some();
        let ids = self.generation.told.ids;
        let choices = self.choices.iter_mut().enumerate().map(|(index, one)| {
            let content = if one.content.is_empty() && !one.calls.is_empty() { None } else { Some(&one.content) };
            let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
            if !one.thought.is_empty() {
                message["reasoning_content"] = one.thought.as_str().into();
            }
            if !one.calls.is_empty() {
                message["tool_calls"] = one.calls.iter().map(|(id, name, text)| answer::call(id, name, text)).collect();
            }
            let logprobs = std::mem::take(&mut one.logprobs);
            let logprobs = if wanted { json!({ "content": logprobs, "refusal": null }) } else { Value::Null };
            let mut told = json!({
                "index": index, "message": message, "logprobs": logprobs,
                "finish_reason": one.finish.0, "stop_reason": one.finish.1,
            });
            if ids {
                told["token_ids"] = std::mem::take(&mut one.ids).into();
            }
            told
        });
        let choices: Vec<Value> = choices.collect();
        let mut whole = json!({
            "id": self.id, "object": "chat.completion", "created": self.context.now, "model": self.model,
            "system_fingerprint": null, "choices": choices, "usage": usage,
        });
        if self.generation.prompt_logprobs.is_some() {
            whole["prompt_logprobs"] = std::mem::take(&mut self.prompt_logprobs);
        }
        if ids {
            whole["prompt_token_ids"] = self.prompt.clone().into();
        }
        whole
    }
}
