//! A model behind OpenAI's chat completions, wherever that is. Answers are streamed.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{Answer, Chat, ChatError, Delta, sse::Events};
use crate::{
    client::{self, root_cause},
    event::ToolSpec,
    message::Message,
    run::{Ask, Calls},
    settings::ModelSettings,
};

mod assemble;

use assemble::Assembly;

/// Bytes of one event of an answer: arguments of a call may come in one.
const EVENT_BYTES: usize = 4 << 20;
/// Bytes of a refusal that are read.
const REFUSAL_BYTES: usize = 64 << 10;
/// Of it that people are told.
const TOLD_BYTES: usize = 500;

/// How often and when it is asked again that is busy or away.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Tries in all.
    pub tries: u32,
    /// Before the second; each wait is twice the one before.
    pub first: Duration,
    /// The longest wait, also when its server asks for more.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { tries: 6, first: Duration::from_millis(500), longest: Duration::from_secs(20) }
    }
}

impl Backoff {
    /// The wait after so many failures, of a server that asks for `wanted`.
    pub fn wait(&self, failures: u32, wanted: Option<Duration>) -> Option<Duration> {
        let doubled = 2u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.first.saturating_mul(doubled).max(wanted.unwrap_or_default());
        (failures < self.tries).then_some(wait.min(self.longest))
    }
}

/// A model at an address.
pub struct OpenAi {
    url: String,
    name: String,
    key: Option<String>,
    parameters: Map<String, Value>,
    backoff: Backoff,
    client: Client,
}

impl OpenAi {
    /// As it is written, with further fields of each request.
    ///
    /// # Errors
    /// What it lacks.
    pub fn new(settings: &ModelSettings, parameters: Map<String, Value>, backoff: Backoff) -> Result<Self, String> {
        let held = |name: &String| std::env::var(name).map_err(|_| format!("the variable {name} is not set"));
        Ok(Self {
            url: format!("{}/chat/completions", settings.url.trim_end_matches('/')),
            name: settings.name.clone(),
            key: settings.key_env.as_ref().map(held).transpose()?,
            parameters,
            backoff,
            client: client::http(Duration::from_secs(settings.silence_s))?,
        })
    }

    /// Asks until there is an answer, its status told; nothing of it is read yet.
    async fn ask(&self, body: &Value) -> Result<Response, ChatError> {
        let mut failures = 0;
        loop {
            let mut request = self.client.post(&self.url).json(body);
            if let Some(key) = &self.key {
                request = request.bearer_auth(key);
            }
            let (found, wanted) = match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let (status, wanted) = (answer.status(), retry_after(&answer));
                    let found = refusal(status, answer).await;
                    if !is_passing(status) {
                        return Err(ChatError::Fatal(found));
                    }
                    (found, wanted)
                }
                Err(e) if e.is_builder() => return Err(ChatError::Fatal(root_cause(&e))),
                Err(e) => (format!("no answer from {}: {}", self.url, root_cause(&e)), None),
            };
            failures += 1;
            // The run may ask again, with what patience it has.
            let wait = self.backoff.wait(failures, wanted).ok_or(ChatError::Retryable(found))?;
            tokio::time::sleep(wait).await;
        }
    }
}

/// The body of a question, with further fields of its own.
pub fn body(model: &str, parameters: &Map<String, Value>, ask: &Ask, tools: &[ToolSpec]) -> Value {
    let mut body = parameters.clone();
    let asked = body.get("max_tokens").and_then(Value::as_u64).unwrap_or(u64::MAX);
    body.insert("model".into(), model.into());
    body.insert("messages".into(), ask.messages.iter().map(Message::to_openai).collect());
    body.insert("max_tokens".into(), ask.max_tokens.min(asked).into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    if !tools.is_empty() {
        let tool = |tool: &ToolSpec| {
            let function = json!({ "name": tool.name, "description": tool.description, "parameters": tool.schema });
            json!({ "type": "function", "function": function })
        };
        body.insert("tools".into(), tools.iter().map(tool).collect());
        let choice = match ask.calls {
            Calls::None => "none",
            Calls::Allowed => "auto",
            Calls::Required => "required",
        };
        body.insert("tool_choice".into(), choice.into());
    }
    Value::Object(body)
}

/// An answer whose bytes come, over whatever line.
pub struct Reading {
    events: Events,
    assembly: Assembly,
}

impl Default for Reading {
    fn default() -> Self {
        Self { events: Events::new(EVENT_BYTES), assembly: Assembly::default() }
    }
}

impl Reading {
    /// More of it; says whether it is whole.
    ///
    /// # Errors
    /// What is no answer, or one that says it failed.
    pub fn take(&mut self, bytes: &[u8], tell: &(dyn Fn(Delta) + Send + Sync)) -> Result<bool, ChatError> {
        let mut pieces = Vec::new();
        let read = self.events.take(bytes, |data| pieces.push(data));
        for data in pieces {
            self.assembly.take(&data, tell)?;
        }
        read.map_err(|e| ChatError::Fatal(format!("the answer is no answer: {e}")))?;
        Ok(self.assembly.is_done())
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// It is not whole.
    pub fn end(self) -> Result<Answer, ChatError> {
        self.assembly.end()
    }
}

#[async_trait]
impl Chat for OpenAi {
    async fn answer(
        &self,
        ask: &Ask,
        tools: &[ToolSpec],
        tell: &(dyn Fn(Delta) + Send + Sync),
    ) -> Result<Answer, ChatError> {
        let mut answer = self.ask(&body(&self.name, &self.parameters, ask, tools)).await?;
        let mut reading = Reading::default();
        loop {
            let broken = |e: reqwest::Error| ChatError::Retryable(format!("the answer broke off: {}", root_cause(&e)));
            let Some(bytes) = answer.chunk().await.map_err(broken)? else { break };
            if reading.take(&bytes, tell)? {
                break;
            }
        }
        reading.end()
    }
}

/// It may pass.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504)
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn refusal(status: StatusCode, answer: Response) -> String {
    let (body, _) = client::body(answer, REFUSAL_BYTES).await.unwrap_or_default();
    let said = serde_json::from_slice::<Value>(&body).ok().and_then(|body| {
        let error = body.get("error")?;
        error.get("message").or(Some(error))?.as_str().map(str::to_owned)
    });
    let mut said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    said.truncate(said.floor_char_boundary(TOLD_BYTES));
    format!("the model's server answers {status}: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let ms = Duration::from_millis;
        let backoff = Backoff { tries: 5, first: ms(100), longest: ms(300) };
        let waits: Vec<_> = (1..=5).map(|failures| backoff.wait(failures, None)).collect();
        assert_eq!(waits, [Some(ms(100)), Some(ms(200)), Some(ms(300)), Some(ms(300)), None]);
        assert_eq!(backoff.wait(1, Some(ms(250))), Some(ms(250)));
        assert_eq!(backoff.wait(1, Some(ms(9000))), Some(ms(300)));
    }
}
