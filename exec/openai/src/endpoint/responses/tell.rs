//! How a response is told: items one after the other, each with a beginning, pieces and an end.

use mloc_engine::request::{Event, FinishReason, Logprobs, Usage};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Reading, Said},
    calls::Format,
    endpoint::Context,
    generation::Generation,
    logprobs,
    refusal::Refusal,
    tell::{Chunk, Tell},
};

/// The item that is being told.
enum Open {
    Thought { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<Value> },
    Call { id: String, call: String, name: String, arguments: String },
}

pub(super) struct Teller {
    generation: Generation,
    format: Option<Format>,
    repeated: Map<String, Value>,
    model: String,
    context: Context,
    id: String,
    answer: Answer,
    open: Option<Open>,
    /// Items that are whole.
    output: Vec<Value>,
    /// Log-probabilities of tokens whose text has not come yet.
    logprobs: Vec<Value>,
    usage: Option<Usage>,
    reason: Option<FinishReason>,
    error: Option<Value>,
    sequence: u64,
}

impl Teller {
    pub(super) fn new(
        generation: Generation,
        reading: &Reading,
        repeated: Map<String, Value>,
        model: String,
        context: Context,
    ) -> Self {
        let id = generation.request_id.as_ref().map(|id| format!("resp_{id}"));
        Self {
            format: reading.calls,
            repeated,
            model,
            id: id.unwrap_or_else(|| context.ids.with("resp_")),
            context,
            answer: Answer::new(reading),
            generation,
            open: None,
            output: Vec::new(),
            logprobs: Vec::new(),
            usage: None,
            reason: None,
            error: None,
            sequence: 0,
        }
    }

    fn event(&mut self, kind: &'static str, said: Value) -> Chunk {
        let mut event = Map::new();
        event.insert("type".into(), kind.into());
        event.insert("sequence_number".into(), self.sequence.into());
        if let Value::Object(said) = said {
            event.extend(said);
        }
        self.sequence += 1;
        Chunk { event: Some(kind), data: Value::Object(event).to_string() }
    }

    fn status(&self) -> &'static str {
        match (&self.error, &self.reason) {
            (Some(_), _) => "failed",
            (None, Some(FinishReason::Length)) => "incomplete",
            (None, Some(_)) => "completed",
            (None, None) => "in_progress",
        }
    }

    fn response(&self) -> Value {
        let status = self.status();
        let usage = self.usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": { "reasoning_tokens": self.answer.thought_tokens },
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            })
        });
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.context.now,
            "completed_at": if status == "completed" { Some(self.context.now) } else { None },
            "status": status, "error": self.error,
            "incomplete_details": if status == "incomplete" { json!({ "reason": "max_output_tokens" }) } else { Value::Null },
            "model": self.model, "output": self.output, "usage": usage,
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.repeated.clone());
        }
        response
    }

    fn say(&mut self, said: Vec<Said>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for said in said {
            match said {
                Said::Thought(more) => {
                    if !matches!(self.open, Some(Open::Thought { .. })) {
                        self.begin(|ids| Open::Thought { id: ids("rs_"), text: String::new() }, &mut chunks);
                    }
                    let at = self.output.len();
                    if let Some(Open::Thought { id, text }) = &mut self.open {
                        text.push_str(&more);
                        let delta = json!({ "item_id": id, "output_index": at, "content_index": 0, "delta": more });
                        chunks.push(self.event("response.reasoning_text.delta", delta));
                    }
                }
                Said::Content(more) => {
                    if !matches!(self.open, Some(Open::Message { .. })) {
                        self.begin(
                            |ids| Open::Message { id: ids("msg_"), text: String::new(), logprobs: Vec::new() },
                            &mut chunks,
                        );
                    }
                    let at = self.output.len();
                    if let Some(Open::Message { id, text, logprobs }) = &mut self.open {
                        text.push_str(&more);
                        let own = std::mem::take(&mut self.logprobs);
                        logprobs.extend(own.iter().cloned());
                        let delta = json!({
                            "item_id": id, "output_index": at, "content_index": 0, "delta": more, "logprobs": own,
                        });
                        chunks.push(self.event("response.output_text.delta", delta));
                    }
                }
                Said::Call { name, .. } => {
                    let call = self.context.ids.call(self.format);
                    self.begin(|ids| Open::Call { id: ids("fc_"), call, name, arguments: String::new() }, &mut chunks);
                }
                Said::Arguments { text, .. } => {
                    let at = self.output.len();
                    if let Some(Open::Call { id, arguments, .. }) = &mut self.open {
                        arguments.push_str(&text);
                        let delta = json!({ "item_id": id, "output_index": at, "delta": text });
                        chunks.push(self.event("response.function_call_arguments.delta", delta));
                    }
                }
            }
        }
        chunks
    }

    fn begin(&mut self, open: impl FnOnce(&dyn Fn(&str) -> String) -> Open, chunks: &mut Vec<Chunk>) {
        self.end(chunks);
        let ids = self.context.ids.clone();
        let open = open(&|prefix| ids.with(prefix));
        let at = self.output.len();
        let mut item = item(&open, "in_progress");
        item["content"] = if matches!(open, Open::Call { .. }) { Value::Null } else { json!([]) };
        if let (Open::Call { .. }, Value::Object(item)) = (&open, &mut item) {
            item.shift_remove("content");
        }
        chunks.push(self.event("response.output_item.added", json!({ "output_index": at, "item": item })));
        let part = match &open {
            Open::Thought { id, .. } => Some((id, json!({ "type": "reasoning_text", "text": "" }))),
            Open::Message { id, .. } => Some((id, output_text("", &[]))),
            Open::Call { .. } => None,
        };
        if let Some((id, part)) = part {
            let said = json!({ "item_id": id, "output_index": at, "content_index": 0, "part": part });
            chunks.push(self.event("response.content_part.added", said));
        }
        self.open = Some(open);
    }

    /// What is open is whole, or as whole as it gets.
    fn end(&mut self, chunks: &mut Vec<Chunk>) {
        let Some(open) = self.open.take() else {
            return;
        };
        let at = self.output.len();
        let mut part_done = |teller: &mut Self, kind, id: &str, said: Value, part: Value| {
            let place = json!({ "item_id": id, "output_index": at, "content_index": 0 });
            let with = |more: Value| match (place.clone(), more) {
                (Value::Object(mut place), Value::Object(more)) => {
                    place.extend(more);
                    Value::Object(place)
                }
                (place, _) => place,
            };
            chunks.push(teller.event(kind, with(said)));
            chunks.push(teller.event("response.content_part.done", with(json!({ "part": part }))));
        };
        match &open {
            Open::Thought { id, text } => {
                let part = json!({ "type": "reasoning_text", "text": text });
                part_done(self, "response.reasoning_text.done", id, json!({ "text": text }), part);
            }
            Open::Message { id, text, logprobs } => {
                let said = json!({ "text": text, "logprobs": logprobs });
                part_done(self, "response.output_text.done", id, said, output_text(text, logprobs));
            }
            Open::Call { id, name, arguments, .. } => {
                let said = json!({ "item_id": id, "output_index": at, "name": name, "arguments": arguments });
                chunks.push(self.event("response.function_call_arguments.done", said));
            }
        }
        // Only the last item can have been cut off.
        let whole = if self.status() == "incomplete" { "incomplete" } else { "completed" };
        let item = item(&open, whole);
        chunks.push(self.event("response.output_item.done", json!({ "output_index": at, "item": item })));
        self.output.push(item);
    }
}

fn output_text(text: &str, logprobs: &[Value]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
}

fn item(open: &Open, status: &str) -> Value {
    match open {
        Open::Thought { id, text } => json!({
            "id": id, "type": "reasoning", "status": status, "summary": [],
            "content": [{ "type": "reasoning_text", "text": text }], "encrypted_content": null,
        }),
        Open::Message { id, text, logprobs } => json!({
            "id": id, "type": "message", "status": status, "role": "assistant", "content": [output_text(text, logprobs)],
        }),
        Open::Call { id, call, name, arguments } => json!({
            "id": id, "type": "function_call", "status": status, "call_id": call, "name": name, "arguments": arguments,
        }),
    }
}

impl Tell for Teller {
    fn open(&mut self) -> Vec<Chunk> {
        let said = json!({ "response": self.response() });
        vec![self.event("response.created", said.clone()), self.event("response.in_progress", said)]
    }

    fn hear(&mut self, _: usize, event: Event) -> Vec<Chunk> {
        match event {
            Event::Prompt { .. } | Event::Failed(_) => Vec::new(),
            Event::Token { id, text, logprobs, .. } => {
                self.note(logprobs.as_ref());
                let said = self.answer.token(&text, self.context.model.card().markers.get(&id));
                self.say(said)
            }
            Event::Finished { text, reason, .. } => {
                let mut said = self.answer.text(&text);
                said.extend(self.answer.finish());
                let mut chunks = self.say(said);
                self.reason = Some(reason);
                self.end(&mut chunks);
                // An answer without a word is still one.
                if self.output.is_empty() {
                    self.begin(
                        |ids| Open::Message { id: ids("msg_"), text: String::new(), logprobs: Vec::new() },
                        &mut chunks,
                    );
                    self.end(&mut chunks);
                }
                chunks
            }
            Event::Done { usage } => {
                self.usage = Some(usage);
                Vec::new()
            }
        }
    }

    fn close(&mut self) -> Vec<Chunk> {
        let kind = if self.status() == "incomplete" { "response.incomplete" } else { "response.completed" };
        let said = json!({ "response": self.response() });
        vec![self.event(kind, said), Chunk::done()]
    }

    fn fail(&mut self, refusal: &Refusal) -> Vec<Chunk> {
        let code = refusal.code.unwrap_or("server_error");
        self.error = Some(json!({ "code": code, "message": refusal.message }));
        let said = json!({ "response": self.response() });
        vec![self.event("response.failed", said)]
    }

    fn whole(&mut self) -> Value {
        self.response()
    }
}

impl Teller {
    fn note(&mut self, position: Option<&Logprobs>) {
        let (model, told) = (&*self.context.model, self.generation.told);
        // Bytes are a list here even where there are none.
        let said = position.map(|position| logprobs::chat(model, position, told));
        self.logprobs.extend(said);
    }
}
